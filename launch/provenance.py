"""The code that runs: where it lies, its versions and its commit, for the record."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import shutil
import site
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from data_shards import durable

PACKAGES = ("data_shards", "launch", "ldm", "slurm")
ROOT = Path(__file__).resolve().parents[1]
"""The folder that holds the four packages."""
RECORDED = ("retinaforge", "torch", "diffusers", "accelerate", "numpy", "safetensors", "webdataset")
LONGEST_DIFF = 1 << 20
KEPT = "commit.json"
"""In a job's copy of the packages: what `commit` said of those that it was taken from."""


@functools.cache
def versions() -> dict[str, str]:
    """Versions of the packages that decide what comes out, '' for one that is not installed."""
    return {name: _version(name) for name in RECORDED}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def environment() -> dict[str, Any]:
    """Versions, and of a checkout also the commit and what is changed in it; for files that only their owner may read."""
    return {"python": sys.version.split()[0], "machine": platform.platform(), "packages": versions(), "code": str(ROOT), **commit()}


def commit() -> dict[str, str]:
    """The commit of these packages and what differs from it, both '' where they are installed, or lie untracked in another's repository."""
    if (ROOT / KEPT).exists():
        return json.loads((ROOT / KEPT).read_text())
    if not _git("ls-files", "--error-unmatch", "--", "launch/provenance.py"):
        return {"commit": "", "diff": ""}
    diff = _git("diff", "--no-ext-diff", "--no-textconv", "HEAD", "--", *PACKAGES)
    if len(diff) > LONGEST_DIFF:
        diff = f"{diff[:LONGEST_DIFF]}\n… {len(diff) - LONGEST_DIFF} characters more\n"
    return {"commit": _git("rev-parse", "HEAD").strip(), "diff": diff}


def installed() -> bool:
    """Whether the packages are those that an environment holds: they change by an installation alone, and its Python finds them."""
    return str(ROOT) in {str(Path(place).resolve()) for place in (*site.getsitepackages(), site.getusersitepackages())}


def on_pythonpath() -> bool:
    """Whether this shell's PYTHONPATH names the packages; jobs do not see it."""
    return ROOT in {Path(place).resolve() for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place}


def code_files() -> dict[str, Path]:
    """The files of the four packages by name; what links lead to elsewhere is left out."""
    found = {}
    for package in PACKAGES:
        for folder, folders, names in os.walk(ROOT / package):
            folders[:] = sorted(name for name in folders if name != "__pycache__")
            for path in (Path(folder) / name for name in sorted(names)):
                if path.suffix != ".pyc" and path.resolve().is_relative_to(ROOT) and path.is_file():
                    found[str(path.relative_to(ROOT))] = path
    return found


def code_digest() -> str:
    """One digest of all that `code_files` holds."""
    return hashlib.sha256(durable.canonical_json({name: durable.sha256_of(path) for name, path in code_files().items()})).hexdigest()


def snapshot_in(folder: Path) -> Path:
    """Where a job's folder holds the packages as they are now."""
    return folder / f"code-{code_digest()[:12]}"


def keep_code(final: Path) -> None:
    """Copy the packages to `final`, as the job will run them, with the commit that they are of. Standing there already, they stay."""
    if final.exists():
        return
    with durable.writing_folder(final) as part:
        for name, path in code_files().items():
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, part / name)
        durable.write_json(part / KEPT, commit(), private=True)


def _git(*words: str) -> str:
    """What git says of the folder of the packages; '' without git, or where it refuses."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # a hook's name another repository
    command = ["git", "-c", "core.fsmonitor=false", *words]
    try:
        done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode(errors="replace")
