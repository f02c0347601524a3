"""Payload codecs: how one array becomes the bytes of `KEY.cube.<codec>` and comes back.

Add one: a class with `encode` and `decode_into`, and a line in CODECS. Libraries are imported when a codec is used.
"""

from __future__ import annotations

import io
from typing import Protocol

import numpy as np

from data_shards.errors import CorruptData, InputError, nearest


class Codec(Protocol):
    """`decode_into` fills `out` and raises CorruptData where the payload does not hold exactly that array."""

    def encode(self, array: np.ndarray) -> bytes: ...

    def decode_into(self, payload: bytes | memoryview, out: np.ndarray, where: object) -> None: ...


def _same_size(nbytes: int, out: np.ndarray, where: object) -> None:
    if nbytes != out.nbytes:
        raise CorruptData(f"payload of {nbytes} bytes", where=where, expected=f"{out.nbytes} bytes: {out.dtype} {out.shape}")


class Raw:
    """Little-endian bytes in C order: no decoding at all."""

    def encode(self, array: np.ndarray) -> bytes:
        return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()

    def decode_into(self, payload: bytes | memoryview, out: np.ndarray, where: object) -> None:
        _same_size(len(payload), out, where)
        out.reshape(-1).view(np.uint8)[:] = np.frombuffer(payload, np.uint8)


class Npy:
    """numpy's own format, as stock webdataset writes arrays. Pickled arrays are refused."""

    def encode(self, array: np.ndarray) -> bytes:
        np.save(buffer := io.BytesIO(), array, allow_pickle=False)
        return buffer.getvalue()

    def decode_into(self, payload: bytes | memoryview, out: np.ndarray, where: object) -> None:
        try:
            array = np.load(io.BytesIO(payload), allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise CorruptData(f"not a plain .npy payload: {error}", where=where) from error
        if array.shape != out.shape or array.dtype != out.dtype:
            raise CorruptData(f"payload is {array.dtype} {array.shape}", where=where, expected=f"{out.dtype} {out.shape}")
        out[...] = array


class Blosc2:
    """Bitshuffle and LZ4 in Blosc2 chunks: fast."""

    def encode(self, array: np.ndarray) -> bytes:
        import blosc2

        array = np.ascontiguousarray(array)
        return blosc2.compress2(array, codec=blosc2.Codec.LZ4, filters=[blosc2.Filter.BITSHUFFLE], typesize=array.itemsize, nthreads=1)

    def decode_into(self, payload: bytes | memoryview, out: np.ndarray, where: object) -> None:
        import blosc2

        try:
            raw = blosc2.decompress2(bytes(payload), nthreads=1)
        except (RuntimeError, ValueError) as error:
            raise CorruptData(f"blosc2 cannot decode: {error}", where=where) from error
        _same_size(len(raw), out, where)
        out.reshape(-1).view(np.uint8)[:] = np.frombuffer(raw, np.uint8)


class Pcodec:
    """pcodec level 8: small."""

    def encode(self, array: np.ndarray) -> bytes:
        from pcodec import ChunkConfig, standalone

        return standalone.simple_compress(np.ascontiguousarray(array).reshape(-1), ChunkConfig(compression_level=8))

    def decode_into(self, payload: bytes | memoryview, out: np.ndarray, where: object) -> None:
        from pcodec import standalone

        try:
            progress = standalone.simple_decompress_into(bytes(payload), out.reshape(-1))
        except (RuntimeError, ValueError, TypeError) as error:
            raise CorruptData(f"pcodec cannot decode: {error}", where=where) from error
        if progress.n_processed != out.size or not progress.finished:
            raise CorruptData(f"payload holds {progress.n_processed} values", where=where, expected=f"{out.size} values")


CODECS: dict[str, type[Codec]] = {"raw": Raw, "npy": Npy, "blosc2": Blosc2, "pcodec": Pcodec}
_MODULE = {"blosc2": "blosc2", "pcodec": "pcodec"}


def get_codec(name: str) -> Codec:
    """The codec of that name, its library checked.

    Raises:
        InputError: unknown name, or its library is not installed (with the command that installs it).
    """
    if name not in CODECS:
        raise InputError(f"unknown codec {name!r}", expected=nearest(name, CODECS))
    if name in _MODULE:
        try:
            __import__(_MODULE[name])
        except ImportError as error:
            raise InputError(
                f"codec {name!r} is not installed here",
                expected=f"the Python package {_MODULE[name]}",
                mend=f"pip install -c constraints.txt {_MODULE[name]}   (or pack again with --codec raw)",
            ) from error
    return CODECS[name]()
