"""Exponential moving average of weights, its horizon stated in samples, so that batch size and world do not matter."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data_shards.errors import InputError


@dataclass(frozen=True, kw_only=True)
class EMAConfig:
    """Attributes:
    halflife_samples: after so many samples an old weight counts half; 0 turns the average off.
    rampup: the half-life is at most this share of the samples seen, so that the start is forgotten (Karras et al. 2024).
    """

    halflife_samples: float = 2000.0
    rampup: float = 0.1

    def __post_init__(self) -> None:
        if not (self.halflife_samples >= 0 and self.rampup > 0):
            raise InputError(
                f"halflife_samples {self.halflife_samples}, rampup {self.rampup}", where="ema", expected="at least 0, and above 0"
            )


def decay_at(samples: int, batch: int, config: EMAConfig) -> float:
    """Decay for one step of `batch` samples after `samples` seen: a pure function of position."""
    halflife = min(config.halflife_samples, max(samples, 1) * config.rampup)
    return 0.5 ** (batch / max(halflife, 1e-8)) if halflife > 0 else 0.0


class EMA:
    """fp32 averages of a module's floating-point state."""

    def __init__(self, module: nn.Module) -> None:
        self.average = {k: v.detach().float().clone() for k, v in module.state_dict().items() if v.is_floating_point()}

    @torch.no_grad()
    def update(self, module: nn.Module, decay: float) -> None:
        for name, value in module.state_dict().items():
            if name in self.average:
                self.average[name].lerp_(value.float(), 1 - decay)

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        return {f"{prefix}.{k}": v for k, v in self.average.items()}

    def load(self, state: dict[str, Tensor], prefix: str) -> None:
        for name, average in self.average.items():
            average.copy_(state[f"{prefix}.{name}"])

    @contextlib.contextmanager
    def applied(self, module: nn.Module) -> Iterator[nn.Module]:
        """The module with averaged weights, inside the block."""
        own = {k: v.detach().clone() for k, v in module.state_dict().items()}
        module.load_state_dict({**own, **{k: v.to(own[k].dtype) for k, v in self.average.items()}})
        try:
            yield module
        finally:
            module.load_state_dict(own)
