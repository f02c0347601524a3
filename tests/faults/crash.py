"""python -m tests.faults.crash IDS RANK STEP WORD…: the command line, killed at one durable step of its checkpoints.

Counts what rank RANK does to files below a folder named 'checkpoints' (a mkdir, a write, an fsync, a rename, an unlink, an rmdir) and sends
itself SIGKILL before step number STEP; in the middle of the bytes where the step is a write. With STEP 0 nothing is killed,
and each step is named on stderr. What each rank is given to train on is written below the folder IDS.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import threading
from pathlib import Path

from data_shards import durable
from data_shards.reading.stream import CubeStream
from launch.cli import main

IDS, RANK, STEP = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
count, lock = 0, threading.RLock()


def reached(what: str, path: object) -> bool:
    """Count a step; True when it is the one to die at."""
    global count
    with lock:
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        if "checkpoints" not in str(path) or int(os.environ.get("RANK", "0")) != RANK:
            return False
        count += 1
        if STEP == 0:
            name = re.sub(r"^\.part-.{8}-", "", Path(str(path)).name)  # as it will be called
            print(f"step {count}: {what} {name}", file=sys.stderr, flush=True)
        return count == STEP


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before(name: str) -> None:
    """Replace an os function by one that may die before it acts."""
    real = getattr(os, name)

    def watched(path, *args, **kwargs):
        folder = kwargs.get("dir_fd")
        where = path if folder is None else f"{os.readlink(f'/proc/self/fd/{folder}')}/{path}"
        if reached(name, where):
            die()
        return real(path, *args, **kwargs)

    setattr(os, name, watched)


class Torn:
    """A file whose write ends in the middle."""

    def __init__(self, file, path: Path) -> None:
        self.file, self.path = file, path

    def write(self, content: bytes) -> int:
        if reached("write", self.path):
            self.file.write(content[: len(content) // 2])
            self.file.flush()
            os.sync()
            die()
        return self.file.write(content)

    def writelines(self, pieces) -> None:
        self.write(b"".join(pieces))

    def __getattr__(self, name: str):
        return getattr(self.file, name)


@contextlib.contextmanager
def torn(final: Path, **options):
    with writing(final, **options) as file:
        yield Torn(file, final)


def noting(self: CubeStream, consumed: int = 0):
    """The stream, noting position and key of each sample that is handed out."""
    with open(IDS / f"{os.environ.get('RANK', '0')}.jsonl", "a") as file:
        for batch in batches(self, consumed):
            print(json.dumps([batch.position, dict(zip(batch.position_B.tolist(), batch.keys, strict=True))]), file=file, flush=True)
            yield batch


for function in ("mkdir", "fsync", "replace", "rename", "unlink", "rmdir"):
    before(function)
writing, durable.writing = durable.writing, torn
batches, CubeStream.batches = CubeStream.batches, noting
IDS.mkdir(parents=True, exist_ok=True)
sys.argv[1:] = sys.argv[4:]
main()
