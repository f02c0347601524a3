"""Reading a packed dataset sample by sample. Training reads through stream.py, on top of this.

Legend: C band, H W pixels.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from crc32c import crc32c

from data_shards import folder as loose
from data_shards import payload, stores
from data_shards.codecs import STORED, decoder
from data_shards.cube import Cube
from data_shards.errors import CorruptData, InputError
from data_shards.index import ShardIndex, index_path, open_index, read_index
from data_shards.layout import Layout, Region
from data_shards.manifest import NAME, BandStats, Manifest, ShardEntry, read_manifest
from data_shards.order import sample_at
from data_shards.ring import page_aligned

OPEN_SHARDS = 512  # a set of a million images has more shards than a process may hold open


@dataclass(frozen=True)
class SplitInfo:
    """Size of a split, in samples and in subjects."""

    count: int
    subjects: int


class _Scratch(threading.local):
    """Memory of a reading thread, used again and again: what is read but not wanted as it is."""

    def __init__(self) -> None:
        self.held: dict[str, np.ndarray] = {}

    def take(self, use: str, nbytes: int) -> np.ndarray:
        if len(self.held.get(use, ())) < nbytes:
            self.held[use] = page_aligned(nbytes)
        return self.held[use][:nbytes]


_SCRATCH = _Scratch()


class Shard:
    """An open shard: its index, and reads of ranges of its bytes, each compared with its crc32c."""

    def __init__(self, place: Path | str, entry: ShardEntry, store: stores.Store | None = None, cache: stores.Cache | None = None) -> None:
        self.place, self.path, self.entry = place, stores.where(place, entry.name), entry
        store = store or stores.open_store(place)
        index = index_path(Path(entry.name)).name
        try:
            if isinstance(store, stores.LocalStore):
                self.index: ShardIndex = open_index(Path(place) / index, sha256=entry.index_sha256)
            else:
                content = stores.read_whole(stores.open_file(store, index, cache, entry.index_sha256))
                self.index = read_index(content, where=stores.where(place, index), sha256=entry.index_sha256)
            self.file = stores.open_file(store, entry.name, cache, entry.sha256)
        except OSError as error:
            raise CorruptData(f"shard cannot be opened: {error.strerror or error}", where=self.path, mend=self._mend) from error
        if self.file.size != self.index.shard_bytes or len(self.index) != entry.count or self.index.sha256 != entry.sha256:
            raise CorruptData(
                f"shard of {self.file.size} bytes, index of {len(self.index)} samples and {self.index.shard_bytes} bytes",
                where=self.path,
                expected=f"{entry.bytes} bytes and {entry.count} samples, as in {NAME}",
                mend=self._mend,
            )
        self.layout = Layout(self.index.shape(0), *self.index.block) if self.index.block else None

    @property
    def _mend(self) -> str:
        return f"retinaforge data verify {self.place}"

    def member(self, i: int, m: int, *, check: bool = True) -> bytes:
        """Bytes of member column `m` of sample `i`, b'' when absent.

        Raises:
            CorruptData: short read or crc32c mismatch, naming shard, sample and member.
        """
        content = bytearray(int(self.index.size_NM[i, m]))
        self._read(i, m, 0, memoryview(content), [(0, len(content), int(self.index.crc_NM[i, m]))] if check else [])
        return bytes(content)

    def named(self, i: int, member: str) -> bytes:
        """Member by name, b'' when the sample has none."""
        return self.member(i, self.index.members.index(member)) if member in self.index.members else b""

    def array_into(self, i: int, out: np.ndarray, *, region: Region | None = None, check: bool = True) -> None:
        """Fill `out`, C-contiguous, with the array of sample `i`, or with a region of it: then only the blocks that hold it are read.

        Raises:
            CorruptData: as `member`, or the payload does not hold an array of that shape.
        """
        m, codec_name = self.index.payload(i)
        if self.layout is None:
            whole = out if region is None else np.empty(self.index.shape(i), self.index.dtype)
            payload.decode_into(self.member(i, m, check=check), codec_name, whole, self.where(i, m))
            if region is not None:
                out[...] = _cut(whole, region)
        elif region is None and out.shape != self.layout.shape:
            raise CorruptData(f"array of shape {self.layout.shape}", where=self.where(i, m), expected=f"{out.shape}", mend=self._mend)
        elif region is None and codec_name in STORED:
            edges = self.index.edge_NK1[i]
            sums = [(0, out.nbytes, int(self.index.crc_NM[i, m]))] if codec_name == "raw" else self._sums(i, 0, len(self.layout))
            self._read(i, m, int(edges[0]), memoryview(out.reshape(-1).view(np.uint8)), sums if check else [])
        elif region is None:
            self._blocks(i, m, codec_name, 0, len(self.layout), out.reshape(-1), check)
        else:
            self._region(i, m, codec_name, region, out, check)

    def _region(self, i: int, m: int, codec_name: str, region: Region, out: np.ndarray, check: bool) -> None:
        _, height, width = self.layout.shape
        place = {band: c for c, band in enumerate(range(self.layout.shape[0]) if region.bands is None else region.bands)}
        for run in self.layout.runs(region):
            count = self.layout.start(run.last) - self.layout.start(run.first)
            values_N = _SCRATCH.take("values", count * out.itemsize).view(out.dtype)
            self._blocks(i, m, codec_name, run.first, run.last, values_N, check)
            rows = height if self.layout.row_blocks == 1 else count // width
            values_CHW = values_N.reshape(-1, rows, width)[:, region.top - run.row : region.bottom - run.row, region.left : region.right]
            for c in range(len(values_CHW)):
                if (to := place.get(run.band + c)) is not None:
                    out[to] = values_CHW[c]

    def _blocks(self, i: int, m: int, codec_name: str, first: int, last: int, out_N: np.ndarray, check: bool) -> None:
        """Blocks `first` to `last` (exclusive) of sample `i`, one behind the other, into `out_N`."""
        edges = self.index.edge_NK1[i, first : last + 1].tolist()
        sums = self._sums(i, first, last) if check else []
        if codec_name in STORED:
            self._read(i, m, edges[0], memoryview(out_N.view(np.uint8)), sums)
            return
        content = memoryview(_SCRATCH.take("content", edges[-1] - edges[0]))
        self._read(i, m, edges[0], content, sums)
        codec, start, where = decoder(codec_name), self.layout.start(first), self.where(i, m)
        for k in range(first, last):
            part = content[edges[k - first] - edges[0] : edges[k - first + 1] - edges[0]]
            codec.decode_into(part, out_N[self.layout.start(k) - start : self.layout.start(k + 1) - start], where)

    def _sums(self, i: int, first: int, last: int) -> list[tuple[int, int, int]]:
        """(begin, end, crc32c) of each block, counted from the first of them."""
        edges = self.index.edge_NK1[i, first : last + 1].tolist()
        sums = self.index.block_crc_NK[i, first:last].tolist()
        return [(a - edges[0], b - edges[0], crc) for a, b, crc in zip(edges, edges[1:], sums, strict=False)]

    def _read(self, i: int, m: int, offset: int, buffer: memoryview, sums: list[tuple[int, int, int]]) -> None:
        """Fill `buffer` from `offset` in member `m` on and compare what `sums` names; a cache that gave other bytes is asked once more."""
        start = int(self.index.offset_NM[i, m]) + offset
        for retried in (False, True):
            got = self.file.read_into(buffer, start)
            if got == len(buffer) and all(crc32c(buffer[a:b]) == crc for a, b, crc in sums):
                return
            if retried or not isinstance(self.file, stores.CachedFile):
                break
            self.file.forget(start, len(buffer))
        what = "short read" if got != len(buffer) else "crc32c mismatch: the bytes changed since they were written"
        raise CorruptData(f"{what}{self._newer()}", where=self.where(i, m), mend=self._mend)

    def _newer(self) -> str:
        """Why, where the file system tells: the shard was written after its index."""
        if not isinstance(self.path, Path):
            return ""
        try:
            newer = self.path.stat().st_mtime > index_path(self.path).stat().st_mtime + 1
        except OSError as error:
            return f" ({error.strerror})"
        return f" (the shard was written after its index: if that was meant, retinaforge data index {self.place})" if newer else ""

    def cube(self, i: int) -> Cube:
        """Sample `i`, whole and checked."""
        data_CHW = np.empty(self.index.shape(i), self.index.dtype)
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


def _cut(array_CHW: np.ndarray, region: Region) -> np.ndarray:
    bands = slice(None) if region.bands is None else list(region.bands)
    return array_CHW[bands, region.top : region.bottom, region.left : region.right]


class Dataset:
    """A packed dataset, opened for reading. Its shards are opened when they are first read, and the ones used longest ago closed again.

    Args:
        path: a folder, or a URL (stores/).
        manifest: where it was read already.
        cache: of remote files, on a local disk.

    Raises (on opening):
        InputError: no dataset there. CorruptData: damaged manifest; while reading: index and shards disagree with it.
    """

    def __init__(self, path: Path | str, manifest: Manifest | None = None, cache: stores.Cache | None = None) -> None:
        self.path: Path | str = str(path) if stores.is_url(path) else Path(path)
        self.manifest = manifest or read_manifest(self.path)
        self._store, self._cache = stores.open_store(self.path), cache
        self._open: OrderedDict[str, Shard] = OrderedDict()
        self._lock = threading.Lock()

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
            raise InputError("no band statistics", where=stores.where(self.path, NAME), mend=f"retinaforge data stats {self.path}")
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
                    mend=f"retinaforge data verify {self.path}",
                )

    def keys(self, split: str) -> list[str]:
        """Keys of a split, in index order."""
        return [key for shard in self.shards(split) for key in shard.index.keys]

    def subjects(self, split: str) -> list[str]:
        """Subject of each sample of a split, in index order."""
        return [subject for shard in self.shards(split) for subject in shard.index.subjects]

    def cube(self, split: str, i: int) -> Cube:
        """Sample `i` of a split, whole and checked."""
        shard, row = self.locate(split, i)
        return shard.cube(row)

    def cubes(self, split: str) -> Iterator[Cube]:
        """All samples of a split, in index order."""
        return (self.cube(split, i) for i in range(self.count(split)))


def cubes_of(path: Path | str, split: str | None = None) -> Iterator[Cube]:
    """Cubes of a loose folder or of a packed dataset (of one split, or of all), in a fixed order."""
    if not stores.is_url(path) and not ((path := Path(path)) / NAME).exists():
        if split is not None:
            raise InputError("a folder of loose cubes has no splits", where=path, mend=f"retinaforge data pack {path} DATASET")
        yield from loose.read_folder(path)
        return
    dataset = Dataset(path)
    for name in [split] if split else [name for name, info in dataset.splits.items() if info.count]:
        yield from dataset.cubes(name)
