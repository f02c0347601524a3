"""A signal sets a flag, nothing more; the training loop agrees on it over ranks and commits before it leaves."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
ECHO_S = 3.0
"""Ctrl-C reaches all processes of a terminal, and the launcher passes it on: one wish to stop comes twice, within a moment."""


class StopFlag:
    """Callable: has a stop been asked for? A second signal, no echo of the first, ends the process at once."""

    def __init__(self) -> None:
        self.signal: str | None = None
        self._since = 0.0

    def __call__(self) -> bool:
        return self.signal is not None

    def heard(self, number: int) -> None:
        """A signal came."""
        now = time.monotonic()
        if self.signal is None:
            self.signal, self._since = signal.Signals(number).name, now
        elif now - self._since > ECHO_S:
            os._exit(128 + number)  # what a shell reports of a process that the signal ended


HOLDER, ATTEMPT = "RETINAFORGE_HOLDER", "RETINAFORGE_ATTEMPT"
"""A file that names the attempt that holds this job, and the name of our own: set by slurm.task."""


def superseded(environ: Mapping[str, str]) -> Callable[[], bool] | None:
    """Whether a younger attempt of this job has taken over, as when SLURM lost sight of our node; None for what is no job of ours."""
    if not (environ.get(HOLDER) and environ.get(ATTEMPT)):
        return None

    def asked() -> bool:
        try:
            return holder_in(Path(environ[HOLDER])) not in ("", environ[ATTEMPT])
        except OSError:
            return False  # a file system that is away says nothing of who holds the job

    return asked


def holder_in(path: Path) -> str:
    """The name of the attempt that holds the job, [TOKEN.]NUMBER.RESTART; '' where the file is damaged, and says nothing of it."""
    name = path.read_text(errors="replace").strip()
    return name if re.fullmatch(r"(\w+\.)?\d+\.\d+", name, re.ASCII) else ""


LOOK_EVERY_S = 5.0


@contextlib.contextmanager
def stop_on_signals(superseded: Callable[[], bool] | None = None) -> Iterator[StopFlag]:
    """Listen inside the block; the former handlers come back after it. Call it in the main thread.

    Args:
        superseded: whether another copy of this process has taken its work over. Asked every few seconds; then the process ends at
            once, with 75, and commits nothing: the other's checkpoints are the run's.

    Python runs a handler only between two of its own instructions, which a rank that waits in a collective does not reach. The
    number of the signal is therefore written to a pipe (`set_wakeup_fd`), and a thread reads it.
    """
    flag, (out, into) = StopFlag(), os.pipe()
    os.set_blocking(into, False)

    def listen() -> None:
        while True:
            came = select.select([out], [], [], LOOK_EVERY_S if superseded else None)[0]
            if superseded and superseded():  # also as a signal comes: it would end in a commit
                os.write(2, b"ended: a younger attempt of this job has taken over\n")
                os._exit(75)
            if not came:
                continue
            came = os.read(out, 1)
            if not came:
                return
            if came[0] in STOPS:
                flag.heard(came[0])

    listener = threading.Thread(target=listen, name="signals", daemon=True)
    listener.start()
    before = {stop: signal.signal(stop, lambda *_: None) for stop in STOPS}
    wakeup = signal.set_wakeup_fd(into, warn_on_full_buffer=False)
    try:
        yield flag
    finally:
        signal.set_wakeup_fd(wakeup)
        for stop, handler in before.items():
            signal.signal(stop, handler)
        os.close(into)
        listener.join()
        os.close(out)
