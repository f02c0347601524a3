"""A job as data: what to run, and on what.

The sbatch script (slurm/script.py) names the job's JSON file and nothing of the command itself, so no word of a user is ever parsed by a
shell on the cluster; `slurm.task` reads the JSON and becomes the command. A requeued job runs the very same script again, and the
command resumes from its own newest checkpoint.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import pydantic

from data_shards import durable
from data_shards.errors import InputError, nearest
from slurm import fields
from slurm.arrays import check_array
from slurm.fields import JOBS

SPEC_NAME = "job.json"
LONGEST_FOLDER = 255  # bytes; what file systems take


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """One job.

    Attributes:
        name: shown by squeue; any printable text without a backslash.
        command: the words to run, the first of them looked for beside `python` first. '{array_task}' becomes the index.
        folder: working directory, absolute.
        python: interpreter that starts each task, absolute.
        nodes, tasks_per_node: one process of a run is one task.
        most_nodes: with it, SLURM may start the job on any number of nodes from `nodes` to this; trainings take up where another
            number left off.
        cpus_per_task: cores, and OMP_NUM_THREADS.
        gpus_per_task: all GPUs of a node are visible to all its tasks; the local rank chooses.
        memory: per node, as SLURM writes it ('16G'); None leaves it to the site.
        time_minutes: limit; None leaves it to the site.
        array: indices; each is a job of its own.
        dependency: jobs to wait for.
        reservation: one that the site has made.
        extra: further lines for sbatch, such as --gres-flags=enforce-binding; none that another field says.
        requeue: after a preemption, a failed node or exit code 75 (try again), at most `max_restarts` times.
        progress: patterns of files that change as the job gets on, from `folder` on. A job that has some also comes back after its
            time limit, and is ended when `max_stalls` attempts in a row left them as they were. '{array_task}' becomes the index.
        share: 'K/N', where several share those files by their numbers: of them, K - 1, K - 1 + N, … are this job's own; K may be
            '{array_task}'.
        signal_seconds: so long before the time limit every task gets SIGUSR1.
        secrets: a file of lines NAME=VALUE, which nobody else may read; the job sees these variables, SLURM does not.
        exports: further variables of the submitting shell that the job sees, by name. Secrets belong into files.
        setup: lines of bash at the head of the script: modules, environments, exports.
        launcher: words before the interpreter of each task: 'apptainer exec --nv image.sif'. No shell reads them.
        srun_options: further options of srun; none that the script says itself.
        gpus_per_node: GPUs a node, where that is not tasks x gpus_per_task.
        gpu_type: of the GPUs, as the site names it.
        mail_user, mail_type: whom SLURM writes to, and when.
        code: the folder of the packages as they were when the job was submitted; None: those of `python`.
        umask: of the files that the job makes, such as 0022; None: the submitting shell's, which is noted here as it is submitted.
    """

    name: str
    command: tuple[str, ...]
    folder: str
    python: str = sys.executable
    nodes: int = 1
    most_nodes: int | None = None
    tasks_per_node: int = 1
    cpus_per_task: int = 1
    gpus_per_task: int = 0
    memory: str | None = None
    time_minutes: int | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    array: str | None = None
    dependency: str | None = None
    reservation: str | None = None
    extra: tuple[str, ...] = ()
    requeue: bool = True
    max_restarts: int = 100
    max_stalls: int = 5
    progress: tuple[str, ...] = ()
    share: str | None = None
    signal_seconds: int = 120
    exports: tuple[str, ...] = ()
    secrets: str | None = None
    setup: tuple[str, ...] = ()
    launcher: str | None = None
    srun_options: tuple[str, ...] = ()
    gpus_per_node: int = 0
    gpu_type: str | None = None
    mail_user: str | None = None
    mail_type: str | None = None
    code: str | None = None
    umask: str | None = None

    def __post_init__(self) -> None:
        fields.check_text("name", self.name, longest=128)
        if any(len(part.encode()) > LONGEST_FOLDER for part in self.name.split("/")):
            raise InputError(f"name={self.name!r}", where="job", expected=f"parts of at most {LONGEST_FOLDER} bytes: they name folders")
        if not self.command:
            raise InputError(
                "a job without a command", where="command", expected="a verb and its arguments", mend="retinaforge submit -- VERB …"
            )
        self._check_numbers()
        self._check_paths()
        for field, (pattern, expected) in fields.PATTERNS.items():
            value = getattr(self, field)
            if value is not None and not re.fullmatch(pattern, value, re.ASCII):
                raise InputError(f"{field}={value!r}", where="job", expected=expected)
        if self.array is not None:
            check_array(self.array)
        for name in self.exports:
            fields.check_export(name)
        self._check_lines()

    def _check_numbers(self) -> None:
        for field, least in fields.LOWEST.items():
            if getattr(self, field) < least:
                raise InputError(f"{field}={getattr(self, field)}", where="job", expected=f"at least {least}")
        if self.most_nodes is not None and self.most_nodes < self.nodes:
            raise InputError(f"nodes={self.nodes}-{self.most_nodes}", where="job", expected="the fewest first: 1-4")
        if self.time_minutes is not None and self.time_minutes * 60 <= self.signal_seconds:
            raise InputError(
                f"time_minutes={self.time_minutes}, signal_seconds={self.signal_seconds}",
                where="job",
                expected="a time limit longer than the warning before it, or the job would be stopped as it starts",
                mend="a longer --time-minutes",
            )

    def _check_paths(self) -> None:
        for field in ("folder", "python", "secrets", "code"):
            if (path := getattr(self, field)) is not None:
                fields.check_path(field, path)
        if ":" in (self.code or ""):
            raise InputError(
                f"code={self.code!r}",
                where="job",
                expected="no colon in it: Python would read two paths",
                mend="another --name, or --no-snapshot",
            )

    def _check_lines(self) -> None:
        """What ends up in the script word for word."""
        for line in self.extra:
            fields.check_option("extra", line, fields.OURS)
            fields.check_comment(line)
        for line in self.srun_options:
            fields.check_option("srun_options", line, fields.OURS_OF_SRUN)
        for line in self.setup:
            fields.check_setup(line)
        _ = self.launcher_words  # refused where a quote is not closed
        for field in ("extra", "srun_options", "setup"):
            for line in getattr(self, field):
                fields.check_no_secret(field, line)
        fields.check_no_secret("launcher", self.launcher or "")

    @property
    def node_gpus(self) -> int:
        """GPUs that a node must have."""
        return self.gpus_per_node or self.gpus_per_task * self.tasks_per_node

    @property
    def launcher_words(self) -> list[str]:
        """The words of the launcher.

        Raises:
            InputError: a quote is not closed.
        """
        if self.launcher is None:
            return []
        fields.check_text("launcher", self.launcher, longest=4096)
        try:
            return shlex.split(self.launcher)
        except ValueError as error:
            raise InputError(f"launcher={self.launcher!r}: {error}", where="job", expected="words as a shell reads them") from error

    @property
    def world(self) -> int:
        """Processes of the job (of one index of an array); with `most_nodes`, the fewest."""
        return self.nodes * self.tasks_per_node

    @property
    def worlds(self) -> range:
        """The numbers of processes that SLURM may start it with."""
        return range(self.world, (self.most_nodes or self.nodes) * self.tasks_per_node + 1, self.tasks_per_node)


def words_on(verb: str, name: str, folder: Path) -> str:
    """`retinaforge VERB NAME` on the job whose folder this is, as a shell reads it, from wherever it is typed."""
    jobs = folder.absolute().parents[name.count("/")]
    where = "" if jobs == JOBS.absolute() else f" --jobs {shlex.quote(str(jobs))}"
    return f"retinaforge {verb} {shlex.quote(name)}{where}"


def spec_json(spec: JobSpec) -> bytes:
    """The JSON that a job is frozen as."""
    return (json.dumps(asdict(spec), indent=2) + "\n").encode()


def spec_from(content: bytes, *, where: object = None) -> JobSpec:
    """The inverse of `spec_json`.

    Raises:
        InputError: not JSON, an unknown field (the nearest is named), a wrong type, or values JobSpec refuses.
    """
    try:
        unknown = set(json.loads(content)) - set(JobSpec.__dataclass_fields__)
    except (ValueError, TypeError) as error:
        raise InputError(f"not a job: {error}", where=where, expected="a JSON object") from error
    if unknown:
        name = sorted(unknown)[0]
        raise InputError(f"unknown field {name!r}", where=where, expected=nearest(name, JobSpec.__dataclass_fields__))
    try:
        return pydantic.TypeAdapter(JobSpec).validate_json(content, strict=True)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        if isinstance(refused := first.get("ctx", {}).get("error"), InputError):
            raise refused from None
        raise InputError(
            f"{'.'.join(map(str, first['loc']))}: {first['msg']}", where=where, expected=f"a job of version {SPEC_NAME}"
        ) from error


def read_spec(path: Path) -> JobSpec:
    """The job frozen at `path`."""
    try:
        return spec_from(path.read_bytes(), where=path)
    except OSError as error:
        raise InputError(
            f"cannot read the job: {error.strerror}", where=path, expected=SPEC_NAME, mend="retinaforge submit --help"
        ) from error


def check_same(spec: JobSpec, run_folder: Path) -> None:
    """Refuse a name that another command has; the same command may come again, also with other resources.

    Raises:
        InputError: as said.
    """
    path = run_folder / SPEC_NAME
    if path.exists() and ((standing := read_spec(path)).command, standing.folder) != (spec.command, spec.folder):
        raise InputError(
            "this name is in use: another job has it",
            where=path,
            expected=f"the same command in the same folder: {' '.join(map(fields.masked, standing.command))}",
            mend="give another --name",
        )


def freeze(spec: JobSpec, run_folder: Path) -> Path:
    """Write the spec into its folder (mode 0700); the same command may be submitted again, also with other resources.

    Raises:
        InputError: the folder holds another job, or cannot be written.
    """
    check_same(spec, run_folder)
    with durable.explained(run_folder):
        run_folder.mkdir(parents=True, exist_ok=True)
        run_folder.chmod(0o700)
    path = run_folder / SPEC_NAME
    durable.write_bytes(path, spec_json(spec), private=True)
    return path
