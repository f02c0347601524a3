"""Where the time of a training goes: seconds by phase, samples a second."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch


class Clock:
    """Adds up wall time by phase. On a GPU events mark the phases, read only when a row is logged: nothing waits in between."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.restart()

    def restart(self) -> None:
        self.began = time.perf_counter()
        self.seconds: dict[str, float] = {}
        self.marks: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time the block under this name."""
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
