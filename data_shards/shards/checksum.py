"""CRC-32C of many pieces by one call: what the checksum of their concatenation has to be, from the checksum of each.

Appending n bytes to A applies a linear map over GF(2) to A's checksum: crc(A B) = Z_n crc(A) xor crc(B), where Z_n appends n zero
bytes (Adler's crc32_combine in zlib). One long call keeps reading threads out of each other's way; many short ones do not,
for each takes and gives back the interpreter's lock.

Legend: K piece.
"""

from __future__ import annotations

import functools

import numpy as np

POLYNOMIAL = 0x82F63B78  # CRC-32C (Castagnoli), bits reversed: RFC 3720, B.4
_BITS = np.arange(32, dtype=np.uint32)


def _apply(columns_32: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A 32 × 32 matrix over GF(2), held as the images of single bits, times each value."""
    bits = (values[..., None] >> _BITS) & np.uint32(1)
    return np.bitwise_xor.reduce(np.where(bits, columns_32, np.uint32(0)), axis=-1)


@functools.lru_cache(maxsize=4096)
def _zeros(n: int) -> np.ndarray:
    """Z_n by repeated squaring, as columns."""
    one_bit = np.concatenate([np.array([POLYNOMIAL], np.uint32), np.uint32(1) << _BITS[:31]])
    result, power, n = np.uint32(1) << _BITS, one_bit, 8 * n
    while n:
        if n & 1:
            result = _apply(power, result)
        power, n = _apply(power, power), n >> 1
    return result


@functools.lru_cache(maxsize=256)
def _behind(sizes: tuple[int, ...]) -> np.ndarray:
    """For each piece, Z of all bytes behind it: columns (K, 32)."""
    columns = [np.uint32(1) << _BITS]
    for size in reversed(sizes[1:]):
        columns.append(_apply(columns[-1], _zeros(size)))
    return np.stack(columns[::-1])


def of_concatenation(crc_K: np.ndarray, sizes: tuple[int, ...]) -> int:
    """The crc32c of pieces of these sizes, in bytes, laid one behind the other, from the crc32c of each."""
    bits = (np.asarray(crc_K, np.uint32)[:, None] >> _BITS) & np.uint32(1)
    return int(np.bitwise_xor.reduce(np.where(bits, _behind(sizes), np.uint32(0)), axis=None))
