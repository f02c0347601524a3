"""Where a person sees how far a stage is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import typer

from launch.cli.meter import meter
from launch.cli.progress import progress

T = TypeVar("T")


class Terminal:
    """The display of a person at a terminal, or of a log file."""

    def over(self, items: Iterable[T], total: int | None = None, title: str = "", unit: str = "it") -> Iterator[T]:
        """As `progress`."""
        return progress(items, total, title, unit)

    def training(self, title: str, total: int) -> AbstractContextManager[Callable[[int, dict[str, float]], None]]:
        """A meter of samples and losses."""
        return meter(title, total)

    def note(self, line: str) -> None:
        """A line, where it has words."""
        if line:
            typer.echo(line)


class Hidden:
    """The display of a process beside the one that shows how far all are."""

    def over(self, items: Iterable[T], *_: object, **__: object) -> Iterator[T]:
        """The items."""
        return iter(items)

    def training(self, *_: object) -> AbstractContextManager[Callable[[int, dict[str, float]], None]]:
        """Nothing to see."""
        return nullcontext(lambda *_: None)

    def note(self, line: str) -> None:
        """Nothing to see."""
