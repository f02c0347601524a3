"""Memory for batches: page-aligned blocks, used again as soon as nobody looks at them.

A fresh allocation of some 10 MB costs the kernel more to map, zero and unmap than the read that fills it, and on common
processors a `pread` into memory that is not aligned takes several times as long.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Callable

import numpy as np

from data_shards.shards.scratch import page_aligned


class Ring:
    """Arrays of one size. An array's block comes back when the array and all that was made from it as a tensor are gone.

    Somebody who keeps arrays is given further blocks: nothing is ever written over. At most `keep` blocks wait for use.

    Args:
        keep: blocks kept for reuse.
        allocate: gives uint8 memory (page-locked, where there is a GPU).
    """

    def __init__(self, keep: int, allocate: Callable[[int], np.ndarray] = page_aligned) -> None:
        self.keep, self.allocate, self.free = keep, allocate, deque[np.ndarray]()

    def lease(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """An array of unset content. Hold this very object (`torch.from_numpy` does), not only a view: numpy's views do not refer to it."""
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        try:
            block = self.free.pop()
        except IndexError:
            block = None
        if block is None or len(block) < nbytes:
            block = self.allocate(nbytes)
        array = block[:nbytes].view(dtype).reshape(shape)
        weakref.finalize(array, self._back, block).atexit = False
        return array

    def _back(self, block: np.ndarray) -> None:
        if len(self.free) < self.keep:
            self.free.append(block)
