"""Submit a job to SLURM through submitit, or run it here."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from data_shards import durable
from data_shards.errors import CorruptData, InputError, TryAgain
from slurm.arrays import Part, array_indices, parts_of, site_here
from slurm.jobs import JobSpec, check_same, freeze, words_on
from slurm.meeting import free_port
from slurm.preempt import ATTEMPT
from slurm.records import RECORD_NAME, Submitted, current, is_away, is_live, is_unknown, read_record, record_tree, span_of, whereabouts
from slurm.script import after_setup, sbatch_text
from slurm.status import ASK_EVERY_S, ENDED, UNKNOWN, JobState, Queue, numbers_of

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
WHERE = {"SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT"}
"""Variables that say which SLURM is meant, and the token by which a site without munge knows its user."""
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
            found = queue.states(numbers)
        except TryAgain as error:
            warnings.warn(f"SLURM was not asked: {error.what}", stacklevel=2)
            return
        for job_id in self._registered:
            number, _, index = job_id.partition("_")
            states = [s for s in found[number] if not index or index in span_of(s.job_id)]
            state = next((s.state for s in states if s.state not in ENDED), states[0].state if states else UNKNOWN)
            self._info_dict[job_id] = {"JobID": job_id, "State": state}
            if state in ENDED:
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
    parts = parts_of(sent.array, site.max_array_size) if sent.array else []
    if "%" in (sent.array or "") and len(parts) > 1 and "?" in (spec.dependency or ""):
        raise InputError(
            f"--array {sent.array} goes as {len(parts)} arrays one after the other, and --dependency {spec.dependency} as one of several",
            expected="one of both",
            mend="leave the limit after % out, or join the dependencies by commas",
        )
    check_same(spec, run_folder)
    with durable.claimed(run_folder / ".submit", "submitting this job"):
        path = run_folder / RECORD_NAME
        before = known(run_folder, force=force)
        if before and before.key != over:
            check_free(run_folder, force=force)
        frozen_with_it()
        freeze(spec, run_folder)
        ids: list[str] = []
        token = secrets.token_hex(16)
        try:
            for part in parts or [None]:
                if part and ids and "%" in part.array:  # so many at once, over all parts
                    part = replace(part, after=f"afterany:{ids[-1]}")
                ids.append(_sent(sent, run_folder, part, token, set(ids)))
            record = Submitted(
                job_ids=tuple(ids),
                name=spec.name,
                submitted_unix_s=time.time(),
                token=token,
                cluster=site.cluster,
                array=sent.array,
                whole=None if only is None else spec.array,
                part=len(array_indices(parts[0].array)) if parts else 0,
                former=(*before.former, replace(before, former=())) if before else (),
                folder=str(run_folder),
            )
            durable.write_json(path, record_tree(record))
        except BaseException:  # a job without a record is nobody's
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


def handles(record: Submitted, run_folder: Path) -> list[submitit.SlurmJob]:
    """submitit's handles of a submitted job. Their `paths.stdout` is the log of rank 0; what they say of a state is checked with squeue."""
    each = [(number, index) for number in record.job_ids for index in record.indices(number) or [""]]
    return [_Job(run_folder, f"{number}_{index}" if index else number, tasks=[0]) for number, index in each]


def _sent(spec: JobSpec, run_folder: Path, part: Part | None, token: str, before: set[str]) -> str:
    """The number of a job that was submitted; `before` are those of this submission that were given already."""
    try:
        wanted = {f"SBATCH_{name}" for field, name in DEFAULTS.items() if getattr(spec, field) is None}
        with _without(_of_another_job(os.environ) - wanted):
            return _Executor(spec, run_folder, part, token).submit_spec().job_id.partition("_")[0]
    except (FailedJobError, FailedSubmissionError) as error:
        said = str(error).strip()
        if not any(words in said for words in LATER):
            mend = "sinfo shows the partitions"
            if spec.array and "Submit" in said:  # AssocMaxSubmitJobLimit, QOSMaxSubmitJobPerUserLimit
                mend = "fewer tasks that make more each: --array 1-50 and --task {array_task}/50 (% bounds those that run, not these)"
            raise InputError(f"sbatch refused: {said}", where=spec.name, expected="a job this site takes", mend=mend) from error
        with contextlib.suppress(TryAgain):  # the answer may have been lost, and not the job
            if taken := sorted(numbers_of(Queue().answer(time.time()).text, token) - before):
                return taken[0]
        raise TryAgain(
            f"sbatch: {said}",
            where=spec.name,
            expected="an answer of the controller",
            mend=f"squeue --me --name={shlex.quote(spec.name)} shows whether the job was taken all the same: scancel it; "
            "then the same command again",
        ) from error
    finally:
        for left in run_folder.glob(".submission_file_*.sh"):  # submitit leaves a link, or, after a refusal, the script
            left.unlink(missing_ok=True)


def _of_another_job(environ: Mapping[str, str]) -> set[str]:
    """Names of variables that SLURM's programs take for options, and those of a job that this shell is in.

    Whatever `--export` says, sbatch hands every SLURM_* on to the new job, where srun and we ourselves would read it.
    """
    return {name for name in environ if re.match("(SLURM|SLURMD|SBATCH|SRUN)_", name)} - WHERE


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


def _run_once(spec: JobSpec, path: Path, index: int | None, poll_seconds: float, grace_seconds: float) -> int:
    world, port = str(spec.world), str(free_port())
    common = {name: value for name, value in os.environ.items() if name not in _of_another_job(os.environ)}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    if index is not None:
        common["SLURM_ARRAY_TASK_ID"] = str(index)
    if spec.code:
        common["PYTHONPATH"] = os.pathsep.join(filter(None, (spec.code, os.environ.get("PYTHONPATH"))))
    command = [*spec.launcher_words, sys.executable, "-u", "-m", "slurm.task", str(path)]
    if spec.setup:
        command = ["bash", "-c", "\n".join([*spec.setup, *after_setup(spec, path.parent), 'exec "$@"']), "bash", *command]
    tasks: list[subprocess.Popen] = []
    try:
        for rank in range(spec.world):
            environ = {**common, ATTEMPT: "", "RANK": str(rank), "LOCAL_RANK": str(rank)}
            tasks.append(subprocess.Popen(command, env=environ, cwd=path.parent))
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


@contextlib.contextmanager
def _without(names: set[str]) -> Iterator[None]:
    """The environment without these variables, for submitit runs sbatch in ours."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


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
