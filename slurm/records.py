"""What was submitted, by name, and how it stands: the records in the folders of jobs, joined with what SLURM says."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_shards.errors import CorruptData, InputError, TryAgain, nearest
from slurm.arrays import array_indices
from slurm.status import ENDED, UNKNOWN, JobState, Queue, is_same

LOGGER = logging.getLogger("retinaforge")
RECORD_NAME = "submitted.json"
LOST = ("NODE_FAIL", "PREEMPTED")
"""What squeue calls a job that it does not start again; of others' words (sacct, submitit) it may yet be."""


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """What is known of a job once SLURM has it: `submitted.json` in its folder.

    Attributes:
        job_ids: SLURM's number; several where the array was longer than the cluster takes.
        name: the job's name; SLURM uses numbers again, so a number alone does not tell a job.
        submitted_unix_s: when, by the clock of the submitting host.
        array: its indices, of an array.
        part: how many of them each number but the last has, where it went as several: index i of the k-th number is the
            (k · part + i)-th of `array`; else 0.
        took_s: how long the submission took; SLURM's time of the first number lies so much before.
        former: earlier submissions under this name, the oldest first; their logs stand beside those of this one.
    """

    job_ids: tuple[str, ...]
    name: str
    submitted_unix_s: float
    array: str | None = None
    part: int = 0
    took_s: float = 0.0
    former: tuple[Submitted, ...] = ()

    @property
    def job_id(self) -> str:
        """SLURM's number, the first of several."""
        return self.job_ids[0]

    def indices(self, number: str) -> list[str]:
        """The indices of one of the numbers, as SLURM counts them; none outside an array."""
        if self.array is None:
            return []
        every = array_indices(self.array)
        if not self.part:
            return [str(index) for index in every]
        return [str(i) for i in range(min(self.part, len(every) - self.job_ids.index(number) * self.part))]

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
        InputError: nothing was submitted under one of the names.
    """
    records = []
    for path in jobs.rglob(RECORD_NAME):
        try:
            records.append(read_record(path))
        except CorruptData as error:  # one damaged file hides no other job
            LOGGER.warning("left out: %s", error)
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


def span_of(job_id: str) -> list[str]:
    """The indices of '12_3-5,9': 3, 4, 5, 9; none of '12'."""
    span = job_id.partition("_")[2].strip("[]")
    return [str(index) for index in array_indices(span)] if re.fullmatch(r"[0-9,:-]+", span) else []


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
    queue = queue or Queue()
    newest = time.time() if fresh else max((record.submitted_unix_s for record in records), default=0.0)
    found = queue.states([number for record in records for number in record.job_ids], newer_than_unix_s=newest)
    parts = [(record, number) for record in records for number in record.job_ids]
    mine = {(record.name, number): _own(found[number], record) for record, number in parts}
    gaps = {(record.name, number): _missing(record, number, mine[record.name, number]) for record, number in parts}
    books = queue.books({number: record.name for record, number in parts if gaps[record.name, number] != []})
    for record, number in parts:
        if (missing := gaps[record.name, number]) != []:
            known = mine[record.name, number]
            known += [s for s in _own(books.get(number, []), record) if not missing or set(span_of(s.job_id)) <= set(missing)]
            if (missing := _missing(record, number, known)) != []:  # an array's indices are forgotten one by one
                known.append(JobState(job_id=f"{number}_{','.join(missing)}" if missing else number, name=record.name))
    return {
        record.name: [
            replace(state, job_id=record.true_id(state.job_id)) for number in record.job_ids for state in mine[record.name, number]
        ]
        for record in records
    }


def _own(states: Iterable[JobState], record: Submitted) -> list[JobState]:
    """Those that are this job's: numbers are given again."""
    return [state for state in states if is_same(state, record.name, record.submitted_unix_s, record.took_s)]


def _missing(record: Submitted, number: str, states: list[JobState]) -> list[str] | None:
    """Indices, as SLURM counts them, of which none of these states tells; [] for none, None where nothing at all is told."""
    if not states:
        return None if record.array is None else record.indices(number)
    if record.array is None:
        return []
    told = {index for state in states for index in span_of(state.job_id)}
    return [index for index in record.indices(number) if index not in told]


def is_live(states: list[JobState]) -> bool:
    """Whether SLURM says that any of it waits or runs. (squeue calls a job that it starts again PENDING.)"""
    return any(state.state not in (*ENDED, *LOST, UNKNOWN) for state in states)


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
        states = queue.states([number for record in live for number in record.job_ids])
        ids = [number for record in live for number in record.job_ids if is_live(_own(states[number], record))]
        done = subprocess.run(["scancel", *ids], capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise TryAgain(f"scancel failed: {done.stderr.strip()}", expected="an answer of the controller", mend="scontrol ping")
        with contextlib.suppress(TryAgain):
            queue.answer(time.time())  # an answer of before would still call them live
    return {record.name for record in live}
