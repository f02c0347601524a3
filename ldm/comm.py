"""What distributed code asks of its processes: collectives, and that all ranks come to the same value or the same error.

A process that is alone answers it (Alone), torch's process group (Group), and MPI (slurm/rank.py).
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from data_shards.errors import TryAgain

T = TypeVar("T")


class Communicator(Protocol):
    """`rank` of `world`; every method is collective: all ranks call it, in the same order."""

    rank: int
    world: int

    def all_reduce_sum_(self, tensor: Tensor) -> Tensor: ...
    def broadcast(self, value: Any) -> Any: ...
    def gather(self, value: Any) -> list[Any]: ...


class Alone:
    """One process."""

    rank, world = 0, 1

    def all_reduce_sum_(self, tensor: Tensor) -> Tensor:
        return tensor

    def broadcast(self, value: Any) -> Any:
        return value

    def gather(self, value: Any) -> list[Any]:
        return [value]


class Group:
    """torch.distributed's default process group."""

    def __init__(self) -> None:
        self.rank, self.world = torch.distributed.get_rank(), torch.distributed.get_world_size()

    def all_reduce_sum_(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        torch.distributed.all_reduce(tensor)
        return tensor

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank, by rank."""
        values: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(values, value)
        return values


def on_rank_0(comm: Communicator, action: Callable[[], T]) -> T:
    """What `action` gives on rank 0, on every rank. An error of it is raised on all: none waits for a rank that left.

    It is a border too: nobody goes on before rank 0 is done.
    """
    value, own = _outcome(action) if comm.rank == 0 else (None, None)
    value, error = comm.broadcast((value, _portable(own)))
    if error is not None:
        raise own or error
    return value


def on_each(comm: Communicator, action: Callable[[], T]) -> T:
    """What `action` gives on this rank. An error of it on any rank is raised on all: its own where there is one, else the first."""
    value, error = _outcome(action)
    errors = [other for other in comm.gather(_portable(error)) if other is not None]
    if errors:
        raise error or errors[0]
    return value


def _outcome(action: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return action(), None
    except Exception as error:  # whatever it is: the others wait for a word
        return None, error


def _portable(error: Exception | None) -> Exception | None:
    """The error, or its words where it does not survive the way to another process: the others wait for one of them."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - its own bytes, of a moment ago
        return error
    except Exception:  # whatever an exception of others does when it is copied
        return RuntimeError(f"{type(error).__name__}: {error}")


def is_of_a_collective(error: BaseException | None) -> bool:
    """Whether this is what torch raises when a rank is gone, or did not come in time. Gloo's are RuntimeErrors that name it."""
    return isinstance(error, torch.distributed.DistBackendError) or "gloo" in str(error)


@contextlib.contextmanager
def lost_ranks_told() -> Iterator[None]:
    """Around collectives of a Group.

    Raises:
        TryAgain: a rank is gone, or did not come in time.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_of_a_collective(error):
            raise
        reason = str(error).strip().splitlines()[0]
        raise TryAgain(f"a rank is gone, or did not come in time: {reason}", mend="run the same command again") from error
