"""What a training computes: floating-point operations of its steps, beside what the device can do, and a trace of some of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from ldm.speed import OperationCounter, matmul_flops_per_s

TIMINGS = ("samples_per_s", "speed/", "time/")
"""How the names of logged values begin that differ from run to run."""


class Work:
    """Floating-point operations of a training step: forward and backward of matrix products and convolutions, counted once.

    Counted anew when other networks are trained, as when a discriminator joins. Utilisation is the share of what a bare matrix
    product reaches on this device in the same precision.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.per_sample, self.networks, self.wanted = 0.0, None, True
        self.peak = matmul_flops_per_s(device, dtype)

    @contextlib.contextmanager
    def counted(self, samples: int) -> Iterator[None]:
        """Around forward and backward of a micro batch of so many samples."""
        if not self.wanted:
            yield
            return
        with OperationCounter() as counter:
            yield
        self.per_sample, self.wanted = counter.flops / samples, False

    def trained(self, networks: set[str]) -> None:
        """What a loss was given for in this step."""
        if self.networks is not None and networks != self.networks:
            self.wanted = True
        self.networks = networks

    def row(self, samples_per_s: float, world: int) -> dict[str, float]:
        flops_per_s = self.per_sample * samples_per_s
        return {"speed/model_flops_per_s": flops_per_s, "speed/utilisation": flops_per_s / (self.peak * world)}


@contextlib.contextmanager
def traced(path: Path | None, *, skip: int = 3, steps: int = 3) -> Iterator[Callable[[], None]]:
    """Write a Chrome trace of some steps (chrome://tracing, Perfetto) to `path`; yields what is to be called after each step."""
    if path is None:
        yield lambda: None
        return
    schedule = torch.profiler.schedule(wait=skip - 1, warmup=1, active=steps, repeat=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.profiler.profile(schedule=schedule, on_trace_ready=lambda profile: profile.export_chrome_trace(str(path))) as profile:
        yield profile.step
