"""The bytes of one array in a shard: bare (`raw`), numpy's (`npy`), or blocks, each encoded by itself, behind a table.

A payload of encoded blocks begins with BLOCKS, then, as little-endian uint32: bands and rows of a block, the number of blocks,
and where each ends, counted from the payload's first byte. So it can be read without an index; the index repeats the table.

Legend: K block.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np

from data_shards.codecs import CODECS, STORED, Codec, decoder
from data_shards.errors import CorruptData, InputError
from data_shards.layout import ENCODED_BYTES, STORED_BYTES, Layout

BLOCKS = b"RFBLOCK1"
MAX_ARRAY_BYTES = 4 << 30


@dataclass(frozen=True)
class Blocks:
    """Where the blocks of a payload lie: block k is bytes `edge_K1[k]` to `edge_K1[k + 1]`."""

    layout: Layout
    edge_K1: np.ndarray


def encode(array: np.ndarray, codec_name: str, codec: Codec | None) -> bytes:
    """The payload of an array of three axes."""
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    if codec is None and codec_name == "raw":
        return array.tobytes()
    if codec is None:
        np.save(buffer := io.BytesIO(), array, allow_pickle=False)
        return buffer.getvalue()
    layout = Layout.fitting(array.shape, array.itemsize, ENCODED_BYTES)
    flat_N = array.reshape(-1)
    parts = [codec.encode(flat_N[layout.start(k) : layout.start(k + 1)]) for k in range(len(layout))]
    head = len(BLOCKS) + 4 * (3 + len(parts))
    table = np.concatenate([[layout.bands, layout.rows, len(parts)], head + np.cumsum([len(part) for part in parts])]).astype("<u4")
    return b"".join([BLOCKS, table.tobytes(), *parts])


def blocks_of(content: bytes | memoryview, codec_name: str, shape: tuple[int, ...], dtype: str, where: object) -> Blocks:
    """The table of a payload, made up for one whose blocks lie as they are.

    Raises:
        CorruptData: it does not hold such an array.
    """
    itemsize = np.dtype(dtype).itemsize
    if codec_name in STORED:
        layout = Layout.fitting(shape, itemsize, STORED_BYTES)
        head = len(content) - layout.start(len(layout)) * itemsize
        if head < 0 or (codec_name == "raw" and head):
            raise CorruptData(f"payload of {len(content)} bytes", where=where, expected=f"{len(content) - head} bytes: {dtype} {shape}")
        return Blocks(layout, head + itemsize * np.array([layout.start(k) for k in range(len(layout) + 1)], np.int64))
    fixed = len(BLOCKS) + 12
    bands, rows, count = np.frombuffer(content[len(BLOCKS) : fixed], "<u4").tolist() if len(content) >= fixed else (0, 0, 0)
    try:
        layout = Layout(tuple(int(n) for n in shape), bands, rows)
        edge_K1 = np.concatenate([[fixed + 4 * count], np.frombuffer(content[fixed : fixed + 4 * count], "<u4")]).astype(np.int64)
        sound = bytes(content[: len(BLOCKS)]) == BLOCKS and len(layout) == count == len(edge_K1) - 1
    except ValueError:
        sound = False
    if not sound or edge_K1[-1] != len(content) or (np.diff(edge_K1) <= 0).any():
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
    blocks, codec, view, flat_N = (
        blocks_of(content, codec_name, out.shape, out.dtype.name, where),
        decoder(codec_name),
        memoryview(content),
        out.reshape(-1),
    )
    if codec is None:
        flat_N.view(np.uint8)[:] = np.frombuffer(view[blocks.edge_K1[0] :], np.uint8)
        return
    for k in range(len(blocks.layout)):
        part = view[blocks.edge_K1[k] : blocks.edge_K1[k + 1]]
        codec.decode_into(part, flat_N[blocks.layout.start(k) : blocks.layout.start(k + 1)], where)


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
    count = int.from_bytes(content[len(BLOCKS) + 8 : len(BLOCKS) + 12], "little")
    first = len(BLOCKS) + 12 + 4 * count
    return int.from_bytes(content[first : first + 2], "little")
