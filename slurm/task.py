"""What a job runs on every task: `python -m slurm.task job.json` reads the job and becomes its command.

The launcher's rank and world are checked against the job's and handed on under the names that torch and Accelerate read.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import sys
from collections.abc import Mapping
from pathlib import Path

from data_shards.errors import InputError, RetinaforgeError, TryAgain, command
from slurm.arrays import array_task
from slurm.causes import RANK_MARK
from slurm.fields import VARIABLE
from slurm.history import holder_path
from slurm.jobs import JobSpec, read_spec
from slurm.meeting import agreed_port
from slurm.preempt import ATTEMPT, HOLDER
from slurm.rank import Placement, placement, torch_environ
from slurm.restart import may_pass, tell


def task_environ(spec: JobSpec, place: Placement, cores: int | None = None) -> dict[str, str]:
    """The variables a task adds to what it inherits.

    Args:
        cores: that this process may use, where it is known.

    Raises:
        InputError: the launcher started another number of processes than the job asks for.
    """
    if place.world not in spec.worlds:
        nodes = spec.nodes if spec.most_nodes is None else f"{spec.nodes}-{spec.most_nodes}"
        raise InputError(
            f"{place.source} started {place.world} process(es)",
            where=spec.name,
            expected=f"{nodes} node(s) x {spec.tasks_per_node} task(s)",
            mend="submit the job by `retinaforge submit`, which starts its tasks by srun",
        )
    threads = {} if "OMP_NUM_THREADS" in spec.exports else {"OMP_NUM_THREADS": str(min(spec.cpus_per_task, cores or spec.cpus_per_task))}
    return threads | (torch_environ(place) if place.world > 1 else {})


def read_secrets(path: Path) -> dict[str, str]:
    """The variables of a file of lines NAME=VALUE; empty lines and those that begin with # are passed over.

    Raises:
        InputError: no such file, one that others may read, or a line of another form (it is named by its number alone).
    """
    try:
        about = path.stat()
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}", where=path, expected="a file of lines NAME=VALUE") from error
    if about.st_uid != os.getuid() or about.st_mode & 0o077:
        raise InputError(
            f"secrets in a file of mode {about.st_mode & 0o777:o}",
            where=path,
            expected="your own file, which nobody else may read or write",
            mend=command("chmod", "600", path),
        )
    variables = {}
    for number, line in enumerate(text.splitlines(), start=1):
        name, sep, value = line.partition("=")
        if line.strip() and not line.startswith("#"):
            if not (sep and VARIABLE.fullmatch(name)) or "\0" in value:
                raise InputError(
                    "not of the form NAME=VALUE", where=f"{path}:{number}", expected="such as WANDB_API_KEY=…, no blanks around ="
                )
            variables[name] = value
    return variables


def few_cores(spec: JobSpec, cores: int) -> str | None:
    """What to say where a task may not use the cores that it asked for."""
    if cores >= spec.cpus_per_task:
        return None
    return (
        f"warning: this task may use {cores} of the {spec.cpus_per_task} cores that the job asked for: the site binds tasks otherwise, "
        "or the node has fewer; OMP_NUM_THREADS is lowered to that"
    )


def task_words(spec: JobSpec, index: str | None) -> list[str]:
    """The command, with this task's index of a job array.

    Raises:
        InputError: the command asks for an index and there is none.
    """
    if any("{array_task}" in word for word in spec.command) and index is None:
        raise InputError("the command asks for {array_task}", where=spec.name, expected="a job array", mend="submit it with --array")
    return [word.replace("{array_task}", index or "") for word in spec.command]


def held(folder: Path, index: str | None, environ: Mapping[str, str]) -> dict[str, str]:
    """The variable by which a process sees that a younger attempt of its job has taken over; none where no script of ours named its own."""
    return {HOLDER: str(holder_path(folder, index))} if environ.get(ATTEMPT) else {}


def _logged() -> bool:
    """Whether this task's output goes on in a file that holds something already."""
    about = os.fstat(1)
    return stat.S_ISREG(about.st_mode) and about.st_size > 0


def main(path: str) -> None:
    """Become the command of the job at `path`; does not return."""
    try:
        spec = read_spec(Path(path))
        index = array_task(spec.array, os.environ)
        words = task_words(spec, index)
        restart = os.environ.get(ATTEMPT, "").rpartition(".")[2]
        if restart and (restart != "0" or _logged()):  # what stands above it in the log is of former attempts, or of a number given again
            with contextlib.suppress(OSError):  # a full disk
                print(RANK_MARK.format(restart=restart), flush=True)
        place = placement()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
        if cores and (warning := few_cores(spec, cores)):
            tell(warning)
        secrets = read_secrets(Path(spec.secrets)) if spec.secrets else {}
        environ = {**os.environ, **secrets, **task_environ(spec, place, cores), **held(Path(path).parent, index, os.environ)}
        if place.world > 1 and "MASTER_PORT" not in environ:
            environ["MASTER_PORT"] = str(agreed_port(Path(path).parent, place, environ))
        # the console scripts of the interpreter that the job was submitted with come first
        environ["PATH"] = os.pathsep.join([str(Path(spec.python).parent), environ.get("PATH", os.defpath)])
        os.chdir(spec.folder)
        if spec.umask:
            os.umask(int(spec.umask, 8))  # srun hands on that of sbatch, whatever the script's is
        # the warning before the time limit ends who does not listen to it; trainers set their own handler
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        os.execvpe(words[0], words, environ)
    except OSError as error:
        tell(f"cannot start {words[0]!r} in {spec.folder}: {error.strerror}")
        raise SystemExit(TryAgain.exit_code if may_pass(error) else InputError.exit_code) from error
    except RetinaforgeError as error:
        tell(f"{type(error).__name__}: {error}")
        raise SystemExit(TryAgain.exit_code if may_pass(error) else error.exit_code) from error


if __name__ == "__main__":
    main(sys.argv[1])
