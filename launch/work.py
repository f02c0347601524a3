"""The units of a stage over any number of processes: whoever comes makes what nobody has made, and stays until all is there."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol, TypeVar

from data_shards.errors import CorruptData, Overtaken, RetinaforgeError, TryAgain
from data_shards.ledger import Ledger, Units, holders

LOGGER = logging.getLogger("retinaforge")

POLL_S = 2.0
STOPPED = "stopped between two units; what is finished stays"
SILENT_S = 10.0  # to wait before it is said what for
ENOUGH_S = 30.0  # for a helper to end the unit that it is about
T = TypeVar("T")
Report = Callable[[int, dict[str, float]], None]
Phases = Iterable[tuple[str, Callable[[], Units]]]
"""Title of each phase, and what gives its units. A phase is asked for once all units of the one before are there, and finished."""


class Display(Protocol):
    """Where a person sees how far the work is."""

    def over(self, items: Iterable[T], total: int | None = None, title: str = "", unit: str = "it") -> Iterator[T]:
        """Pass the items through, and show how many have passed."""

    def training(self, title: str, total: int) -> AbstractContextManager[Report]:
        """Show a training of so many samples: samples seen, and the losses of late."""

    def note(self, line: str) -> None:
        """Say something on what was made, where there is something."""


def work(
    units: Units,
    ledger: Ledger,
    *,
    place: tuple[int, int] = (0, 1),
    watch: Callable[[Iterable[int]], Iterable[int]] = iter,
    stop: Callable[[], bool] = lambda: False,
    poll_s: float = POLL_S,
) -> None:
    """Make all units that are not there, with whoever else makes them, and return once all are.

    Args:
        place: (k, n): this process begins with the units k, k+n, k+2n, …, and goes on with those of k+1: several rarely want the same.
        watch: wraps the numbers of units that this process or another has made, each as often as it has images.
        stop: whether this process shall leave; asked between two units, where it leaves nothing behind.

    Raises:
        CorruptData: damaged units; the others are made. RetinaforgeError: as a unit raises it, at once, for others would meet it too.
        TryAgain: stopped.
    """
    failed: dict[int, CorruptData] = {}
    for _ in watch(units.by_image(_done(units, ledger, place, failed, stop, poll_s))):
        pass
    ledger.clear(name for number, name in enumerate(units.names) if number not in failed)
    if failed:
        number, error = min(failed.items())
        more = f", and {len(failed) - 1} more units" if len(failed) > 1 else ""
        raise CorruptData(
            f"unit {units.names[number]} failed{more}: {error.what}", where=error.where, expected=error.expected, mend=error.mend
        ) from error


def _done(
    units: Units, ledger: Ledger, place: tuple[int, int], failed: dict[int, CorruptData], stop: Callable[[], bool], poll_s: float
) -> Iterator[int]:
    """Numbers of units as they are seen to be there."""
    (k, n), idle_s = place, 0.0
    left = [number for step in range(n) for number in range((k + step) % n, len(units.names), n)]
    while left:
        waiting = []
        for number in left:
            if stop():
                raise TryAgain(STOPPED, where=units.out, mend="the same command again goes on with what is not there")
            try:
                there = units.published(number) or (units.ready(number) and _made(units, ledger, number))
            except Overtaken:
                there = False  # it is there, and will be seen
            except RetinaforgeError as error:
                there = _is_there(units, number)  # another process was first, and has finished
                if not there and not isinstance(error, CorruptData):
                    raise
                if not there:
                    LOGGER.warning("unit %s failed, the others are made first: %s", units.names[number], error.what)
                    failed[number] = error
                    continue
            if there:
                yield number
            else:
                waiting.append(number)
        if waiting and len(waiting) == len(left):
            time.sleep(poll_s)
            before_s, idle_s = idle_s, idle_s + poll_s
            if before_s < SILENT_S <= idle_s:
                _say_what_for(units, ledger, waiting)
        else:
            idle_s = 0.0
        left = waiting


def _say_what_for(units: Units, ledger: Ledger, waiting: list[int]) -> None:
    """What a process waits for that has nothing else to do."""
    first = units.names[waiting[0]]
    holder = holders(units.out).get(first, "another process")
    more = f", and for {len(waiting) - 1} more" if waiting[1:] else ""
    LOGGER.warning(
        "waiting for %s, which %s is about%s; a lease that stands still for %.0f s is taken over", first, holder, more, ledger.still_s
    )


def _is_there(units: Units, number: int) -> bool:
    """Whether a unit is published, and not damaged."""
    try:
        return units.published(number)
    except CorruptData:
        return False


def _made(units: Units, ledger: Ledger, number: int) -> bool:
    """Make a unit, unless somebody else is about it."""
    with ledger.lease(units.names[number]) as mine:
        if mine and not units.published(number):  # it may have been made before it was ours
            units.make(number)
        return mine


def make_phases(phases: Phases, display: Display, place: tuple[int, int], *, workers: int = 1, unit: str = "image") -> Any:
    """Make all units, phase by phase, with whoever else makes them; what the last phase makes of them.

    Args:
        phases: what gives units is pickled where there are further workers.
        place: (k, n): the k-th of n processes that do so.
        workers: processes, this one counted, that share its place.
        unit: what is counted, for those who watch.
    """
    (k, n), result = place, None
    with warned() as stop:
        for title, build in phases:
            with side_by_side(build, workers, place), build() as units:
                sizes = [units.size(number) for number in range(len(units.names))]
                shown = partial(display.over, total=sum(sizes), title=title, unit=unit)
                work(units, Ledger(units.out), place=(k * workers, n * workers), watch=shown, stop=stop)
                result = units.finish()
    return result


@contextlib.contextmanager
def warned() -> Iterator[Callable[[], bool]]:
    """Whether SIGUSR1 has come, by which SLURM warns of a time limit. Only the main thread can listen; others never hear of it."""
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return
    before = signal.signal(signal.SIGUSR1, lambda *_: came.set())
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGUSR1, before)


@contextlib.contextmanager
def side_by_side(build: Callable[[], Units], workers: int, place: tuple[int, int]) -> Iterator[None]:
    """Further processes on the same units while the block runs; what they cannot make is met by this one.

    Args:
        build: of the units, in each process; it is pickled.
        workers: processes, this one counted.
        place: (k, n) of this process and its helpers together.
    """
    (k, n), spawn = place, multiprocessing.get_context("spawn")  # a fork would copy locks that other threads hold
    helpers = [spawn.Process(target=_help, args=(build, (k * workers + w, n * workers)), daemon=True) for w in range(1, workers)]
    with deaf_to_ctrl_c():
        for helper in helpers:
            helper.start()
    try:
        yield
    finally:
        for helper in helpers:
            helper.terminate()
        for helper in helpers:
            helper.join(ENOUGH_S)
            helper.kill()
            helper.join()


@contextlib.contextmanager
def deaf_to_ctrl_c() -> Iterator[None]:
    """Processes that are started meanwhile never hear it: it is for who started them, and ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _help(build: Callable[[], Units], place: tuple[int, int]) -> None:
    """Make units until all are there, or until who asked for help is gone."""
    parent = multiprocessing.parent_process()
    assert parent

    ended = threading.Event()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # who asked for help heard it too
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    logging.disable()
    with contextlib.suppress(RetinaforgeError), build() as units:
        work(units, Ledger(units.out), place=place, stop=lambda: ended.is_set() or not parent.is_alive(), poll_s=POLL_S / 4)
