"""An open shard: reads of whole samples, of single members, and of regions of arrays, by the index alone.

Legend: C band, H W pixels, N values.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from crc32c import crc32c

from data_shards import folder as loose
from data_shards import payload, stores
from data_shards.checksum import of_concatenation
from data_shards.codecs import STORED, decoder
from data_shards.cube import Cube
from data_shards.errors import CorruptData
from data_shards.index import ShardIndex, index_path, open_index, read_index, too_many_files
from data_shards.layout import Layout, Region, Run
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
        try:
            self.index: ShardIndex = self._index(store, cache)
            self.file = stores.open_file(store, entry.name, cache, entry.sha256)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise too_many_files(self.path) from error
            raise CorruptData(f"shard cannot be opened: {error.strerror or error}", where=self.path, mend=self._mend) from error
        if self.file.size != self.index.shard_bytes or len(self.index) != entry.count or self.index.sha256 != entry.sha256:
            raise CorruptData(
                f"shard of {self.file.size} bytes, index of {len(self.index)} samples and {self.index.shard_bytes} bytes",
                where=self.path,
                expected=f"{entry.bytes} bytes and {entry.count} samples, as in {NAME}",
                mend=self._mend,
            )
        self.layout = Layout(self.index.shape(0), *self.index.block) if self.index.block else None

    def _index(self, store: stores.Store, cache: stores.Cache | None) -> ShardIndex:
        name = index_path(Path(self.entry.name)).name
        where = stores.where(self.place, name)
        if isinstance(store, stores.LocalStore):
            return open_index(Path(where), sha256=self.entry.index_sha256)
        file = stores.open_file(store, name, cache, self.entry.index_sha256)
        try:
            return read_index(stores.read_whole(file, where), where=where, sha256=self.entry.index_sha256)
        except CorruptData:
            if not isinstance(file, stores.CachedFile):
                raise
            file.forget(0, file.size)  # perhaps it was the cache's copy that was damaged
            return read_index(stores.read_whole(file, where), where=where, sha256=self.entry.index_sha256)

    @property
    def _mend(self) -> str:
        return f"retinaforge data verify {self.place}"

    def member(self, i: int, m: int, *, check: bool = True) -> bytes:
        """Bytes of member column `m` of sample `i`, b'' when absent.

        Raises:
            CorruptData: short read or crc32c mismatch, naming shard, sample and member.
        """
        content = bytearray(int(self.index.size_NM[i, m]))
        if content:
            self._read(i, m, [(0, len(content))], memoryview(content), [int(self.index.crc_NM[i, m])] if check else [])
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
        if out.dtype != self.index.dtype:
            raise CorruptData(f"array of {self.index.dtype}", where=self.where(i, m), expected=str(out.dtype), mend=self._mend)
        if self.layout is None:
            whole = out if region is None else np.empty(self.index.shape(i), self.index.dtype)
            payload.decode_into(self.member(i, m, check=check), codec_name, whole, self.where(i, m))
            if region is not None:
                out[...] = _cut(whole, region)
        elif region is None and out.shape != self.layout.shape:
            raise CorruptData(f"array of shape {self.layout.shape}", where=self.where(i, m), expected=f"{out.shape}", mend=self._mend)
        elif region is None and codec_name in STORED:
            edges = self.index.edge_NK1[i]
            crc = self.index.crc_NM[i, m] if codec_name == "raw" else self._joined(i, np.arange(len(self.layout)))
            self._read(i, m, [(int(edges[0]), out.nbytes)], memoryview(out.reshape(-1).view(np.uint8)), [int(crc)] if check else [])
        elif region is None:
            content, edges = self.member(i, m, check=check), self.index.edge_NK1[i].tolist()
            self._decode(i, m, codec_name, memoryview(content), 0, edges, out.reshape(-1))
        elif codec_name in STORED:
            self._stored_region(i, m, region, out, check)
        else:
            self._encoded_region(i, m, codec_name, region, out, check)

    def _stored_region(self, i: int, m: int, region: Region, out: np.ndarray, check: bool) -> None:
        """All runs one behind the other in memory, so that one checksum and one copy do for all of them."""
        runs, edges = self.layout.runs(region), self.index.edge_NK1[i]
        parts = [(int(edges[run.first]), int(edges[run.last]) - int(edges[run.first])) for run in runs]
        content = _SCRATCH.take("values", sum(size for _, size in parts))
        blocks_K = np.concatenate([np.arange(run.first, run.last) for run in runs])
        self._read(i, m, parts, memoryview(content), [self._joined(i, blocks_K)] if check else [])
        values_N, start = content.view(out.dtype), 0
        if len({size for _, size in parts}) == 1 and region.bands is None:
            self._copy(values_N, runs[0], range(len(out)), region, out)
            return
        for run, (_, size) in zip(runs, parts, strict=True):
            count = size // out.itemsize
            self._copy(values_N[start : start + count], run, region.bands, region, out)
            start += count

    def _encoded_region(self, i: int, m: int, codec_name: str, region: Region, out: np.ndarray, check: bool) -> None:
        for run in self.layout.runs(region):
            edges = self.index.edge_NK1[i, run.first : run.last + 1].tolist()
            content = memoryview(_SCRATCH.take("content", edges[-1] - edges[0]))
            sums = self.index.block_crc_NK[i, run.first : run.last].tolist() if check else []
            self._read(i, m, [(edges[0], len(content))], content, sums, [edge - edges[0] for edge in edges])
            count = self.layout.start(run.last) - self.layout.start(run.first)
            values_N = _SCRATCH.take("values", count * out.itemsize).view(out.dtype)
            self._decode(i, m, codec_name, content, run.first, [edge - edges[0] for edge in edges], values_N)
            self._copy(values_N, run, range(self.layout.shape[0]) if region.bands is None else region.bands, region, out)

    def _decode(self, i: int, m: int, codec_name: str, content: memoryview, first: int, edges: list[int], out_N: np.ndarray) -> None:
        """Blocks from `first` on, which lie between `edges` of `content`, one behind the other into `out_N`."""
        codec, where, start = decoder(codec_name), self.where(i, m), self.layout.start(first)
        for k, (a, b) in enumerate(pairwise(edges), first):
            codec.decode_into(content[a:b], out_N[self.layout.start(k) - start : self.layout.start(k + 1) - start], where)

    def _copy(self, values_N: np.ndarray, run: Run, bands: Sequence[int], region: Region, out: np.ndarray) -> None:
        """What is wanted of the rows in `values_N`, which begin at `run.band` and `run.row`."""
        _, height, width = self.layout.shape
        rows = height if self.layout.row_blocks == 1 else (self.layout.start(run.last) - self.layout.start(run.first)) // width
        values_CHW = values_N.reshape(-1, rows, width)[:, region.top - run.row : region.bottom - run.row, region.left : region.right]
        if isinstance(bands, range) and len(values_CHW) == len(out) == len(bands):
            out[...] = values_CHW
            return
        for c, band in enumerate(bands or range(self.layout.shape[0])):
            if 0 <= band - run.band < len(values_CHW):
                out[c] = values_CHW[band - run.band]

    def _joined(self, i: int, blocks_K: np.ndarray) -> int:
        """What the crc32c of these blocks, one behind the other, has to be."""
        edges = self.index.edge_NK1[i]
        sizes = tuple((edges[blocks_K + 1] - edges[blocks_K]).tolist())
        return of_concatenation(self.index.block_crc_NK[i, blocks_K], sizes)

    def _read(
        self, i: int, m: int, parts: list[tuple[int, int]], buffer: memoryview, sums: list[int], edges: list[int] | None = None
    ) -> None:
        """Fill `buffer` with parts (offset in member `m`, size) and compare it with its checksum, or with one between each two `edges`.

        A cache that gave other bytes is asked once more.
        """
        begin = int(self.index.offset_NM[i, m])
        for retried in (False, True):
            got = 0
            try:
                for offset, size in parts:
                    got += self.file.read_into(buffer[got : got + size], begin + offset)
            except OSError as error:
                said = f"shard cannot be read: {error.strerror or error}"
                raise CorruptData(said, where=self.where(i, m), mend=self._mend) from error
            between = pairwise(edges or (0, len(buffer)))
            right = not sums or all(crc32c(buffer[a:b]) == crc for (a, b), crc in zip(between, sums, strict=True))
            if got == len(buffer) and right:
                return
            if retried or not isinstance(self.file, stores.CachedFile):
                break
            for offset, size in parts:
                self.file.forget(begin + offset, size)
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
