"""An open shard: reads of whole samples, of single members, and of regions of arrays, by the index alone.

Legend: C band, H W pixels, N values.
"""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
from crc32c import crc32c

from data_shards import folder as loose
from data_shards import payload, stores
from data_shards.codecs import STORED, decoder
from data_shards.cube import Cube
from data_shards.errors import CorruptData
from data_shards.index import ShardIndex, index_path, open_index, read_index
from data_shards.layout import Layout, Region
from data_shards.manifest import NAME, ShardEntry
from data_shards.ring import page_aligned


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
