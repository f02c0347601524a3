"""Torch's threads, where one is faster than several, and work in parts that is spread over them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Part, Found = TypeVar("Part"), TypeVar("Found")


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch computes on one thread.

    Factorisations meet at a barrier for every column, and where other programs share the cores each barrier waits for a time slice:
    512 columns took 7 s on two threads and 0.05 s on one. On idle cores one thread loses little, for the work is bound by memory.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def in_parts(work: Callable[[Part], Found], parts: Iterable[Part], begun: Callable[[], None] = lambda: None) -> list[Found]:
    """What `work` gives for each part, in order: a part a thread, as many threads as torch has, in each of which torch computes on one.

    So nobody meets at a barrier, and no library's threads wait, spinning, in the way of another's. A single part is done here.

    Args:
        begun: called first by each new thread.
    """
    parts, threads = list(parts), torch.get_num_threads()
    with one_thread():
        if min(threads, len(parts)) < 2:
            return [work(part) for part in parts]
        with ThreadPoolExecutor(min(threads, len(parts)), initializer=begun) as pool:
            return list(pool.map(work, parts))
