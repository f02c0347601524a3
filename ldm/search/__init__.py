"""Exact nearest neighbours of rows that need not be in memory, by faiss or torch, on processors or GPUs."""

from typing import TYPE_CHECKING

from data_shards.on_demand import on_demand

__all__ = [
    "Approximate",
    "ArrayRows",
    "ChosenRows",
    "FileRows",
    "JoinedRows",
    "Neighbours",
    "Rows",
    "Search",
    "approximate_neighbours",
    "merged",
    "nearest_neighbours",
]

if TYPE_CHECKING:
    from ldm.search.exact import Search, merged, nearest_neighbours
    from ldm.search.ivf import Approximate, approximate_neighbours
    from ldm.search.rows import ArrayRows, ChosenRows, FileRows, JoinedRows, Rows
    from ldm.search.tile import Neighbours
else:
    __getattr__, __dir__ = on_demand(__name__)
