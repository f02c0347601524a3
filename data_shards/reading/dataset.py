"""Reading a packed dataset sample by sample. Training reads through stream.py, on top of this.

Legend: C band, H W pixels.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from data_shards import folder as loose
from data_shards import stores
from data_shards.cube import Cube, CubeMeta
from data_shards.errors import CorruptData, InputError, command
from data_shards.manifest import NAME, BandStats, Manifest, ShardEntry, read_manifest
from data_shards.reading.order import sample_at
from data_shards.reading.reader import Shard
from data_shards.shards.index import index_path

OPEN_SHARDS = 128  # a set of a million images has more shards than a process may hold open; one may take two descriptors


@dataclass(frozen=True)
class SplitInfo:
    """Size of a split, in samples and in subjects."""

    count: int
    subjects: int


class Dataset:
    """A packed dataset, opened for reading. Its shards are opened when they are first read, and the ones used longest ago closed again.

    Args:
        path: a folder, or a URL (stores/).
        manifest: where it was read already.
        cache: of remote files, on a local disk; a folder's files are never cached.

    Raises (on opening):
        InputError: no dataset there. CorruptData: damaged manifest; while reading: index and shards disagree with it.
    """

    def __init__(self, path: Path | str, manifest: Manifest | None = None, cache: stores.Cache | None = None) -> None:
        self.path: Path | str = str(path) if stores.is_url(path) else Path(path)
        self.manifest = manifest or read_manifest(self.path)
        self._store, self._cache = stores.open_store(self.path), cache
        if cache and stores.is_url(self.path):
            cache.prepare()
        self._open: OrderedDict[str, Shard] = OrderedDict()
        self._lock = threading.Lock()

    def beside(self, path: Path | str) -> Dataset:
        """Another dataset, read through the same cache."""
        return Dataset(path, cache=self._cache)

    digest = property(lambda self: self.manifest.digest)
    payload = property(lambda self: self.manifest.payload)
    shape = property(lambda self: self.manifest.shape)
    wavelengths_nm = property(lambda self: self.manifest.wavelengths_nm)
    scale = property(lambda self: self.manifest.scale)
    offset = property(lambda self: self.manifest.offset)

    def expect(self, *payloads: str, mend: str = "retinaforge data ls DATASET") -> None:
        """Raises: InputError: a set of another payload than these."""
        if self.payload in payloads:
            return
        if self.payload == "codes":
            mend = command("retinaforge", "data", "decode", self.path, "OUT", "--autoencoder", "RUN/vqgan")
        words = {"cube": "cubes", "latent": "latents", "codes": "codes"}
        raise InputError(
            f"a dataset of {words[self.payload]} ({self.manifest.dtype} {self.shape})",
            where=self.path,
            expected=" or ".join(words[payload] for payload in payloads),
            mend=mend,
        )

    @property
    def stats(self) -> BandStats:
        """Per-band statistics of the training split."""
        if self.manifest.stats is None:
            mend = command("retinaforge", "data", "stats", self.path)
            raise InputError("no band statistics", where=stores.where(self.path, NAME), mend=mend)
        return self.manifest.stats

    @cached_property
    def splits(self) -> dict[str, SplitInfo]:
        return {name: SplitInfo(**sizes) for name, sizes in self.manifest.splits.items()}

    @cached_property
    def _entries(self) -> dict[str, list[ShardEntry]]:
        by_split: dict[str, list[ShardEntry]] = {name: [] for name in self.splits}
        for entry in self.manifest.shards:
            by_split[entry.split].append(entry)
        return by_split

    @cached_property
    def _starts(self) -> dict[str, np.ndarray]:
        return {split: np.cumsum([0] + [entry.count for entry in entries]) for split, entries in self._entries.items()}

    def _shard(self, entry: ShardEntry) -> Shard:
        with self._lock:
            if shard := self._open.get(entry.name):
                self._open.move_to_end(entry.name)
                return shard
        shard = Shard(self.path, entry, self._store, self._cache)  # outside of the lock: to open may take long, or fail
        shapes = {shard.layout.shape} if shard.layout else {shard.index.shape(i) for i in range(len(shard.index))}
        if shapes - {self.shape} or (len(shard.index) and shard.index.dtype != self.manifest.dtype):
            raise CorruptData(
                f"index of {shard.index.dtype} {sorted(shapes)}",
                where=shard.path,
                expected=f"{self.manifest.dtype} {self.shape}, as in {NAME}",
                mend=command("retinaforge", "data", "verify", self.path),
            )
        with self._lock:
            self._open[entry.name] = shard
            while len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        return shard

    def shards(self, split: str) -> Iterator[Shard]:
        """The shards of a split, in index order."""
        return (self._shard(entry) for entry in self._entries[split]) if self.count(split) else iter(())

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
        return self._shard(self._entries[split][s]), i - int(self._starts[split][s])

    def place(self, split: str, position_B: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Global positions of a stream → (sample, epoch); order.py."""
        return sample_at(position_B, count=self.count(split), seed=seed)

    def check(self, split: str) -> None:
        """Look, before a long run, that all shards of a split are there and as long as they were. Web servers list no files: not asked.

        Raises:
            CorruptData: one is missing or of another size. InputError: no such split.
        """
        sizes = self._store.sizes() if self.count(split) else None
        for entry in self._entries[split] if sizes is not None else ():
            if sizes.get(entry.name) != entry.bytes or index_path(Path(entry.name)).name not in sizes:
                said = (
                    f"shard of {sizes[entry.name]} bytes"
                    if sizes.get(entry.name, entry.bytes) != entry.bytes
                    else "shard or index is missing"
                )
                raise CorruptData(
                    said,
                    where=stores.where(self.path, entry.name),
                    expected=f"{entry.bytes} bytes, as in {NAME}, and its index",
                    mend=command("retinaforge", "data", "verify", self.path),
                )

    def keys(self, split: str) -> list[str]:
        """Keys of a split, in index order."""
        return [key for shard in self.shards(split) for key in shard.index.keys]

    def subjects(self, split: str) -> list[str]:
        """Subject of each sample of a split, in index order."""
        return [subject for shard in self.shards(split) for subject in shard.index.subjects]

    def labelled(self, split: str) -> bool:
        """Whether any sample of a split has a label map."""
        indices = (shard.index for shard in self.shards(split))
        return any("labels.png" in index.members and index.size_NM[:, index.members.index("labels.png")].any() for index in indices)

    def cube(self, split: str, i: int) -> Cube:
        """Sample `i` of a split, whole and checked."""
        shard, row = self.locate(split, i)
        return shard.cube(row)

    def meta(self, split: str, i: int) -> CubeMeta:
        """What is known of sample `i` of a split; its array is not read."""
        shard, row = self.locate(split, i)
        return shard.meta(row)

    def cubes(self, split: str, which: Iterable[int] | None = None) -> Iterator[Cube]:
        """Some samples of a split, or all in index order."""
        return (self.cube(split, i) for i in (range(self.count(split)) if which is None else which))


def cubes_of(path: Path | str, split: str | None = None) -> Iterator[Cube]:
    """Cubes of a loose folder or of a packed dataset (of one split, or of all), in a fixed order."""
    if not stores.is_url(path) and not ((path := Path(path)) / NAME).exists():
        if split is not None:
            mend = command("retinaforge", "data", "pack", path, "DATASET")
            raise InputError("a folder of loose cubes has no splits", where=path, mend=mend)
        yield from loose.read_folder(path)
        return
    dataset = Dataset(path)
    for name in [split] if split else [name for name, info in dataset.splits.items() if info.count]:
        yield from dataset.cubes(name)
