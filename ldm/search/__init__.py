"""Exact nearest neighbours of rows that need not be in memory, by faiss or torch, on processors or GPUs."""

from typing import TYPE_CHECKING

from data_shards.on_demand import on_demand

__all__ = ["ArrayRows", "ChosenRows", "FileRows", "JoinedRows", "Rows", "Search", "merged", "nearest_neighbours"]

if TYPE_CHECKING:
    from ldm.search.exact import Search, merged, nearest_neighbours
    from ldm.search.rows import ArrayRows, ChosenRows, FileRows, JoinedRows, Rows
else:
    __getattr__, __dir__ = on_demand(__name__)
