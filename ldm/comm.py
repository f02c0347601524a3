"""What distributed code asks of its processes, and the answer of a process that is alone.

The engine is a communicator; so is anything else of this shape (MPI ranks, for instance).
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class Communicator(Protocol):
    """`rank` of `world`; every method is collective: all ranks call it, in the same order."""

    rank: int
    world: int

    def all_reduce_sum_(self, tensor: Tensor) -> Tensor: ...
    def broadcast(self, value: Any) -> Any: ...
    def gather(self, value: Any) -> list[Any]: ...
    def barrier(self) -> None: ...


class Alone:
    """One process."""

    rank, world = 0, 1

    def all_reduce_sum_(self, tensor: Tensor) -> Tensor:
        return tensor

    def broadcast(self, value: Any) -> Any:
        return value

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def barrier(self) -> None:
        return
