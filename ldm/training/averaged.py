"""What trainers of one network share whose averaged weights are what is used: everything but the loss."""

from __future__ import annotations

import contextlib

from torch import nn

from ldm.checkpoints.store import Reader, State
from ldm.schedules import OptimizerConfig, learning_rate
from ldm.training.config import EMAConfig
from ldm.training.ema import EMA, decay_at, in_place
from ldm.training.engine import Engine


class AveragedTrainer:
    """One network of the engine, by its name, and the average of its weights.

    Args:
        total: samples of the whole training, over which the learning rate decays.
    """

    USED = ("ema.",)

    def __init__(self, engine: Engine, name: str, module: nn.Module, *, optimizer: OptimizerConfig, ema: EMAConfig, total: int) -> None:
        self.engine, self.name, self.module, self.optimizer, self.ema_config, self.total = engine, name, module, optimizer, ema, total
        betas = optimizer.beta1, optimizer.beta2
        self.network = engine.add(name, module, lr=optimizer.lr, betas=betas, weight_decay=optimizer.weight_decay)
        self.ema = EMA(engine.networks[name].masters())

    def after_step(self, samples: int, batch: int, *, skipped: bool) -> dict[str, float]:
        """Moves the average of the weights; a skipped step leaves it untouched."""
        if not skipped:
            self.ema.update(decay_at(samples + batch, batch, self.ema_config))
        return {}

    def as_loaded(self) -> contextlib.AbstractContextManager[None]:
        """The averaged weights in the place of those of the last step."""
        return in_place(self.ema, self.engine.networks[self.name])

    def taking_part(self, samples: int) -> tuple[str, ...]:
        return (self.name,)

    def may_be_best(self, samples: int) -> bool:
        return True

    def start_epoch(self, epoch: int) -> dict[str, float]:
        return {}

    def learning_rates(self, samples: int) -> dict[str, float]:
        return {self.name: learning_rate(samples, self.total, self.optimizer)}

    def state(self) -> State:
        """The averaged weights."""
        return self.ema.state("ema")

    def load(self, read: Reader) -> None:
        """The inverse of `state`."""
        self.ema.load(read, "ema")
