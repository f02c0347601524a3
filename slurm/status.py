"""What SLURM says of jobs: one call for all of them."""

from __future__ import annotations

import getpass
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from data_shards.errors import InputError, TryAgain

UNKNOWN = "UNKNOWN"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL")
"""States of a job that does not come back; one of NODE_FAIL or PREEMPTED may."""


@dataclass(frozen=True, kw_only=True)
class JobState:
    """One line of squeue.

    Attributes:
        job_id: SLURM's number, with _INDEX for one of an array.
        name: the job's name.
        state: SLURM's word (PENDING, RUNNING, COMPLETED, …), or UNKNOWN when squeue no longer has it: not an end.
        elapsed: running time as [D-]HH:MM:SS.
        restarts: how often it was requeued.
        why: the reason for waiting or ending, or the nodes it runs on.
    """

    job_id: str
    name: str = ""
    state: str = UNKNOWN
    elapsed: str = ""
    restarts: int = 0
    why: str = ""


def states(job_ids: Iterable[str]) -> dict[str, list[JobState]]:
    """The states of these jobs, each with one entry, or one for each index of an array; by one squeue whatever their number.

    Raises:
        InputError: no SLURM here. TryAgain: the controller does not answer.
    """
    wanted = list(job_ids)
    if not wanted:
        return {}
    if not shutil.which("squeue"):
        raise InputError("no SLURM here: squeue is not on PATH", expected="a login node of a cluster")
    # by user and not by number: one number that SLURM has forgotten makes squeue fail for all of them
    command = [
        "squeue",
        "--noheader",
        "--array",
        "--states=all",
        f"--user={getpass.getuser()}",
        "--Format=" + ",".join(f"{f}:{w}" for f, w in FORMAT),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except subprocess.CalledProcessError as error:
        raise TryAgain(f"squeue failed: {error.stderr.strip()}", expected="an answer of the controller", mend="scontrol ping") from error
    except subprocess.TimeoutExpired as error:
        raise TryAgain("squeue did not answer within 60 s", mend="scontrol ping") from error
    return read_squeue(done.stdout, wanted)


# fields of a fixed width, since a name may hold any separator; the name last, since it may be long
FORMAT = (("ArrayJobID", 24), ("ArrayTaskID", 24), ("State", 24), ("TimeUsed", 24), ("RestartCnt", 12), ("ReasonList", 96), ("Name", 160))


def read_squeue(text: str, wanted: Iterable[str]) -> dict[str, list[JobState]]:
    """Read squeue's lines of FORMAT; what it does not list is UNKNOWN."""
    found: dict[str, list[JobState]] = {job_id: [] for job_id in wanted}
    for line in text.splitlines():
        fields, start = [], 0
        for _, width in FORMAT:
            fields.append(line[start : start + width].strip())
            start += width
        number, index, state, elapsed, restarts, why, name = fields
        if number in found:
            job_id = number if index in ("", "N/A") else f"{number}_{index}"
            restarted = int(restarts) if restarts.isdecimal() else 0
            found[number].append(JobState(job_id=job_id, name=name, state=state, elapsed=elapsed, restarts=restarted, why=why))
    return {job_id: entries or [JobState(job_id=job_id)] for job_id, entries in found.items()}
