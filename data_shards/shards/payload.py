"""The bytes of one array in a shard: bare (`raw`), numpy's (`npy`), or blocks, each stored or encoded by itself, behind a table.

Such a payload begins with BLOCKS, then, as little-endian uint32: bands, rows and columns of a block, the number of blocks, and
where each begins and the last ends, counted from the payload's first byte. So it can be read without an index; the index
repeats the table. Stored blocks begin on a border of 512 bytes, as payloads do in their tar: reads into aligned memory are fastest.

Legend: K block.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np

from data_shards.errors import CorruptData, InputError
from data_shards.shards.codecs import BARE, CODECS, STORED, Encoding, decoder
from data_shards.shards.layout import ENCODED_BYTES, STORED_BYTES, Layout, place

BLOCKS = b"RFBLOCK2"
BORDER = 512
MAX_ARRAY_BYTES = 4 << 30


@dataclass(frozen=True)
class Blocks:
    """Where the blocks of a payload lie: block k is bytes `edge_K1[k]` to `edge_K1[k + 1]`."""

    layout: Layout
    edge_K1: np.ndarray


def encode(array: np.ndarray, encoding: Encoding) -> bytes:
    """The payload of an array of three axes."""
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    if encoding.codec == "raw":
        return array.tobytes()
    if encoding.codec == "npy":
        np.save(buffer := io.BytesIO(), array, allow_pickle=False)
        return buffer.getvalue()
    if encoding.tile:
        layout = Layout.tiled(array.shape, array.itemsize, encoding.tile)
    else:
        layout = Layout.fitting(array.shape, array.itemsize, ENCODED_BYTES)
    parts = [_encoded(block_N, encoding) for block_N in _blocks(array, layout)]
    head = len(BLOCKS) + 4 * (5 + len(parts))
    if encoding.coder is None:
        head = -(-head // BORDER) * BORDER
    table = np.array([*layout.block, len(parts), *(head + np.cumsum([0, *map(len, parts)]))], "<u4")
    return b"".join([(BLOCKS + table.tobytes()).ljust(head, b"\0"), *parts])


def _encoded(block_N: np.ndarray, encoding: Encoding) -> bytes:
    return block_N.tobytes() if encoding.coder is None else encoding.coder.encode(block_N)


def _blocks(array_CHW: np.ndarray, layout: Layout) -> Iterator[np.ndarray]:
    """Each block, flat."""
    if layout.in_order:
        flat_N = array_CHW.reshape(-1)
        yield from (flat_N[layout.start(k) : layout.start(k + 1)] for k in range(len(layout)))
        return
    for box in chain.from_iterable(layout.runs()):
        bands, rows, columns = (slice(at, at + size) for at, size in zip(box[2:5], box.shape, strict=True))
        yield np.ascontiguousarray(array_CHW[bands, rows, columns]).reshape(-1)


def blocks_of(content: bytes | memoryview, codec_name: str, shape: tuple[int, ...], dtype: str, where: object) -> Blocks:
    """The table of a payload, made up for one whose blocks lie as they are.

    Raises:
        CorruptData: it does not hold such an array.
    """
    itemsize = np.dtype(dtype).itemsize
    if codec_name in BARE:
        layout = Layout.fitting(shape, itemsize, STORED_BYTES)
        head = len(content) - layout.start(len(layout)) * itemsize
        if head < 0 or (codec_name == "raw" and head):
            raise CorruptData(f"payload of {len(content)} bytes", where=where, expected=f"{len(content) - head} bytes: {dtype} {shape}")
        return Blocks(layout, head + itemsize * np.array([layout.start(k) for k in range(len(layout) + 1)], np.int64))
    fixed = len(BLOCKS) + 16
    *block, count = np.frombuffer(content[len(BLOCKS) : fixed], "<u4").tolist() if len(content) >= fixed else (0, 0, 0, 0)
    try:
        layout = Layout(tuple(int(n) for n in shape), *block)
        edge_K1 = np.frombuffer(content[fixed : fixed + 4 * (count + 1)], "<u4").astype(np.int64)
        sound = bytes(content[: len(BLOCKS)]) == BLOCKS and len(layout) == count == len(edge_K1) - 1
    except ValueError:
        sound = False
    sound = sound and edge_K1[0] >= fixed + 4 * (count + 1) and edge_K1[-1] == len(content)
    sizes_K = np.diff(edge_K1) if sound else np.zeros(1)
    if sound and codec_name in STORED:
        sound = bool((sizes_K == itemsize * np.diff([layout.start(k) for k in range(count + 1)])).all())
    if not sound or (sizes_K <= 0).any():
        raise CorruptData("the payload's table of blocks is damaged", where=where, expected=f"{BLOCKS.decode()} and {dtype} {shape}")
    return Blocks(layout, edge_K1)


def decode_into(content: bytes | memoryview, codec_name: str, out: np.ndarray, where: object) -> None:
    """Fill `out`, contiguous, from a whole payload.

    Raises:
        CorruptData: it does not hold exactly that array. InputError: its codec is not installed.
    """
    if codec_name == "npy":
        shape, dtype = npy_header(content, where)
        if shape != out.shape or dtype != out.dtype.name:
            raise CorruptData(f"payload is {dtype} {shape}", where=where, expected=f"{out.dtype} {out.shape}")
    blocks, view = blocks_of(content, codec_name, out.shape, out.dtype.name, where), memoryview(content)
    layout, edges = blocks.layout, blocks.edge_K1.tolist()
    if layout.in_order and codec_name in STORED:
        out.reshape(-1).view(np.uint8)[:] = np.frombuffer(view[edges[0] :], np.uint8)
    elif layout.in_order:
        decode_blocks(view, codec_name, layout, 0, edges, out.reshape(-1), where)
    else:
        for box in chain.from_iterable(layout.runs()):
            a, b = edges[box.first], edges[box.last]
            if codec_name in STORED:
                values_N = np.frombuffer(view[a:b], out.dtype)
            else:
                values_N = np.empty(math.prod(box.shape), out.dtype)
                decode_blocks(view, codec_name, layout, box.first, [a, b], values_N, where)
            place(values_N, box, None, out)


def decode_blocks(
    content: memoryview, codec_name: str, layout: Layout, first: int, edges: Sequence[int], out_N: np.ndarray, where: object
) -> None:
    """Fill `out_N` with the blocks from `first` on, which lie between `edges` of `content`.

    Raises:
        CorruptData: a block does not hold as many values as it should.
    """
    codec, start = decoder(codec_name), layout.start(first)
    for k, (a, b) in enumerate(pairwise(edges), first):
        codec.decode_into(content[a:b], out_N[layout.start(k) - start : layout.start(k + 1) - start], where)


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
    return codec if stem in ("cube", "latent") and codec in (*STORED, *CODECS) else None


def stated_bound(content: bytes) -> int:
    """The bound that the first block of a `near` payload states."""
    first = int.from_bytes(content[len(BLOCKS) + 16 : len(BLOCKS) + 20], "little")
    return int.from_bytes(content[first : first + 2], "little")
