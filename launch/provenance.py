"""The code that runs: where it lies, its versions and its commit, for the record."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("data_shards", "launch", "ldm", "slurm")
ROOT = Path(__file__).resolve().parents[1]
"""The folder that holds the four packages."""
RECORDED = ("retinaforge", "torch", "diffusers", "accelerate", "numpy", "safetensors", "webdataset")
LONGEST_DIFF = 1 << 20


def versions() -> dict[str, str]:
    """Versions of the packages that decide what comes out, '' for one that is not installed."""
    installed = {dist.metadata["Name"]: dist.version for dist in metadata.distributions()}
    return {name: installed.get(name, "") for name in RECORDED}


def environment() -> dict[str, Any]:
    """Versions, and of a checkout also the commit and what is changed in it; for files that only their owner may read."""
    return {"python": sys.version.split()[0], "machine": platform.platform(), "packages": versions(), **commit()}


def commit() -> dict[str, str]:
    """The commit of these packages and what differs from it, both '' where they are installed, or lie untracked in another's repository."""
    if not _git("ls-files", "--error-unmatch", "--", "launch/provenance.py"):
        return {"commit": "", "diff": ""}
    diff = _git("diff", "--no-ext-diff", "--no-textconv", "HEAD", "--", *PACKAGES)
    if len(diff) > LONGEST_DIFF:
        diff = f"{diff[:LONGEST_DIFF]}\n… {len(diff) - LONGEST_DIFF} characters more\n"
    return {"commit": _git("rev-parse", "HEAD").strip(), "diff": diff}


def _git(*words: str) -> str:
    """What git says of the folder of the packages; '' without git, or where it refuses."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # a hook's name another repository
    command = ["git", "-c", "core.fsmonitor=false", *words]
    try:
        done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode(errors="replace")
