"""What a job runs on every task: `python -m slurm.task job.json` reads the job and becomes its command.

The launcher's rank and world are checked against the job's and handed on under the names that torch and Accelerate read.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from data_shards.errors import InputError, RetinaforgeError
from slurm.jobs import JobSpec, read_spec
from slurm.meeting import agreed_port
from slurm.rank import Placement, array_task, placement, torch_environ


def task_environ(spec: JobSpec, place: Placement) -> dict[str, str]:
    """The variables a task adds to what it inherits.

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
    threads = {} if "OMP_NUM_THREADS" in spec.exports else {"OMP_NUM_THREADS": str(spec.cpus_per_task)}
    return threads | (torch_environ(place) if place.world > 1 else {})


def task_words(spec: JobSpec, index: str | None) -> list[str]:
    """The command, with this task's index of a job array.

    Raises:
        InputError: the command asks for an index and there is none.
    """
    if any("{array_task}" in word for word in spec.command) and index is None:
        raise InputError("the command asks for {array_task}", where=spec.name, expected="a job array", mend="submit it with --array")
    return [word.replace("{array_task}", index or "") for word in spec.command]


def main(path: str) -> None:
    """Become the command of the job at `path`; does not return."""
    try:
        spec = read_spec(Path(path))
        words = task_words(spec, array_task())
        place = placement()
        environ = {**os.environ, **task_environ(spec, place)}
        if place.world > 1 and "MASTER_PORT" not in environ:
            environ["MASTER_PORT"] = str(agreed_port(Path(path).parent, place, environ))
        # the console scripts of the interpreter that the job was submitted with come first
        environ["PATH"] = os.pathsep.join([str(Path(spec.python).parent), environ.get("PATH", os.defpath)])
        os.chdir(spec.folder)
        # the warning before the time limit ends who does not listen to it; trainers set their own handler
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        os.execvpe(words[0], words, environ)
    except OSError as error:
        print(f"cannot start {words[0]!r} in {spec.folder}: {error.strerror}", file=sys.stderr)
        raise SystemExit(2) from error
    except RetinaforgeError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from error


if __name__ == "__main__":
    main(sys.argv[1])
