"""Memory of a reading thread, used again and again: for what is read but not wanted as it is."""

from __future__ import annotations

import mmap
import threading

import numpy as np


def page_aligned(nbytes: int) -> np.ndarray:
    """Fresh memory, uint8."""
    block = mmap.mmap(-1, max(1, nbytes))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        block.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(block, np.uint8)


class _Scratch(threading.local):
    def __init__(self) -> None:
        self.held: dict[str, np.ndarray] = {}

    def take(self, use: str, nbytes: int) -> np.ndarray:
        """So many bytes of unset content, uint8; they are this use's until its next call in the same thread."""
        if len(self.held.get(use, ())) < nbytes:
            self.held[use] = page_aligned(nbytes)
        return self.held[use][:nbytes]


SCRATCH = _Scratch()
