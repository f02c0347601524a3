"""Trainer of the latent diffusion.

Legend: B batch, D latent channel.
"""

from __future__ import annotations

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
        monitor: DecodedMonitor | None = None,
    ) -> None:
        super().__init__(engine, "denoiser", denoiser, optimizer=optimizer, ema=ema, total=total)
        self.objective, self.seed, self.normaliser = objective, seed, normaliser.to(engine.device)
        self.scheduler, self.monitor = schedule(objective.target), monitor

    def losses(self, batch: Batch, samples: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Mean squared error of the objective's target."""
        z_BDHW = self.engine.laid_out(self.normaliser(batch.cubes_BCHW.to(self.engine.device)))
        x_BDHW, t_B, target = noised(z_BDHW, batch.position_B, self.objective, seed=self.seed, scheduler=self.scheduler)
        loss = F.mse_loss(self.network(x_BDHW, t_B).float(), target)
        return {"denoiser": loss}, {"loss/denoise": loss.detach()}

    def validate(self, batch: Batch, samples: int) -> dict[str, Tensor]:
        """The loss of each latent; noise and time are functions of (seed, sample)."""
        z_BDHW = self.engine.laid_out(self.normaliser(batch.cubes_BCHW.to(self.engine.device)))
        x_BDHW, t_B, target = noised(z_BDHW, batch.sample_B, self.objective, seed=self.seed + 1, scheduler=self.scheduler)
        self.module.eval()
        predicted_BDHW = self.module(x_BDHW, t_B).float()
        self.module.train()
        values = {"loss": (predicted_BDHW - target).square().mean((1, 2, 3))}
        if self.monitor is not None:
            clean_BDHW = clean(x_BDHW, t_B, predicted_BDHW, self.objective, scheduler=self.scheduler)
            values |= self.monitor.sums(self.normaliser.latents(z_BDHW), self.normaliser.latents(clean_BDHW), batch.sample_B)
        return values
