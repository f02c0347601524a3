"""How fast networks run: seconds by phase, floating-point operations, and what a bare matrix product reaches on the device."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class Clock:
    """Adds up wall time by phase. On a GPU events mark the phases, read once it has passed them: nothing waits in between.

    Args:
        entered: called with the name of each phase as it begins.
    """

    def __init__(self, device: torch.device, entered: Callable[[str], None] = lambda phase: None) -> None:
        self.cuda, self.entered = device.type == "cuda", entered
        self.restart()

    def restart(self) -> None:
        self.began = time.perf_counter()
        self._seconds: dict[str, float] = {}
        self.marks: deque[tuple[str, torch.cuda.Event, torch.cuda.Event]] = deque()

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
        self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - began

    def seconds(self) -> dict[str, float]:
        """Of each phase since the start; waits for those that a GPU is still about."""
        for _, _, after in self.marks:
            after.synchronize()
        self.gather()
        return self._seconds

    def gather(self) -> None:
        """Read the marks that a GPU has passed, and let go of them."""
        while self.marks and self.marks[0][2].query():
            phase, before, after = self.marks.popleft()
            self._seconds[phase] = self._seconds.get(phase, 0.0) + before.elapsed_time(after) / 1000

    def row(self, samples: int) -> dict[str, float]:
        """Samples a second and the share of each phase since the last row; starts anew."""
        seconds = sorted(self.seconds().items())
        wall = max(time.perf_counter() - self.began, 1e-9)
        self.restart()
        return {"samples_per_s": samples / wall, **{f"time/{phase}": s / wall for phase, s in seconds}}


class OperationCounter(TorchDispatchMode):
    """What is computed inside, by torch's own formulas. (FlopCounterMode hooks modules too, which `autograd.grad` in a loss does not
    bear.) Also on the meta device, where it costs nothing.

    Attributes:
        flops: floating-point operations of matrix products, attention and convolutions.
        largest_bytes: of a tensor that came out.
    """

    flops = 0
    largest_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        self.largest_bytes = max(self.largest_bytes, *(x.nbytes for x in tree_leaves(result) if isinstance(x, Tensor)), 0)
        return result


def out_of_memory(error: RuntimeError) -> bool:
    """Whether a GPU, or the host, had no memory left for a tensor."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


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
