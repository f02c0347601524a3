"""The attempts of a job: every start of its script, how it ended and why, and whether another one is worth its time.

    python -m slurm.attempts begin job.json         at the head of the script
    python -m slurm.attempts end job.json STATUS    at its foot, with srun's exit status, and --told when SLURM asked the script to end

SLURM itself restarts a job after a preemption, a lost node or `scontrol requeue`; the foot of the script restarts one whose command
ended with 75 (try again), or met its time limit although it can go on. A job that was restarted `max_stalls` times in a row without
getting on is ended instead, whoever restarted it.

Of two copies of one job (a node that SLURM lost sight of may go on with its task) the younger one holds the job: `slurm.task` tells
each which file to look at, and the elder ends itself (slurm/preempt.py).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from data_shards import durable
from data_shards.errors import InputError, RetinaforgeError, TryAgain
from slurm.arrays import array_task
from slurm.causes import AWAY, CAUSES, EXITED, LOST_NODE, MARK, cause, failure, first_code, said_in
from slurm.jobs import JobSpec, read_spec

TRY_AGAIN = TryAgain.exit_code
PATIENCE_S = (5, 10, 20, 40, 80, 160, 300)
"""Pauses between requests to a controller that does not answer."""
UNHEARD = re.compile(r"contact slurm controller|timed out|not responding|onnection|Zero Bytes|temporar", re.IGNORECASE)
"""The words of SLURM's programs for a controller that is away."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One start of a job's script.

    Attributes:
        job_id: SLURM's number.
        restart: how often SLURM had started it before.
        nodes: SLURM's list of them.
        began_unix_s, ended_unix_s: by the clock of the first node; None: not yet, or nobody could say it.
        before, after: the state of what the job makes (`progress_of`), at either end.
        code: exit code; None when the script was ended before it could tell.
        why: in a few words.
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


def attempts_path(folder: Path, index: str | None = None) -> Path:
    """The record of a job, or of one index of an array."""
    return folder / (f"attempts_{index}.jsonl" if index else "attempts.jsonl")


def holder_path(folder: Path, index: str | None = None) -> Path:
    """The file that names the attempt that holds the job."""
    return folder / (f"holder_{index}" if index else "holder")


def read_attempts(path: Path) -> list[Attempt]:
    """All attempts, the oldest first; a line that a kill left torn is passed over."""
    found: dict[tuple[str, int], Attempt] = {}
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        try:
            attempt = Attempt(**json.loads(line))
        except (ValueError, TypeError):
            continue
        found[attempt.job_id, attempt.restart] = attempt
    return list(found.values())


def read_all(folder: Path) -> dict[str, list[Attempt]]:
    """The attempts of a job by index of its array; of one that is no array under ''."""
    found = {path.stem.partition("_")[2]: read_attempts(path) for path in folder.glob("attempts*.jsonl")}
    return {index: found[index] for index in sorted(found, key=lambda index: (len(index), index)) if found[index]}


def progress_of(spec: JobSpec) -> str:
    """A digest of the files that a job makes as it gets on; it changes when one of them comes, goes or is written anew."""
    folder, seen = Path(spec.folder), []
    for pattern in spec.progress:
        root, rest = (Path("/"), pattern.lstrip("/")) if pattern.startswith("/") else (folder, pattern)
        for path in root.glob(rest):
            try:
                seen.append((str(path), path.stat().st_mtime_ns))
            except FileNotFoundError:
                continue  # pruned meanwhile
    return hashlib.sha256(durable.canonical_json(sorted(seen))).hexdigest()[:16]


def stalls(attempts: list[Attempt], job_id: str, now: str) -> int:
    """How many attempts in a row, the last ones of this job, left what the job makes as it is now."""
    count = 0
    for attempt in reversed(attempts):
        if attempt.job_id != job_id or attempt.before != now:
            break
        count += 1
    return count


def stalled(spec: JobSpec, attempts: list[Attempt], job_id: str, now: str) -> str | None:
    """Why no further attempt of this job is worth its time, or None."""
    count = stalls(attempts, job_id, now)
    if not spec.progress or count < spec.max_stalls:
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
    durable.write_bytes(holder_path(folder, index), f"{mine.job_id}.{mine.restart}\n".encode())
    record, now = attempts_path(folder, index), progress_of(spec)
    before = read_attempts(record)
    if before and before[-1].ended_unix_s is None:  # it was killed, or its node died
        last = before[-1]
        why = cause(said_in(folder, environ, last.restart)) or "ended without a word: its node was lost, or it was killed"
        before[-1] = replace(last, ended_unix_s=time.time(), after=now, why=why)
        _append(record, before[-1])
    mine = replace(mine, before=now)
    _append(record, mine)
    print(MARK.format(restart=mine.restart, nodes=mine.nodes), flush=True)
    if why := stalled(spec, before, mine.job_id, now):
        _append(record, replace(mine, ended_unix_s=time.time(), after=now, code=InputError.exit_code, why=why))
        raise InputError(
            why,
            where=", ".join(spec.progress),
            expected=f"a change there at least once in {spec.max_stalls} attempts",
            mend=f"retinaforge logs {spec.name!r} -n 40 shows what stops it; then retinaforge resume {spec.name!r}",
        )


def _begun(environ: Mapping[str, str]) -> Attempt:
    """This attempt, as SLURM tells it to the script."""
    return Attempt(
        job_id=environ["SLURM_JOB_ID"],
        restart=int(environ.get("SLURM_RESTART_COUNT") or 0),
        nodes=environ.get("SLURM_JOB_NODELIST", ""),
        began_unix_s=time.time(),
        before="",
    )


def end(path: Path, status: int, told: bool, environ: Mapping[str, str]) -> int:
    """Note how the attempt ended, and ask for another where that helps; the exit code for the script.

    Args:
        status: srun's.
        told: SLURM asked the script to end, so what follows is SLURM's to decide, but for a time limit.
    """
    spec, folder = read_spec(path), path.parent
    index, mine = array_task(spec.array, environ), _begun(environ)
    record, after = attempts_path(folder, index), progress_of(spec)
    attempts = list(itertools.takewhile(lambda a: (a.job_id, a.restart) != (mine.job_id, mine.restart), known := read_attempts(record)))
    mine = known[len(attempts)] if len(attempts) < len(known) else mine  # a younger copy may have noted itself behind it
    errors = folder / f"{mine.job_id}_{mine.restart}_srun.err"
    said = errors.read_text(errors="replace") if errors.exists() else ""
    sys.stderr.write(said)
    code, due = first_code(said, status), cause(said + said_in(folder, environ, mine.restart))
    away = AWAY.search(said) if not EXITED.search(said) and (code != 0 or LOST_NODE.search(said)) else None
    if away and (code == 0 or not told):
        code = TRY_AGAIN  # srun may end with 0 when a node is lost
    why = due or (away and away[0]) or failure(said, folder, environ) or ("done" if code == 0 else f"exit code {code}")
    elder = holder_path(folder, index).read_text().strip() != f"{mine.job_id}.{mine.restart}"
    again = (
        spec.requeue
        and not elder
        and ((code == TRY_AGAIN and not told) or (code != 0 and due == CAUSES["TIME LIMIT"] and bool(spec.progress)))
    )
    refused = None
    if again:
        mine = replace(mine, why=why)
        refused = stalled(spec, [*attempts, mine], mine.job_id, after)
        if mine.restart >= spec.max_restarts:
            refused = f"{why}; it was restarted {mine.restart} times, the most it may"
    if refused or elder:
        why = refused or f"another attempt had taken over ({why})"
        print(f"retinaforge: not restarted: {why}", file=sys.stderr)
    _append(record, replace(mine, ended_unix_s=time.time(), after=after, code=code, why=why))
    errors.unlink(missing_ok=True)
    if again and not refused:
        requeue(mine.job_id)
    return code


def requeue(job_id: str, pauses_s: tuple[float, ...] = PATIENCE_S) -> None:
    """Ask SLURM to start this job once more; a controller that is away is asked again, for some ten minutes.

    Raises:
        TryAgain: it refused, or never answered.
    """
    for pause in (*pauses_s, None):
        try:
            done = subprocess.run(["scontrol", "requeue", job_id], capture_output=True, text=True, timeout=60, check=False)
            said = done.stderr.strip()
            if done.returncode == 0 or "pending" in said:  # SLURM had restarted it by itself
                return
            if not UNHEARD.search(said):
                break
        except (subprocess.TimeoutExpired, OSError) as error:
            said = str(error)
        if pause is not None:
            print(f"retinaforge: scontrol requeue: {said}; asked again in {pause} s", file=sys.stderr, flush=True)
            time.sleep(pause)
    raise TryAgain(f"SLURM did not requeue the job: {said}", where=job_id, mend="retinaforge resume NAME")


def _append(record: Path, attempt: Attempt) -> None:
    with durable.explained(record), open(record, "a+b", buffering=0) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        torn = b"" if file.read(1) in (b"", b"\n") else b"\n"
        file.write(torn + (json.dumps(asdict(attempt)) + "\n").encode())
        os.fsync(file.fileno())


def _begun_or_put_off(path: Path, environ: Mapping[str, str]) -> int:
    """0, or 75 after a request for another attempt, where a full disk or a file system that is away keeps this one from beginning."""
    try:
        with durable.explained(path):
            begin(path, environ)
        return 0
    except (TryAgain, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        spec = read_spec(path)
        if spec.requeue and int(environ.get("SLURM_RESTART_COUNT") or 0) < spec.max_restarts:
            requeue(environ["SLURM_JOB_ID"])
        return TRY_AGAIN


def main(words: list[str]) -> int:
    """`begin PATH` or `end PATH STATUS [--told]`; the exit code of the script."""
    try:
        if words[0] == "begin":
            return _begun_or_put_off(Path(words[1]), os.environ)
        return end(Path(words[1]), int(words[2]), "--told" in words[3:], os.environ)
    except RetinaforgeError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
