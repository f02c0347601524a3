"""Ranks as threads of one process: real collectives, no launcher."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch


class Threads:
    """`world` ranks that can be run together."""

    def __init__(self, world: int) -> None:
        self.world, self.border, self.box = world, threading.Barrier(world, timeout=10), [None] * world

    def run(self, work: Callable[[Rank], Any]) -> list[Any]:
        """What `work` returns, or the error it ends with, by rank."""
        results: list[Any] = [None] * self.world

        def one(rank: int) -> None:
            try:
                results[rank] = work(Rank(self, rank))
            except Exception as error:
                results[rank] = error

        threads = [threading.Thread(target=one, args=(r,)) for r in range(self.world)]
        [t.start() for t in threads]
        [t.join(120) for t in threads]
        assert not any(t.is_alive() for t in threads), "a rank was left waiting"
        return results


class Rank:
    """The Communicator of one of them."""

    def __init__(self, among: Threads, rank: int) -> None:
        self.among, self.rank, self.world = among, rank, among.world

    def gather(self, value: Any) -> list[Any]:
        self.among.box[self.rank] = value
        self.among.border.wait()
        values = list(self.among.box)
        self.among.border.wait()
        return values

    def broadcast(self, value: Any) -> Any:
        return self.gather(value)[0]

    def barrier(self) -> None:
        self.gather(None)

    def all_reduce_sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.copy_(torch.stack([t.clone() for t in self.gather(tensor.clone())]).sum(0))
