"""Exact nearest neighbours, whatever the sizes: tiles of the reference against blocks of queries, within a stated memory.

A tile is searched in float32, which proposes candidates; their distances are taken directly in float64. A bound on the rounding of
the float32 search says which candidates may be among the nearest, and whether a row that was not proposed may be: then more are asked
for, and in the end all rows of the tile are gone through. So the answer depends on the rows alone: not on tiles, blocks, backend, devices.

Legend: N query, M reference, K neighbour, B block of queries, W some of a block, R row of a tile, T candidate, P pair, D dimension.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from data_shards.errors import InputError
from ldm.search.backends import Top, chosen, squared_norms, torch_top, whole_float32
from ldm.search.rows import Rows, rows_of

MARGIN = 7  # candidates beyond k at first: float32 may rank that many too far down before a query is searched again
MOST_CANDIDATES = 2048  # then all rows of a tile are gone through
LARGE_GROUP = 64  # groups larger than this part of a tile are left out of its search; of smaller ones, members are dropped when found
SEGMENT = 4096  # dimensions added up at once: of more, numpy's sum would depend on what stands beside it
GAPS = 1 << 16  # differences that are written down at once: what a core's cache holds
LARGEST_SQUARE = 1e36  # of a row's length: the rough search is in float32

GIB = 2**30
MEMORY_GIB = 4.0
LEAST_GIB = 1 / 16
PRODUCTS_GIB = 3 / 128  # what faiss and torch take for their products on a processor

Neighbours = tuple[np.ndarray, np.ndarray]
"""Distances (N, K), float64, ascending, and positions in the reference (N, K), int64; infinity and -1 where there are fewer than K."""


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


@dataclass(frozen=True, kw_only=True)
class Tile:
    """Rows of the reference that are searched at once.

    Attributes:
        start: position of the first in the reference.
        rows_RD: as they were read.
        moved_RD: less the centre, float32.
        longest: length of the longest of `moved_RD`.
        top: searches `moved_RD`.
    """

    start: int
    rows_RD: np.ndarray
    moved_RD: np.ndarray
    longest: float
    top: Top


@dataclass(frozen=True, kw_only=True)
class Block:
    """Queries that are searched at once, and the nearest that were found for them so far.

    Attributes:
        rows_BD, moved_BD: as in a tile.
        length_B: of `moved_BD`.
        own_B: group of each, whose members do not count; None: all count.
        distance_BK, index_BK: written to.
    """

    rows_BD: np.ndarray
    moved_BD: np.ndarray
    length_B: np.ndarray
    own_B: np.ndarray | None
    distance_BK: np.ndarray
    index_BK: np.ndarray


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
        if not 0 <= self.start < self.stop <= len(self.reference):
            raise InputError(f"rows {self.start} to {self.stop} of a reference with {len(self.reference)}", expected="one row or more")
        self.dimension = self.reference.dimension
        self.free = int((memory_gib - PRODUCTS_GIB) * GIB)  # bytes
        fitting = self.free // 2 // self._row_bytes(self.reference)
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
        own_N, of_M = (None, None) if not_in is None else numbered(*not_in, n, m)
        distance_NK, index_NK = np.full((n, k), np.inf), np.full((n, k), -1, np.int64)
        fitting = max(1, self.free // 4 // (self._row_bytes(query) + 64 * k))
        for start in range(0, n, min(fitting, block or fitting)):
            part = slice(start, min(n, start + min(fitting, block or fitting)))
            rows_BD = query.read(part.start, part.stop)
            moved_BD, length_B = self._moved(rows_BD, part.start, "query")
            asked = Block(
                rows_BD=rows_BD,
                moved_BD=moved_BD,
                length_B=length_B,
                own_B=None if own_N is None else own_N[part],
                distance_BK=distance_NK[part],
                index_BK=index_NK[part],
            )
            for tile in self._tiles():
                self._search(asked, tile, None if of_M is None else of_M[tile.start : tile.start + len(tile.rows_RD)])
        return distance_NK, index_NK

    # -- rows

    def _row_bytes(self, rows: Rows) -> int:
        """What a row takes: as it was read, if that is a copy, less the centre, and its length."""
        return self.dimension * (4 + rows.copied * rows.dtype.itemsize) + 8

    def _centre(self, stretches: int = 16, rows: int = 256) -> np.ndarray:
        """About the mean of the reference. Distances do not change when it is taken off, and the norms that cancel shrink."""
        starts = np.unique(np.linspace(self.start, max(self.start, self.stop - rows), stretches).astype(int)).tolist()
        means = []
        for start in starts:
            read_RD = self.reference.read(start, min(start + rows, self.stop))
            check_finite(read_RD, np.isfinite(read_RD).all(1), start, "reference")
            means.append(read_RD.mean(0, dtype=np.float64))
        return np.mean(means, axis=0)

    def _moved(self, rows_RD: np.ndarray, first: int, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Rows less the centre in float32, and their lengths (R,)."""
        moved_RD = np.empty(rows_RD.shape, np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            np.subtract(rows_RD, self._centre_D, out=moved_RD, dtype=np.float64, casting="same_kind")  # no copy in float64
            square_R = np.einsum("rd,rd->r", moved_RD, moved_RD)
            check_finite(rows_RD, square_R <= LARGEST_SQUARE, first, name)
        return moved_RD, np.sqrt(square_R, dtype=np.float64)

    def _tiles(self) -> Iterator[Tile]:
        """The reference, in order."""
        if self._kept:
            yield from self._kept
            return
        kept = []
        for start in range(self.start, self.stop, self.tile):
            rows_RD = self.reference.read(start, min(start + self.tile, self.stop))
            moved_RD, length_R = self._moved(rows_RD, start, "reference")
            top = self.backend.hold(moved_RD)
            tile = Tile(start=start, rows_RD=rows_RD, moved_RD=moved_RD, longest=float(length_R.max()), top=top)
            if self._kept is not None:
                kept.append(tile)
            yield tile
        if self._kept is not None:
            self._kept = kept

    # -- the search of one tile

    def _search(self, block: Block, tile: Tile, of_R: np.ndarray | None) -> None:
        """Adds what a tile has to what was found for a block.

        Args:
            of_R: group of each of the tile's rows.
        """
        which_B = np.arange(len(block.rows_BD))
        if of_R is not None:
            group_G, count_G = np.unique(of_R, return_counts=True)
            for group in group_G[count_G > max(MARGIN, len(of_R) // LARGE_GROUP)]:
                inside_B = block.own_B[which_B] == group
                if inside_B.any():
                    norm_R = squared_norms(torch.from_numpy(tile.moved_RD))
                    norm_R[torch.from_numpy(of_R == group)] = torch.inf
                    self._climb(block, tile, of_R, which_B[inside_B], partial(outside, tile.moved_RD, norm_R))
                    which_B = which_B[~inside_B]
        self._climb(block, tile, of_R, which_B, tile.top)

    def _climb(self, block: Block, tile: Tile, of_R: np.ndarray | None, which_W: np.ndarray, top: Top) -> None:
        """Ask for more and more candidates, until each query is sure of its nearest."""
        rows, k = len(tile.rows_RD), block.distance_BK.shape[1]
        t = min(k + MARGIN, rows)
        while len(which_W):
            at_once = max(1, self.free // 8 // (96 * t + 8 * self.dimension))
            parts = np.split(which_W, range(at_once, len(which_W), at_once))
            which_W = np.concatenate([self._ask(block, tile, of_R, part_W, top, t) for part_W in parts])
            if t >= MOST_CANDIDATES:
                break
            t = min(8 * t, MOST_CANDIDATES, rows)
        for query in which_W:
            self._go_through(block, tile, of_R, query)

    def _ask(self, block: Block, tile: Tile, of_R: np.ndarray | None, which_W: np.ndarray, top: Top, t: int) -> np.ndarray:
        """One round for some queries. Those that are sure get their nearest; the others (W,) come back, and a row may be missing."""
        k = block.distance_BK.shape[1]
        rough_WT, index_WT = top(np.ascontiguousarray(block.moved_BD[which_W]), t)
        bound_W = rounding_bound(block.length_B[which_W], tile.longest, self.dimension)
        left_out_W = np.full(len(which_W), np.inf)  # no row that was not proposed lies nearer than this, squared
        if t < len(tile.rows_RD):
            left_out_W = rough_WT.max(1) - bound_W
        if of_R is not None:
            rough_WT[of_R[index_WT] == block.own_B[which_W, None]] = np.inf
        most_W = np.square(block.distance_BK[which_W, -1]) * (1 + 1e-12)  # no row farther than this counts
        if t >= k:
            most_W = np.minimum(most_W, np.partition(rough_WT, k - 1, axis=1)[:, k - 1] + bound_W)
        w_P, t_P = np.nonzero(rough_WT <= np.minimum(most_W + bound_W, np.finfo(np.float32).max)[:, None])
        index_P = index_WT[w_P, t_P]
        distance_P = self._distances(block.rows_BD, which_W[w_P], tile.rows_RD, index_P)
        found = with_pairs(block.distance_BK[which_W], block.index_BK[which_W], w_P, distance_P, index_P + tile.start)
        sure_W = np.square(found[0][:, -1]) <= left_out_W
        block.distance_BK[which_W[sure_W]], block.index_BK[which_W[sure_W]] = (each[sure_W] for each in found)
        return which_W[~sure_W]

    def _go_through(self, block: Block, tile: Tile, of_R: np.ndarray | None, query: int) -> None:
        """All rows of a tile, for one query."""
        at_once, one = max(1, self.free // 8 // 96), slice(query, query + 1)
        for start in range(0, len(tile.rows_RD), at_once):
            index_P = np.arange(start, min(start + at_once, len(tile.rows_RD)))
            if of_R is not None:
                index_P = index_P[of_R[index_P] != block.own_B[query]]
            distance_P = self._distances(block.rows_BD, np.full(len(index_P), query), tile.rows_RD, index_P)
            found = with_pairs(block.distance_BK[one], block.index_BK[one], np.zeros_like(index_P), distance_P, index_P + tile.start)
            block.distance_BK[one], block.index_BK[one] = found

    def _distances(self, query_BD: np.ndarray, which_P: np.ndarray, rows_RD: np.ndarray, index_P: np.ndarray) -> np.ndarray:
        """By (x - y)² in float64: |x|² - 2 xy + |y|² cancels, and would call a 1e-5 change of a copy 0."""
        distance_P, at_once = np.empty(len(index_P)), max(1, GAPS // self.dimension)
        for start in range(0, len(index_P), at_once):
            part = slice(start, start + at_once)
            gap_PD = rows_RD[index_P[part]].astype(np.float64)
            gap_PD -= query_BD[which_P[part]]
            distance_P[part] = np.sqrt(squares(gap_PD))
        return distance_P


def squares(gap_PD: np.ndarray) -> np.ndarray:
    """Sum of squares of each row: the same bits whatever stands beside it."""
    parts = (gap_PD[:, start : start + SEGMENT] for start in range(0, gap_PD.shape[1], SEGMENT))
    return sum(np.einsum("pd,pd->p", part_PD, part_PD) for part_PD in parts)


def rounding_bound(length_W: np.ndarray, longest: float, dimension: int) -> np.ndarray:
    """How far a squared distance from float32 products may be off: c √D u (|x| + |y|)².

    Higham & Mary 2019, Theorem 2.4: a float32 dot product of D terms errs by at most λ √D u |x||y| but for a probability of
    2 D exp(-λ²/2); λ = 8 here, and 4 such terms (two norms, one product taken twice). One hundredth more stands for what float64 and
    the lengths round; products below the smallest normal number may vanish.
    """
    return 1.01 * 4 * 8 * math.sqrt(dimension) * 2.0**-24 * (length_W + longest) ** 2 + 8 * dimension * 2.0**-126


def with_pairs(distance_WK: np.ndarray, index_WK: np.ndarray, w_P: np.ndarray, distance_P: np.ndarray, index_P: np.ndarray) -> Neighbours:
    """The nearest of what was found before and of some pairs; equal ones by position."""
    k = distance_WK.shape[1]
    w_F, k_F = np.nonzero(index_WK >= 0)
    w_Q = np.concatenate([w_F, w_P])
    distance_Q, index_Q = np.concatenate([distance_WK[w_F, k_F], distance_P]), np.concatenate([index_WK[w_F, k_F], index_P])
    order_Q = np.lexsort((index_Q, distance_Q, w_Q))
    w_Q = w_Q[order_Q]
    rank_Q = np.arange(len(w_Q)) - np.searchsorted(w_Q, w_Q)
    order_Q, w_Q, rank_Q = (each[rank_Q < k] for each in (order_Q, w_Q, rank_Q))
    new_WK, new_index_WK = np.full(distance_WK.shape, np.inf), np.full(index_WK.shape, -1, np.int64)
    new_WK[w_Q, rank_Q], new_index_WK[w_Q, rank_Q] = distance_Q[order_Q], index_Q[order_Q]
    return new_WK, new_index_WK


def outside(moved_RD: np.ndarray, norm_R: torch.Tensor, query_BD: np.ndarray, t: int) -> tuple[np.ndarray, np.ndarray]:
    """The rough search of a tile without the rows whose norm is infinite, on the processor."""
    with torch.inference_mode(), whole_float32():
        return torch_top(torch.from_numpy(query_BD), torch.from_numpy(moved_RD), norm_R, t)


def numbered(own_N: np.ndarray, of_M: np.ndarray, n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
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
