"""Exponential moving average of weights, its horizon stated in samples, so that batch size and world do not matter."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoints.store import Fragment, Reader, State
from ldm.training.config import EMAConfig


def decay_at(samples: int, batch: int, config: EMAConfig) -> float:
    """Decay for one step of `batch` samples after `samples` seen: a pure function of position."""
    halflife = min(config.halflife_samples, max(samples, 1) * config.rampup)
    return 0.5 ** (batch / max(halflife, 1e-8)) if halflife > 0 else 0.0


class EMA:
    """fp32 averages of weights, each rank of those it holds.

    Args:
        weights: by name, live: whole tensors, or this rank's stretches of them.
    """

    def __init__(self, weights: State) -> None:
        self.weights, self.average = weights, {}
        for name, value in weights.items():
            average = _values(value).detach().float().clone()
            self.average[name] = replace(value, values=average) if isinstance(value, Fragment) else average

    @torch.no_grad()
    def update(self, decay: float) -> None:
        weights = [_values(value).float() for value in self.weights.values()]
        torch._foreach_lerp_([_values(average) for average in self.average.values()], weights, 1 - decay)

    @contextlib.contextmanager
    def exchanged(self) -> Iterator[None]:
        """Weights and averages in each other's place while the block runs."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, average in self.average.items():
            mine, theirs = _values(average), _values(self.weights[name])
            held = theirs.clone()
            theirs.copy_(mine)
            mine.copy_(held)

    def state(self, prefix: str) -> State:
        return {f"{prefix}.{k}": v for k, v in self.average.items()}

    def load(self, read: Reader, prefix: str) -> None:
        for name, average in self.average.items():
            if isinstance(average, Fragment):
                stop = average.start + len(average.values)
                average.values.copy_(read(f"{prefix}.{name}", shape=average.shape, start=average.start, stop=stop))
            else:
                average.copy_(read(f"{prefix}.{name}", shape=average.shape))


@contextlib.contextmanager
def in_place(ema: EMA, network: Any) -> Iterator[None]:
    """The averages in the place of the weights of this network of the engine while the block runs."""
    with ema.exchanged():
        network.refresh()
        yield
    network.refresh()


def _values(value: Tensor | Fragment) -> Tensor:
    return value.values if isinstance(value, Fragment) else value
