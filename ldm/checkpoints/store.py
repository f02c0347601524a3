"""Checkpoints by the commit protocol: every rank writes its part, rank 0 publishes COMMIT.json last, old ones go after.

A folder without COMMIT.json was never committed; the file carries a digest of itself. Parts are safetensors and JSON: nothing is
ever unpickled, and no part is opened before its sha256 was compared with the commit's. A part holds whole tensors, or stretches of
tensors that are cut over ranks; a reader puts together what it is asked for, so a checkpoint may be loaded by another number of
ranks, cut elsewhere.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_shards import durable
from data_shards.errors import InputError, RetinaforgeError, UnsafeResume, moved_aside
from ldm.checkpoints.commit import COMMIT, FORMAT, USED, Checkpoint, digest_of, faults_of, folder_name, read_commit, unreadable
from ldm.checkpoints.parts import SHAPES, Part, Share, Writing
from ldm.comm import Communicator, on_each, on_rank_0

LOGGER = logging.getLogger("retinaforge")


@dataclass(frozen=True)
class Fragment:
    """The stretch [start, start + len(values)) of a flattened tensor of `shape`, held by one rank."""

    values: Tensor
    start: int
    shape: tuple[int, ...]


State = dict[str, Tensor | Fragment]
"""By name. A whole tensor is the same on every rank, and written by one of them."""


@dataclass(frozen=True)
class _Piece:
    """The stretch [start, stop) of a flattened tensor, and under which key it stands in which part."""

    start: int
    stop: int
    part: Part
    key: str


class Reader:
    """Tensors of a verified checkpoint by name, wherever they lie in its parts.

    Args:
        used: read the parts alone that `Checkpoint.used` names.
    """

    def __init__(self, checkpoint: Checkpoint, *, used: bool = False) -> None:
        self.folder = checkpoint.folder
        self.pieces: dict[str, list[_Piece]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file_name, _ in checkpoint.used if used else checkpoint.parts:
            part = Part(checkpoint.folder / file_name)
            cut = json.loads(part.metadata.get(SHAPES, "{}"))
            for key, shape in part.shapes().items():
                name, _, start = key.rpartition("@") if key.rpartition("@")[0] in cut else (key, "", "0")
                self.pieces.setdefault(name, []).append(_Piece(int(start), int(start) + torch.Size(shape).numel(), part, key))
                self.shapes[name] = tuple(cut.get(name, shape))

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def __call__(self, name: str, *, shape: tuple[int, ...] | None = None, start: int | None = None, stop: int | None = None) -> Tensor:
        """A tensor, or the stretch [start, stop) of it, flattened.

        Args:
            shape: that it has to have.

        Raises:
            InputError: no such tensor, or one of another shape.
        """
        if name not in self or (shape is not None and tuple(shape) != self.shapes[name]):
            raise InputError(
                f"{name}: {f'shape {self.shapes[name]}' if name in self else 'missing'}",
                where=self.folder,
                expected=f"a tensor of shape {tuple(shape)}" if shape is not None else "a tensor of that name",
                mend="continue with the configuration that the checkpoint was trained with: run.yaml in its run folder",
            )
        begin, end = start or 0, torch.Size(self.shapes[name]).numel() if stop is None else stop
        values, reached = [], begin
        for piece in sorted(self.pieces[name], key=lambda piece: piece.start):
            stop_here = min(piece.stop, end)
            if piece.start <= reached < stop_here:
                values.append(piece.part.read(piece.key, reached - piece.start, stop_here - piece.start))
                reached = stop_here
        if reached < end:
            raise UnsafeResume(f"{name}: values from {reached} on are in no part", where=self.folder, expected=f"values up to {end}")
        flat = values[0] if len(values) == 1 else torch.cat(values or [torch.empty(0)])
        return flat if start is not None else flat.view(self.shapes[name])

    def under(self, prefix: str) -> dict[str, Tensor]:
        """All tensors whose names begin with `prefix`, without it."""
        return {name.removeprefix(prefix): self(name) for name in self.shapes if name.startswith(prefix)}


class CheckpointStore:
    """The checkpoints of one trainer.

    Args:
        folder: made by the first commit.
        keep: newest commits to keep; at least 2, so that one survives a fault found in the newest.
        used: how the names of those tensors begin that are read by whoever uses what was trained. They lie in parts of their own, so
            that moments and all else that only a resume needs is neither hashed nor read with them.
    """

    def __init__(self, folder: Path, comm: Communicator, *, keep: int = 2, used: tuple[str, ...] = ()) -> None:
        self.folder, self.comm, self.keep, self.used = folder, comm, max(2, keep), used
        self.pending: Writing | None = None
        self.copies: dict[str, Tensor] = {}

    def committed(self) -> list[Checkpoint]:
        """All committed checkpoints, newest first, their parts not yet verified."""
        commits = (read_commit(path) for path in self.folder.glob("samples-*"))
        return sorted((commit for commit in commits if commit), key=lambda commit: -commit.samples)

    def commit(self, samples: int, state: dict[str, Any], tensors: State) -> Path:
        """Write and publish. Collective: every rank calls it with its own `tensors` and the same `samples` and `state`.

        Raises:
            RetinaforgeError: the part of this or of another rank could not be written; nothing of it is left.
        """
        self.begin(samples, state, tensors)
        return self.finish()

    def begin(self, samples: int, state: dict[str, Any], tensors: State) -> None:
        """Copy this rank's share of `tensors` and write it in the background. Collective; `finish` publishes it."""
        assert self.pending is None, "one checkpoint at a time"
        final = self.folder_at(samples)
        on_rank_0(self.comm, lambda: _make_place(final))  # also the border behind which all may write
        used = {name: value for name, value in tensors.items() if name.startswith(self.used)}
        shares = {f"rank-{self.comm.rank:05d}.safetensors": self._share({k: v for k, v in tensors.items() if k not in used})}
        if used:
            shares[f"rank-{self.comm.rank:05d}{USED}"] = self._share(used)
        self.pending = Writing(final, samples, state, shares)

    @property
    def writing(self) -> bool:
        """This rank's part is still on its way."""
        return self.pending is not None and self.pending.is_alive()

    def _share(self, tensors: State) -> Share:
        """What this rank writes of these: its stretches, and every world-th of the whole tensors; copied to the host."""
        share, shapes = {}, {}
        for name, value in tensors.items():
            if isinstance(value, Fragment):
                share[f"{name}@{value.start}"], shapes[name] = value.values, value.shape
        whole = sorted(name for name, value in tensors.items() if not isinstance(value, Fragment))
        share |= {name: tensors[name] for name in whole[self.comm.rank :: self.comm.world]}
        return {k: self._copied(k, v.detach()) for k, v in share.items()}, shapes

    def _copied(self, name: str, value: Tensor) -> Tensor:
        """On the host, laid out as it will be written: one copy, whatever the layout was.

        Into the memory of the checkpoint before: fresh pages would hold training up five times as long as the copy.
        """
        held = self.copies.get(name)
        if held is None or (held.shape, held.dtype) != (value.shape, value.dtype):
            held = self.copies[name] = torch.empty(value.shape, dtype=value.dtype)
        return held.copy_(value)

    def finish(self) -> Path:
        """Wait for the writers of all ranks and publish. Collective.

        Raises:
            RetinaforgeError: see `commit`.
        """
        writing, self.pending = self.pending, None
        assert writing is not None, "nothing was begun"
        try:
            parts_of_ranks = self.comm.gather(on_each(self.comm, writing.result))
            on_rank_0(self.comm, lambda: self._publish(writing, [part for parts in parts_of_ranks for part in parts]))
        except RetinaforgeError:
            if self.comm.rank == 0 and read_commit(writing.final) is None:
                shutil.rmtree(writing.final, ignore_errors=True)  # a full disk is no place for half a checkpoint
            raise
        return writing.final

    def _publish(self, writing: Writing, parts: list[tuple[str, str]]) -> None:
        commit = {"format": FORMAT, "samples": writing.samples, "world": self.comm.world, "state": writing.state, "parts": parts}
        commit = json.loads(json.dumps(commit))  # tuples become lists, as a reader will see them
        durable.write_json(writing.final / COMMIT, {**commit, "sha256": digest_of(commit)})
        with durable.explained(self.folder):
            self._prune(writing.samples, (writing.state.get("best") or {}).get("samples"))

    def _prune(self, samples: int, best: int | None) -> None:
        """Drop what is older than the commits to keep: former commits, and what kills in the middle of this left of them.

        What stands beyond `samples` could not be loaded when this run resumed, so it is none of those to keep. That of the best
        validation loss stays.
        """
        oldest = [c for c in self.committed() if c.samples <= samples][: self.keep][-1].folder.name
        for folder in [path for path in self.folder.glob("samples-*") if path.name < oldest]:
            if best is None or folder != self.folder_at(best):
                self.remove(folder)

    def folder_at(self, samples: int) -> Path:
        """The folder of the checkpoint at so many samples."""
        return self.folder / folder_name(samples)

    def remove(self, folder: Path) -> None:
        """Delete one checkpoint; first it is un-committed, so a kill in the middle leaves no folder that looks whole."""
        (folder / COMMIT).unlink(missing_ok=True)
        shutil.rmtree(folder)

    def newest(self, *, progress_exists: bool, used: bool = False) -> Checkpoint | None:
        """The newest checkpoint that verifies, the same on every rank; None for a run that has not begun. Collective.

        Args:
            used: verify the parts alone that `Checkpoint.used` names.

        Raises:
            UnsafeResume: the run shows progress, but nothing can be loaded.
        """
        faults = on_rank_0(self.comm, lambda: unreadable(self.folder))
        for checkpoint in on_rank_0(self.comm, self.committed):
            parts = checkpoint.used if used else checkpoint.parts
            mine = faults_of(checkpoint, parts[self.comm.rank :: self.comm.world])
            its_faults = [fault for share in self.comm.gather(mine) for fault in share]
            if not its_faults:
                if faults and self.comm.rank == 0:
                    LOGGER.warning("taking %s, as there are faults beside it:%s", checkpoint.folder, "".join(f"\n  {f}" for f in faults))
                return checkpoint
            faults += its_faults
        if faults or self.comm.broadcast(progress_exists):
            raise UnsafeResume(
                "the run shows progress, but no checkpoint of it can be loaded" + "".join(f"\n  {f}" for f in faults),
                where=self.folder,
                expected="one checkpoint that verifies",
                mend=f"restore {self.folder} from a backup, or begin anew: {moved_aside(self.folder.parent)}",
            )
        return None

    def best(self) -> Checkpoint:
        """The checkpoint of the lowest validation loss, its parts verified that are used. In one process.

        Raises:
            InputError: none was validated, or it is not there any more. UnsafeResume: nothing can be loaded.
        """
        newest = self.newest(progress_exists=False, used=True)
        best = newest.state.get("best") if newest else None
        checkpoint = read_commit(self.folder_at(best["samples"])) if best else None
        if checkpoint is None or faults_of(checkpoint, checkpoint.used):
            raise InputError(
                "no checkpoint of the best validation loss" + (f", that at {best['samples']} samples" if best else ""),
                where=self.folder,
                expected="a run with a split 'val' and loop.validate_samples above 0, that was judged once all it comes to took part "
                "(codes, discriminator), its checkpoints untouched",
                mend="take the newest: without --best",
            )
        return checkpoint


def _make_place(final: Path) -> None:
    """An empty folder, or a committed one as it is. What a killed writer left would mix a dead rank's part in."""
    with durable.explained(final):
        if final.exists() and read_commit(final) is None:
            shutil.rmtree(final)
        durable.make_folder(final)
