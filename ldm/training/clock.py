"""Where the time of a training goes: seconds by phase, samples a second, floating-point operations, and a trace of some steps."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

TIMINGS = ("samples_per_s", "speed/", "time/")
"""How the names of logged values begin that differ from run to run."""


class Clock:
    """Adds up wall time by phase. On a GPU events mark the phases, read only when a row is logged: nothing waits in between.

    Args:
        entered: called with the name of each phase as it begins.
    """

    def __init__(self, device: torch.device, entered: Callable[[str], None] = lambda phase: None) -> None:
        self.cuda, self.entered = device.type == "cuda", entered
        self.restart()

    def restart(self) -> None:
        self.began = time.perf_counter()
        self.seconds: dict[str, float] = {}
        self.marks: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time the block under this name."""
        self.entered(phase)
        if self.cuda:
            before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            before.record()
            yield
            after.record()
            self.marks.append((phase, before, after))
            return
        began = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - began

    def row(self, samples: int) -> dict[str, float]:
        """Samples a second and the share of each phase since the last row; starts anew."""
        for phase, before, after in self.marks:
            after.synchronize()
            self.seconds[phase] = self.seconds.get(phase, 0.0) + before.elapsed_time(after) / 1000
        wall = max(time.perf_counter() - self.began, 1e-9)
        row = {"samples_per_s": samples / wall, **{f"time/{phase}": seconds / wall for phase, seconds in sorted(self.seconds.items())}}
        self.restart()
        return row


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
        with _Flops() as counter:
            yield
        self.per_sample, self.wanted = counter.total / samples, False

    def trained(self, networks: set[str]) -> None:
        """What a loss was given for in this step."""
        if self.networks is not None and networks != self.networks:
            self.wanted = True
        self.networks = networks

    def row(self, samples_per_s: float, world: int) -> dict[str, float]:
        flops_per_s = self.per_sample * samples_per_s
        return {"speed/model_flops_per_s": flops_per_s, "speed/utilisation": flops_per_s / (self.peak * world)}


class _Flops(TorchDispatchMode):
    """Adds up by torch's own formulas. (FlopCounterMode hooks modules too, which `autograd.grad` in a loss does not bear.)"""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


def matmul_flops_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """Best of some square matrix products on this device."""
    n = 8192 if device.type == "cuda" else 768
    a, best = torch.ones(n, n, device=device, dtype=dtype), 0.0
    for _ in range(5):
        began = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 2 * n**3 / (time.perf_counter() - began))
    return best


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
