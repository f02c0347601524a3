"""Trainer of the latent diffusion.

Legend: B batch, D latent channel.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from data_shards.reading.batch import Batch
from ldm.checkpoints.store import Reader, State
from ldm.models.config import ObjectiveConfig
from ldm.models.objective import noised, schedule
from ldm.normalise import LatentNormaliser
from ldm.schedules import OptimizerConfig, learning_rate
from ldm.training.config import EMAConfig
from ldm.training.ema import EMA, decay_at
from ldm.training.engine import Engine


class DiffusionTrainer:
    """Denoising loss on cached latents; noise and time are functions of (seed, global position)."""

    USED = ("ema.",)

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
    ) -> None:
        self.engine, self.objective, self.optimizer, self.ema_config, self.total, self.seed = engine, objective, optimizer, ema, total, seed
        self.denoiser = engine.add(
            "denoiser", denoiser, lr=optimizer.lr, betas=(optimizer.beta1, optimizer.beta2), weight_decay=optimizer.weight_decay
        )
        self.module, self.normaliser = denoiser, normaliser.to(engine.device)
        self.ema = EMA(engine.networks["denoiser"].masters())
        self.scheduler = schedule(objective.target)

    def losses(self, batch: Batch, samples: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Mean squared error of the objective's target."""
        z_BDHW = self.engine.laid_out(self.normaliser(batch.cubes_BCHW.to(self.engine.device)))
        x_BDHW, t_B, target = noised(z_BDHW, batch.position_B, self.objective, seed=self.seed, scheduler=self.scheduler)
        loss = F.mse_loss(self.denoiser(x_BDHW, t_B).float(), target)
        return {"denoiser": loss}, {"loss/denoise": loss.detach()}

    def validate(self, batch: Batch, samples: int) -> dict[str, Tensor]:
        """The loss of each latent; noise and time are functions of (seed, sample)."""
        z_BDHW = self.engine.laid_out(self.normaliser(batch.cubes_BCHW.to(self.engine.device)))
        x_BDHW, t_B, target = noised(z_BDHW, batch.sample_B, self.objective, seed=self.seed + 1, scheduler=self.scheduler)
        self.module.eval()
        error_BDHW = self.module(x_BDHW, t_B).float() - target
        self.module.train()
        return {"loss": error_BDHW.square().mean((1, 2, 3))}

    def after_step(self, samples: int, batch: int, *, skipped: bool) -> dict[str, float]:
        """Moves the average of the weights; a skipped step leaves it untouched."""
        if not skipped:
            self.ema.update(decay_at(samples + batch, batch, self.ema_config))
        return {}

    @contextlib.contextmanager
    def as_loaded(self) -> Iterator[None]:
        """The averaged weights in the place of those of the last step."""
        denoiser = self.engine.networks["denoiser"]
        with self.ema.exchanged():
            denoiser.refresh()
            yield
        denoiser.refresh()

    def taking_part(self, samples: int) -> tuple[str, ...]:
        return ("denoiser",)

    def may_be_best(self, samples: int) -> bool:
        return True

    def start_epoch(self, epoch: int) -> dict[str, float]:
        return {}

    def learning_rates(self, samples: int) -> dict[str, float]:
        return {"denoiser": learning_rate(samples, self.total, self.optimizer)}

    def state(self) -> State:
        """The averaged weights."""
        return self.ema.state("ema")

    def load(self, read: Reader) -> None:
        """The inverse of `state`."""
        self.ema.load(read, "ema")
