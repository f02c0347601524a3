"""Why an attempt ended, read from what SLURM and the ranks wrote into its logs."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from data_shards.errors import TryAgain

CAUSES = {"PREEMPTION": "preempted", "JOB REQUEUE": "scontrol requeue", "NODE FAILURE": "node failure", "TIME LIMIT": "time limit"}
OVER = (CAUSES["TIME LIMIT"], "cancelled")
"""Reasons after which SLURM itself starts no job again."""
CANCELLED = re.compile(r"\*\*\* JOB \d+ ON \S+ CANCELLED AT \S+(?: DUE TO ([A-Z ]+[A-Z]))?")
OUR_ERROR = re.compile(r"(TryAgain|InputError|UnsafeResume|CorruptData): (.+)")
EXITED = re.compile(r"task.*: Exited with exit code (\d+)$", re.MULTILINE)
KILLED = re.compile(r"task.*: Killed$", re.MULTILINE)
LOST_NODE = re.compile(r"Node failure on")
# srun's words for what is no fault of the command
AWAY = re.compile(
    r"Unable to (contact slurm controller|confirm allocation|create step)|Socket timed out|Node failure on|"
    r"Slurm controller not responding|Communication connection failure|Zero Bytes were transmitted"
)
MARK = "retinaforge: attempt {restart} on {nodes}"
RANK_MARK = "retinaforge: restart {restart}"
"""The first line of a restarted rank in its log, which holds those of the attempts before too."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How an attempt ended.

    Attributes:
        code: its exit code.
        why: in a few words.
        due: SLURM's own reason, where it ended the attempt.
    """

    code: int
    why: str
    due: str | None


def verdict(srun_said: str, folder: Path, environ: Mapping[str, str], restart: int, *, status: int, asked_to_end: bool) -> Ending:
    """How an attempt ended.

    Args:
        srun_said: what srun wrote to stderr.
        status: srun's exit code.
        asked_to_end: SLURM asked the script to end.
    """
    code, due = first_code(srun_said, status), cause(srun_said + said_in(folder, environ, restart))
    if not EXITED.search(srun_said) and (len(KILLED.findall(srun_said)) > 1 or re.search(r"tasks .*: Killed$", srun_said, re.MULTILINE)):
        code = TryAgain.exit_code  # one was killed, and srun killed the others before they could say that it was lost
    away = AWAY.search(srun_said) if not EXITED.search(srun_said) and (code != 0 or LOST_NODE.search(srun_said)) else None
    if away and (code == 0 or not asked_to_end):
        code = TryAgain.exit_code  # srun may end with 0 when a node is lost
    why = due or (away and away[0]) or failure(srun_said, folder, environ) or ("done" if code == 0 else f"exit code {code}")
    return Ending(code=code, why=why, due=due)


def first_code(errors: str, status: int) -> int:
    """The exit code that says why a step ended. srun's own is the highest, and a rank that was ended because another failed (143)
    hides the reason: the first that failed counts."""
    match = EXITED.search(errors)
    return int(match[1]) if match else status


def cause(text: str) -> str | None:
    """SLURM's reason for ending a job, in its last words of that."""
    if ends := CANCELLED.findall(text):
        return CAUSES.get(ends[-1], ends[-1].lower() or "cancelled")
    return CAUSES["NODE FAILURE"] if LOST_NODE.search(text) else None


def said_in(folder: Path, environ: Mapping[str, str], restart: int) -> str:
    """What the script's own log holds of the attempt of that number."""
    try:
        text = (folder / f"{log_name(environ)}_batch.out").read_text(errors="replace")
    except OSError:  # absent, or a file system that is away
        return ""
    own = text.rpartition(MARK.partition("{")[0] + f"{restart} on ")[2]
    return own.partition(MARK.partition("{")[0])[0]


def failure(errors: str, folder: Path, environ: Mapping[str, str]) -> str | None:
    """What went wrong on the rank that failed first: our own error's first line, or how it was ended."""
    match = re.search(r"tasks? (\d+).*?: (Exited with exit code \d+|[A-Z][A-Za-z ]+)(?: \(core dumped\))?$", errors, re.MULTILINE)
    if match is None:
        return None
    rank, how = match[1], match[2]
    errors_of_ours = list(_errors_in(folder / f"{log_name(environ)}_{rank}_log.out")) if how.startswith("Exited") else []
    return errors_of_ours[-1] if errors_of_ours else f"rank {rank}: {how.lower()}"


def log_name(environ: Mapping[str, str]) -> str:
    """How the names of this job's logs begin: %j, or %A_%a."""
    array, index = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{index}" if index else environ["SLURM_JOB_ID"]


def _errors_in(log: Path, tail_bytes: int = 1 << 14) -> Iterator[str]:
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - tail_bytes))
        own = file.read().decode(errors="replace").rpartition(RANK_MARK.partition("{")[0])[2]
        for match in OUR_ERROR.finditer(own):
            yield match[2].strip()
