"""An open shard: reads of whole samples, of single members, and of regions of arrays, by the index alone.

Legend: C band, H W pixels, N values.
"""

from __future__ import annotations

import errno
import math
import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from crc32c import crc32c

from data_shards import folder as loose
from data_shards import stores
from data_shards.cube import Cube
from data_shards.errors import CorruptData
from data_shards.manifest import NAME, ShardEntry
from data_shards.reading.ring import page_aligned
from data_shards.shards import payload
from data_shards.shards.checksum import of_concatenation
from data_shards.shards.codecs import STORED
from data_shards.shards.index import ShardIndex, index_path, open_index, read_index, too_many_files
from data_shards.shards.layout import Box, Layout, Region, place
from data_shards.stores.local import LocalFile

SHORT = "short read"
CHANGED = "crc32c mismatch: the bytes changed since they were written"
PIECE_BYTES = 512 << 10


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
            self._read(i, m, memoryview(content), 0, int(self.index.crc_NM[i, m]) if check else None)
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
        elif region is not None or not self.layout.in_order:
            self._region(i, m, codec_name, region, out, check)
        elif codec_name in STORED:
            crc = int(self.index.crc_NM[i, m]) if codec_name == "raw" else self._joined(i, range(len(self.layout)))
            offset = int(self.index.edge_NK1[i, 0])
            self._read(i, m, memoryview(out.reshape(-1).view(np.uint8)), offset, crc if check else None)
        else:
            content, edges = memoryview(self.member(i, m, check=check)), self.index.edge_NK1[i].tolist()
            payload.decode_blocks(content, codec_name, self.layout, 0, edges, out.reshape(-1), self.where(i, m))

    def expect(self, i: int, region: Region | None = None) -> None:
        """Sample `i` is read soon. Its disk may fetch what is to be decoded while others are; what is only copied gains nothing by that."""
        m, codec_name = self.index.payload(i)
        if codec_name in STORED or not isinstance(self.file, LocalFile):
            return
        begin, edge_K1 = int(self.index.offset_NM[i, m]), self.index.edge_NK1[i]
        parts = [(0, int(self.index.size_NM[i, m]))]
        if region is not None and self.layout is not None:
            parts = [(int(edge_K1[run[0].first]), int(edge_K1[run[-1].last])) for run in self.layout.runs(region)]
        for first, last in parts:
            self.file.expect(begin + first, last - first)

    def _region(self, i: int, m: int, codec_name: str, region: Region | None, out: np.ndarray, check: bool) -> None:
        """The blocks of a region, a run at a time, each to its place while the processor's cache still holds it."""
        runs, edge_K1 = self.layout.runs(region), self.index.edge_NK1[i].tolist()
        begin, stored = int(self.index.offset_NM[i, m]), codec_name in STORED
        # blocks that are stored have one checksum together: their sizes come again and again, so joining them costs little
        joined = self._joined(i, [k for run in runs for k in range(run[0].first, run[-1].last)]) if check and stored else 0
        parts = [(edge_K1[run[0].first], edge_K1[run[-1].last]) for run in runs]

        def fill() -> str:
            crc = 0
            for run, (first, last) in zip(runs, parts, strict=True):
                content = _SCRATCH.take("content", last - first)
                crc = self._summed(memoryview(content), begin + first, crc, check=check and stored)
                if crc is None:
                    return SHORT
                for box in run:
                    a, b = edge_K1[box.first] - first, edge_K1[box.last] - first
                    if stored:
                        values_N = content[a:b].view(out.dtype)
                    elif check and not self._sound(i, content, first, box):
                        return CHANGED
                    else:
                        values_N = self._decoded(i, m, codec_name, memoryview(content), first, box)
                    place(values_N, box, region, out)
            return CHANGED if crc != joined else ""

        self._try(i, m, [(first, last - first) for first, last in parts], fill)

    def _sound(self, i: int, content: np.ndarray, begin: int, box: Box) -> bool:
        """Whether the blocks of a box, in content that begins at `begin` of its payload, are as they were written."""
        edges = (self.index.edge_NK1[i, box.first : box.last + 1].astype(np.int64) - begin).tolist()
        sums = self.index.block_crc_NK[i, box.first : box.last].tolist()
        return all(crc32c(content[a:b]) == crc for (a, b), crc in zip(pairwise(edges), sums, strict=True))

    def _decoded(self, i: int, m: int, codec_name: str, content: memoryview, begin: int, box: Box) -> np.ndarray:
        dtype = np.dtype(self.index.dtype)
        values_N = _SCRATCH.take("values", math.prod(box.shape) * dtype.itemsize).view(dtype)
        edges = (self.index.edge_NK1[i, box.first : box.last + 1].astype(np.int64) - begin).tolist()
        payload.decode_blocks(content, codec_name, self.layout, box.first, edges, values_N, self.where(i, m))
        return values_N

    def _joined(self, i: int, blocks_K: Sequence[int]) -> int:
        """What the crc32c of these blocks, one behind the other, has to be."""
        edges_K1, blocks_K = self.index.edge_NK1[i], np.asarray(blocks_K)
        return of_concatenation(self.index.block_crc_NK[i, blocks_K], tuple((edges_K1[blocks_K + 1] - edges_K1[blocks_K]).tolist()))

    def _read(self, i: int, m: int, buffer: memoryview, offset: int, crc: int | None) -> None:
        """Fill `buffer` from `offset` of member `m` on and, where a checksum is given, compare it."""

        def fill() -> str:
            found = self._summed(buffer, int(self.index.offset_NM[i, m]) + offset, 0, check=crc is not None)
            return SHORT if found is None else CHANGED if crc not in (None, found) else ""

        self._try(i, m, [(offset, len(buffer))], fill)

    def _summed(self, buffer: memoryview, at: int, crc: int, *, check: bool) -> int | None:
        """Fill `buffer`; the checksum of what `crc` stands for and of this behind it. None: the file ends before.

        A local file comes by pieces, each summed while the processor's cache holds it.
        """
        step = PIECE_BYTES if check and isinstance(self.file, LocalFile) else max(1, len(buffer))
        for a in range(0, len(buffer), step):
            piece = buffer[a : a + step]
            if self.file.read_into(piece, at + a) != len(piece):
                return None
            crc = crc32c(piece, crc) if check else crc
        return crc

    def _try(self, i: int, m: int, parts: list[tuple[int, int]], fill: Callable[[], str]) -> None:
        """Run `fill`, which reads `parts` (offset in member `m`, size) and says what was wrong with them.

        A cache that gave other bytes is asked once more.

        Raises:
            CorruptData: something was wrong, or they cannot be read.
        """
        try:
            fault = fill()
            if fault and isinstance(self.file, stores.CachedFile):
                for offset, size in parts:
                    self.file.forget(int(self.index.offset_NM[i, m]) + offset, size)
                fault = fill()
        except OSError as error:
            raise CorruptData(f"shard cannot be read: {error.strerror or error}", where=self.where(i, m), mend=self._mend) from error
        if fault:
            raise CorruptData(f"{fault}{self._newer()}", where=self.where(i, m), mend=self._mend)

    def _newer(self) -> str:
        """Why, where the file system tells: the shard was written after its index."""
        if not isinstance(self.path, Path):
            return ""
        try:
            newer = self.path.stat().st_mtime > index_path(self.path).stat().st_mtime + 1
        except OSError as error:
            return f" ({error.strerror})"
        return " (the shard was written after its index)" if newer else ""

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
