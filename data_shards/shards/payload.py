"""The bytes of one array in a shard: bare (`raw`), numpy's (`npy`), or blocks, each stored or encoded by itself, behind a table.

Such a payload begins with BLOCKS, then, as little-endian uint32: bands, rows and columns of a block, the number of blocks, and
where each begins and the last ends, counted from the payload's first byte. So it can be read without an index; the index
repeats the table. Stored blocks begin on a border of 512 bytes, as payloads do in their tar: reads into aligned memory are fastest.

Legend: K block.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np

from data_shards.cube import PAYLOADS
from data_shards.errors import CorruptData, InputError
from data_shards.shards.codecs import BARE, CODECS, STORED, Codec, Encoding, decoder
from data_shards.shards.layout import ENCODED_BYTES, STORED_BYTES, Box, Layout, Region, paste
from data_shards.shards.scratch import SCRATCH

BLOCKS = b"RFBLOCK2"
BORDER = 512
MAX_ARRAY_BYTES = 4 << 30


@dataclass(frozen=True)
class Blocks:
    """The blocks of a payload: block k is bytes `edges_K1[k]` to `edges_K1[k + 1]` of it."""

    codec_name: str
    layout: Layout
    edges_K1: Sequence[int]

    @property
    def stored(self) -> bool:
        """Whether they lie as they are."""
        return self.codec_name in STORED

    def bytes_of(self, run: Sequence[Box]) -> tuple[int, int]:
        """Where the bytes of a run of boxes (layout.py) begin and end."""
        return self.edges_K1[run[0].first], self.edges_K1[run[-1].last]

    def unpack(self, content: memoryview, run: Sequence[Box], region: Region | None, out_CHW: np.ndarray, where: object) -> None:
        """Bring what a run of boxes holds of a region (None: of the whole array) to its place in `out_CHW`, contiguous.

        The one place where bytes of an array become its values.

        Args:
            content: the bytes of the run.

        Raises:
            CorruptData: a block does not hold as many values as it should. InputError: its codec is not installed.
        """
        codec, layout, begin = decoder(self.codec_name), self.layout, self.bytes_of(run)[0]
        for box in run:
            if codec is None:
                values = content[self.edges_K1[box.first] - begin : self.edges_K1[box.last] - begin]
                paste(np.frombuffer(values, out_CHW.dtype), box, region, out_CHW)
            elif region is None and layout.in_order:  # the blocks' values lie one behind the other, as the array's do
                self._decode(codec, content, begin, box, out_CHW.reshape(-1)[layout.start(box.first) : layout.start(box.last)], where)
            else:
                values_N = SCRATCH.take("values", math.prod(box.shape) * out_CHW.itemsize).view(out_CHW.dtype)
                self._decode(codec, content, begin, box, values_N, where)
                paste(values_N, box, region, out_CHW)

    def _decode(self, codec: Codec, content: memoryview, begin: int, box: Box, out_N: np.ndarray, where: object) -> None:
        """The blocks of a box, one behind the other; `content` begins at byte `begin` of the payload."""
        start = self.layout.start(box.first)
        for k in range(box.first, box.last):
            values_N = out_N[self.layout.start(k) - start : self.layout.start(k + 1) - start]
            codec.decode_into(content[self.edges_K1[k] - begin : self.edges_K1[k + 1] - begin], values_N, where)


def encode(array: np.ndarray, encoding: Encoding) -> bytes | memoryview:
    """The payload of an array of three axes; of codec `raw` its own bytes, not a copy."""
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    if encoding.codec == "raw":
        return memoryview(array).cast("B")
    if encoding.codec == "npy":
        np.save(buffer := io.BytesIO(), array, allow_pickle=False)
        return buffer.getvalue()
    if encoding.tile:
        layout = Layout.tiled(array.shape, array.itemsize, encoding.tile)
    else:
        layout = Layout.fitting(array.shape, array.itemsize, ENCODED_BYTES)
    write = np.ndarray.tobytes if encoding.coder is None else encoding.coder.encode
    blocks = [write(block_N) for block_N in _blocks(array, layout)]
    head = len(BLOCKS) + 4 * (5 + len(blocks))
    if encoding.coder is None:
        head = -(-head // BORDER) * BORDER
    table = np.array([*layout.block, len(blocks), *(head + np.cumsum([0, *map(len, blocks)]))], "<u4")
    return b"".join([(BLOCKS + table.tobytes()).ljust(head, b"\0"), *blocks])


def _blocks(array_CHW: np.ndarray, layout: Layout) -> Iterator[np.ndarray]:
    """Each block, flat."""
    if layout.in_order:
        flat_N = array_CHW.reshape(-1)
        yield from (flat_N[first:last] for first, last in pairwise(layout.starts()))
        return
    for box in chain.from_iterable(layout.runs()):
        bands, rows, columns = (slice(at, at + size) for at, size in zip(box[2:5], box.shape, strict=True))
        yield np.ascontiguousarray(array_CHW[bands, rows, columns]).reshape(-1)


def blocks_of(content: bytes | memoryview, codec_name: str, shape: tuple[int, ...], dtype: str, where: object) -> Blocks:
    """The blocks of a payload, by its table; made up for one whose bytes are the bare array.

    Raises:
        CorruptData: it does not hold such an array.
    """
    itemsize = np.dtype(dtype).itemsize
    if codec_name in BARE:
        layout, edges_K1 = _bare(tuple(shape), itemsize)
        head = len(content) - edges_K1[-1]
        if head < 0 or (codec_name == "raw" and head):
            raise CorruptData(f"payload of {len(content)} bytes", where=where, expected=f"{len(content) - head} bytes: {dtype} {shape}")
        return Blocks(codec_name, layout, [head + edge for edge in edges_K1] if head else edges_K1)
    try:
        layout, edges_K1 = _table(content, shape)
        sizes_K = np.diff(edges_K1)
        if (sizes_K <= 0).any() or (codec_name in STORED and (sizes_K != itemsize * np.diff(layout.starts())).any()):
            raise ValueError("blocks of other sizes than they have to be")
    except ValueError as error:
        expected = f"{BLOCKS.decode()} and {dtype} {shape}"
        raise CorruptData("the payload's table of blocks is damaged", where=where, expected=expected) from error
    return Blocks(codec_name, layout, edges_K1.tolist())


@functools.lru_cache(maxsize=64)
def _bare(shape: tuple[int, ...], itemsize: int) -> tuple[Layout, list[int]]:
    """Blocks that are made up for a bare array, and where they begin and end in it, in bytes."""
    layout = Layout.fitting(shape, itemsize, STORED_BYTES)
    return layout, [start * itemsize for start in layout.starts()]


def _table(content: bytes | memoryview, shape: tuple[int, ...]) -> tuple[Layout, np.ndarray]:
    """Layout and edges, as the head of a payload says.

    Raises:
        ValueError: no such head, or it contradicts the shape or the size of the payload.
    """
    fixed = len(BLOCKS) + 16
    if bytes(content[: len(BLOCKS)]) != BLOCKS or len(content) < fixed:
        raise ValueError("no table")
    *block, count = np.frombuffer(content[len(BLOCKS) : fixed], "<u4").tolist()
    layout, head = Layout(tuple(int(n) for n in shape), *block), fixed + 4 * (count + 1)
    if len(layout) != count or len(content) < head:
        raise ValueError("another number of blocks")
    edges_K1 = np.frombuffer(content[fixed:head], "<u4").astype(np.int64)
    if edges_K1[0] < head or edges_K1[-1] != len(content):
        raise ValueError("blocks outside of the payload")
    return layout, edges_K1


def decode_into(
    content: bytes | memoryview,
    codec_name: str,
    out_CHW: np.ndarray,
    where: object,
    *,
    shape: tuple[int, ...] | None = None,
    region: Region | None = None,
) -> None:
    """Fill `out_CHW`, contiguous, from a whole payload: with its array, or with a region of its array of `shape`.

    Raises:
        CorruptData: it does not hold exactly that array. InputError: its codec is not installed.
    """
    shape, dtype, content = shape or out_CHW.shape, out_CHW.dtype.name, memoryview(content)
    if codec_name == "npy" and (stored := npy_header(content, where)) != (shape, dtype):
        raise CorruptData(f"payload is {stored[1]} {stored[0]}", where=where, expected=f"{dtype} {shape}")
    blocks = blocks_of(content, codec_name, shape, dtype, where)
    for run in blocks.layout.runs(region):
        blocks.unpack(content[slice(*blocks.bytes_of(run))], run, region, out_CHW, where)


def npy_header(content: bytes | memoryview, where: object) -> tuple[tuple[int, ...], str]:
    """Shape and dtype of an array in numpy's own format.

    Raises:
        CorruptData: not such an array. InputError: Python objects, or Fortran order.
    """
    try:
        version = np.lib.format.read_magic(file := io.BytesIO(content[:65536]))
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except ValueError as error:
        raise CorruptData(f"not a .npy array: {error}", where=where) from error
    if dtype.hasobject or fortran or dtype.byteorder == ">":
        raise InputError(f"array of dtype {dtype}", where=where, expected="little-endian numbers in C order, never pickled objects")
    if len(content) - file.tell() != dtype.itemsize * int(np.prod(shape, dtype=object)):
        raise CorruptData(f"payload of {len(content)} bytes", where=where, expected=f"a .npy of {dtype} {shape}")
    return shape, dtype.name


def codec_of(member: str) -> str | None:
    """'cube.raw' → 'raw'; None for a member that is no array, or is in a codec that is not known."""
    stem, _, codec = member.partition(".")
    return codec if stem in PAYLOADS and codec in (*STORED, *CODECS) else None


def stated_bound(content: bytes) -> int:
    """The bound that the first block of a `near` payload states."""
    first = int.from_bytes(content[len(BLOCKS) + 16 : len(BLOCKS) + 20], "little")
    return int.from_bytes(content[first : first + 2], "little")
