"""Rows that a search reads by stretches: of an array, of safetensors files, of several sources one after the other.

Legend: N row, D dimension.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from data_shards.errors import CorruptData, InputError, nearest

DTYPES = {"F32": np.dtype(np.float32), "F64": np.dtype(np.float64)}
PIECE = 1 << 22  # bytes that are read at once where rows are put together from several reads


class Rows(ABC):
    """A table of numbers that is read by stretches.

    Attributes:
        dimension: D.
        dtype: float32 or float64.
        copied: whether what is read is a copy, and takes memory.
    """

    dimension: int
    dtype: np.dtype
    copied = True

    @abstractmethod
    def __len__(self) -> int:
        """How many rows there are."""

    @abstractmethod
    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) as (stop - start, D); not to be written to."""


class ArrayRows(Rows):
    """Rows of an array or a memory map (N, D), which stays where it is.

    Raises:
        InputError: another shape.
    """

    copied = False

    def __init__(self, rows_ND: np.ndarray) -> None:
        if rows_ND.ndim != 2:
            raise InputError(f"an array of shape {rows_ND.shape}", expected="(N, D)")
        self.rows_ND = rows_ND if rows_ND.dtype in DTYPES.values() else rows_ND.astype(np.float64)
        self.dimension, self.dtype = rows_ND.shape[1], self.rows_ND.dtype

    def __len__(self) -> int:
        return len(self.rows_ND)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.rows_ND[start:stop]


class FileRows(Rows):
    """Rows of the tensor (N, D) that a safetensors file holds under a key. Only the stretch that is asked for is read.

    Raises:
        InputError: no such file or key, another shape or type. CorruptData: a damaged file.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        with self._opened() as file:
            if key not in file.keys():  # noqa: SIM118 - it is no mapping
                raise InputError(f"no array {key!r}", where=path, expected=nearest(key, file.keys()))
            table = file.get_slice(key)
            shape, kind = table.get_shape(), table.get_dtype()
        if len(shape) != 2 or kind not in DTYPES:
            raise InputError(f"{key!r} is of shape {tuple(shape)}, type {kind}", where=path, expected="(N, D) in float32 or float64")
        (self._length, self.dimension), self.dtype = shape, DTYPES[kind]

    def __len__(self) -> int:
        return self._length

    def read(self, start: int, stop: int) -> np.ndarray:
        with self._opened() as file:
            return file.get_slice(self.key)[start:stop]

    def _opened(self) -> safe_open:
        try:
            return safe_open(self.path, framework="np")
        except FileNotFoundError as error:
            raise InputError("no such file", where=self.path) from error
        except SafetensorError as error:
            raise CorruptData(f"damaged: {error}", where=self.path, expected="the arrays that were written there") from error


class JoinedRows(Rows):
    """Rows of several sources, one after the other.

    Raises:
        InputError: none, or of several dimensions.
    """

    def __init__(self, sources: Sequence[Rows]) -> None:
        dimensions = sorted({source.dimension for source in sources})
        if len(dimensions) != 1:
            raise InputError(f"{len(sources)} sources of rows with dimensions {dimensions}", expected="one or more, of one dimension")
        self.sources, self.dimension = list(sources), dimensions[0]
        self.dtype = np.result_type(*(source.dtype for source in sources))
        self.borders = np.concatenate([[0], np.cumsum([len(source) for source in sources])])

    def __len__(self) -> int:
        return int(self.borders[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        rows_ND = np.empty((stop - start, self.dimension), self.dtype)
        for source, (first, end) in zip(self.sources, pairwise(self.borders.tolist()), strict=True):
            for a in range(max(start, first), min(stop, end), rows_of_a_piece(self)):
                b = min(a + rows_of_a_piece(self), stop, end)
                rows_ND[a - start : b - start] = source.read(a - first, b - first)
        return rows_ND


class ChosenRows(Rows):
    """Some rows of a source, in its order.

    Args:
        index_N: which, ascending.
    """

    def __init__(self, rows: Rows, index_N: np.ndarray) -> None:
        self.rows, self.index_N = rows, np.asarray(index_N)
        self.dimension, self.dtype = rows.dimension, rows.dtype

    def __len__(self) -> int:
        return len(self.index_N)

    def read(self, start: int, stop: int) -> np.ndarray:
        index_N, rows_ND = self.index_N[start:stop], np.empty((stop - start, self.dimension), self.dtype)
        a = 0
        while a < len(index_N):
            first = int(index_N[a])
            b = int(np.searchsorted(index_N, first + rows_of_a_piece(self)))
            rows_ND[a:b] = self.rows.read(first, int(index_N[b - 1]) + 1)[index_N[a:b] - first]
            a = b
        return rows_ND


def rows_of_a_piece(rows: Rows) -> int:
    """How many are read at once."""
    return max(1, PIECE // max(1, rows.dimension * rows.dtype.itemsize))


def rows_of(source: Rows | np.ndarray) -> Rows:
    """An array as rows; rows as they are."""
    return source if isinstance(source, Rows) else ArrayRows(np.asarray(source))
