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
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_shards import durable
from data_shards.errors import InputError, RetinaforgeError, TryAgain, UnsafeResume, moved_aside
from ldm.checkpoints.commit import COMMIT, FORMAT, USED, Checkpoint, digest_of, faults_of, folder_name, read_commit, unreadable
from ldm.checkpoints.parts import Part, write_part
from ldm.comm import Communicator

LOGGER = logging.getLogger("retinaforge")
SHAPES = "shapes"  # metadata of a part: the whole shape of each tensor that it holds a stretch of


@dataclass(frozen=True)
class Fragment:
    """The stretch [start, start + len(values)) of a flattened tensor of `shape`, held by one rank."""

    values: Tensor
    start: int
    shape: tuple[int, ...]


State = dict[str, Tensor | Fragment]
"""By name. A whole tensor is the same on every rank, and written by one of them."""
Share = tuple[dict[str, Tensor], dict[str, tuple[int, ...]]]
"""What a rank writes into one part: tensors by key, and the whole shapes of those that it holds a stretch of."""


class Reader:
    """Tensors of a verified checkpoint by name, wherever they lie in its parts.

    Args:
        used: read the parts alone that `Checkpoint.used` names.
    """

    def __init__(self, checkpoint: Checkpoint, *, used: bool = False) -> None:
        self.folder = checkpoint.folder
        self.files = [Part(checkpoint.folder / name) for name, _ in (checkpoint.used if used else checkpoint.parts)]
        self.places: dict[str, list[tuple[int, int, int, str]]] = {}  # name to (start, stop, file, key)
        self.shapes: dict[str, tuple[int, ...]] = {}
        for i, file in enumerate(self.files):
            cut = json.loads(file.metadata.get(SHAPES, "{}"))
            for key, shape in file.shapes().items():
                name, _, start = key.rpartition("@") if key.rpartition("@")[0] in cut else (key, "", "0")
                self.places.setdefault(name, []).append((int(start), int(start) + torch.Size(shape).numel(), i, key))
                self.shapes[name] = tuple(cut.get(name, shape))

    def __contains__(self, name: str) -> bool:
        return name in self.places

    def __call__(self, name: str, *, shape: tuple[int, ...] | None = None, start: int | None = None, stop: int | None = None) -> Tensor:
        """A tensor, or the stretch [start, stop) of it, flattened.

        Args:
            shape: that it has to have.

        Raises:
            InputError: no such tensor, or one of another shape.
        """
        if name not in self.places or (shape is not None and tuple(shape) != self.shapes[name]):
            raise InputError(
                f"{name}: {'missing' if name not in self.places else f'shape {self.shapes[name]}'}",
                where=self.folder,
                expected=f"a tensor of shape {tuple(shape)}" if shape is not None else "a tensor of that name",
                mend="continue with the configuration that the checkpoint was trained with: run.yaml in its run folder",
            )
        begin, end = start or 0, torch.Size(self.shapes[name]).numel() if stop is None else stop
        pieces, reached = [], begin
        for first, last, i, key in sorted(self.places[name]):
            if first <= reached < min(last, end):
                pieces.append(self.files[i].read(key, reached - first, min(last, end) - first))
                reached = min(last, end)
        if reached < end:
            raise UnsafeResume(f"{name}: values from {reached} on are in no part", where=self.folder, expected=f"values up to {end}")
        flat = pieces[0] if len(pieces) == 1 else torch.cat(pieces) if pieces else torch.empty(0)
        return flat if start is not None else flat.view(self.shapes[name])

    def under(self, prefix: str) -> dict[str, Tensor]:
        """All tensors whose names begin with `prefix`, without it."""
        return {name.removeprefix(prefix): self(name) for name in self.places if name.startswith(prefix)}


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
        self.pending: _Writing | None = None
        self.copies: dict[str, Tensor] = {}

    def committed(self) -> list[Checkpoint]:
        """All committed checkpoints, newest first, their parts not yet verified."""
        found = (read_commit(path) for path in self.folder.glob("samples-*"))
        return sorted((c for c in found if c), key=lambda c: -c.samples)

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
        final, error = self.place(samples), None
        if self.comm.rank == 0:
            try:
                with durable.explained(final):
                    if final.exists() and read_commit(final) is None:
                        shutil.rmtree(final)  # what a killed writer left; were it kept, a dead rank's part could mix in
                    durable.make_folder(final)
            except RetinaforgeError as raised:
                error = raised
        if error := self.comm.broadcast(error):  # also the border behind which all may write
            raise error
        used = {name: value for name, value in tensors.items() if name.startswith(self.used)}
        shares = {f"rank-{self.comm.rank:05d}.safetensors": self._share({k: v for k, v in tensors.items() if k not in used})}
        if used:
            shares[f"rank-{self.comm.rank:05d}{USED}"] = self._share(used)
        self.pending = _Writing(final, samples, state, shares)

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
        results, error = self.comm.gather(writing.result()), None
        if faults := [fault for _, fault in results if fault]:
            error = faults[0]
        elif self.comm.rank == 0:
            try:
                self._publish(writing, [part for parts, _ in results for part in parts])
            except RetinaforgeError as raised:
                error = raised
        if error := self.comm.broadcast(error):
            if self.comm.rank == 0 and read_commit(writing.final) is None:
                shutil.rmtree(writing.final, ignore_errors=True)  # a full disk is no place for half a checkpoint
            raise error
        return writing.final

    def _publish(self, writing: _Writing, parts: list[tuple[str, str]]) -> None:
        told = {"format": FORMAT, "samples": writing.samples, "world": self.comm.world, "state": writing.state, "parts": parts}
        told = json.loads(json.dumps(told))  # tuples become lists, as a reader will see them
        durable.write_json(writing.final / COMMIT, {**told, "sha256": digest_of(told)})
        with durable.explained(self.folder):
            self._prune(writing.samples, (writing.state.get("best") or {}).get("samples"))

    def _prune(self, samples: int, best: int | None) -> None:
        """Drop what is older than the commits to keep: former commits, and what kills in the middle of this left of them.

        What stands beyond `samples` could not be loaded when this run resumed, so it is none of those to keep. That of the best
        validation loss stays.
        """
        oldest = [c for c in self.committed() if c.samples <= samples][: self.keep][-1].folder.name
        for folder in [path for path in self.folder.glob("samples-*") if path.name < oldest]:
            if best is None or folder != self.place(best):
                self.remove(folder)

    def place(self, samples: int) -> Path:
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
        faults: list[str] = self.comm.broadcast(unreadable(self.folder))
        for checkpoint in self.comm.broadcast(self.committed()):
            parts = checkpoint.used if used else checkpoint.parts
            mine = faults_of(checkpoint, parts[self.comm.rank :: self.comm.world])
            if not (found := [fault for share in self.comm.gather(mine) for fault in share]):
                if faults and self.comm.rank == 0:
                    LOGGER.warning("taking %s, as there are faults beside it:%s", checkpoint.folder, "".join(f"\n  {f}" for f in faults))
                return checkpoint
            faults += found
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
        told = newest.state.get("best") if newest else None
        found = read_commit(self.place(told["samples"])) if told else None
        if found is None or faults_of(found, found.used):
            raise InputError(
                "no checkpoint of the best validation loss" + (f", that at {told['samples']} samples" if told else ""),
                where=self.folder,
                expected="a run with a split 'val' and loop.validate_samples above 0, that was judged once all it comes to took part "
                "(codes, discriminator), its checkpoints untouched",
                mend="take the newest: without --best",
            )
        return found


class _Writing(threading.Thread):
    """One rank's parts on their way to the disk."""

    def __init__(self, final: Path, samples: int, state: dict[str, Any], shares: dict[str, Share]) -> None:
        super().__init__(name=f"checkpoint-{samples}", daemon=True)
        self.final, self.samples, self.state, self.shares = final, samples, state, shares
        self.parts: list[tuple[str, str]] = []
        self.fault: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            while self.shares:
                name = next(iter(self.shares))
                share, shapes = self.shares.pop(name)
                self.parts.append((name, write_part(self.final / name, share, {SHAPES: json.dumps(shapes)})))
        except BaseException as raised:
            self.fault = raised
        finally:
            self.shares = {}

    def result(self) -> tuple[list[tuple[str, str]], RetinaforgeError | None]:
        """(file name, sha256) of each part and what went wrong, once they are written."""
        self.join()
        if isinstance(self.fault, OSError):
            self.fault = TryAgain(f"writing failed: {self.fault}", where=self.final, mend="run the same command again")
        if self.fault is not None and not isinstance(self.fault, RetinaforgeError):
            raise self.fault
        return self.parts, self.fault
