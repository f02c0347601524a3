"""What is noted of each start of a job: `attempts.jsonl` in its folder, and `holder`, the attempt that holds the job.

An attempt is noted as it begins and again as it ends: the last line of a start counts.
"""

from __future__ import annotations

import errno
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from data_shards import durable


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One start of a job's script.

    Attributes:
        token: that of its submission, for SLURM gives numbers again; '' of a job that an older version submitted.
        job_id: SLURM's number.
        restart: how often SLURM had started it before.
        nodes: SLURM's list of them.
        began_unix_s, ended_unix_s: by the clock of the first node; None: not yet, or nobody could say it.
        before, after: the state of what the job makes (`progress_digest`), at either end.
        code: exit code; None when the script was ended before it could tell.
        why: in a few words.
        last: the job, or this index of an array, has ended with it: nobody starts another.
    """

    job_id: str
    restart: int
    nodes: str
    began_unix_s: float
    before: str
    ended_unix_s: float | None = None
    after: str = ""
    code: int | None = None
    why: str = ""
    token: str = ""
    last: bool = False

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells it from all others."""
        return self.token, self.job_id, self.restart

    @property
    def submission(self) -> tuple[str, str]:
        """What it shares with its restarts alone."""
        return self.token, self.job_id

    @property
    def name(self) -> str:
        """TOKEN.NUMBER.RESTART, as the script and `holder` have it."""
        return ".".join(filter(None, (self.token, self.job_id, str(self.restart))))


LINE = TypeAdapter(Attempt)
"""One in a line of JSON."""


def attempts_path(folder: Path, index: str | None = None) -> Path:
    """The record of a job, or of one index of an array."""
    return folder / (f"attempts_{index}.jsonl" if index else "attempts.jsonl")


def holder_path(folder: Path, index: str | None = None) -> Path:
    """The file that names the attempt that holds the job."""
    return folder / (f"holder_{index}" if index else "holder")


def read_attempts(path: Path) -> list[Attempt]:
    """All attempts, the oldest first; a line that a kill left torn, or a disk damaged, is passed over."""
    by_key: dict[tuple[str, str, int], Attempt] = {}
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        try:
            attempt = LINE.validate_json(line)
        except ValueError:
            continue
        by_key[attempt.key] = attempt
    return list(by_key.values())


def read_all(folder: Path) -> dict[str, list[Attempt]]:
    """The attempts of a job by index of its array; of one that is no array under ''."""
    by_index = {path.stem.partition("_")[2]: read_attempts(path) for path in folder.glob("attempts*.jsonl")}
    return {index: by_index[index] for index in sorted(by_index, key=lambda index: (len(index), index)) if by_index[index]}


def append(record: Path, attempt: Attempt) -> None:
    """Note it as it is now, on the disk."""
    with durable.explained(record), open(record, "a+b", buffering=0) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        torn = b"" if file.read(1) in (b"", b"\n") else b"\n"
        line = torn + (json.dumps(asdict(attempt)) + "\n").encode()
        if file.write(line) != len(line):  # a disk that fills up takes a part, and raises nothing
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file.fileno())
