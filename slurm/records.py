"""What was submitted, by name, and how it stands: the records in the folders of jobs, joined with what SLURM says."""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from data_shards import durable
from data_shards.errors import CorruptData, InputError, RetinaforgeError, TryAgain, command, nearest
from slurm import JOBS
from slurm.arrays import array_indices, check_array, site_here, spelled
from slurm.attempts import attempts_path, read_attempts
from slurm.causes import CAUSES
from slurm.jobs import words_on
from slurm.status import ENDED, UNKNOWN, JobState, Queue, starts_in

RECORD_NAME, CANCELLED_NAME = "submitted.json", "cancelled"
LOST = ("NODE_FAIL", "PREEMPTED")
"""What squeue calls a job that it does not start again; of others' words (sacct, submitit) it may yet be."""


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
        mine = next((record for record in (self, *self.former) if number in record.job_ids), None)
        if mine is None or not (mine.part and span):
            return job_id
        indices = array_indices(mine.array or "")[mine.job_ids.index(number) * mine.part :]
        return f"{number}_" + re.sub(r"\d+", lambda match: str(indices[int(match[0])]), span)


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


def span_of(job_id: str) -> list[str]:
    """The indices of '12_3-5,9': 3, 4, 5, 9; none of '12'."""
    span = job_id.partition("_")[2].strip("[]")
    return [str(index) for index in array_indices(span)] if re.fullmatch(r"[0-9,:-]+", span) else []


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


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """What one of SLURM's numbers stands for.

    Attributes:
        record: the submission that it is of.
        indices: those of the whole array, by what SLURM calls them under this number; {"": ""} outside an array.
    """

    record: Submitted
    number: str
    indices: dict[str, str]

    def own(self, states: Iterable[JobState], *, fresh: bool = True) -> dict[str, JobState]:
        """Those of SLURM's lines that are this job, and no other that has the same number, by the index that SLURM calls them by.

        A site may write something of its own over the comment, and older versions left none. Then the folder that the job starts in
        tells it, which is asked for where it matters.
        """
        mine = self._by_token(states)
        doubtful = [state for state in states if not state.token and state.name.strip() == self.record.name.strip()]
        if doubtful and fresh:
            asked = None if all(state.folder for state in doubtful) else starts_in(self.number)
            doubtful = [state for state in doubtful if self._is_here(state.folder or asked)]
        found: dict[str, JobState] = {}
        for state in (*mine, *doubtful):
            found |= {index: state for index in span_of(state.job_id) or [""] if index in self.indices and state.state != UNKNOWN}
        return found

    def gone(self, states: Iterable[JobState]) -> set[str]:
        """The indices that SLURM would list beside others of their number if they waited or ran, and does not; none where it lists none."""
        spans = [span_of(state.job_id) for state in self._by_token(states)]
        if not all(spans):  # a list that cannot be read leaves nothing to conclude
            return set()
        return self.indices.keys() - {index for span in spans for index in span} if spans else set()

    def _by_token(self, states: Iterable[JobState]) -> list[JobState]:
        return [state for state in states if state.token and state.token == self.record.token]

    def _is_here(self, folder: str | None) -> bool:
        return bool(folder and self.record.folder) and Path(folder).resolve() == Path(self.record.folder).resolve()


def _pieces(record: Submitted) -> list[_Piece]:
    """The numbers under which a job is to be found: those of its last submission, and of those before for indices that it left out."""
    found, left = [], set(map(str, array_indices(record.whole))) if record.whole else None
    for each in (record, *reversed(record.former)) if left is not None else (record,):
        for number in each.job_ids:
            own = each.true_indices(number)
            wanted = own if left is None else {index: true for index, true in own.items() if true in left}
            if wanted:
                found.append(_Piece(record=each, number=number, indices=wanted))
            if left is not None:
                left -= set(wanted.values())
    return found


def current(records: list[Submitted], queue: Queue | None = None, *, fresh: bool = False) -> dict[str, list[JobState]]:
    """States by the jobs' names, one for each index of an array.

    From one call to SLURM; of what it has forgotten, from one to its books, and from what the job itself noted as it ended. A number
    that SLURM has given to another job since is UNKNOWN here, and so is what nobody knows.

    Args:
        fresh: as they are now, for what depends on it; else they may be as old as `queue` allows.

    Raises:
        InputError, TryAgain: as `Queue.states`.
    """
    queue, now = queue or Queue(), time.time()
    # another host's clock may be ahead: what was submitted in our future is not asked for again and again
    newest = now if fresh else max((r.submitted_unix_s for r in records if r.submitted_unix_s <= now), default=0.0)
    pieces = [(record.name, piece) for record in records for piece in _pieces(record)]
    listed = queue.states([piece.number for _, piece in pieces], newer_than_unix_s=newest)
    known = [piece.own(listed[piece.number], fresh=fresh) for _, piece in pieces]
    books = queue.books(piece.number for (_, piece), states in zip(pieces, known, strict=True) if states.keys() != piece.indices.keys())
    found: dict[str, list[JobState]] = {record.name: [] for record in records}
    for (name, piece), states in zip(pieces, known, strict=True):
        written, gone = piece.own(books.get(piece.number, [])), piece.gone(listed[piece.number])
        for index, true in piece.indices.items():
            state = states.get(index) or written.get(index) or _noted(piece, true)
            if state.state == UNKNOWN and index in gone:
                state = replace(state, state="CANCELLED", why="cancelled, or ended without a word: SLURM lists its siblings alone")
            found[name].append(replace(state, job_id=f"{piece.number}_{true}" if true else piece.number))
    return found


BY_WHY = {"cancelled": "CANCELLED", CAUSES["TIME LIMIT"]: "TIMEOUT"}
"""SLURM's words for what a job noted of its end."""


def _noted(piece: _Piece, index: str) -> JobState:
    """How a job ended by its own word; UNKNOWN where it left none, which is no end."""
    record = piece.record
    attempts = read_attempts(attempts_path(Path(record.folder), index or None)) if record.folder and record.token else []
    last = next((attempt for attempt in reversed(attempts) if attempt.token == record.token), None)
    if (last is None or not last.last) and _cancelled(record):
        return JobState(job_id=piece.number, name=record.name, state="CANCELLED", why="cancelled")
    if last is None or not last.last:
        where = f"SLURM here does not know it; it was submitted on cluster {record.cluster}" if record.cluster else ""
        return JobState(job_id=piece.number, name=record.name, why=where)
    state = "COMPLETED" if last.code == 0 else BY_WHY.get(last.why, "FAILED")
    return JobState(job_id=piece.number, name=record.name, state=state, restarts=last.restart, why=last.why)


def _note_cancelled(record: Submitted) -> None:
    """For when SLURM has forgotten it. Earlier submissions stay noted: indices of theirs may not have been submitted again."""
    path = Path(record.folder) / CANCELLED_NAME
    with contextlib.suppress(OSError, RetinaforgeError):
        noted = path.read_text(errors="replace").split() if path.exists() else []
        durable.write_bytes(path, "".join(f"{token}\n" for token in dict.fromkeys([*noted, record.token])).encode())


def _cancelled(record: Submitted) -> bool:
    """Whether it was, by `cancelled`."""
    try:
        return record.token in (Path(record.folder) / CANCELLED_NAME).read_text(errors="replace").split()
    except OSError:
        return False


def is_live(states: list[JobState]) -> bool:
    """Whether SLURM says that any of it waits or runs. (squeue calls a job that it starts again PENDING.)"""
    return any(state.state not in (*ENDED, *LOST, UNKNOWN) for state in states)


def is_unknown(states: list[JobState]) -> bool:
    """Whether nobody knows of any of it whether it waits, runs or has ended."""
    return any(state.state == UNKNOWN for state in states)


def is_away(record: Submitted) -> bool:
    """Whether it was submitted on another cluster than the one that SLURM's programs speak with here.

    Raises:
        TryAgain: the controller does not answer.
    """
    return bool(record.cluster) and record.cluster != site_here().cluster


def whereabouts(record: Submitted, away: bool, states: list[JobState]) -> str:
    """Of a job that is UNKNOWN: the numbers that are, of an array with their indices, and why."""
    unknown: dict[str, list[int]] = {}
    for state in states:
        if state.state == UNKNOWN:
            unknown.setdefault(state.job_id.partition("_")[0], []).extend(map(int, span_of(state.job_id)))
    numbers = f"job {', '.join(number + ('_' + spelled(indices) if indices else '') for number, indices in unknown.items())}"
    if away:
        return f"{numbers} was submitted on cluster {record.cluster}, which is not the one that is spoken with here"
    return f"{numbers} is not known to SLURM here, and left no word of its end"


CANCELLED, OVER = "cancelled", "had ended already"


def cancelled(records: list[Submitted], queue: Queue | None = None) -> dict[str, str]:
    """Cancel those that wait or run, all of an array's indices. By name: CANCELLED, OVER, or UNKNOWN where none of it is known to live.

    Raises:
        InputError, TryAgain: as `Queue.states`, or SLURM's own refusal.
    """
    if not records:
        return {}
    queue = queue or Queue()
    found = current(records, queue, fresh=True)
    live = {state.job_id.partition("_")[0] for states in found.values() for state in states if is_live([state])}
    if live:
        done = subprocess.run(["scancel", *sorted(live)], capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise TryAgain(f"scancel failed: {done.stderr.strip()}", expected="an answer of the controller", mend="scontrol ping")
        for record in records:
            if is_live(found[record.name]) and record.token and Path(record.folder).is_dir():
                _note_cancelled(record)
        with contextlib.suppress(TryAgain):
            queue.answer(time.time())  # an answer of before would still call them live
    return {name: CANCELLED if is_live(states) else UNKNOWN if is_unknown(states) else OVER for name, states in found.items()}
