"""pcodec: small. `pcodec` gives back every count; `near` rounds counts first, by a bound that is stated and kept."""

from __future__ import annotations

import numpy as np

from data_shards.errors import CorruptData, InputError


class Pcodec:
    """pcodec at level 8."""

    module = "pcodec"

    def __init__(self) -> None:
        from pcodec import ChunkConfig, standalone

        self.config, self.library = ChunkConfig(compression_level=8), standalone

    def encode(self, block_N: np.ndarray) -> bytes:
        return self.library.simple_compress(block_N.reshape(-1), self.config)

    def decode_into(self, content: memoryview, out_N: np.ndarray, where: object) -> None:
        try:
            progress = self.library.simple_decompress_into(bytes(content), out_N.reshape(-1))  # it takes nothing but bytes
        except (RuntimeError, ValueError, TypeError) as error:
            raise CorruptData(f"pcodec cannot decode: {error}", where=where) from error
        if progress.n_processed != out_N.size or not progress.finished:
            raise CorruptData(f"payload holds {progress.n_processed} values", where=where, expected=f"{out_N.size} values")


class Near:
    """Near-lossless: counts rounded to the middles of steps of 2e + 1, so that none is further off than e, then pcodec.

    A uniform quantiser of that step is the coarsest that keeps the bound |x - y| <= e (near-lossless coding as in JPEG-LS,
    ITU-T T.87, A.4.4). Each block begins with e, as two bytes.
    """

    module = "pcodec"
    LARGEST = 255

    def __init__(self, max_error: int) -> None:
        self.max_error, self.lossless = max_error, Pcodec()

    def encode(self, block_N: np.ndarray) -> bytes:
        if block_N.dtype != np.uint16:
            raise InputError(f"codec 'near' on {block_N.dtype}", expected="counts (uint16): its bound is in counts", mend="--codec pcodec")
        return self.max_error.to_bytes(2, "little") + self.lossless.encode(self._steps(block_N).astype(np.uint16))

    def _steps(self, array: np.ndarray) -> np.ndarray:
        return (array.astype(np.uint32) + self.max_error) // (2 * self.max_error + 1)

    def rounded(self, array: np.ndarray) -> np.ndarray:
        """What decoding will give for these counts; the bound is checked."""
        near = np.minimum(self._steps(array) * (2 * self.max_error + 1), 65535).astype(array.dtype)
        assert int(np.abs(near.astype(np.int32) - array).max(initial=0)) <= self.max_error
        return near

    def decode_into(self, content: memoryview, out_N: np.ndarray, where: object) -> None:
        bound = int.from_bytes(content[:2], "little")
        if not 1 <= bound <= self.LARGEST:
            raise CorruptData(f"a bound of {bound} counts", where=where, expected=f"1 to {self.LARGEST}")
        step = 2 * bound + 1
        self.lossless.decode_into(content[2:], out_N, where)
        if int(out_N.max(initial=0)) > 65535 // step:  # the last step may reach over the largest count, which is nearer than its middle
            out_N[...] = np.minimum(out_N.astype(np.uint32) * step, 65535)
        else:
            out_N *= np.uint16(step)
