"""Submit a job to SLURM through submitit, or run it here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from data_shards import durable
from data_shards.errors import CorruptData, InputError, TryAgain, nearest
from slurm.jobs import JobSpec, freeze, sbatch_text
from slurm.meeting import free_port
from slurm.status import ENDED, UNKNOWN, JobState, states

RECORD_NAME = "submitted.json"
LATER = ("Unable to contact slurm controller", "Socket timed out", "Connection refused", "temporarily", "Slurm controller not responding")


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """What is known of a job once SLURM has it: `submitted.json` in its folder.

    Attributes:
        job_id: SLURM's number.
        name: the job's name; SLURM uses numbers again, so a number alone does not tell a job.
        submitted_unix_s: when, by the clock of the submitting host.
    """

    job_id: str
    name: str
    submitted_unix_s: float


def read_records(jobs: Path, names: list[str]) -> list[Submitted]:
    """The submitted jobs whose folders lie in `jobs`: those of these names, or all, by time of submission.

    Raises:
        InputError: nothing was submitted under one of the names. CorruptData: a record that cannot be read.
    """
    records = []
    for path in jobs.glob(f"*/{RECORD_NAME}"):
        try:
            records.append(Submitted(**json.loads(path.read_bytes())))
        except (ValueError, TypeError) as error:
            raise CorruptData(f"not a submission record: {error}", where=path, mend="submit the job again") from error
    known = {record.name for record in records}
    for name in names:
        if name not in known:
            raise InputError(f"no job {name!r} was submitted", where=jobs, expected=nearest(name, known) if known else "a submitted job")
    return sorted((r for r in records if not names or r.name in names), key=lambda r: r.submitted_unix_s)


def job_folder(jobs: Path, name: str) -> Path:
    """JOBS/NAME, where a '/' of the name is no folder."""
    return (jobs / name.replace("/", "_")).absolute() if name.strip(". ") else (jobs / "unnamed").absolute()


def current(records: list[Submitted]) -> dict[str, list[JobState]]:
    """States by the jobs' names, from one call to SLURM. A number that SLURM has given to another job since is UNKNOWN here."""
    found = states([record.job_id for record in records])
    mine = {record.name: [s for s in found[record.job_id] if s.name.strip() == record.name.strip()] for record in records}
    return {record.name: mine[record.name] or [JobState(job_id=record.job_id)] for record in records}


def cancelled(records: list[Submitted]) -> set[str]:
    """Cancel those that wait or run, all of an array's indices; the names of those.

    Raises:
        InputError, TryAgain: as `states`, or SLURM's own refusal.
    """
    found = current(records)
    live = [record for record in records if any(state.state not in (*ENDED, UNKNOWN) for state in found[record.name])]
    if live:
        done = subprocess.run(["scancel", *(record.job_id for record in live)], capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise TryAgain(f"scancel failed: {done.stderr.strip()}", expected="an answer of the controller", mend="scontrol ping")
    return {record.name for record in live}


class _Executor(submitit.SlurmExecutor):
    """submitit's submission and its reading of sbatch's answer, with our script in place of its pickling one."""

    def __init__(self, spec: JobSpec, folder: Path) -> None:
        super().__init__(folder)
        self._spec = spec

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        return sbatch_text(self._spec, self.folder)

    def _num_tasks(self) -> int:
        return self._spec.world

    def submit_spec(self) -> submitit.SlurmJob:
        return self._submit_command("")


def submit(spec: JobSpec, run_folder: Path) -> submitit.SlurmJob:
    """Freeze the job into its folder and submit it. The job's `paths.stdout` is the log of rank 0.

    Raises:
        InputError: no SLURM here, another job in the folder, or sbatch's own refusal (partition, account, limits).
        TryAgain: the controller does not answer.
    """
    if not (shutil.which("sbatch") and shutil.which("srun")):
        raise InputError(
            "no SLURM here: sbatch and srun are not on PATH",
            expected="a login node of a cluster",
            mend="retinaforge submit --local … runs the same job on this machine; --dry-run shows its script",
        )
    run_folder = run_folder.absolute()
    sbatch_text(spec, run_folder)  # refuses what it refuses before anything is written
    freeze(spec, run_folder)
    began = time.time()
    try:
        job = _Executor(spec, run_folder).submit_spec()
    except (FailedJobError, FailedSubmissionError) as error:
        said = str(error).strip()
        kind = TryAgain if any(words in said for words in LATER) else InputError
        raise kind(
            f"sbatch refused: {said}", where=spec.name, expected="a job this site takes", mend="sinfo shows the partitions"
        ) from error
    finally:
        for left in run_folder.glob(".submission_file_*.sh"):  # submitit leaves a link, or, after a refusal, the script
            left.unlink(missing_ok=True)
    record = Submitted(job_id=job.job_id, name=spec.name, submitted_unix_s=began)
    durable.write_json(run_folder / RECORD_NAME, asdict(record))
    return job


def run_local(spec: JobSpec, run_folder: Path, *, poll_seconds: float = 0.1, grace_seconds: float = 15.0) -> int:
    """Run the job's tasks on this machine, in the foreground; an array's indices one after the other.

    Returns the exit code of the first task that failed, else 0. When one fails, the others are asked to stop.
    """
    path = freeze(spec, run_folder.absolute())
    for index in array_indices(spec.array) if spec.array else [None]:
        code = _run_once(spec, path, index, poll_seconds, grace_seconds)
        if code:
            return code
    return 0


def array_indices(text: str) -> list[int]:
    """Indices of a SLURM array: '0-6:2,9%2' is 0, 2, 4, 6, 9."""
    indices: list[int] = []
    for part in text.partition("%")[0].split(","):
        span, _, step = part.partition(":")
        first, _, last = span.partition("-")
        indices += range(int(first), int(last or first) + 1, int(step or 1))
    return indices


def _run_once(spec: JobSpec, path: Path, index: int | None, poll_seconds: float, grace_seconds: float) -> int:
    world, port = str(spec.world), str(free_port())
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    if index is not None:
        common["SLURM_ARRAY_TASK_ID"] = str(index)
    tasks: list[subprocess.Popen] = []
    try:
        for rank in range(spec.world):
            environ = {**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            tasks.append(subprocess.Popen([sys.executable, "-u", "-m", "slurm.task", str(path)], env=environ, cwd=path.parent))
        return _first_failure(tasks, poll_seconds)
    finally:  # also upon Ctrl-C: no task outlives this call
        _stop(tasks, grace_seconds)


def _first_failure(tasks: list[subprocess.Popen], poll_seconds: float) -> int:
    while True:
        codes = [task.poll() for task in tasks]
        for code in codes:
            if code:
                return code if code > 0 else 128 - code  # a signal, as shells report it
        if None not in codes:
            return 0
        time.sleep(poll_seconds)


def _stop(tasks: list[subprocess.Popen], grace_seconds: float) -> None:
    for task in tasks:
        if task.poll() is None:
            task.terminate()
    until = time.monotonic() + grace_seconds
    for task in tasks:
        try:
            task.wait(timeout=max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            task.kill()
            task.wait()
