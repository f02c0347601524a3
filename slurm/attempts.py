"""The attempts of a job: every start of its script, how it ended and why, and whether another one is worth its time.

    python -m slurm.attempts begin job.json         at the head of the script
    python -m slurm.attempts end job.json STATUS    at its foot, with srun's exit status, and --told when SLURM asked the script to end

SLURM itself restarts a job after a preemption, a lost node or `scontrol requeue`; the foot of the script restarts one whose command
ended with 75 (try again), one that met its time limit although it can go on, and one that was preempted where the site lets SLURM
cancel such jobs (PreemptMode=CANCEL). A job that was restarted `max_stalls` times in a row without getting on is ended instead,
whoever restarted it.

What cannot be noted (a full disk, a file system that is away) keeps no job from its next attempt.

Of two copies of one job (a node that SLURM lost sight of may go on with its task) the younger one holds the job: `slurm.task` tells
each which file to look at, and the elder ends itself (slurm/preempt.py).
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import itertools
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from data_shards import durable
from data_shards.errors import InputError, RetinaforgeError, TryAgain
from slurm.arrays import array_task
from slurm.causes import CAUSES, MARK, OVER, Ending, cause, said_in, verdict
from slurm.history import Attempt, append, attempts_path, holder_path, read_attempts
from slurm.jobs import JobSpec, read_spec, words_on
from slurm.preempt import ATTEMPT, holder_in
from slurm.restart import is_preempted, may_pass, own_number, requeue, tell

TRY_AGAIN = TryAgain.exit_code
ERRORS = "RETINAFORGE_ERRORS"
"""The variable by which the script names the file of what srun said."""


def progress_digest(spec: JobSpec, index: str | None = None) -> str:
    """A digest of the files that a job, or this index of an array, makes as it gets on: of which there are, and when each was written."""
    folder, seen = Path(spec.folder), []
    for pattern in spec.progress:
        pattern = pattern.replace("{array_task}", glob.escape(index or ""))
        root, rest = (Path("/"), pattern.lstrip("/")) if pattern.startswith("/") else (folder, pattern)
        for path in root.glob(rest):
            if _is_of(path, (spec.share or "1/1").replace("{array_task}", index or "1")):
                with contextlib.suppress(FileNotFoundError):  # pruned meanwhile
                    seen.append((str(path), path.stat().st_mtime_ns))
    return hashlib.sha256(durable.canonical_json(sorted(seen))).hexdigest()[:16]


def _is_of(path: Path, share: str) -> bool:
    """Whether a numbered file is of share K/N: those of numbers K - 1, K - 1 + N, …"""
    k, _, n = share.partition("/")
    number = re.search(r"(\d+)(\.\w+)+$", path.name)  # the end of a smaller set too: 12.first7.tar
    return number is None or int(number[1]) % int(n) == (int(k) - 1) % int(n)


NO_FAULT = (CAUSES["PREEMPTION"], CAUSES["JOB REQUEUE"], CAUSES["NODE FAILURE"])
"""Ends that say nothing of whether a job gets on, where it makes no files that would tell it."""


def put_off(attempts: list[Attempt], submission: tuple[str, str]) -> int:
    """How many attempts in a row, the last ones of this submission, ended with 75 of themselves."""
    count = 0
    for attempt in reversed(attempts):
        if attempt.submission != submission or attempt.code not in (TRY_AGAIN, None):
            break
        count += attempt.code == TRY_AGAIN and attempt.why not in NO_FAULT
    return count


def stalls(attempts: list[Attempt], submission: tuple[str, str], now: str) -> int:
    """How many attempts in a row, the last ones of this submission, left what the job makes as it is now."""
    count = 0
    for attempt in reversed(attempts):
        if attempt.submission != submission or attempt.before != now:
            break
        count += 1
    return count


def stalled(spec: JobSpec, attempts: list[Attempt], submission: tuple[str, str], now: str) -> str | None:
    """Why no further attempt of this submission is worth its time, or None."""
    count = stalls(attempts, submission, now) if spec.progress else put_off(attempts, submission)
    if count < spec.max_stalls:
        return None
    return f"{count} attempts in a row got nowhere, the last one: {attempts[-1].why}"


def begin(path: Path, environ: Mapping[str, str]) -> None:
    """Take the job over from an attempt before, and note the new one.

    Raises:
        InputError: `max_stalls` attempts of this job got nowhere.
    """
    spec, folder = read_spec(path), path.parent
    index, mine = array_task(spec.array, environ), _begun(environ)
    # first: an elder copy ends as it reads this
    durable.write_bytes(holder_path(folder, index), f"{mine.name}\n".encode())
    record, now = attempts_path(folder, index), progress_digest(spec, index)
    before = read_attempts(record)
    if before and before[-1].ended_unix_s is None:  # it was killed, or its node died
        last = before[-1]
        why = cause(said_in(folder, environ, last.restart)) or "ended without a word: its node was lost, or it was killed"
        before[-1] = replace(last, ended_unix_s=time.time(), after=now, why=why)
        append(record, before[-1])
    mine = replace(mine, before=now)
    append(record, mine)
    print(MARK.format(restart=mine.restart, nodes=mine.nodes), flush=True)
    if why := stalled(spec, before, mine.submission, now):
        append(record, replace(mine, ended_unix_s=time.time(), after=now, code=InputError.exit_code, why=why, last=True))
        raise InputError(
            why,
            where=", ".join(spec.progress) or folder,
            expected=f"{'a change there' if spec.progress else 'another end than try again'} at least once in {spec.max_stalls} attempts",
            mend=f"{words_on('logs -n 40', spec.name, folder)} shows what stops it; then {words_on('resume', spec.name, folder)}",
        )


def _begun(environ: Mapping[str, str]) -> Attempt:
    """This attempt, as SLURM and the script tell it."""
    words = environ.get(ATTEMPT, "").split(".")
    return Attempt(
        token=words[0] if len(words) == 3 else "",
        job_id=environ["SLURM_JOB_ID"],
        restart=int(environ.get("SLURM_RESTART_COUNT") or 0),
        nodes=environ.get("SLURM_JOB_NODELIST", ""),
        began_unix_s=time.time(),
        before="",
    )


def end(path: Path, status: int, asked_to_end: bool, environ: Mapping[str, str]) -> int:
    """Note how the attempt ended, and ask for another where that helps; the exit code for the script.

    Args:
        status: srun's.
        asked_to_end: SLURM asked the script to end, so what follows is SLURM's to decide, but for a time limit and a preemption.
    """
    folder, spec = path.parent, _spec_or_defaults(path)
    index, mine = array_task(spec.array, environ), _begun(environ)
    record, errors = attempts_path(folder, index), Path(environ.get(ERRORS) or folder / f"{mine.job_id}_{mine.restart}_srun.err")
    attempts, after, srun_said = [], "not read", ""
    with _told_if_it_fails():
        srun_said = errors.read_text(errors="replace") if errors.is_file() else ""
        sys.stderr.write(srun_said)
    with _told_if_it_fails():
        attempts, mine = _former(record, mine)
        after = progress_digest(spec, index)
    ending = verdict(srun_said, folder, environ, mine.restart, status=status, asked_to_end=asked_to_end)
    if ending.code != 0 and ending.due is None and is_preempted(own_number(environ)):
        # in its time of grace: the tasks alone were told to end
        ending = replace(ending, due=CAUSES["PREEMPTION"], why=CAUSES["PREEMPTION"])
    elder = _holder(folder, index) not in ("", mine.name)
    again = spec.requeue and not elder and _comes_back(spec, ending, asked_to_end)
    why, refused = ending.why, None
    if again:
        refused = stalled(spec, [*attempts, replace(mine, why=why, code=ending.code)], mine.submission, after)
        if mine.restart >= spec.max_restarts:
            refused = f"{why}; it was restarted {mine.restart} times, the most it may"
    if refused or elder:
        why = refused or f"another attempt had taken over ({why})"
        tell(f"retinaforge: not restarted: {why}")
    again = again and not refused
    last = not (again or elder) and (not asked_to_end or ending.due in OVER)
    with _told_if_it_fails():
        append(record, replace(mine, ended_unix_s=time.time(), after=after, code=ending.code, why=why, last=last))
    if errors.is_file():
        with _told_if_it_fails():
            errors.unlink()
    if again:
        requeue(own_number(environ))
    return ending.code


def _comes_back(spec: JobSpec, ending: Ending, asked_to_end: bool) -> bool:
    """Whether another attempt helps."""
    if ending.code == TRY_AGAIN and not asked_to_end:
        return True
    if ending.code == 0:
        return False
    # SLURM restarts what it preempts by itself, and the request changes nothing, or it cancels it
    return ending.due == CAUSES["PREEMPTION"] or (ending.due == CAUSES["TIME LIMIT"] and bool(spec.progress))


def _spec_or_defaults(path: Path) -> JobSpec:
    """The job; where its file cannot be read, one that may come back: SLURM itself refuses to restart a job that may not."""
    try:
        return read_spec(path)
    except InputError as error:
        tell(f"retinaforge: {error}")
        return JobSpec(name="unread", command=("unread",), folder="/")


def _former(record: Path, mine: Attempt) -> tuple[list[Attempt], Attempt]:
    """The attempts before this one, and this one as it was noted when it began; a younger copy may have noted itself behind it."""
    known = read_attempts(record)
    before = list(itertools.takewhile(lambda attempt: attempt.key != mine.key, known))
    return before, known[len(before)] if len(before) < len(known) else mine


def _holder(folder: Path, index: str | None) -> str:
    """The name of the attempt that holds the job; '' where nobody can say it."""
    try:
        return holder_in(holder_path(folder, index))
    except OSError:
        return ""


@contextlib.contextmanager
def _told_if_it_fails() -> Iterator[None]:
    """What cannot be read or noted is told, and what follows is done all the same."""
    try:
        yield
    except (OSError, RetinaforgeError) as error:
        tell(f"retinaforge: how this attempt ended was not noted: {error}")


def _begun_or_put_off(path: Path, environ: Mapping[str, str]) -> int:
    """0, or 75 after a request for another attempt, where a full disk or a file system that is away keeps this one from beginning."""
    try:
        with durable.explained(path):
            begin(path, environ)
        return 0
    except (RetinaforgeError, OSError) as error:
        if not may_pass(error):
            raise
        tell(f"{type(error).__name__}: {error}")
    spec = _spec_or_defaults(path)
    if spec.requeue and int(environ.get("SLURM_RESTART_COUNT") or 0) < spec.max_restarts:
        requeue(own_number(environ))
    return TRY_AGAIN


def main(words: list[str]) -> int:
    """`begin PATH` or `end PATH STATUS [--told]`; the exit code of the script."""
    try:
        if words[0] == "begin":
            return _begun_or_put_off(Path(words[1]), os.environ)
        return end(Path(words[1]), int(words[2]), "--told" in words[3:], os.environ)
    except RetinaforgeError as error:
        tell(f"{type(error).__name__}: {error}")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
