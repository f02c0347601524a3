"""The working time of a run: what all processes that worked on it took, however each of them ended.

Each keeps a file of its own in RUN/worked and writes it anew every few seconds, so that one that is killed is counted up to there, and
several at once do not overwrite each other. Of a training on several ranks one process counts.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from data_shards import durable
from data_shards.errors import InputError, RetinaforgeError

LOGGER = logging.getLogger("retinaforge")
EVERY_S = 15.0
FOLDER = "worked"
EARLIER = "earlier.json"


class Worked:
    """This process' share of the working time; `note` writes it down, `forget` says that there was nothing to do."""

    def __init__(self, run: Path, verb: str) -> None:
        self.run, self.verb, self.began = run, verb, time.monotonic()
        self.path = run / FOLDER / f"{verb.replace(' ', '-')}-{secrets.token_hex(6)}.json"
        self.lock, self.done = threading.Lock(), threading.Event()

    def note(self) -> None:
        """Write down the time so far, once the run folder stands: a start that is refused leaves nothing."""
        with self.lock:
            if self.done.is_set() or not (self.run / "run.yaml").exists():
                return
            try:
                _take_over_earlier(self.run)
                durable.write_json(self.path, {"verb": self.verb, "seconds": round(time.monotonic() - self.began, 1)})
            except (RetinaforgeError, OSError) as error:  # it is no reason to end the work
                LOGGER.warning("the working time could not be noted: %s", error)

    def forget(self) -> None:
        """Count nothing of this process."""
        with self.lock:
            self.done.set()
            if self.path.exists():  # a removal is refused by a folder that is read-only, whether there is something or not
                self.path.unlink()


@contextlib.contextmanager
def counted(run: Path, verb: str, *, counts: bool = True) -> Iterator[Worked]:
    """Count the block's time as work on this run folder, however it ends; a refusal is none, unless it comes after work.

    Args:
        counts: whether this process does; one of several ranks.
    """
    worked = Worked(run, verb)
    if not counts:
        worked.done.set()

    def keep_noting() -> None:
        while not worked.done.wait(EVERY_S):
            worked.note()

    threading.Thread(target=keep_noting, name="worked", daemon=True).start()
    try:
        yield worked
    except InputError:
        if time.monotonic() - worked.began < EVERY_S:
            worked.forget()
        raise
    finally:
        worked.note()
        worked.done.set()


def working_seconds(run: Path) -> float:
    """Of all processes so far."""
    total = 0.0
    for path in (run / FOLDER).glob("[!.]*.json"):
        with contextlib.suppress(FileNotFoundError):  # forgotten meanwhile
            total += json.loads(path.read_text())["seconds"]
    return total


def _take_over_earlier(run: Path) -> None:
    """What a version without this folder counted goes on to count."""
    metrics = run / "metrics.json"
    if not (run / FOLDER).exists() and metrics.exists():
        seconds = json.loads(metrics.read_text()).get("seconds", 0.0)
        durable.write_bytes(run / FOLDER / EARLIER, durable.readable_json({"verb": "run", "seconds": seconds}), keep_first=True)
