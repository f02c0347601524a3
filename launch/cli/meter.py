"""What a person sees while a model trains: a bar with rate and ETA on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

from launch.cli.progress import PLAIN_EVERY_SECONDS, duration

SHOWN = ("loss", "codes/usage", "gan/adaptive_weight", "samples_per_s")


class Meter:
    """Callable with (samples, logged values)."""

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total = title, total
        self.began, self.said = time.monotonic(), -PLAIN_EVERY_SECONDS
        self.first: int | None = None  # samples at the first report: what came before it is start-up, or an earlier start's
        self.bar = self.task = None

    def __call__(self, samples: int, values: dict[str, float]) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first, self.began = samples, now
        words = "  ".join(f"{name} {values[name]:.4g}" for name in SHOWN if name in values)
        if self.bar is not None:
            self.bar.update(self.task, completed=samples, description=f"{self.title}  {words}")
        elif now - self.said >= PLAIN_EVERY_SECONDS or samples >= self.total:
            self.said = now
            rate = (samples - self.first) / (now - self.began) if samples > self.first else 0.0
            left = f", {duration((self.total - samples) / rate)} left" if rate and samples < self.total else ""
            print(f"{self.title}: {samples}/{self.total} samples{left}  {words}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def meter(title: str, total: int) -> Iterator[Meter]:
    """A Meter, as a bar where stderr is a terminal."""
    from rich.console import Console

    shows = Meter(title, total)
    console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        yield shows
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console) as bar:
        shows.bar, shows.task = bar, bar.add_task(title, total=total)
        yield shows
