"""What distributed code asks of its processes, and the answers of one that is alone and of torch's process group.

MPI ranks answer it too: slurm/rank.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from data_shards.errors import TryAgain


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


class Group:
    """torch.distributed's default process group.

    Raises (from any method): TryAgain: a rank is gone, or did not come in time.
    """

    def __init__(self) -> None:
        self.rank, self.world = torch.distributed.get_rank(), torch.distributed.get_world_size()

    def all_reduce_sum_(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        with _told():
            torch.distributed.all_reduce(tensor)
        return tensor

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        box = [value]
        with _told():
            torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank, by rank."""
        values: list[Any] = [None] * self.world
        with _told():
            torch.distributed.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        with _told():
            torch.distributed.barrier()


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        said = str(error).strip().splitlines()[0]
        raise TryAgain(f"a rank is gone, or did not come in time: {said}", mend="run the same command again") from error
