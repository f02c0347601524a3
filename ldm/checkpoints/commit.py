"""What stands on disk of checkpoints: commits, and whether their parts are what was committed. No torch: `status` reads this in passing."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_shards import durable

FORMAT = "retinaforge-checkpoint-4"
FORMAT_3 = "retinaforge-checkpoint-3"  # still read
COMMIT = "COMMIT.json"
USED = ".used.safetensors"
PART = re.compile(r"rank-\d{5}(\.used)?\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint: `state` is what every rank shares (JSON), `parts` the files of all ranks with their sha256."""

    folder: Path
    samples: int
    state: dict[str, Any]
    parts: list[tuple[str, str]]

    @property
    def used(self) -> list[tuple[str, str]]:
        """The parts that hold all that sampling and encoding read; all parts where there are none of their own (format 3)."""
        return [part for part in self.parts if part[0].endswith(USED)] or self.parts

    @property
    def ranks(self) -> int:
        """How many wrote it."""
        return sum(not name.endswith(USED) for name, _ in self.parts)


def read_commit(folder: Path) -> Checkpoint | None:
    """The commit of a checkpoint folder; None when it was never committed, or is not what was committed there."""
    try:
        commit = json.loads((folder / COMMIT).read_bytes())
        sha256 = commit.pop("sha256")
        if commit["format"] not in (FORMAT, FORMAT_3) or sha256 != digest_of(commit) or folder.name != folder_name(commit["samples"]):
            return None
        parts = [(name, sha256) for name, sha256 in commit["parts"] if PART.fullmatch(name)]
        if len(parts) != len(commit["parts"]):
            return None
        state = commit["state"] if commit["format"] == FORMAT else _of_format_3(commit["state"])
        return Checkpoint(folder, commit["samples"], state, parts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _of_format_3(state: dict[str, Any]) -> dict[str, Any]:
    """What a commit of format 3 says, in the words of today: what it leaves out has the meaning that it had then.

    Its best was chosen by another rule (states before quantisation, weights that are not loaded): it is none today.
    """
    identity = dict(state.get("identity", {}))
    if identity.get("stage") == "vqgan":
        identity["model"] = {"kind": "vqgan", **identity["model"]}
    if identity.get("stage") == "diffusion":
        identity["model"] = {"kind": "unet", "attention_head_dim": 8, **identity["model"]}
        flow = identity["objective"]["target"] == "flow"
        identity["schedule"] = None if flow else {"beta_schedule": "squaredcos_cap_v2"}
    return {**state, "identity": identity, "best": None}


def digest_of(commit: dict[str, Any]) -> str:
    """The digest that a commit carries of itself."""
    return hashlib.sha256(durable.canonical_json(commit)).hexdigest()


def folder_name(samples: int) -> str:
    """Of the checkpoint at so many samples."""
    return f"samples-{samples:012d}"


def unreadable(folder: Path) -> list[str]:
    """Commits under a folder of checkpoints that were changed, torn, or written by another version."""
    return [
        f"{path}: not a commit of format {FORMAT}" for path in sorted(folder.glob(f"samples-*/{COMMIT}")) if not read_commit(path.parent)
    ]


def faults_of(checkpoint: Checkpoint, parts: list[tuple[str, str]] | None = None) -> list[str]:
    """What keeps a committed checkpoint, or some parts of it, from being loaded: missing or changed files."""
    faults = []
    for name, sha256 in checkpoint.parts if parts is None else parts:
        path = checkpoint.folder / name
        if not path.is_file():
            faults.append(f"{path}: missing")
        elif durable.sha256_of(path) != sha256:
            faults.append(f"{path}: sha256 differs from {COMMIT}")
    return faults
