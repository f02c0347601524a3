"""Learning rates as pure functions of the samples seen: no state to save, no dependence on batch or world."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from data_shards.errors import InputError


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter 2019).

    Attributes:
        lr: peak learning rate.
        warmup_samples: of linear warm-up.
        decay: 'cosine' to a hundredth of the peak, or 'constant'.
        decay_samples: where the decay ends, and the rate stays as it is; 0: at the end of the run, loop.samples, so that a run that is
            made longer goes back up to the rate that the longer decay has there.
    """

    lr: float = 2e-4
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.0
    warmup_samples: int = 0
    decay: Literal["cosine", "constant"] = "constant"
    decay_samples: int = 0

    def __post_init__(self) -> None:
        if not (0 < self.lr < math.inf and 0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise InputError(f"lr {self.lr}, betas ({self.beta1}, {self.beta2})", where="optimizer", expected="lr > 0, betas in [0, 1)")
        if not (self.weight_decay >= 0 and self.warmup_samples >= 0 and self.decay_samples >= 0):
            raise InputError(
                f"weight_decay {self.weight_decay}, warmup_samples {self.warmup_samples}, decay_samples {self.decay_samples}",
                where="optimizer",
                expected="0 or more of each",
            )


def learning_rate(samples: int, total: int, config: OptimizerConfig) -> float:
    """Rate after `samples` of `total`, where the decay ends unless the configuration says."""
    warm = min(1.0, (samples + 1) / config.warmup_samples) if config.warmup_samples else 1.0
    if config.decay == "constant":
        return config.lr * warm
    return config.lr * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(samples / (config.decay_samples or total), 1.0))))
