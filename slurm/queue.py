"""What SLURM says of jobs: one call for all of them, and not more often than a site likes."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_shards import durable
from data_shards.errors import InputError, TryAgain
from slurm.arrays import array_indices
from slurm.programs import ask

UNKNOWN = "UNKNOWN"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL")
"""States of a job that does not come back; one of NODE_FAIL or PREEMPTED may."""
ASK_EVERY_S = 30.0  # sites ban who asks more often
LONGEST_PAUSE_S = 600.0
COMMENT_BYTES = 192  # of a job's comment, so many are asked for
TOKEN_MARK = "retinaforge:"
"""Before the token of a submission, in the comment that SLURM keeps of the job."""


@dataclass(frozen=True, kw_only=True)
class JobState:
    """One job, or one index of an array, as SLURM has it.

    Attributes:
        job_id: SLURM's number, with _INDEX for one of an array, or _FIRST-LAST for indices that wait together.
        name: the job's name.
        state: SLURM's word (PENDING, RUNNING, COMPLETED, …), or UNKNOWN when SLURM no longer has it: not an end.
        elapsed: running time as [D-]HH:MM:SS.
        restarts: how often it was requeued.
        why: the reason for waiting or ending, or the nodes it runs on.
        comment: as SLURM has it; in one of ours stands the token of its submission.
        folder: that it was started in, where the books told it.
    """

    job_id: str
    name: str = ""
    state: str = UNKNOWN
    elapsed: str = ""
    restarts: int = 0
    why: str = ""
    comment: str = ""
    folder: str = ""

    @property
    def token(self) -> str:
        """The token of the submission; '' where the comment holds none."""
        match = re.search(rf"{TOKEN_MARK}([0-9a-f]+)", self.comment)
        return match[1] if match else ""

    @property
    def number(self) -> str:
        """SLURM's number alone."""
        return self.job_id.partition("_")[0]

    @property
    def indices(self) -> list[str]:
        """Those of its array that it stands for: 3, 4, 5, 9 of '12_3-5,9'; none of '12'."""
        span = self.job_id.partition("_")[2].strip("[]")
        return [str(index) for index in array_indices(span)] if re.fullmatch(r"[0-9,:-]+", span) else []


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What squeue or sacct said, and when; `failures` in a row since, and the last of them; the numbers that sacct was asked `about`."""

    text: str
    asked_unix_s: float
    tried_unix_s: float
    failures: int = 0
    said: str = ""
    about: list[str] = field(default_factory=list)


class Queue:
    """squeue's answer, shared by all programs of this user on this machine through one file.

    It is asked for all jobs of the user at once, at most every `ask_every_s`; after failures less and less often.

    Args:
        ask_every_s: seconds between two calls.
        cache: the file; by default one in ~/.cache/retinaforge for each cluster that is spoken with.
    """

    def __init__(self, ask_every_s: float = ASK_EVERY_S, cache: Path | None = None) -> None:
        self.ask_every_s, self.cache = ask_every_s, cache or _cache()
        self.last: Answer | None = None  # where there can be no file
        self.last_books: Answer | None = None

    def states(self, job_ids: Iterable[str], *, newer_than_unix_s: float = 0.0) -> dict[str, list[JobState]]:
        """The states of these jobs, each with one entry, or several for an array.

        Args:
            newer_than_unix_s: an answer of before this time will not do: the job was submitted or cancelled then.

        Raises:
            InputError: no SLURM here. TryAgain: the controller does not answer, and never did.
        """
        wanted = list(job_ids)
        if not wanted:
            return {}
        return read_squeue(self.answer(newer_than_unix_s).text, wanted)

    def answer(self, newer_than_unix_s: float = 0.0) -> Answer:
        """The present answer. Raises as `states` does, also where the answer that stands is too old for what is asked."""
        if not shutil.which("squeue"):
            raise InputError("no SLURM here: squeue is not on PATH", expected="a login node of a cluster")
        with _locked(self.cache) as kept:
            last, now = _read(kept) if kept else self.last, time.time()
            if last is None or now >= last.tried_unix_s + self._pause_s(last, newer_than_unix_s):
                last = self._ask(last, now)
                _write(kept, last)
            self.last = last
        if last.failures and last.asked_unix_s <= newer_than_unix_s:
            seconds = last.tried_unix_s + self._pause_s(last, newer_than_unix_s) - time.time()
            mend = f"scontrol ping; it is asked again in {max(seconds, 0):.0f} s"
            raise TryAgain(last.said, expected="an answer of the controller", mend=mend)
        return last

    def _pause_s(self, last: Answer, newer_than_unix_s: float) -> float:
        """Seconds from the last call to the next: longer and longer after failures, but for a person who needs a fresh answer."""
        if last.asked_unix_s <= newer_than_unix_s:
            return self.ask_every_s if last.failures else 0.0
        return max(self.ask_every_s, min(LONGEST_PAUSE_S, self.ask_every_s * 2**last.failures))

    def books(self, numbers: Iterable[str]) -> dict[str, list[JobState]]:
        """`last_words` of these jobs, asked for as seldom as squeue, and for new numbers at once."""
        jobs = set(numbers)
        if not jobs or not shutil.which("sacct"):
            return {}
        with _locked(self.cache.with_name(f"sacct-{self.cache.name}")) as kept:
            last, now = _read(kept) if kept else self.last_books, time.time()
            if last is None or now >= last.tried_unix_s + self.ask_every_s or not jobs <= set(last.about):
                last = Answer(text=sacct(jobs), asked_unix_s=now, tried_unix_s=now, about=sorted(jobs))
                _write(kept, last)
            self.last_books = last
        return last_words(last.text)

    def _ask(self, last: Answer | None, now: float) -> Answer:
        try:
            text = squeue()
        except TryAgain as error:
            before = last or Answer(text="", asked_unix_s=0.0, tried_unix_s=now)
            return replace(before, tried_unix_s=now, failures=before.failures + 1, said=error.what)
        return Answer(text=text, asked_unix_s=now, tried_unix_s=now)


# fields of a fixed width, since a name may hold any separator; the index of an array last and whole, for it may be a long list
FORMAT = (
    *(("ArrayJobID", 24), ("State", 24), ("TimeUsed", 24), ("RestartCnt", 12), ("Comment", COMMENT_BYTES), ("ReasonList", 96)),
    *(("Name", 512), ("ArrayTaskID", 0)),
)


def squeue() -> str:
    """All jobs of this user that the controller knows, those that ended lately too.

    Raises:
        TryAgain: the controller does not answer.
    """
    # by user and not by number: one number that SLURM has forgotten makes squeue fail for all of them
    fields, user = ",".join(f"{field}:{width}" for field, width in FORMAT), os.getuid()  # by number: not every user has a name
    words = ("squeue", "--noheader", "--all", "--states=all", f"--user={user}", f"--Format={fields}")
    return "\n".join(map(str.rstrip, ask(*words, errors="surrogateescape").split("\n")))


def read_squeue(text: str, wanted: Iterable[str]) -> dict[str, list[JobState]]:
    """Read squeue's lines of FORMAT; what it does not list is UNKNOWN."""
    by_number: dict[str, list[JobState]] = {job_id: [] for job_id in wanted}
    for state in _states(text):
        if state.number in by_number:
            by_number[state.number].append(state)
    return {job_id: entries or [JobState(job_id=job_id)] for job_id, entries in by_number.items()}


def numbers_of(text: str, token: str) -> set[str]:
    """The numbers that SLURM gave to a submission, by squeue's lines."""
    return {state.number for state in _states(text) if state.token == token}


def _states(text: str) -> Iterator[JobState]:
    for line in text.split("\n"):
        left, fields = line.encode(errors="surrogateescape"), []
        for _, width in FORMAT:  # widths are bytes
            fields.append((left[:width] if width else left).decode(errors="replace").strip())
            left = left[width:]
        number, state, elapsed, restarts, comment, why, name, index = fields
        if number:
            yield JobState(
                job_id=number if index in ("", "N/A") else f"{number}_{index.partition('%')[0]}",
                name=name,
                state=state,
                elapsed=elapsed,
                restarts=int(restarts) if restarts.isdecimal() else 0,
                why=why,
                comment="" if comment == "(null)" else comment,
            )


def starts_in(number: str) -> str | None:
    """The folder that SLURM starts this job in; None where it does not say."""
    try:
        said = ask("scontrol", "show", "job", number)
    except TryAgain:
        return None
    folders = set(re.findall(r"^\s*WorkDir=(.*)$", said, re.MULTILINE))  # a line for each index of an array
    return folders.pop() if len(folders) == 1 else None


BOOKS = ("JobID", "State", "Elapsed", "ExitCode", "Comment", "WorkDir", "JobName")
BETWEEN = "\x1f"


def sacct(numbers: Iterable[str]) -> str:
    """The lines of the books on these numbers; '' where the site keeps none, or they cannot be read: the state is UNKNOWN then."""
    words = ("sacct", "--allocations", "--noheader", "--parsable2", f"--delimiter={BETWEEN}", f"--format={','.join(BOOKS)}")
    try:
        return ask(*words, "--jobs=" + ",".join(sorted(numbers)))
    except TryAgain:
        return ""


def last_words(text: str) -> dict[str, list[JobState]]:
    """The ends of jobs that sacct's lines tell, by number.

    Only an end is taken from them: the controller alone knows what runs, and books that lag behind still call a dead job RUNNING.
    """
    by_number: dict[str, list[JobState]] = {}
    for line in text.split("\n"):
        fields = line.split(BETWEEN)
        if len(fields) != len(BOOKS):
            continue
        job_id, state, elapsed, code, comment, folder, name = fields
        word = state.split()[0] if state.strip() else ""
        if word in ENDED:
            why = "" if code == "0:0" else f"exit code {code.partition(':')[0]}"
            entry = JobState(job_id=job_id, name=name, state=word, elapsed=elapsed, why=why, comment=comment, folder=folder)
            by_number.setdefault(entry.number, []).append(entry)
    return by_number


def _cache() -> Path:
    """One file for each cluster as this machine sees it; home folders are shared by machines."""
    seen = [repr(FORMAT), socket.gethostname(), *(os.environ.get(name, "") for name in ("SLURM_CONF", "SLURM_CLUSTERS"))]
    name = hashlib.sha256("\n".join(seen).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    if not folder.is_absolute():  # a user without a home: nothing is kept
        folder = Path(os.devnull)
    return folder / "retinaforge" / f"squeue-{name}.json"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[Any]:
    """The open file, for one process at a time; None where there can be no such file, and everybody asks for himself."""
    try:
        durable.make_folder(path.parent)
        file = open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b")  # noqa: SIM115 - closed below
    except OSError:
        yield None
        return
    with file:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _read(file: Any) -> Answer | None:
    try:
        answer = Answer(**json.loads(file.read()))
    except (ValueError, TypeError):
        return None
    # a clock that was set back would keep an answer for ever
    return answer if answer and answer.tried_unix_s <= time.time() else None


def _write(file: Any, answer: Answer) -> None:
    """In place, for the lock is on this very file; what a kill leaves torn is asked for anew."""
    with contextlib.suppress(OSError):  # a full disk: it is asked for again
        if file:
            file.seek(0)
            file.truncate()
            file.write(json.dumps(vars(answer)).encode())
            file.flush()
