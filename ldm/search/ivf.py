"""Approximate nearest neighbours by inverted lists, with the share of planted near copies that they find.

Never what is taken unless asked for: what lists miss are copies. Distances are exact, and the search of planted copies says how many
nearest rows are.

Legend: N query, M reference, K neighbour, B block of queries, T candidate, P planted copy, D dimension.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_shards.errors import InputError
from ldm.search.backends import faiss_module
from ldm.search.exact import MEMORY_GIB, Search
from ldm.search.rows import ArrayRows, Rows, rows_of
from ldm.search.tile import MARGIN, Neighbours, distances, with_pairs


@dataclass(frozen=True, kw_only=True)
class Approximate:
    """Neighbours that were found, and how far that can be trusted.

    Attributes:
        distance_NK, index_NK: as of an exact search; a nearer row may have been missed.
        recall: share of planted near copies for which lists find the row that is the nearest by the exact search.
        planted: how many copies that is of.
        lists, probes: into how many lists the rows are divided; how many of them a query goes through.
    """

    distance_NK: np.ndarray
    index_NK: np.ndarray
    recall: float
    planted: int
    lists: int
    probes: int


def approximate_neighbours(
    query: Rows | np.ndarray,
    reference: Rows | np.ndarray,
    k: int = 1,
    *,
    lists: int | None = None,
    probes: int | None = None,
    planted: int = 1000,
    noise: float = 0.1,
    memory_gib: float = MEMORY_GIB,
    seed: int = 0,
) -> Approximate:
    """The k nearest rows among those in the nearest lists (Jégou et al. 2011; faiss' IndexIVFFlat), on a processor.

    Args:
        lists: None: 4 √M, of 39 rows or more each.
        probes: None: a sixteenth of the lists.
        planted: copies by which the recall is measured, of rows evenly spaced.
        noise: how far each copy lies from its row, as a share of the distance from there to the nearest other row.

    Raises:
        InputError: no faiss, a reference that does not fit in the memory, and what `Search` refuses.
    """
    faiss, query = faiss_module(), rows_of(query)
    search = Search(reference, backend="faiss", device="cpu", memory_gib=memory_gib / 2)  # the lists hold the rows once more
    m = len(search.reference)
    if search.tile < m:
        raise InputError(f"{m} rows of {search.dimension} dimensions do not fit in memory_gib={memory_gib:g}", expected="lists in memory")
    lists = lists or max(1, min(int(4 * math.sqrt(m)), m // 39))
    probes = min(lists, probes or max(1, lists // 16))
    [tile] = search.tiles()
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(search.dimension), search.dimension, lists)
    index.train(tile.moved_RD)
    index.add(tile.moved_RD)
    index.nprobe = probes
    copies_PD = planted_copies(search, tile.rows_RD, min(planted, m), noise, seed)
    exact_P = search.nearest(copies_PD)[1][:, 0]
    listed_P = by_lists(index, search, ArrayRows(copies_PD), 1)[1][:, 0]
    distance_NK, index_NK = by_lists(index, search, query, k)
    return Approximate(
        distance_NK=distance_NK,
        index_NK=index_NK,
        recall=float((exact_P == listed_P).mean()),
        planted=len(exact_P),
        lists=lists,
        probes=probes,
    )


def planted_copies(search: Search, rows_MD: np.ndarray, count: int, noise: float, seed: int) -> np.ndarray:
    """Near copies (P, D) of rows evenly spaced, each moved in a direction of its own."""
    chosen_PD = rows_MD[np.linspace(0, len(rows_MD) - 1, count).astype(int)].astype(np.float64)
    way_PD = np.random.default_rng(seed).standard_normal(chosen_PD.shape)
    apart_P = search.nearest(chosen_PD, 2)[0][:, 1] if len(rows_MD) > 1 else np.ones(count)  # the first is the row itself
    return chosen_PD + (noise * apart_P / np.linalg.norm(way_PD, axis=1))[:, None] * way_PD


def by_lists(index: Any, search: Search, query: Rows, k: int, block: int = 4096) -> Neighbours:
    """The nearest of the candidates that lists give, by direct distances."""
    [tile] = search.tiles()
    distance_NK, index_NK = np.full((len(query), k), np.inf), np.full((len(query), k), -1, np.int64)
    for start in range(0, len(query), block):
        part = slice(start, min(start + block, len(query)))
        rows_BD = query.read(part.start, part.stop)
        index_BT = index.search(search.moved(rows_BD, start, "query")[0], min(k + MARGIN, len(tile.rows_RD)))[1]
        b_P, t_P = np.nonzero(index_BT >= 0)
        index_P = index_BT[b_P, t_P]
        distance_P = distances(rows_BD, b_P, tile.rows_RD, index_P)
        distance_NK[part], index_NK[part] = with_pairs(distance_NK[part], index_NK[part], b_P, distance_P, index_P)
    return distance_NK, index_NK
