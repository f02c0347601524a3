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
from data_shards.errors import InputError, nearest, without_credentials
from slurm import JOBS
from slurm.status import COMMENT_BYTES, TOKEN_MARK

SPEC_NAME = "job.json"
LONGEST_FOLDER = 255  # bytes; what file systems take
SECRET = re.compile(
    r"(TOKEN|SECRETS?|PASSWORD|PASSWD|PASSPHRASE|PRIVATE|CREDENTIALS?|CONNECTION_STRING|SSHPASS|_PWD|(^|_)PASS"
    r"|(API|ACCESS|SECRET|PRIVATE|STORAGE|ACCOUNT|SHARED|ENCRYPTION|SIGNING|LICENSE|AUTH)_?KEYS?)\d*(_|$)"
)
"""In the names of secrets, whole words of them: TOKENIZERS_PARALLELISM and MAX_TOKENS are none."""
ABOUT = re.compile(
    "_(FILE|FILES|PATH|DIR|FOLDER|HOME|NAME|TYPE|MODE|LIMIT|LENGTH|LEN|SIZE|COUNT|TTL|TIMEOUT|PARALLELISM|ENABLED|DISABLED)$|^GOOGLE_APPLICATION_CREDENTIALS$"
)
"""What ends a name that speaks of a secret, or of where it lies, and holds none."""
AFTER = r"(singleton|(after|afterany|afterburstbuffer|aftercorr|afternotok|afterok|expand)(:\d+(_(\d+|\*))?(\+\d+)?)+)"
MOST_INDICES = 4_000_000  # what SLURM itself can be set to
PATTERNS = {  # what SLURM itself reads; anything else in these fields is a mistake
    "memory": (r"0|[1-9]\d*[KMGTkmgt]?", "a number of MiB, or with K, M, G or T: 16G; 0 for all of a node's"),
    "partition": (r"[\w.,@+-]+", "partition names with commas between"),
    "account": (r"[\w.@+:/-]+", "letters, digits, . _ - @ + : /"),
    "qos": (r"[\w.@+:/-]+", "letters, digits, . _ - @ + : /"),
    "constraint": (r"[\w.,&|*()\[\]:=@+/-]+", "features joined by & or |"),
    "array": (r"\d+(-\d+(:\d+)?)?(,\d+(-\d+(:\d+)?)?)*(%[1-9]\d*)?", "such as 0-9, 1,3,5 or 0-99%8"),
    "share": (r"(\d+|\{array_task\})/[1-9]\d*", "K/N, such as 3/16"),
    "umask": (r"0?[0-7]{1,3}", 'three octal digits, in quotes: "0022"'),
    "gpu_type": (r"[\w.-]+", "a type as sinfo shows it: a100"),
    "mail_user": (r"[\w.@+,-]+", "an address"),
    "mail_type": (r"[A-Za-z0-9_,]+", "such as END,FAIL"),
    "reservation": (r"[\w.,@+-]+", "letters, digits, . _ - @ + and commas between several"),
    "dependency": (f"{AFTER}([,?]{AFTER})*", "such as afterok:123, after:12+5 (minutes) or afterok:12:13_4"),
}
# options of sbatch that a job sets, that would undo what it sets, or by which sbatch would send it elsewhere or answer otherwise
OURS = {
    *("job-name", "chdir", "workdir", "nodes", "ntasks", "ntasks-per-node", "tasks-per-node", "cpus-per-task", "gpus-per-node"),
    *("gpus-per-task", "gpus", "mem", "time", "partition", "account", "qos", "constraint", "array", "dependency", "reservation"),
    *("requeue", "no-requeue", "open-mode", "output", "error", "signal", "export", "export-file", "get-user-env", "wrap", "wait"),
    *("uid", "gid", "jobid", "external", "test-only", "clusters", "cluster-constraint", "parsable", "quiet", "help", "usage", "version"),
    "autocomplete",
}
OURS_OF_SRUN = {
    *("ntasks", "ntasks-per-node", "tasks-per-node", "cpus-per-task", "nodes", "export", "output", "error", "input", "open-mode", "chdir"),
    *("label", "quiet", "pty", "multi-prog", "jobid", "het-group", "no-allocate", "test-only", "clusters", "uid", "gid", "signal"),
    *("help", "usage", "version", "autocomplete"),
}
RUNS_PROGRAMS = {"prolog", "epilog", "task-prolog", "task-epilog", "bcast", "container", "container-image", "container-entrypoint"}
"""Options of srun that bring a program along."""


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
        _check_text("name", self.name, longest=128)
        if any(len(part.encode()) > LONGEST_FOLDER for part in self.name.split("/")):
            raise InputError(f"name={self.name!r}", where="job", expected=f"parts of at most {LONGEST_FOLDER} bytes: they name folders")
        if not self.command:
            raise InputError(
                "a job without a command", where="command", expected="a verb and its arguments", mend="retinaforge submit -- VERB …"
            )
        for field, path in (("folder", self.folder), ("python", self.python)):
            check_path(field, path)
        lowest = {
            "nodes": 1,
            "tasks_per_node": 1,
            "cpus_per_task": 1,
            "gpus_per_task": 0,
            "gpus_per_node": 0,
            "max_restarts": 0,
            "max_stalls": 1,
            "signal_seconds": 1,
        }
        for field, least in lowest.items():
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
        for field, (pattern, expected) in PATTERNS.items():
            value = getattr(self, field)
            if value is not None and not re.fullmatch(pattern, value, re.ASCII):
                raise InputError(f"{field}={value!r}", where="job", expected=expected)
        if self.array is not None:
            _check_array(self.array)
        if self.secrets is not None:
            check_path("secrets", self.secrets)
        for name in self.exports:
            _check_export(name)
        for line in self.extra:
            _check_option("extra", line, OURS)
            _check_comment(line)
        for line in self.srun_options:
            _check_option("srun_options", line, OURS_OF_SRUN)
        for line in self.setup:
            _check_setup(line)
        _ = self.launcher_words
        for field in ("extra", "srun_options", "setup"):
            for line in getattr(self, field):
                _check_no_secret(field, line)
        _check_no_secret("launcher", self.launcher or "")
        if self.code is not None:
            check_path("code", self.code)
            if ":" in self.code:
                raise InputError(
                    f"code={self.code!r}",
                    where="job",
                    expected="no colon in it: Python would read two paths",
                    mend="another --name, or --no-snapshot",
                )

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
        _check_text("launcher", self.launcher, longest=4096)
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


def _check_text(field: str, text: str, longest: int) -> None:
    if not (text.strip() and text.isprintable() and "\\" not in text and len(text) <= longest):  # sbatch unescapes \ inside quotes
        raise InputError(f"{field}={text!r}", where="job", expected=f"1 to {longest} printable characters, no line break, no backslash")


def check_path(field: str, path: str) -> None:
    """Refuse a path that is not absolute, or that a script could not hold."""
    _check_text(field, path, longest=4096)
    if not Path(path).is_absolute():
        raise InputError(f"{field}={path!r}", where="job", expected="an absolute path: the job starts elsewhere")


def _check_array(text: str) -> None:
    """Refuse what counts backwards, by nothing, or without end."""
    count = 0
    for part in text.partition("%")[0].split(","):
        first, last, step = (int(number) for number in re.fullmatch(r"(\d+)(?:-(\d+))?(?::(\d+))?", part).groups("1"))
        last = last if "-" in part else first
        if last < first or step < 1:
            raise InputError(f"array={text!r}: {part}", where="job", expected="the lowest index first, and a step from 1 on: 1-5, 0-9:3")
        count += (last - first) // step + 1
    if count > MOST_INDICES:
        raise InputError(f"array={text!r}: {count:,} indices", where="job", expected=f"at most {MOST_INDICES:,}")


def is_secret(name: str) -> bool:
    """Whether what has this name is a secret, as far as a name can tell."""
    upper = re.sub(r"[^A-Z0-9]+", "_", name.upper())
    return bool(SECRET.search(upper)) and not ABOUT.search(upper)


def _check_export(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise InputError(f"export {name!r}", where="job", expected="the name of a variable, without its value")
    if re.match("(SLURM|SBATCH|SRUN)_", name):
        raise InputError(
            f"export {name!r}",
            where="job",
            expected="no variable of SLURM's: it would be that of the job that this shell is in, or an option of srun",
            mend="--extra or --srun-option says the same to the new job alone",
        )
    if is_secret(name):
        raise InputError(
            f"export {name!r}",
            where="job",
            expected="no secrets: what is exported is kept by SLURM and shown to every process of the job",
            mend=f"put the line {name}=… into a file that only you may read (chmod 600), and submit with --secrets FILE",
        )


def _check_setup(line: str) -> None:
    if not line.isprintable() or len(line) > 4096:
        raise InputError(f"setup: {line!r}", where="job", expected="a line of bash each, without tabs")
    if re.search(r"(?<!\\)(\\\\)*\\$", line):
        raise InputError(f"setup: {line!r}", where="job", expected="whole lines: a backslash at the end joins what follows to it")
    if re.match(r"\s*#(SBATCH|PBS|BSUB|BB|DW)\b", line):
        raise InputError(
            f"setup: {line!r}",
            where="job",
            expected="a line of bash",
            mend="--extra=--KEY=VALUE, or extra in site.yaml, for an option of sbatch",
        )


def _check_no_secret(field: str, line: str) -> None:
    """Refuse in the script what SLURM would keep and show: NAME=VALUE of a secret's name, and a URL with a password."""
    names = re.findall(r"(?:^|[\s;,=])([A-Za-z_]\w*)=[^\s$]", line)
    secret = next((name for name in names if is_secret(name)), None)
    if secret is None and without_credentials(line) == line:
        return
    raise InputError(
        f"{field} sets {secret}" if secret else f"{field} holds a password: {without_credentials(line)}",
        where="job",
        expected="no secrets: the script is kept by SLURM",
        mend=f"put the line {secret or 'NAME'}=… into a file that only you may read (chmod 600), and submit with --secrets FILE",
    )


def _check_comment(line: str) -> None:
    """Refuse a comment behind which the token of a submission would be cut off in SLURM's answers, or replaced."""
    name, _, comment = line.removeprefix("--").partition("=")
    if name != "comment" and "comment".startswith(name):
        raise InputError(f"extra {line!r}", where="job", expected="--comment=TEXT in full: a word of ours is added to it")
    most = COMMENT_BYTES - len(f" {TOKEN_MARK}") - 32
    if name == "comment" and len(comment.encode()) > most:
        raise InputError(f"extra {line!r}", where="job", expected=f"a comment of at most {most} bytes: a word of ours is added to it")


def _check_option(field: str, line: str, ours: set[str]) -> None:
    _check_text(field, line, longest=1024)
    match = re.fullmatch(r"--([a-z][a-z0-9-]*)(=.+)?", line)
    if not match:
        raise InputError(f"{field} {line!r}", where="job", expected="one long option: --key or --key=value")
    if meant := sorted(name for name in ours if name.startswith(match[1])):  # SLURM takes abbreviations: --parsa
        raise InputError(
            f"{field} {line!r}: --{meant[0]}",
            where="job",
            expected="an option that the job does not set itself",
            mend="the option of `retinaforge submit` for it, or leave it: logs, signals, exports and where the job goes are its own",
        )


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
        fields = json.loads(content)
        unknown = set(fields) - set(JobSpec.__dataclass_fields__)
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
            expected=f"the same command in the same folder: {' '.join(map(masked, standing.command))}",
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


def masked(word: str) -> str:
    """A word of a command as others may see it: what looks like a secret is starred."""
    name, sep, _ = word.partition("=")
    if sep and is_secret(name):
        return f"{name}=***"
    return without_credentials(word)
