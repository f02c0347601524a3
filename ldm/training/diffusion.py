"""Trainer of the latent diffusion.

Legend: B batch, D latent channel.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_shards.reading.batch import Batch
from ldm.models.config import ObjectiveConfig
from ldm.models.objective import clean, noised, schedule
from ldm.normalise import LatentNormaliser
from ldm.schedules import OptimizerConfig
from ldm.training.averaged import AveragedTrainer
from ldm.training.config import EMAConfig
from ldm.training.engine import Engine
from ldm.training.monitor import DecodedMonitor


class DiffusionTrainer(AveragedTrainer):
    """Denoising loss on cached latents; noise and time are functions of (seed, global position).

    Args:
        alignment: weight of the cosine distance between what the denoiser's head makes of its middle and `maps_of` the batch's cubes
            (REPA: Yu et al. 2025, eq. 8; in the middle of a U-Net: Tian et al. 2025).
        monitor: looks at what a few latents of validation decode to; None: nothing does.
    """

    def __init__(
        self,
        engine: Engine,
        denoiser: nn.Module,
        normaliser: LatentNormaliser,
        *,
        objective: ObjectiveConfig,
        optimizer: OptimizerConfig,
        ema: EMAConfig,
        total: int,
        seed: int,
        alignment: float = 0.0,
        maps_of: Callable[[Batch], Tensor] | None = None,
        monitor: DecodedMonitor | None = None,
    ) -> None:
        super().__init__(engine, "denoiser", denoiser, optimizer=optimizer, ema=ema, total=total)
        self.objective, self.seed, self.normaliser = objective, seed, normaliser.to(engine.device)
        self.scheduler, self.monitor = schedule(objective.target), monitor
        self.alignment, self.maps_of = alignment, maps_of

    def losses(self, batch: Batch, samples: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Mean squared error of the objective's target."""
        z_BDHW = self.engine.laid_out(self.normaliser(batch.cubes_BCHW.to(self.engine.device)))
        x_BDHW, t_B, target = noised(z_BDHW, batch.position_B, self.objective, seed=self.seed, scheduler=self.scheduler)
        if self.maps_of is None:
            loss = F.mse_loss(self.network(x_BDHW, t_B).float(), target)
            return {"denoiser": loss}, {"loss/denoise": loss.detach()}
        predicted, middle_BKHW = self.network(x_BDHW, t_B)
        with torch.no_grad():
            maps_BKHW = F.adaptive_avg_pool2d(self.maps_of(batch).float(), middle_BKHW.shape[-2:])
        loss, away = F.mse_loss(predicted.float(), target), 1 - F.cosine_similarity(middle_BKHW.float(), maps_BKHW, dim=1).mean()
        return {"denoiser": loss + self.alignment * away}, {"loss/denoise": loss.detach(), "loss/alignment": away.detach()}

    def validate(self, batch: Batch, samples: int) -> dict[str, Tensor]:
        """The loss of each latent; noise and time are functions of (seed, sample)."""
        z_BDHW = self.engine.laid_out(self.normaliser(batch.cubes_BCHW.to(self.engine.device)))
        x_BDHW, t_B, target = noised(z_BDHW, batch.sample_B, self.objective, seed=self.seed + 1, scheduler=self.scheduler)
        self.module.eval()
        predicted = self.module(x_BDHW, t_B)
        predicted_BDHW = (predicted if self.maps_of is None else predicted[0]).float()
        self.module.train()
        values = {"loss": (predicted_BDHW - target).square().mean((1, 2, 3))}
        if self.monitor is not None:
            clean_BDHW = clean(x_BDHW, t_B, predicted_BDHW, self.objective, scheduler=self.scheduler)
            values |= self.monitor.sums(self.normaliser.latents(z_BDHW), self.normaliser.latents(clean_BDHW), batch.sample_B)
        return values
