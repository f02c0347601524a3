"""What was submitted, by name: the records in the folders of jobs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from data_shards.errors import CorruptData, InputError, command, nearest
from slurm.arrays import array_indices, check_array
from slurm.fields import JOBS
from slurm.jobs import words_on

RECORD_NAME = "submitted.json"


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """What is known of a job once SLURM has it: `submitted.json` in its folder.

    Attributes:
        job_ids: SLURM's number; several where the array was longer than the cluster takes.
        name: the job's name.
        submitted_unix_s: when, by the clock of the submitting host: for people, for clocks differ.
        token: a random word that SLURM was given with the job, for it uses numbers again, and another cluster has the same ones; '' in
            a record of an older version.
        cluster: its name, by SLURM's own word.
        array: its indices, of an array.
        whole: the indices of the whole array, where only some of them were submitted again.
        part: how many of them each number but the last has, where it went as several: index i of the k-th number is the
            (k · part + i)-th of `array`; else 0.
        former: earlier submissions under this name, the oldest first; their logs stand beside those of this one.
        folder: the job's, where this was read.
    """

    job_ids: tuple[str, ...]
    name: str
    submitted_unix_s: float
    token: str = ""
    cluster: str = ""
    array: str | None = None
    whole: str | None = None
    part: int = 0
    former: tuple[Submitted, ...] = ()
    folder: str = ""

    def __post_init__(self) -> None:
        if not self.job_ids or not all(number.isdecimal() for number in self.job_ids):
            raise ValueError(f"job_ids={self.job_ids!r}")
        for array in filter(None, (self.array, self.whole)):
            check_array(array)

    @property
    def key(self) -> str:
        """What tells this submission from others of the name."""
        return self.token or ",".join(self.job_ids)

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

    def true_indices(self, number: str) -> dict[str, str]:
        """Those of the whole array by what SLURM calls them under one of the numbers; {"": ""} outside an array."""
        slurms = self.indices(number)
        if not (self.part and slurms):
            return {index: index for index in slurms or [""]}
        first = self.job_ids.index(number) * self.part
        return dict(zip(slurms, map(str, array_indices(self.array or "")[first:]), strict=False))

    def true_id(self, job_id: str) -> str:
        """'17_3' of a part by its index in the whole array: '17_1003'."""
        number, _, span = job_id.partition("_")
        owner = next((record for record in (self, *self.former) if number in record.job_ids), None)
        if owner is None or not (owner.part and span):
            return job_id
        true = owner.true_indices(number)
        return f"{number}_" + re.sub(r"\d+", lambda match: true[match[0]], span)


RECORD = TypeAdapter(Submitted)


def read_records(jobs: Path, names: list[str]) -> tuple[list[Submitted], dict[str, CorruptData]]:
    """The submitted jobs whose folders lie in `jobs`: those of these names, or all, by time of submission; and by name those whose
    records are damaged, which hide no others.

    Args:
        names: of jobs; a name also stands for all that begin with NAME/, as a run's jobs do.

    Raises:
        InputError: nothing was submitted under one of the names.
    """
    records, damaged = [], {}
    for path in sorted(jobs.rglob(RECORD_NAME)):
        try:
            records.append(read_record(path))
        except CorruptData as error:
            damaged[path.parent.relative_to(jobs).as_posix()] = error
    known = {record.name for record in records} | damaged.keys()
    for name in names:
        if not any(of(name, job) for job in known):
            raise no_job(name, jobs, known)

    def chosen(job: str) -> bool:
        return not names or any(of(name, job) for name in names)

    records = sorted((r for r in records if chosen(r.name)), key=lambda record: (record.submitted_unix_s, record.name))
    return records, {job: error for job, error in damaged.items() if chosen(job)}


def no_job(name: str, jobs: Path, known: Iterable[str] = ()) -> InputError:
    """The refusal of a name that none of the submitted jobs has."""
    listed = command("retinaforge", "status", *([] if jobs.absolute() == JOBS.absolute() else ["--jobs", jobs]))
    known = set(known)
    return InputError(
        f"no job {name!r} was submitted",
        where=jobs,
        expected=nearest(name, known) if known else "a submitted job",
        mend=f"{listed} lists them",
    )


def read_record(path: Path) -> Submitted:
    """The record of one job.

    Raises:
        CorruptData: it cannot be read.
    """
    try:
        return _in(RECORD.validate_json(path.read_bytes()), str(path.parent))
    except (ValueError, OSError) as error:
        raise CorruptData(
            f"the record of a submitted job is damaged: {first_of(error)}",
            where=path,
            expected="what was written as it was submitted",
            mend="squeue --me --all lists the jobs that live; once you know that this one has ended, "
            f"{words_on('resume', path.parent.name, path.parent)} --force",
        ) from error


def first_of(error: Exception) -> str:
    """An error in one line, also one of many of pydantic's."""
    return error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)


def record_tree(record: Submitted) -> dict[str, Any]:
    """The plain values of `submitted.json`; where it lies is not among them, for a folder may be moved."""
    tree = {field: value for field, value in asdict(record).items() if field != "folder"}
    return {**tree, "former": [record_tree(before) for before in record.former]}


def _in(record: Submitted, folder: str) -> Submitted:
    return replace(record, folder=folder, former=tuple(_in(before, folder) for before in record.former))


def of(name: str, job: str) -> bool:
    """Whether a job is the one of this name, or one of the run of this name."""
    return job == name or job.startswith(f"{name}/")


def job_folder(jobs: Path, name: str) -> Path:
    """JOBS/NAME; a part of the name that would be no folder of its own there is written otherwise."""
    return Path(jobs, *(part if part.strip(". ") else f"_{len(part)}" for part in name.split("/"))).absolute()
