"""The command line as tests call it: in this process, or as a program of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from data_shards.errors import RetinaforgeError
from launch.cli import app
from slurm.queue import ENDED, JobState


def invoke(*words: object, code: int = 0) -> str:
    """What a verb prints, called in this process; its errors are raised as they are."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(done.exception, RetinaforgeError):
        raise done.exception
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.stdout


def retinaforge(*words: object, cwd: Path, code: int = 0) -> str:
    """The same by the program, in a folder."""
    program = Path(sys.executable).with_name("retinaforge")
    done = subprocess.run([program, *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def has_ended(states: list[JobState]) -> bool:
    """Whether SLURM says of all of a job that it is over and does not come back."""
    return all(state.state in ENDED for state in states)
