"""Submit a job to SLURM through submitit, once: never beside one of its name that lives, or that may."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shlex
import shutil
import subprocess
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from data_shards import durable
from data_shards.errors import InputError, TryAgain
from slurm.arrays import Part, array_indices, parts_of, site_here
from slurm.jobs import JobSpec, check_same, freeze, words_on
from slurm.programs import of_another_job, without
from slurm.queue import ASK_EVERY_S, ENDED, UNKNOWN, Queue, numbers_of
from slurm.records import RECORD_NAME, Submitted, record_tree
from slurm.script import sbatch_text
from slurm.states import check_free, known

# fields of a job whose default a user may have in the environment of sbatch, which counts above what stands in a script
DEFAULTS = {
    "partition": "PARTITION",
    "account": "ACCOUNT",
    "qos": "QOS",
    "constraint": "CONSTRAINT",
    "reservation": "RESERVATION",
    "time_minutes": "TIMELIMIT",
    "memory": "MEM_PER_NODE",
}
LATER = ("Unable to contact slurm controller", "Socket timed out", "Connection refused", "temporarily", "Slurm controller not responding")


class _Watcher(submitit.slurm.slurm.SlurmInfoWatcher):
    """What submitit's handles say of a job, from the queue in place of the books.

    submitit asks sacct, which not every site has, and takes NODE_FAIL for an end while SLURM restarts the job.
    """

    def update(self) -> None:
        queue, numbers = Queue(), {job_id.partition("_")[0] for job_id in self._registered}
        self._num_calls += 1
        self._last_status_check = time.time()
        try:
            states_of = queue.states(numbers)
        except TryAgain as error:
            warnings.warn(f"SLURM was not asked: {error.what}", stacklevel=2)
            return
        for job_id in self._registered:
            number, _, index = job_id.partition("_")
            states = [state for state in states_of[number] if not index or index in state.indices]
            word = next((state.state for state in states if state.state not in ENDED), states[0].state if states else UNKNOWN)
            self._info_dict[job_id] = {"JobID": job_id, "State": word}
            if word in ENDED:
                self._finished.add(job_id)

    def is_done(self, job_id: str, mode: str = "standard") -> bool:
        return self.get_state(job_id, mode=mode) in ENDED


class _Job(submitit.SlurmJob):
    watcher = _Watcher(delay_s=int(ASK_EVERY_S))


class _Executor(submitit.SlurmExecutor):
    """submitit's submission and its reading of sbatch's answer, with our script in place of its pickling one."""

    job_class = _Job

    def __init__(self, spec: JobSpec, folder: Path, part: Part | None, token: str) -> None:
        super().__init__(folder)
        self._spec, self._part, self._token = spec, part, token

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        return sbatch_text(self._spec, self.folder, self._part, self._token)

    def _num_tasks(self) -> int:
        return self._spec.world

    @staticmethod
    def get_job_id_from_submission_command(string: bytes | str) -> str:
        """sbatch's answer, also the short one that a site's wrapper or a cluster's own setting may ask for: 12;cluster."""
        text = string if isinstance(string, str) else string.decode(errors="replace")
        if match := re.search(r"^(?:Submitted batch job )?(\d+)(?:;| on cluster|\s*$)", text, re.MULTILINE):
            return match[1]
        raise FailedSubmissionError(f"sbatch answered {text!r} in place of the job's number")

    def submit_spec(self) -> submitit.SlurmJob:
        return self._submit_command("")


def submit(
    spec: JobSpec,
    run_folder: Path,
    *,
    only: str | None = None,
    over: str | None = None,
    force: bool = False,
    frozen_with_it: Callable[[], None] = lambda: None,
) -> Submitted:
    """Freeze the job into its folder and submit it, an array longer than the cluster takes as several.

    Args:
        only: of the job's array, submit these indices; it stays the array that it is.
        over: the submission that the caller saw to be over (`check_free`); another one is looked at here.
        force: submit it also where nobody knows whether the job still lives.
        frozen_with_it: writes what else the job reads from its folder; called once nobody else can submit it, and no live job reads there.

    Raises:
        InputError: no SLURM here, another job in the folder, or sbatch's own refusal (partition, account, limits).
        TryAgain: the controller does not answer.
    """
    check_slurm()
    run_folder = run_folder.absolute()
    spec = replace(spec, umask=spec.umask or umask_here())
    sent = replace(spec, array=spec.array if only is None else only)
    sbatch_text(sent, run_folder)  # refuses what it refuses before anything is written
    if only is not None:
        check_part(spec, only, run_folder)
    site = site_here()
    parts = _parts(sent, site.max_array_size)
    check_same(spec, run_folder)
    with durable.claimed(run_folder / ".submit", "submitting this job"):
        before = known(run_folder, force=force)
        if before and before.key != over:
            check_free(run_folder, force=force)
        frozen_with_it()
        freeze(spec, run_folder)
        return _send(sent, run_folder, parts, whole=None if only is None else spec.array, cluster=site.cluster, before=before)


def _parts(spec: JobSpec, max_array_size: int) -> list[Part]:
    """The parts of a job's array that go to SLURM by themselves; none where it goes as it is.

    Raises:
        InputError: the parts would have to wait for each other, and the job for one of several others.
    """
    parts = parts_of(spec.array, max_array_size) if spec.array else []
    if len(parts) > 1 and "%" in spec.array and "?" in (spec.dependency or ""):
        raise InputError(
            f"--array {spec.array} goes as {len(parts)} arrays one after the other, and --dependency {spec.dependency} as one of several",
            expected="one of both",
            mend="leave the limit after % out, or join the dependencies by commas",
        )
    return parts


def _send(spec: JobSpec, run_folder: Path, parts: list[Part], *, whole: str | None, cluster: str, before: Submitted | None) -> Submitted:
    """Hand a job to SLURM, in several pieces where its array goes in parts, and record its numbers.

    What was taken is cancelled where an error keeps it from being recorded: a job without a record is nobody's.
    """
    ids: list[str] = []
    token = secrets.token_hex(16)
    try:
        for part in parts or [None]:
            if part and ids and "%" in part.array:  # so many at once, over all parts
                part = replace(part, after=f"afterany:{ids[-1]}")
            ids.append(_sent(spec, run_folder, part, token, set(ids)))
        record = Submitted(
            job_ids=tuple(ids),
            name=spec.name,
            submitted_unix_s=time.time(),
            token=token,
            cluster=cluster,
            array=spec.array,
            whole=whole,
            part=len(array_indices(parts[0].array)) if parts else 0,
            former=(*before.former, replace(before, former=())) if before else (),
            folder=str(run_folder),
        )
        durable.write_json(run_folder / RECORD_NAME, record_tree(record))
    except BaseException:
        if ids:
            subprocess.run(["scancel", *ids], capture_output=True, timeout=60, check=False)
        raise
    return record


def umask_here() -> str:
    """The umask of this process. To ask for it by os.umask is to set it, for all threads."""
    with contextlib.suppress(OSError):
        if match := re.search(r"^Umask:\s*([0-7]+)$", Path("/proc/self/status").read_text(), re.MULTILINE):
            return match[1]
    os.umask(mask := os.umask(0o077))
    return f"{mask:04o}"


def check_part(spec: JobSpec, only: str, run_folder: Path) -> None:
    """Refuse indices that the job's array does not have.

    Raises:
        InputError: as said.
    """
    indices = only.partition("%")[0]
    if spec.array is None:
        raise InputError(f"--array {indices} for a job that is no array", where=spec.name, mend=words_on("resume", spec.name, run_folder))
    if foreign := sorted(set(array_indices(only)) - set(array_indices(spec.array))):
        raise InputError(f"--array {indices}: no index {foreign[0]}", where=spec.name, expected=f"of {spec.array}")


def check_slurm() -> None:
    """Refuse to submit where there is no SLURM.

    Raises:
        InputError: as said.
    """
    if not (shutil.which("sbatch") and shutil.which("srun")):
        raise InputError(
            "no SLURM here: sbatch and srun are not on PATH",
            expected="a login node of a cluster",
            mend="retinaforge submit --local … runs the same job on this machine; --dry-run shows its script; "
            "retinaforge slurm-local start makes a cluster of it",
        )


def handles(record: Submitted, run_folder: Path) -> list[submitit.SlurmJob]:
    """submitit's handles of a submitted job. Their `paths.stdout` is the log of rank 0; what they say of a state is checked with squeue."""
    each = [(number, index) for number in record.job_ids for index in record.indices(number) or [""]]
    return [_Job(run_folder, f"{number}_{index}" if index else number, tasks=[0]) for number, index in each]


def _sent(spec: JobSpec, run_folder: Path, part: Part | None, token: str, before: set[str]) -> str:
    """The number of a job that was submitted; `before` are those of this submission that were given already."""
    try:
        wanted = {f"SBATCH_{name}" for field, name in DEFAULTS.items() if getattr(spec, field) is None}
        with without(of_another_job(os.environ) - wanted):
            return _Executor(spec, run_folder, part, token).submit_spec().job_id.partition("_")[0]
    except (FailedJobError, FailedSubmissionError) as error:
        refusal = str(error).strip()
        if not any(words in refusal for words in LATER):
            mend = "sinfo shows the partitions"
            if spec.array and "Submit" in refusal:  # AssocMaxSubmitJobLimit, QOSMaxSubmitJobPerUserLimit
                mend = "fewer tasks that make more each: --array 1-50 and --task {array_task}/50 (% bounds those that run, not these)"
            raise InputError(f"sbatch refused: {refusal}", where=spec.name, expected="a job this site takes", mend=mend) from error
        with contextlib.suppress(TryAgain):  # the answer may have been lost, and not the job
            if taken := sorted(numbers_of(Queue().answer(time.time()).text, token) - before):
                return taken[0]
        raise TryAgain(
            f"sbatch: {refusal}",
            where=spec.name,
            expected="an answer of the controller",
            mend=f"squeue --me --name={shlex.quote(spec.name)} shows whether the job was taken all the same: scancel it; "
            "then the same command again",
        ) from error
    finally:
        for left in run_folder.glob(".submission_file_*.sh"):  # submitit leaves a link, or, after a refusal, the script
            left.unlink(missing_ok=True)
