"""Exact nearest neighbours, whatever the sizes: tiles of the reference against blocks of queries, within a stated memory.

A tile is searched in float32, which proposes candidates; their distances are taken directly in float64. A bound on the rounding of
the float32 search says which candidates may be among the nearest, and whether a row that was not proposed may be: then more are asked
for, and in the end all rows of the tile are gone through. So the answer depends on the rows alone: not on tiles, blocks, backend, devices.

Legend: N query, M reference, K neighbour, B block of queries, W some of a block, R row of a tile, T candidate, P pair, D dimension.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from data_shards.errors import InputError
from ldm.search.backends import chosen
from ldm.search.rows import Rows, rows_of
from ldm.search.tile import BYTES_A_CANDIDATE, Block, Neighbours, Tile, search_tile

LARGEST_SQUARE = 1e36  # of a row's length: the rough search is in float32

GIB = 2**30
MEMORY_GIB = 4.0
LEAST_GIB = 1 / 16
PRODUCTS_GIB = 3 / 128  # what faiss and torch take for their products on a processor

Groups = tuple[np.ndarray, np.ndarray]
"""Numbers: each query's (N,), and each row's of the reference (M,)."""


def nearest_neighbours(
    query: Rows | np.ndarray,
    reference: Rows | np.ndarray,
    k: int = 1,
    *,
    backend: str = "auto",
    device: str = "auto",
    block: int | None = None,
    tile: int | None = None,
    memory_gib: float = MEMORY_GIB,
    not_in: tuple[np.ndarray, np.ndarray] | None = None,
    stretch: tuple[int, int] | None = None,
) -> Neighbours:
    """The k nearest rows of the reference to each query, Euclidean; exact, equal ones in the order of the reference.

    To ask one reference several times, make a `Search` of it, with the same arguments.
    """
    search = Search(reference, backend=backend, device=device, tile=tile, memory_gib=memory_gib, stretch=stretch)
    return search.nearest(query, k, block=block, not_in=not_in)


def merged(parts: Sequence[Neighbours]) -> Neighbours:
    """The nearest of all, from those in stretches of the reference that do not overlap: the same as of one search through all of it."""
    (distance_NK, index_NK), *others = parts
    k = distance_NK.shape[1]
    for other in others:
        distance_NJ, index_NJ = np.concatenate([distance_NK, other[0]], 1), np.concatenate([index_NK, other[1]], 1)
        order_NK = np.lexsort((index_NJ, distance_NJ))[:, :k]
        distance_NK, index_NK = np.take_along_axis(distance_NJ, order_NK, 1), np.take_along_axis(index_NJ, order_NK, 1)
    return distance_NK, index_NK


class Search:
    """A reference that is searched, again and again.

    Of `memory_gib` the reference takes half: where it fits it is kept, else it is read anew, a tile at a time, for each block of
    queries. A block takes a quarter, candidates and their distances the rest. Arrays that are handed over, results and groups are
    not counted: they are the caller's. GPUs hold a tile besides, and products.

    Args:
        reference: finite numbers, float32 or float64.
        backend: 'faiss', 'torch', or 'auto': see `backends.chosen`, also for `device`.
        tile: at most so many rows of the reference at once; None: what the memory allows.
        memory_gib: what the search may hold.
        stretch: rows [start, stop) of the reference alone; positions count from its first row all the same.

    Raises:
        InputError: an empty reference or stretch, too little memory, an unknown backend or device.
    """

    def __init__(
        self,
        reference: Rows | np.ndarray,
        *,
        backend: str = "auto",
        device: str = "auto",
        tile: int | None = None,
        memory_gib: float = MEMORY_GIB,
        stretch: tuple[int, int] | None = None,
    ) -> None:
        self.reference, self.backend = rows_of(reference), chosen(backend, device)
        self.start, self.stop = stretch or (0, len(self.reference))
        self.dimension = self.reference.dimension
        if not 0 <= self.start < self.stop <= len(self.reference) or not self.dimension:
            given = f"rows {self.start} to {self.stop} of a reference ({len(self.reference)}, {self.dimension})"
            raise InputError(given, expected="one row or more, of one dimension or more")
        self.free = int((memory_gib - PRODUCTS_GIB) * GIB)  # bytes
        fitting = min(self.free // 2 // self._row_bytes(self.reference), self.free // 8 // BYTES_A_CANDIDATE)
        if memory_gib < LEAST_GIB or fitting < 1:
            least = max(LEAST_GIB, PRODUCTS_GIB + 4 * self._row_bytes(self.reference) / GIB)
            raise InputError(f"memory_gib={memory_gib:g} for {self.dimension} dimensions", expected=f"{least:.3g} or more")
        self.tile = min(fitting, tile or fitting)
        self._kept: list[Tile] | None = [] if fitting >= self.stop - self.start else None
        self._centre_D = self._centre()

    def nearest(
        self,
        query: Rows | np.ndarray,
        k: int = 1,
        *,
        block: int | None = None,
        not_in: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> Neighbours:
        """The k nearest rows of each query.

        Args:
            query: finite numbers, float32 or float64.
            block: at most so many queries at once; None: what the memory allows.
            not_in: groups (N,) and (M,), M the whole reference's: a row of the query's own group does not count.

        Raises:
            InputError: another dimension, k below 1, groups of other lengths; a row, of either, with values that are not finite or so
                large that float32 products overflow.
        """
        query = rows_of(query)
        n, m = len(query), len(self.reference)
        if query.dimension != self.dimension or k < 1:
            raise InputError(
                f"queries ({n}, {query.dimension}), reference ({m}, {self.dimension}), k={k}", expected="one dimension, k at least 1"
            )
        groups = None if not_in is None else numbered(*not_in, n, m)
        distance_NK, index_NK = np.full((n, k), np.inf), np.full((n, k), -1, np.int64)
        fitting = max(1, self.free // 4 // (self._row_bytes(query) + 64 * k))
        for start in range(0, n, min(fitting, block or fitting)):
            part = slice(start, min(n, start + min(fitting, block or fitting)))
            self._answer(query, part, groups, distance_NK[part], index_NK[part])
        return distance_NK, index_NK

    def _answer(self, query: Rows, part: slice, groups: Groups | None, distance_BK: np.ndarray, index_BK: np.ndarray) -> None:
        """The nearest of one block of queries."""
        rows_BD = query.read(part.start, part.stop)
        moved_BD, square_B = self.moved(rows_BD, part.start, "query")
        block = Block(
            rows_BD=rows_BD,
            moved_BD=moved_BD,
            length_B=np.sqrt(square_B, dtype=np.float64),
            own_B=None if groups is None else groups[0][part],
            distance_BK=distance_BK,
            index_BK=index_BK,
            free=self.free // 8,
        )
        for tile in self.tiles():
            search_tile(block, tile, None if groups is None else groups[1][tile.start : tile.start + len(tile.rows_RD)])
            del tile  # before the next is read

    # -- rows

    def _row_bytes(self, rows: Rows) -> int:
        """What a row takes: as it was read, if that is a copy, less the centre, and its length."""
        return self.dimension * (4 + rows.copied * rows.dtype.itemsize) + 8

    def _centre(self, stretches: int = 16, rows: int = 8) -> np.ndarray:
        """About the middle of the reference. Distances do not change when it is taken off, and the norms that cancel shrink.

        By medians: a row that lies far off would take a mean with it.
        """
        starts = np.unique(np.linspace(self.start, max(self.start, self.stop - rows), stretches).astype(int)).tolist()
        sample = []
        for start in starts:
            read_RD = self.reference.read(start, min(start + rows, self.stop))
            check_finite(read_RD, np.isfinite(read_RD).all(1), start, "reference")
            sample.append(read_RD)
        return np.median(np.concatenate(sample), axis=0).astype(np.float64)

    def moved(self, rows_RD: np.ndarray, first: int, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Rows less the centre in float32, and the squares of their lengths (R,)."""
        moved_RD = np.empty(rows_RD.shape, np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            np.subtract(rows_RD, self._centre_D, out=moved_RD, dtype=np.float64, casting="same_kind")  # no copy in float64
            square_R = np.einsum("rd,rd->r", moved_RD, moved_RD)
            check_finite(rows_RD, square_R <= LARGEST_SQUARE, first, name)
        return moved_RD, square_R

    def tiles(self) -> Iterator[Tile]:
        """The reference, in order."""
        starts = range(self.start, self.stop, self.tile)
        if self._kept is None:
            yield from map(self._read, starts)
            return
        for number, start in enumerate(starts):
            if number == len(self._kept):
                self._kept.append(self._read(start))
            yield self._kept[number]

    def _read(self, start: int) -> Tile:
        """A tile, read and made ready."""
        rows_RD = self.reference.read(start, min(start + self.tile, self.stop))
        moved_RD, square_R = self.moved(rows_RD, start, "reference")
        return Tile(start=start, rows_RD=rows_RD, moved_RD=moved_RD, square_R=square_R, top=self.backend.hold(moved_RD))


def numbered(own_N: np.ndarray, of_M: np.ndarray, n: int, m: int) -> Groups:
    """Groups as numbers."""
    own_N, of_M = np.asarray(own_N), np.asarray(of_M)
    if own_N.shape != (n,) or of_M.shape != (m,):
        raise InputError(f"groups {own_N.shape} and {of_M.shape} for {n} queries and {m} rows", expected=f"({n},) and ({m},)")
    number = np.unique(np.concatenate([own_N, of_M]), return_inverse=True)[1].astype(np.int32)
    return number[:n], number[n:]


def check_finite(rows_RD: np.ndarray, well_R: np.ndarray, first: int, name: str) -> None:
    """Refuses the first row that is not well, by its number."""
    if well_R.all():
        return
    row = int(np.argmin(well_R))
    if np.isfinite(rows_RD[row]).all():
        raise InputError(
            f"{name} row {first + row} is longer than {math.sqrt(LARGEST_SQUARE):.0e}", expected="values that float32 can square"
        )
    raise InputError(f"{name} row {first + row} has NaN or infinite values", expected="finite values")
