"""What was submitted, by name, and how it stands: the records in the folders of jobs, joined with what SLURM says."""

from __future__ import annotations

import json
import re
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_shards.errors import CorruptData, InputError, TryAgain, nearest
from slurm.arrays import array_indices
from slurm.status import ENDED, UNKNOWN, JobState, Queue, is_same, last_words

RECORD_NAME = "submitted.json"


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """What is known of a job once SLURM has it: `submitted.json` in its folder.

    Attributes:
        job_ids: SLURM's number; several where the array was longer than the cluster takes.
        name: the job's name; SLURM uses numbers again, so a number alone does not tell a job.
        submitted_unix_s: when, by the clock of the submitting host.
        array: its indices, of an array that went as several; index i of the k-th number is the (k · part + i)-th of them.
        part: indices that each number but the last has.
        former: earlier submissions under this name, the oldest first; their logs stand beside those of this one.
    """

    job_ids: tuple[str, ...]
    name: str
    submitted_unix_s: float
    array: str | None = None
    part: int = 0
    former: tuple[Submitted, ...] = ()

    @property
    def job_id(self) -> str:
        """SLURM's number, the first of several."""
        return self.job_ids[0]

    def true_id(self, job_id: str) -> str:
        """'17_3' of a part by its index in the whole array: '17_1003'."""
        number, _, span = job_id.partition("_")
        mine = next((record for record in (self, *self.former) if number in record.job_ids), None)
        if mine is None or not (mine.part and span):
            return job_id
        indices = array_indices(mine.array or "")[mine.job_ids.index(number) * mine.part :]
        return f"{number}_" + re.sub(r"\d+", lambda match: str(indices[int(match[0])]), span)


def read_records(jobs: Path, names: list[str]) -> list[Submitted]:
    """The submitted jobs whose folders lie in `jobs`: those of these names, or all, by time of submission.

    Args:
        names: of jobs; a name also stands for all that begin with NAME/, as a run's jobs do.

    Raises:
        InputError: nothing was submitted under one of the names. CorruptData: a record that cannot be read.
    """
    records = [read_record(path) for path in jobs.rglob(RECORD_NAME)]
    known = {record.name for record in records}
    for name in names:
        if not any(of(name, record.name) for record in records):
            raise InputError(f"no job {name!r} was submitted", where=jobs, expected=nearest(name, known) if known else "a submitted job")
    chosen = [record for record in records if not names or any(of(name, record.name) for name in names)]
    return sorted(chosen, key=lambda record: (record.submitted_unix_s, record.name))


def read_record(path: Path) -> Submitted:
    """The record of one job.

    Raises:
        CorruptData: it cannot be read.
    """
    try:
        return _record(json.loads(path.read_bytes()))
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptData(f"not a submission record: {error}", where=path, mend="submit the job again") from error


def _record(fields: dict[str, Any]) -> Submitted:
    former = tuple(_record(before) for before in fields.get("former", ()))
    return Submitted(**{**fields, "job_ids": tuple(fields["job_ids"]), "former": former})


def of(name: str, job: str) -> bool:
    """Whether a job is the one of this name, or one of the run of this name."""
    return job == name or job.startswith(f"{name}/")


def job_folder(jobs: Path, name: str) -> Path:
    """JOBS/NAME; a part of the name that would be no folder of its own there is written otherwise."""
    return Path(jobs, *(part if part.strip(". ") else f"_{len(part)}" for part in name.split("/"))).absolute()


def current(records: list[Submitted], queue: Queue | None = None, *, fresh: bool = False) -> dict[str, list[JobState]]:
    """States by the jobs' names, from one call to SLURM, and one to its books for what it has forgotten.

    A number that SLURM has given to another job since is UNKNOWN here, and so is what neither knows.

    Args:
        fresh: as they are now, for what depends on it; else they may be as old as `queue` allows.

    Raises:
        InputError, TryAgain: as `Queue.states`.
    """
    newest = time.time() if fresh else max((record.submitted_unix_s for record in records), default=0.0)
    numbers = [number for record in records for number in record.job_ids]
    found = (queue or Queue()).states(numbers, newer_than_unix_s=newest)
    mine = {
        (record.name, number): [s for s in found[number] if is_same(s, record.name, record.submitted_unix_s)]
        for record in records
        for number in record.job_ids
    }
    forgotten = {number: name for (name, number), states in mine.items() if not states}
    books = last_words(forgotten)
    return {
        record.name: [
            replace(state, job_id=record.true_id(state.job_id))
            for number in record.job_ids
            for state in mine[record.name, number]
            or [s for s in books.get(number, ()) if is_same(s, record.name, record.submitted_unix_s)]
            or [JobState(job_id=number, name=record.name)]
        ]
        for record in records
    }


def is_live(states: list[JobState]) -> bool:
    """Whether SLURM says that any of it waits, runs, or may be started again."""
    return any(state.state not in (*ENDED, UNKNOWN) for state in states)


def has_ended(states: list[JobState]) -> bool:
    """Whether SLURM says of all of it that it is over and does not come back."""
    return all(state.state in ENDED for state in states)


def cancelled(records: list[Submitted], queue: Queue | None = None) -> set[str]:
    """Cancel those that wait or run, all of an array's indices; the names of those.

    Raises:
        InputError, TryAgain: as `Queue.states`, or SLURM's own refusal.
    """
    if not records:
        return set()
    queue = queue or Queue()
    found = current(records, queue, fresh=True)
    live = [record for record in records if is_live(found[record.name])]
    if live:
        ids = [number for record in live for number in record.job_ids]
        done = subprocess.run(["scancel", *ids], capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise TryAgain(f"scancel failed: {done.stderr.strip()}", expected="an answer of the controller", mend="scontrol ping")
        queue.answer(time.time())  # an answer of before would still call them live
    return {record.name for record in live}
