"""An open shard: reads of whole samples, of single members, and of regions of arrays, by the index alone.

Legend: C band, H W pixels, N values.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from crc32c import crc32c

from data_shards import folder as loose
from data_shards import stores
from data_shards.cube import Cube, CubeMeta
from data_shards.errors import CorruptData
from data_shards.manifest import NAME, ShardEntry
from data_shards.shards import payload
from data_shards.shards.checksum import of_concatenation
from data_shards.shards.codecs import STORED
from data_shards.shards.index import ShardIndex, index_path, open_index, read_index, too_many_files
from data_shards.shards.layout import Box, Layout, Region
from data_shards.shards.payload import Blocks
from data_shards.shards.scratch import SCRATCH
from data_shards.stores.local import LocalFile

SHORT = "short read"
CHANGED = "crc32c mismatch: the bytes changed since they were written"
PIECE_BYTES = 512 << 10


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
            self._read(i, m, memoryview(content), int(self.index.crc_NM[i, m]) if check else None)
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
        shape = self.index.shape(i) if self.layout is None else self.layout.shape
        if out.dtype != self.index.dtype or (region is None and out.shape != shape):
            stored = f"array of {self.index.dtype} {shape}"
            raise CorruptData(stored, where=self.where(i, m), expected=f"{out.dtype} {out.shape}", mend=self._mend)
        if self.layout is None:  # arrays of several shapes: where blocks lie is said by the payload alone
            payload.decode_into(self.member(i, m, check=check), codec_name, out, self.where(i, m), shape=shape, region=region)
        else:
            self._blocks_into(i, m, self._blocks(i, codec_name), region, out, check)

    def expect(self, i: int, region: Region | None = None) -> None:
        """Sample `i` is read soon. Its disk may fetch what is to be decoded while others are; what is only copied gains nothing by that."""
        m, codec_name = self.index.payload(i)
        if codec_name in STORED or not isinstance(self.file, LocalFile):
            return
        ranges = [(0, int(self.index.size_NM[i, m]))]
        if self.layout is not None:
            blocks = self._blocks(i, codec_name)
            ranges = [blocks.bytes_of(run) for run in self.layout.runs(region)]
        for first, last in ranges:
            self.file.expect(int(self.index.offset_NM[i, m]) + first, last - first)

    def _blocks(self, i: int, codec_name: str) -> Blocks:
        return Blocks(codec_name, self.layout, self.index.edge_NK1[i].tolist())

    def _blocks_into(self, i: int, m: int, blocks: Blocks, region: Region | None, out: np.ndarray, check: bool) -> None:
        """The blocks of a region, a run at a time, each to its place while the processor's cache still holds it.

        Stored blocks are summed as they come, and compared at the end; encoded ones are compared before they are decoded.
        """
        runs = self.layout.runs(region)
        ranges = [blocks.bytes_of(run) for run in runs]
        check_stored, check_encoded = check and blocks.stored, check and not blocks.stored
        wanted = self._crc_of(i, m, runs, ranges) if check_stored else 0
        straight = blocks.stored and region is None and self.layout.in_order  # what is read is the array
        begin, where = int(self.index.offset_NM[i, m]), self.where(i, m)

        def fill() -> str:
            crc = 0
            for run, (first, last) in zip(runs, ranges, strict=True):
                content_N = out.reshape(-1).view(np.uint8) if straight else SCRATCH.take("content", last - first)
                crc = self._summed(memoryview(content_N), begin + first, crc, check=check_stored)
                if crc is None:
                    return SHORT
                if check_encoded and not self._sound(i, blocks, run, content_N):
                    return CHANGED
                if not straight:
                    blocks.unpack(memoryview(content_N), run, region, out, where)
            return CHANGED if crc != wanted else ""

        self._try(i, m, ranges, fill)

    def _sound(self, i: int, blocks: Blocks, run: Sequence[Box], content_N: np.ndarray) -> bool:
        """Whether the blocks of a run are as they were written."""
        begin, edges = blocks.bytes_of(run)[0], blocks.edges_K1[run[0].first : run[-1].last + 1]
        crcs = self.index.block_crc_NK[i, run[0].first : run[-1].last].tolist()
        return all(crc32c(content_N[a - begin : b - begin]) == crc for (a, b), crc in zip(pairwise(edges), crcs, strict=True))

    def _crc_of(self, i: int, m: int, runs: Sequence[Sequence[Box]], ranges: Sequence[tuple[int, int]]) -> int:
        """What the crc32c of these runs, one behind the other, has to be."""
        if ranges == [(0, int(self.index.size_NM[i, m]))]:
            return int(self.index.crc_NM[i, m])
        # stored blocks are of few sizes, which come again and again, so joining their checksums costs little
        blocks_K = np.concatenate([np.arange(run[0].first, run[-1].last) for run in runs])
        edges_K1 = self.index.edge_NK1[i]
        return of_concatenation(self.index.block_crc_NK[i, blocks_K], tuple((edges_K1[blocks_K + 1] - edges_K1[blocks_K]).tolist()))

    def _read(self, i: int, m: int, buffer: memoryview, crc: int | None) -> None:
        """Fill `buffer` with member `m` and, where a checksum is given, compare it."""

        def fill() -> str:
            read = self._summed(buffer, int(self.index.offset_NM[i, m]), 0, check=crc is not None)
            if read is None:
                return SHORT
            return CHANGED if crc not in (None, read) else ""

        self._try(i, m, [(0, len(buffer))], fill)

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

    def _try(self, i: int, m: int, ranges: Sequence[tuple[int, int]], fill: Callable[[], str]) -> None:
        """Run `fill`, which reads `ranges` of member `m` (first byte, last) and says what was wrong with them.

        A cache that gave other bytes is asked once more.

        Raises:
            CorruptData: something was wrong, or they cannot be read.
        """
        try:
            fault = fill()
            if fault and isinstance(self.file, stores.CachedFile):
                for first, last in ranges:
                    self.file.forget(int(self.index.offset_NM[i, m]) + first, last - first)
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
        where, meta = f"{self.path}: sample {self.index.keys[i]}", self.meta(i)
        labels_HW, fov_HW = loose.maps_from(self.named(i, "labels.png"), self.named(i, "fov.png"), where=where)
        return Cube(data_CHW=data_CHW, meta=meta, labels_HW=labels_HW, fov_HW=fov_HW, codes=self.index.holds_codes(i))

    def meta(self, i: int) -> CubeMeta:
        """What is known of sample `i`; its array is not read."""
        key = self.index.keys[i]
        return loose.meta_from(self.named(i, "json"), where=f"{self.path}: sample {key}", key=key)

    def where(self, i: int, m: int) -> str:
        return f"{self.path}: sample {self.index.keys[i]}, member {self.index.members[m]}"
