"""SLURM's own programs: asked so that the answer is what was meant, whatever options stand in the environment of a shell."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator, Mapping

from data_shards.errors import TryAgain

WHERE = {"SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT"}
"""Variables that say which SLURM is meant, and the token by which a site without munge knows its user."""


def of_another_job(environ: Mapping[str, str]) -> set[str]:
    """Names of variables that SLURM's programs take for options, and those of a job that this shell is in.

    Whatever `--export` says, sbatch hands every SLURM_* on to the new job, where srun and we ourselves would read it.
    """
    return {name for name in environ if re.match("(SLURM|SLURMD|SBATCH|SRUN)_", name)} - WHERE


@contextlib.contextmanager
def without(names: set[str]) -> Iterator[None]:
    """The environment without these variables, for submitit runs sbatch in ours."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def ask(*words: str, errors: str = "replace") -> str:
    """What a program answers.

    Raises:
        TryAgain: it refuses, or does not answer.
    """
    program = words[0]
    try:
        asked = {"capture_output": True, "text": True, "errors": errors, "timeout": 60, "check": True, "env": plain_environ()}
        return subprocess.run(words, **asked).stdout
    except subprocess.TimeoutExpired as error:
        raise TryAgain(f"{program} did not answer within 60 s", mend="scontrol ping") from error
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip()
        raise TryAgain(f"{program} failed: {said}", expected="an answer of the controller", mend="scontrol ping") from error


def plain_environ() -> dict[str, str]:
    """The environment without what would leave something out of SLURM's answers, or change how they are written."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("SQUEUE_", "SACCT_", "SINFO_"))}
    return {**plain, "TZ": "UTC", "SLURM_TIME_FORMAT": "standard", "SLURM_BITSTR_LEN": "0"}  # 0: lists of indices are not cut
