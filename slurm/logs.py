"""What the tasks of a job say: one file a rank, which goes on across requeues; read together, line by line, with the rank before each."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

NAMES = re.compile(r"(?P<job>\d+)(_(?P<index>\d+))?_(?P<task>\d+|batch)(_log)?\.(out|err)")
POLL_S = 0.5


def log_files(folder: Path, true_id: Callable[[str], str] = str) -> dict[str, Path]:
    """By who speaks: 'batch' for the script, else the rank, with 'INDEX:' before it in an array; ranks in order.

    Args:
        true_id: JOB_INDEX as the whole array counts, where it went to SLURM as several.
    """
    files = {}
    for path in folder.glob("*.out"):
        if match := NAMES.fullmatch(path.name):
            number = true_id(f"{match['job']}_{match['index']}").partition("_")[2] if match["index"] else ""
            index = f"{number}:" if number else ""
            order = (int(match["job"]), int(number or 0), match["task"] != "batch", match["task"].zfill(9))
            files[order] = (f"{index}{match['task']}", path)
    return {who: path for _, (who, path) in sorted(files.items())}


def lines(
    folder: Path, *, last: int | None = None, ended: Callable[[], bool] = lambda: True, true_id: Callable[[str], str] = str
) -> Iterator[tuple[str, str]]:
    """(who, line) of what stands there, speaker by speaker, then each new line as it is written, until the job has ended and all was read.

    Args:
        last: of what stands there already, so many lines of each speaker.
        true_id: see `log_files`.
        ended: whether nobody writes any more; where nothing is passed, only what stands there is read.
    """
    read: dict[Path, int] = {}
    while True:
        over = ended()  # asked before reading: what was written up to then is read below
        for who, path in log_files(folder, true_id).items():
            with path.open("rb") as file:
                file.seek(read.get(path, 0))
                new = file.read()
            whole = len(new) if over else new.rfind(b"\n") + 1  # a line that is still being written waits
            new_lines = new[:whole].decode(errors="replace").splitlines()
            if path not in read and last is not None:
                new_lines = new_lines[max(0, len(new_lines) - last) :]
            read[path] = read.get(path, 0) + whole
            for line in new_lines:
                yield who, line
        if over:
            return
        time.sleep(POLL_S)
