"""How submitted jobs stand: their records, joined with what SLURM says and with what the jobs themselves noted."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from data_shards import durable
from data_shards.errors import CorruptData, InputError, RetinaforgeError, TryAgain
from slurm.arrays import array_indices, site_here, spelled
from slurm.causes import CAUSES
from slurm.history import attempts_path, read_attempts
from slurm.jobs import words_on
from slurm.queue import ENDED, UNKNOWN, JobState, Queue, starts_in
from slurm.records import RECORD_NAME, Submitted, read_record

LOST = ("NODE_FAIL", "PREEMPTED")
"""What squeue calls a job that it does not start again; of others' words (sacct, submitit) it may yet be."""
CANCELLED_NAME = "cancelled"


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
        ours = self._by_token(states)
        doubtful = [state for state in states if not state.token and state.name.strip() == self.record.name.strip()]
        if doubtful and fresh:
            asked = None if all(state.folder for state in doubtful) else starts_in(self.number)
            doubtful = [state for state in doubtful if self._is_here(state.folder or asked)]
        by_index: dict[str, JobState] = {}
        for state in (*ours, *doubtful):
            by_index |= {index: state for index in state.indices or [""] if index in self.indices and state.state != UNKNOWN}
        return by_index

    def gone(self, states: Iterable[JobState]) -> set[str]:
        """The indices that SLURM would list beside others of their number if they waited or ran, and does not; none where it lists none."""
        spans = [state.indices for state in self._by_token(states)]
        if not all(spans):  # a list that cannot be read leaves nothing to conclude
            return set()
        return self.indices.keys() - {index for span in spans for index in span} if spans else set()

    def _by_token(self, states: Iterable[JobState]) -> list[JobState]:
        return [state for state in states if state.token and state.token == self.record.token]

    def _is_here(self, folder: str | None) -> bool:
        return bool(folder and self.record.folder) and Path(folder).resolve() == Path(self.record.folder).resolve()


def _pieces(record: Submitted) -> list[_Piece]:
    """The numbers under which a job is to be found: those of its last submission, and of those before for indices that it left out."""
    if record.whole is None:
        return [_Piece(record=record, number=number, indices=record.true_indices(number)) for number in record.job_ids]
    pieces, left = [], set(map(str, array_indices(record.whole)))
    for each in (record, *reversed(record.former)):
        for number in each.job_ids:
            indices = {index: true for index, true in each.true_indices(number).items() if true in left}
            if indices:
                pieces.append(_Piece(record=each, number=number, indices=indices))
            left -= set(indices.values())
    return pieces


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
    states_of: dict[str, list[JobState]] = {record.name: [] for record in records}
    for (name, piece), states in zip(pieces, known, strict=True):
        written, gone = piece.own(books.get(piece.number, [])), piece.gone(listed[piece.number])
        for index, true in piece.indices.items():
            state = states.get(index) or written.get(index) or _noted(piece, true)
            if state.state == UNKNOWN and index in gone:
                state = replace(state, state="CANCELLED", why="cancelled, or ended without a word: SLURM lists its siblings alone")
            states_of[name].append(replace(state, job_id=f"{piece.number}_{true}" if true else piece.number))
    return states_of


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
            unknown.setdefault(state.number, []).extend(map(int, state.indices))
    numbers = f"job {', '.join(number + ('_' + spelled(indices) if indices else '') for number, indices in unknown.items())}"
    if away:
        return f"{numbers} was submitted on cluster {record.cluster}, which is not the one that is spoken with here"
    return f"{numbers} is not known to SLURM here, and left no word of its end"


def check_free(run_folder: Path, *, force: bool = False) -> str:
    """Refuse to submit a job a second time while SLURM still has it, or nobody knows. Returns which submission is over; '' for none.

    Args:
        force: what nobody knows is taken for over.

    Raises:
        InputError: as said. CorruptData: the record is damaged. TryAgain: SLURM does not answer.
    """
    record = known(run_folder, force=force)
    if record is None:
        return ""
    states = current([record], fresh=True)[record.name]
    if is_live(states):
        live = next(state for state in states if is_live([state]))
        raise InputError(
            f"this name is in use: job {live.job_id} is {live.state}",
            where=run_folder,
            expected="a job that has ended, to submit it again",
            mend=f"{words_on('status', record.name, run_folder)}; {words_on('cancel', record.name, run_folder)} ends it, "
            "another --name goes beside it",
        )
    if is_unknown(states) and not force:
        raise not_known(record, run_folder, states)
    return record.key


def known(run_folder: Path, *, force: bool) -> Submitted | None:
    """The record of a job that was submitted; None where there is none, or by force where it is damaged.

    Raises:
        CorruptData: it is damaged.
    """
    path = run_folder / RECORD_NAME
    try:
        return read_record(path) if path.exists() else None
    except CorruptData:
        if force:
            return None
        raise


def not_known(record: Submitted, run_folder: Path, states: list[JobState]) -> InputError:
    """The refusal to submit a job again of which SLURM cannot say whether it lives."""
    away = is_away(record)
    look = f"the same command on a machine of cluster {record.cluster}" if away else "squeue --me --all lists the jobs that live"
    return InputError(
        f"this name may be in use: {whereabouts(record, away, states)}",
        where=run_folder,
        expected="a job that is known to have ended, to submit it again",
        mend=f"{look}; once you know that it has ended, the same command with --force",
    )


CANCELLED, OVER = "cancelled", "had ended already"


def cancelled(records: list[Submitted], queue: Queue | None = None) -> dict[str, str]:
    """Cancel those that wait or run, all of an array's indices. By name: CANCELLED, OVER, or UNKNOWN where none of it is known to live.

    Raises:
        InputError, TryAgain: as `Queue.states`, or SLURM's own refusal.
    """
    if not records:
        return {}
    queue = queue or Queue()
    states_of = current(records, queue, fresh=True)
    live = {state.number for states in states_of.values() for state in states if is_live([state])}
    if live:
        done = subprocess.run(["scancel", *sorted(live)], capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise TryAgain(f"scancel failed: {done.stderr.strip()}", expected="an answer of the controller", mend="scontrol ping")
        for record in records:
            if is_live(states_of[record.name]) and record.token and Path(record.folder).is_dir():
                _note_cancelled(record)
        with contextlib.suppress(TryAgain):
            queue.answer(time.time())  # an answer of before would still call them live
    return {name: CANCELLED if is_live(states) else UNKNOWN if is_unknown(states) else OVER for name, states in states_of.items()}
