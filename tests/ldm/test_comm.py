"""What ranks ask of each other: all come to the same value, or to an error, and none is left waiting."""

from __future__ import annotations

import pytest

from data_shards.errors import InputError, TryAgain
from ldm.comm import Alone, lost_ranks_told, on_each, on_rank_0
from tests.threads import Threads


def test_what_rank_0_does_all_ranks_learn() -> None:
    done = []
    assert Threads(3).run(lambda comm: on_rank_0(comm, lambda: done.append(comm.rank) or "value")) == ["value"] * 3
    assert done == [0] and on_rank_0(Alone(), lambda: 7) == 7


def test_what_rank_0_fails_in_all_ranks_raise() -> None:
    """A fault of the program too: whatever it is, the others wait for a word."""
    for error in (InputError("wrong"), ZeroDivisionError("by nothing")):
        assert Threads(3).run(lambda comm, error=error: on_rank_0(comm, lambda: raised(error))) == [error] * 3


def test_what_each_does_stays_its_own_and_an_error_of_one_ends_all() -> None:
    assert Threads(3).run(lambda comm: on_each(comm, lambda: 10 * comm.rank)) == [0, 10, 20]
    errors = [None, InputError("of rank 1"), InputError("of rank 2")]
    ended = Threads(3).run(lambda comm: on_each(comm, lambda: errors[comm.rank] and raised(errors[comm.rank])))
    assert ended == [errors[1], errors[1], errors[2]], "its own, or the first of the others"


class Awkward(Exception):
    """As some libraries' are: it cannot be made again from what it kept."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{reason} ({code})")


def test_an_error_that_cannot_be_sent_reaches_the_others_in_words() -> None:
    first, *others = Threads(3).run(lambda comm: on_rank_0(comm, lambda: raised(Awkward(7, "no route"))))
    assert isinstance(first, Awkward) and all(str(other) == "Awkward: no route (7)" for other in others)


def raised(error: Exception) -> None:
    raise error


def test_only_what_a_collective_raises_is_told_as_a_lost_rank() -> None:
    with pytest.raises(TryAgain, match="a rank is gone.*closed by peer"), lost_ranks_told():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:525] Connection closed by peer\nand more")
    with pytest.raises(RuntimeError, match="sizes do not match"), lost_ranks_told():
        raise RuntimeError("sizes do not match")
