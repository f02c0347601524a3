"""A signal sets a flag, nothing more; the training loop agrees on it over ranks and commits before it leaves."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class StopFlag:
    """Callable: has a stop been asked for? A second signal acts as it would have without us."""

    def __init__(self) -> None:
        self.signal: str | None = None

    def __call__(self) -> bool:
        return self.signal is not None

    def _seen(self, number: int, _: FrameType | None) -> None:
        self.signal = signal.Signals(number).name
        for stop in STOPS:
            signal.signal(stop, signal.SIG_DFL)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """Listen inside the block; the former handlers come back after it."""
    flag = StopFlag()
    before = {stop: signal.signal(stop, flag._seen) for stop in STOPS}
    try:
        yield flag
    finally:
        for stop, handler in before.items():
            signal.signal(stop, handler)
