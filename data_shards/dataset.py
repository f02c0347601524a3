"""Reading a packed dataset sample by sample. Training reads through stream.py, on top of this.

Legend: C band, H W pixels.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from crc32c import crc32c

from data_shards import folder as loose
from data_shards.codec import get_codec
from data_shards.cube import Cube
from data_shards.errors import CorruptData, InputError
from data_shards.index import ShardIndex, index_path, read_index
from data_shards.manifest import NAME, BandStats, Manifest, ShardEntry, read_manifest


@dataclass(frozen=True)
class SplitInfo:
    """Size of a split, in samples and in subjects."""

    count: int
    subjects: int


class Shard:
    """An open shard: its index, and `pread` on its bytes."""

    def __init__(self, folder: Path, entry: ShardEntry) -> None:
        self.path, self.entry = folder / entry.name, entry
        self.index: ShardIndex = read_index(index_path(self.path), sha256=entry.index_sha256)
        with self._open() as fd:
            size = os.fstat(fd).st_size
        if size != self.index.shard_bytes or len(self.index) != entry.count or self.index.sha256 != entry.sha256:
            raise CorruptData(
                f"shard of {size} bytes, index of {len(self.index)} samples and {self.index.shard_bytes} bytes",
                where=self.path,
                expected=f"{entry.bytes} bytes and {entry.count} samples, as in {NAME}",
                mend=f"retinaforge data verify {folder}",
            )

    @contextlib.contextmanager
    def _open(self) -> Iterator[int]:
        """A descriptor for one read: a set of a million images has more shards than a process may hold open."""
        try:
            fd = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            mend = f"retinaforge data verify {self.path.parent}"
            raise CorruptData(f"shard cannot be opened: {error.strerror}", where=self.path, mend=mend) from error
        try:
            yield fd
        finally:
            os.close(fd)

    def member(self, i: int, m: int, *, check: bool = True) -> bytes:
        """Bytes of member column `m` of sample `i`, b'' when absent.

        Raises:
            CorruptData: short read or crc32c mismatch, naming shard, sample and member.
        """
        size, offset = int(self.index.size_NM[i, m]), int(self.index.offset_NM[i, m])
        with self._open() as fd:
            content = os.pread(fd, size, offset)
            while 0 < len(content) < size:  # one pread moves at most 2 GiB
                more = os.pread(fd, size - len(content), offset + len(content))
                if not more:
                    break
                content += more
        if len(content) != size or (check and size and crc32c(content) != self.index.crc_NM[i, m]):
            what = "short read" if len(content) != size else "crc32c mismatch: the bytes changed since they were written"
            raise CorruptData(what, where=self.where(i, m), mend=f"retinaforge data verify {self.path.parent}")
        return content

    def named(self, i: int, member: str) -> bytes:
        """Member by name, b'' when the sample has none."""
        return self.member(i, self.index.members.index(member)) if member in self.index.members else b""

    def array_into(self, i: int, out: np.ndarray, *, check: bool = True) -> None:
        """Decode the array of sample `i` into `out`."""
        m, codec = self.index.payload(i)
        get_codec(codec).decode_into(self.member(i, m, check=check), out, self.where(i, m))

    def cube(self, i: int) -> Cube:
        """Sample `i`, whole and checked."""
        data_CHW = np.empty(tuple(self.index.shape_N3[i]), self.index.dtype)
        self.array_into(i, data_CHW)
        labels, fov = self.named(i, "labels.png"), self.named(i, "fov.png")
        where = f"{self.path}: sample {self.index.keys[i]}"
        return Cube(
            data_CHW=data_CHW,
            meta=loose.meta_from(self.named(i, "json"), where=where, key=self.index.keys[i]),
            labels_HW=loose.png_map(labels, mask=False, where=where) if labels else None,
            fov_HW=loose.png_map(fov, mask=True, where=where) if fov else None,
        )

    def where(self, i: int, m: int) -> str:
        return f"{self.path}: sample {self.index.keys[i]}, member {self.index.members[m]}"


class Dataset:
    """A packed dataset, opened for reading.

    Raises (on opening):
        InputError: no dataset there. CorruptData: manifest, index and shards disagree.
    """

    def __init__(self, path: Path | str, manifest: Manifest | None = None) -> None:
        self.path = Path(path)
        self.manifest = manifest or read_manifest(self.path)

    digest = property(lambda self: self.manifest.digest)
    payload = property(lambda self: self.manifest.payload)
    shape = property(lambda self: self.manifest.shape)
    wavelengths_nm = property(lambda self: self.manifest.wavelengths_nm)
    scale = property(lambda self: self.manifest.scale)
    offset = property(lambda self: self.manifest.offset)

    @property
    def stats(self) -> BandStats:
        """Per-band statistics of the training split."""
        if self.manifest.stats is None:
            raise InputError("no band statistics", where=self.path / NAME, mend=f"retinaforge data stats {self.path}")
        return self.manifest.stats

    @cached_property
    def splits(self) -> dict[str, SplitInfo]:
        return {name: SplitInfo(**sizes) for name, sizes in self.manifest.splits.items()}

    @cached_property
    def _shards(self) -> dict[str, list[Shard]]:
        by_split: dict[str, list[Shard]] = {name: [] for name in self.splits}
        for entry in self.manifest.shards:
            by_split[entry.split].append(Shard(self.path, entry))
        return by_split

    @cached_property
    def _starts(self) -> dict[str, np.ndarray]:
        return {split: np.cumsum([0] + [len(s.index) for s in shards]) for split, shards in self._shards.items()}

    def count(self, split: str) -> int:
        """Number of samples of a split.

        Raises:
            InputError: no such split, or an empty one.
        """
        if split not in self.splits or not self.splits[split].count:
            have = ", ".join(f"{name} ({info.count})" for name, info in self.splits.items())
            raise InputError(
                f"split {split!r} is empty", where=self.path, expected=f"one of: {have}", mend="retinaforge data pack --splits …"
            )
        return self.splits[split].count

    def locate(self, split: str, i: int) -> tuple[Shard, int]:
        """Shard and row of sample `i` of a split."""
        if not 0 <= i < self.count(split):
            raise IndexError(f"sample {i} of split {split!r}, which has {self.count(split)}")
        s = int(np.searchsorted(self._starts[split], i, side="right")) - 1
        return self._shards[split][s], i - int(self._starts[split][s])

    def keys(self, split: str) -> list[str]:
        """Keys of a split, in index order."""
        return [key for shard in self._shards[split] for key in shard.index.keys] if self.count(split) else []

    def subjects(self, split: str) -> list[str]:
        """Subject of each sample of a split, in index order."""
        return [subject for shard in self._shards[split] for subject in shard.index.subjects] if self.count(split) else []

    def cube(self, split: str, i: int) -> Cube:
        """Sample `i` of a split, whole and checked."""
        shard, row = self.locate(split, i)
        return shard.cube(row)

    def cubes(self, split: str) -> Iterator[Cube]:
        """All samples of a split, in index order."""
        return (self.cube(split, i) for i in range(self.count(split)))


def cubes_of(path: Path | str, split: str | None = None) -> Iterator[Cube]:
    """Cubes of a loose folder or of a packed dataset (of one split, or of all), in a fixed order."""
    path = Path(path)
    if not (path / NAME).exists():
        if split is not None:
            raise InputError("a folder of loose cubes has no splits", where=path, mend=f"retinaforge data pack {path} DATASET")
        yield from loose.read_folder(path)
        return
    dataset = Dataset(path)
    for name in [split] if split else [name for name, info in dataset.splits.items() if info.count]:
        yield from dataset.cubes(name)
