"""A job's tasks on this machine, in the foreground: the same job without SLURM."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from slurm.arrays import array_indices
from slurm.jobs import JobSpec, freeze
from slurm.meeting import free_port
from slurm.preempt import ATTEMPT
from slurm.programs import of_another_job
from slurm.script import after_setup

POLL_S, GRACE_S = 0.1, 15.0


def run_local(spec: JobSpec, run_folder: Path) -> int:
    """Run the job's tasks on this machine, in the foreground; an array's indices one after the other.

    Returns the exit code of the first task that failed, else 0. When one fails, the others are asked to stop.
    """
    path = freeze(spec, run_folder.absolute())
    for index in array_indices(spec.array) if spec.array else [None]:
        if code := _run_once(spec, path, index):
            return code
    return 0


def _run_once(spec: JobSpec, path: Path, index: int | None) -> int:
    world, port = str(spec.world), str(free_port())
    common = {name: value for name, value in os.environ.items() if name not in of_another_job(os.environ)}
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
        return _first_failure(tasks)
    finally:  # also upon Ctrl-C: no task outlives this call
        _stop(tasks)


def _first_failure(tasks: list[subprocess.Popen]) -> int:
    while True:
        codes = [task.poll() for task in tasks]
        for code in codes:
            if code:
                return code if code > 0 else 128 - code  # a signal, as shells report it
        if None not in codes:
            return 0
        time.sleep(POLL_S)


def _stop(tasks: list[subprocess.Popen]) -> None:
    for task in tasks:
        if task.poll() is None:
            task.terminate()
    until = time.monotonic() + GRACE_S
    for task in tasks:
        try:
            task.wait(timeout=max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            task.kill()
            task.wait()
