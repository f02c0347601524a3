"""The nearest rows of one tile of the reference, added to what was found in others: candidates by float32, decided in float64.

Legend: B block of queries, W some of a block, R row of a tile, K neighbour, T candidate, P pair, D dimension.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from ldm.search.backends import Found, Top, torch_top, whole_float32

MARGIN = 7  # candidates beyond k at first: float32 may rank that many too far down before a query is searched again
MOST_CANDIDATES = 1024  # in place of more, all rows of the tile are; faiss keeps 2048 on a GPU, at most
BYTES_A_CANDIDATE = 96  # with its pair, distance and what sorting takes
LARGE_GROUP = 64  # groups larger than this part of a tile are left out of its search; of smaller ones, members are dropped when found
SEGMENT = 4096  # dimensions added up at once: of more, numpy's sum would depend on what stands beside it
GAPS = 1 << 16  # differences that are written down at once: what a core's cache holds

Neighbours = tuple[np.ndarray, np.ndarray]
"""Distances (N, K), float64, ascending, and positions in the reference (N, K), int64; infinity and -1 where there are fewer than K."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """Rows of the reference that are searched at once.

    Attributes:
        start: position of the first in the reference.
        rows_RD: as they were read.
        moved_RD: less the centre, float32.
        square_R: |y|² of `moved_RD`.
        top: searches `moved_RD`.
    """

    start: int
    rows_RD: np.ndarray
    moved_RD: np.ndarray
    square_R: np.ndarray
    top: Top


@dataclass(frozen=True, kw_only=True)
class Block:
    """Queries that are searched at once, and the nearest that were found for them so far.

    Attributes:
        rows_BD, moved_BD: as in a tile.
        length_B: |x| of `moved_BD`.
        own_B: group of each, whose members do not count; None: all count.
        distance_BK, index_BK: written to.
        free: bytes that candidates may take.
    """

    rows_BD: np.ndarray
    moved_BD: np.ndarray
    length_B: np.ndarray
    own_B: np.ndarray | None
    distance_BK: np.ndarray
    index_BK: np.ndarray
    free: int

    @property
    def dimension(self) -> int:
        return self.rows_BD.shape[1]


def search_tile(block: Block, tile: Tile, of_R: np.ndarray | None) -> None:
    """Adds what a tile has to what was found for a block.

    Args:
        of_R: group of each of the tile's rows.
    """
    which_B = np.arange(len(block.rows_BD))
    if of_R is not None:
        group_G, count_G = np.unique(of_R, return_counts=True)
        large_G = group_G[count_G > max(MARGIN, len(of_R) // LARGE_GROUP)]
        for group in np.intersect1d(large_G, block.own_B):
            inside_B = block.own_B[which_B] == group
            top = partial(top_outside, tile.moved_RD, np.where(of_R == group, np.float32(np.inf), tile.square_R))
            climb(block, tile, of_R, which_B[inside_B], top)
            which_B = which_B[~inside_B]
    climb(block, tile, of_R, which_B, tile.top)


def climb(block: Block, tile: Tile, of_R: np.ndarray | None, which_W: np.ndarray, top: Top) -> None:
    """Ask for more and more candidates, in the end for all rows, until each query is sure of its nearest."""
    rows, k = len(tile.rows_RD), block.distance_BK.shape[1]
    t = min(k + MARGIN, rows)
    while len(which_W):
        if t > MOST_CANDIDATES:
            top, t = partial(top_all, tile), rows
        at_once = max(1, block.free // (BYTES_A_CANDIDATE * t + 8 * block.dimension))
        parts = np.split(which_W, range(at_once, len(which_W), at_once))
        which_W = np.concatenate([ask(block, tile, of_R, part_W, top, t) for part_W in parts])
        t = min(8 * t, rows)


def ask(block: Block, tile: Tile, of_R: np.ndarray | None, which_W: np.ndarray, top: Top, t: int) -> np.ndarray:
    """One round for some queries. Those that are sure get their nearest; the others (W,) come back, and a row may be missing."""
    k = block.distance_BK.shape[1]
    rough_WT, index_WT = top(np.ascontiguousarray(block.moved_BD[which_W]), t)
    farthest_W, length_W = rough_WT.max(1), block.length_B[which_W]
    error_WT = rounding_bound(length_W[:, None], np.sqrt(tile.square_R[index_WT], dtype=np.float64), block.dimension)
    if of_R is not None:
        rough_WT[of_R[index_WT] == block.own_B[which_W, None]] = np.inf
    most_W = np.square(block.distance_BK[which_W, -1]) * (1 + 1e-12)  # no row farther than this counts
    if t >= k:
        most_W = np.minimum(most_W, np.partition(rough_WT + error_WT, k - 1, axis=1)[:, k - 1])
    w_P, t_P = np.nonzero(rough_WT - error_WT <= np.minimum(most_W, np.finfo(np.float32).max)[:, None])
    index_P = index_WT[w_P, t_P]
    distance_P = distances(block.rows_BD, which_W[w_P], tile.rows_RD, index_P)
    found = with_pairs(block.distance_BK[which_W], block.index_BK[which_W], w_P, distance_P, index_P + tile.start)
    sure_W = np.full(len(which_W), True)
    if t < len(tile.rows_RD):
        # a row that was not proposed may lie nearer than the k-th by what float32 hides; it is then no longer than |x| and that distance
        longest_W = np.minimum(length_W + found[0][:, -1], math.sqrt(tile.square_R.max()))
        sure_W = np.square(found[0][:, -1]) <= farthest_W - rounding_bound(length_W, longest_W, block.dimension)
    block.distance_BK[which_W[sure_W]], block.index_BK[which_W[sure_W]] = (each[sure_W] for each in found)
    return which_W[~sure_W]


def distances(query_BD: np.ndarray, which_P: np.ndarray, rows_RD: np.ndarray, index_P: np.ndarray) -> np.ndarray:
    """By (x - y)² in float64: |x|² - 2 xy + |y|² cancels, and would call a 1e-5 change of a copy 0."""
    distance_P, at_once = np.empty(len(index_P)), max(1, GAPS // rows_RD.shape[1])
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


def rounding_bound(x: np.ndarray, y: np.ndarray, dimension: int) -> np.ndarray:
    """How far a squared distance from float32 products may be off, by the lengths of both: c √D u (|x| + |y|)².

    Higham & Mary 2019, Theorem 2.4: a float32 dot product of D terms errs by at most λ √D u |x||y| but for a probability of
    2 D exp(-λ²/2); λ = 8 here, and 4 such terms (two norms, one product taken twice). One hundredth more stands for what float64 and
    the lengths round; products below the smallest normal number may vanish.
    """
    return 1.01 * 4 * 8 * math.sqrt(dimension) * 2.0**-24 * np.square(x + y) + 8 * dimension * 2.0**-126


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


def top_outside(moved_RD: np.ndarray, square_R: np.ndarray, query_BD: np.ndarray, t: int) -> Found:
    """The rough search of a tile, on the processor, without the rows whose square is infinite."""
    with torch.inference_mode(), whole_float32():
        return torch_top(*map(torch.from_numpy, (query_BD, moved_RD, square_R)), t)


def top_all(tile: Tile, query_BD: np.ndarray, t: int) -> Found:
    """All rows of a tile, as a rough search gives them."""
    with torch.inference_mode(), whole_float32():
        query, rows, square_R = map(torch.from_numpy, (query_BD, tile.moved_RD, tile.square_R))
        rough_BR = torch.addmm(square_R[None], query, rows.T, alpha=-2).add_(query.square().sum(1, keepdim=True))
    return rough_BR.numpy(), np.broadcast_to(np.arange(t), rough_BR.shape)
