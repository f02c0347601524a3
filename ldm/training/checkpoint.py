"""Checkpoints by the commit protocol: every rank writes its part, rank 0 publishes COMMIT.json last, old ones go after.

A folder without COMMIT.json was never committed. Parts are safetensors and JSON: nothing is ever unpickled, and no part
is opened before its sha256 was compared with the commit's.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor

from data_shards import durable
from data_shards.errors import RetinaforgeError, UnsafeResume
from ldm.comm import Communicator

FORMAT = "retinaforge-checkpoint-1"
COMMIT = "COMMIT.json"


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint: `state` is what every rank shares (JSON), `parts` the file and sha256 of each rank."""

    folder: Path
    samples: int
    state: dict[str, Any]
    parts: list[tuple[str, str]]


def read_commit(folder: Path) -> Checkpoint | None:
    """The commit of a checkpoint folder; None when it was never committed or cannot be read."""
    try:
        commit = json.loads((folder / COMMIT).read_text())
        if commit["format"] != FORMAT:
            return None
        return Checkpoint(folder, commit["samples"], commit["state"], [tuple(p) for p in commit["parts"]])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def faults_of(checkpoint: Checkpoint) -> list[str]:
    """What keeps a committed checkpoint from being loaded: missing or changed parts."""
    faults = []
    for name, sha256 in checkpoint.parts:
        path = checkpoint.folder / name
        if not path.is_file():
            faults.append(f"{path}: missing")
        elif durable.sha256_of(path) != sha256:
            faults.append(f"{path}: sha256 differs from {COMMIT}")
    return faults


class CheckpointStore:
    """The checkpoints of one trainer.

    Args:
        folder: made by the first commit.
        keep: newest commits to keep; at least 2, so that one survives a fault found in the newest.
    """

    def __init__(self, folder: Path, comm: Communicator, *, keep: int = 2) -> None:
        self.folder, self.comm, self.keep = folder, comm, max(2, keep)

    def committed(self) -> list[Checkpoint]:
        """All committed checkpoints, newest first, their parts not yet verified."""
        found = (read_commit(path) for path in self.folder.glob("samples-*"))
        return sorted((c for c in found if c), key=lambda c: -c.samples)

    def commit(self, samples: int, state: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
        """Write and publish. Collective: every rank calls it with its own `tensors` and the same `samples` and `state`."""
        final = self.folder / f"samples-{samples:012d}"
        if self.comm.rank == 0 and final.exists() and read_commit(final) is None:
            with durable.explained(final):
                shutil.rmtree(final)  # what a killed writer left; were it kept, a dead rank's part could mix in
        self.comm.barrier()
        name = f"rank-{self.comm.rank:05d}.safetensors"
        content = save_bytes({k: v.detach().to("cpu").contiguous() for k, v in tensors.items()})
        try:
            durable.write_bytes(final / name, content)
            parts = self.comm.gather((name, hashlib.sha256(content).hexdigest()))
            if self.comm.rank == 0:
                durable.write_json(
                    final / COMMIT, {"format": FORMAT, "samples": samples, "world": self.comm.world, "state": state, "parts": parts}
                )
                durable.fsync_path(self.folder)
                self._prune(samples)
        except RetinaforgeError:
            if read_commit(final) is None:
                shutil.rmtree(final, ignore_errors=True)  # a full disk is no place for half a checkpoint
            raise
        self.comm.barrier()
        return final

    def _prune(self, samples: int) -> None:
        """Drop what is older than the commits to keep: former commits, and what kills in the middle of this left of them.

        What stands beyond `samples` could not be loaded when this run resumed, so it is none of those to keep.
        """
        oldest = [c for c in self.committed() if c.samples <= samples][: self.keep][-1].folder.name
        for folder in [path for path in self.folder.glob("samples-*") if path.name < oldest]:
            (folder / COMMIT).unlink(missing_ok=True)  # first un-commit: a kill in the middle leaves no folder that looks whole
            shutil.rmtree(folder)

    def newest(self, *, progress_exists: bool) -> Checkpoint | None:
        """The newest checkpoint that verifies, the same on every rank; None for a run that has not begun.

        Raises:
            UnsafeResume: the run shows progress, but nothing can be loaded.
        """
        chosen, faults = None, []
        if self.comm.rank == 0:
            for checkpoint in self.committed():
                if not (found := faults_of(checkpoint)):
                    chosen = str(checkpoint.folder)
                    break
                faults += found
        chosen, faults = self.comm.broadcast((chosen, faults))
        if chosen is None and (faults or progress_exists):
            raise UnsafeResume(
                "the run shows progress, but no checkpoint of it can be loaded" + "".join(f"\n  {f}" for f in faults),
                where=self.folder,
                expected="one checkpoint that verifies",
                mend=f"restore {self.folder} from a backup, or begin anew: rm -r {self.folder.parent}",
            )
        return read_commit(Path(chosen)) if chosen else None

    def load(self, checkpoint: Checkpoint) -> dict[str, Tensor]:
        """This rank's tensors, their hash checked again on the very bytes that are parsed."""
        return load_part(checkpoint, min(self.comm.rank, len(checkpoint.parts) - 1))


def load_part(checkpoint: Checkpoint, rank: int) -> dict[str, Tensor]:
    """Tensors of one rank's part.

    Raises:
        UnsafeResume: the bytes are not those that were committed.
    """
    name, sha256 = checkpoint.parts[rank]
    content = (checkpoint.folder / name).read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UnsafeResume("a checkpoint part has changed", where=checkpoint.folder / name, expected=f"sha256 {sha256}")
    return load_bytes(content)
