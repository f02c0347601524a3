"""What the foot of a job's script asks SLURM for: another start of this job, and of it alone."""

from __future__ import annotations

import contextlib
import errno
import re
import subprocess
import sys
import time
from collections.abc import Mapping

from data_shards.errors import TryAgain
from slurm.programs import ask

PATIENCE_S = (5, 10, 20, 40, 80, 160, 300)
"""Pauses between requests to a controller that does not answer."""
UNHEARD = re.compile(r"contact slurm controller|timed out|not responding|onnection|Zero Bytes|temporar", re.IGNORECASE)
"""The words of SLURM's programs for a controller that is away."""


def tell(text: str) -> None:
    """To the script's log, if it can be written."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def may_pass(error: BaseException) -> bool:
    """Whether a disk that is full, or a file system that is away, is at fault, and not what was asked for."""
    cause = error if isinstance(error, OSError) else error.__cause__
    return isinstance(cause, OSError) and not isinstance(cause, (FileNotFoundError, NotADirectoryError)) and cause.errno not in NOT_PASSING


NOT_PASSING = (errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.E2BIG)


def own_number(environ: Mapping[str, str]) -> str:
    """What SLURM calls this job alone: the number of an array's last index is that of the whole array too."""
    array, index = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{index}" if array and index else environ["SLURM_JOB_ID"]


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
            tell(f"retinaforge: scontrol requeue: {said}; asked again in {pause} s")
            time.sleep(pause)
    raise TryAgain(f"SLURM did not requeue the job: {said}", where=job_id, mend="retinaforge resume NAME")


def is_preempted(job_id: str) -> bool:
    """Whether SLURM is about to end this job for one of a higher partition; it says so only to the tasks while the time of grace runs."""
    try:
        return re.search(r"\bPreemptTime=\d", ask("scontrol", "show", "job", job_id)) is not None
    except TryAgain:
        return False
