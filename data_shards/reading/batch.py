"""What the streams give: the samples of a batch, as tensors; and how they come to a GPU.

Legend: B batch, C band, H W pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One rank's share of a global batch.

    Attributes:
        cubes_BCHW: uint16 as stored (latents: float32), contiguous; cast and normalise it on the device.
        position: global position of the first sample of the GLOBAL batch.
        position_B, sample_B, epoch_B: global position, index in the split, and epoch of each sample.
        labels_BHW: uint8, where the stream was asked for maps and any sample has labels, else None; one without has no vessel.
        labelled_B: which samples have labels; None where labels_BHW is.
        fov_BHW: bool, where it was asked and any sample has a mask, else None; one without is all within. So what is
            summed over maps does not depend on which samples share a batch.
        corner_B2: first row and column of each sample's crop, where the stream crops.
    """

    cubes_BCHW: torch.Tensor
    position: int
    position_B: np.ndarray
    sample_B: np.ndarray
    epoch_B: np.ndarray
    keys: list[str]
    subjects: list[str]
    labels_BHW: torch.Tensor | None = None
    labelled_B: np.ndarray | None = None
    fov_BHW: torch.Tensor | None = None
    corner_B2: np.ndarray | None = None

    def part(self, rows: slice) -> Batch:
        """Some of the samples, as views."""
        cut = {name: value[rows] if value is not None and name != "position" else value for name, value in vars(self).items()}
        return Batch(**cut)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The same batch, its tensors on `device`."""
        tensors = {
            name: value.to(device, non_blocking=non_blocking) for name, value in vars(self).items() if isinstance(value, torch.Tensor)
        }
        return replace(self, **tensors)


def stacked(maps: Sequence[np.ndarray | None], *, missing: int) -> torch.Tensor | None:
    """Maps of a batch, filled with `missing` for samples without one; None when no sample has one."""
    some_HW = next((map_HW for map_HW in maps if map_HW is not None), None)
    if some_HW is None:
        return None
    return torch.from_numpy(np.stack([np.full_like(some_HW, missing) if map_HW is None else map_HW for map_HW in maps]))


def present(maps: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Which samples have a map; None when none has."""
    present_B = np.array([map_HW is not None for map_HW in maps])
    return present_B if present_B.any() else None


def page_locked(nbytes: int) -> np.ndarray:
    """Memory that a GPU reads by itself, while the processor goes on."""
    return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True).numpy()


def copied(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches on a GPU, each copied on a stream of its own while the one before is worked on."""
    side, waiting = torch.cuda.Stream(device), deque()

    def arrived(host: Batch, moved: Batch, done: torch.cuda.Event) -> Batch:
        done.synchronize()  # begun a batch ago; from here on the host's memory may be used again
        torch.cuda.current_stream(device).wait_event(done)
        for value in vars(moved).values():
            if isinstance(value, torch.Tensor):
                value.record_stream(torch.cuda.current_stream(device))
        return moved

    for host in batches:
        with torch.cuda.stream(side):
            moved = host.to(device, non_blocking=True)
        waiting.append((host, moved, side.record_event()))
        if len(waiting) > 1:
            yield arrived(*waiting.popleft())
    while waiting:
        yield arrived(*waiting.popleft())
