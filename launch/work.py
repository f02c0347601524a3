"""The units of a stage over any number of processes: whoever comes makes what nobody has made, and stays until all is there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from data_shards.errors import RetinaforgeError, TryAgain
from data_shards.ledger import Ledger

POLL_S = 2.0


class Units(Protocol):
    """A piece of work in units. Each is published first-writer-wins, and its bytes do not depend on who makes it."""

    out: Path
    """Where they are published; their leases lie there too."""
    names: Sequence[str]
    """Of the units, as they stand in file names."""

    def published(self, number: int) -> bool:
        """Whether a unit is there, whole."""

    def make(self, number: int) -> None:
        """Make a unit and publish it."""

    def finish(self) -> object:
        """What is made of all units, once they are there; the first who comes writes it."""


def work(
    units: Units,
    ledger: Ledger,
    *,
    place: tuple[int, int] = (0, 1),
    watch: Callable[[Iterable[int]], Iterable[int]] = iter,
    poll_s: float = POLL_S,
) -> None:
    """Make all units that are not there, with whoever else makes them, and return once all are.

    Args:
        place: (k, n): this process begins with the units k, k+n, k+2n, …, and goes on with those of k+1: several rarely want the same.
        watch: wraps the numbers of units that this process or another has made.

    Raises:
        RetinaforgeError: units that failed for a reason of their own; the others are made. TryAgain: as a unit raises it, at once.
    """
    failed: dict[int, RetinaforgeError] = {}
    for _ in watch(_done(units, ledger, place, failed, poll_s)):
        pass
    ledger.clear(name for number, name in enumerate(units.names) if number not in failed)
    if failed:
        number, error = min(failed.items())
        more = f", and {len(failed) - 1} more units" if len(failed) > 1 else ""
        raise type(error)(
            f"unit {units.names[number]} failed{more}: {error.what}", where=error.where, expected=error.expected, mend=error.mend
        ) from error


def _done(units: Units, ledger: Ledger, place: tuple[int, int], failed: dict[int, RetinaforgeError], poll_s: float) -> Iterator[int]:
    """Numbers of units as they are seen to be there."""
    k, n = place
    left = [number for step in range(n) for number in range((k + step) % n, len(units.names), n)]
    while left:
        waiting = []
        for number in left:
            if units.published(number):
                yield number
                continue
            with ledger.lease(units.names[number]) as mine:
                if not mine:
                    waiting.append(number)
                    continue
                try:
                    if not units.published(number):  # before it was ours
                        units.make(number)
                except TryAgain:
                    raise
                except RetinaforgeError as error:
                    failed[number] = error
                    continue
            yield number
        if waiting and len(waiting) == len(left):
            time.sleep(poll_s)
        left = waiting
