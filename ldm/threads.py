"""Torch's threads, where one is faster than several."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch computes on one thread.

    Factorisations meet at a barrier for every column, and where other programs share the cores each barrier waits for a time slice:
    512 columns took 7 s on two threads and 0.05 s on one. On idle cores one thread loses little, for the work is bound by memory.
    Small sums gain nothing from threads, and those that have worked go on spinning for a while, in the way of faiss's own.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
