"""Progress that suits where it is shown: a bar on a terminal, a plain line now and then in a log file."""

from __future__ import annotations

import contextlib
import operator
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
PLAIN_EVERY_SECONDS = 10.0
AT_ONCE_SECONDS = 1.0  # what passes so soon was there already, and says nothing of the rate


def progress(iterable: Iterable[T], total: int | None = None, title: str = "", unit: str = "it") -> Iterator[T]:
    """Pass `iterable` through and show on stderr how far it is, at what rate, and when it will be done.

    Args:
        iterable: what to go through; its length is taken where it has one.
        total: how many items there will be, when the iterable does not know.
        title: what is being done.
        unit: what is counted, for the rate ("cubes", "steps").
    """
    if total is None:
        total = operator.length_hint(iterable, 0) or None
    from rich.console import Console  # here, because --help needs neither

    console = Console(stderr=True)
    if console.is_terminal and not console.is_dumb_terminal:
        return _bar(console, iterable, total, title, unit)
    return _lines(iterable, total, title, unit, clock=time.monotonic)


def line(done: int, total: int | None, title: str, unit: str, seconds: float, at_once: tuple[int, float] = (0, 0.0)) -> str:
    """One plain line: 'pack: 120/200 cubes, 12.5 cubes/s, 10 s, 6 s left'.

    Args:
        at_once: how many passed at once, and until when, in seconds.
    """
    share = f"{done}/{total}" if total else f"{done}"
    stood, stood_s = at_once
    rate = (done - stood) / (seconds - stood_s) if seconds > stood_s else 0.0
    words = [f"{share} {unit}", f"{_number(rate)} {unit}/s" if rate else "", duration(seconds)]
    if total and rate and done < total:
        words.append(f"{duration((total - done) / rate)} left")
    return (f"{title}: " if title else "") + ", ".join(word for word in words if word)


def duration(seconds: float) -> str:
    """In the two largest units: '8 s', '3 min 20 s', '2 h 05 min', '1 d 4 h'."""
    minutes, s = divmod(round(max(0.0, seconds)), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    return f"{days} d {h} h" if days else f"{h} h {m:02d} min" if h else f"{m} min {s:02d} s" if m else f"{s} s"


def _number(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"


def _lines(iterable: Iterable[T], total: int | None, title: str, unit: str, clock: Callable[[], float]) -> Iterator[T]:
    done, began = 0, clock()
    said, at_once = began, (0, 0.0)
    try:
        for item in iterable:
            yield item
            done, now = done + 1, clock()
            if now - began <= AT_ONCE_SECONDS:
                at_once = done, now - began
            if now - said >= PLAIN_EVERY_SECONDS and done != total:
                said = now
                print(line(done, total, title, unit, now - began, at_once), file=sys.stderr, flush=True)
    finally:  # also where the reader stops early or the work raises: the log then says how far it came
        with contextlib.suppress(OSError):  # Ctrl-C ends `tee` as well, and what stops the work shall reach who clears up
            print(line(done, total, title, unit, clock() - began, at_once), file=sys.stderr, flush=True)


def _bar(console, iterable: Iterable[T], total: int | None, title: str, unit: str) -> Iterator[T]:
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task) -> Text:
            rate = task.finished_speed or task.speed
            return Text(f"{_number(rate)} {unit}/s" if rate else "", style="progress.data.speed")

    class Count(ProgressColumn):
        def render(self, task) -> Text:
            return Text(f"{task.completed:.0f}/{task.total:.0f} {unit}" if task.total else f"{task.completed:.0f} {unit}")

    columns = [TextColumn("{task.description}", markup=False), BarColumn(), Count(), Rate(), TimeElapsedColumn()]
    if total:
        columns += [TextColumn("left", style="dim"), TimeRemainingColumn(compact=True)]
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total)
        for item in iterable:
            yield item
            bar.advance(task)
        if total is None:
            bar.update(task, total=bar.tasks[0].completed)  # it has ended, so the bar may stop running to and fro
