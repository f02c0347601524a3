"""How an array is cut into blocks, so that a crop reads little beside what it shows and a subset of bands only those bands.

Either a block is some rows of one band or, where a whole band is small, several whole bands: then the blocks lie one behind the
other as the array does in C order, and anybody reads a `raw` payload without knowing of them. Or it is a tile: a square of
many bands, for random crops, which touch a dozen tiles in place of a run of rows in each band.

Legend: C band, H W pixels, K block.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

STORED_BYTES = 64 << 10  # of a block that lies as it is: a crop reads little beside what it shows
ENCODED_BYTES = 256 << 10  # of one that is encoded: smaller ones cost reading threads more in waiting for each other than in work
TILE_BYTES = 512 << 10  # of a tile at most: then it holds fewer bands
TILE = 96  # pixels: 256 x 256 crops were read fastest with 84 to 112 of 48 to 112

REMEMBERED = 256  # blocks of a region, at most, whose places are kept: thousands of regions of tiny tiles would fill the memory


@dataclass(frozen=True)
class Region:
    """What of an array is wanted: rows `top` to `bottom`, columns `left` to `right`, as in slices, and which bands (None: all)."""

    top: int
    bottom: int
    left: int
    right: int
    bands: tuple[int, ...] | None = None


class Box(NamedTuple):
    """Neighbouring blocks `first` to `last` (exclusive), which together are an array of `shape`, from (band, row, column) on."""

    first: int
    last: int
    band: int
    row: int
    column: int
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class Layout:
    """Blocks of `bands` × `rows` × `columns`, each in C order; those at the end of an axis may be smaller.

    Attributes:
        shape: (C, H, W) of the array.
    """

    shape: tuple[int, int, int]
    bands: int
    rows: int
    columns: int

    def __post_init__(self) -> None:
        if any(not 1 <= block <= whole for block, whole in zip(self.block, self.shape, strict=True)):
            raise ValueError(f"blocks of {self.block} do not divide an array of shape {self.shape}")

    @classmethod
    def fitting(cls, shape: Sequence[int], itemsize: int, block_bytes: int) -> Layout:
        """Blocks of about `block_bytes` that lie as the array does."""
        c, h, w = (int(n) for n in shape)
        rows = min(h, max(1, block_bytes // (w * itemsize)))
        bands = min(c, max(1, block_bytes // (h * w * itemsize))) if rows == h else 1
        return cls((c, h, w), bands, rows, w)

    @classmethod
    def tiled(cls, shape: Sequence[int], itemsize: int, tile: int) -> Layout:
        """Squares of `tile` pixels."""
        c, h, w = (int(n) for n in shape)
        rows, columns = min(h, tile), min(w, tile)
        return cls((c, h, w), min(c, max(1, TILE_BYTES // (rows * columns * itemsize))), rows, columns)

    @property
    def block(self) -> tuple[int, int, int]:
        return self.bands, self.rows, self.columns

    @functools.cached_property
    def in_order(self) -> bool:
        """Whether the blocks, one behind the other, are the array in C order."""
        return self.columns == self.shape[2] and (self.rows == self.shape[1] or self.bands == 1)

    @functools.cached_property
    def grid(self) -> tuple[int, int, int]:
        """Blocks along each axis."""
        c, h, w = (math.ceil(whole / block) for whole, block in zip(self.shape, self.block, strict=True))
        return c, h, w

    def __len__(self) -> int:
        return math.prod(self.grid)

    def start(self, k: int) -> int:
        """Values in the blocks before block k."""
        c, h, w = self.shape
        _, strips, across = self.grid
        group, rest = divmod(k, strips * across)
        strip, column = divmod(rest, across)
        band, row = min(c, group * self.bands), strip * self.rows
        return band * h * w + min(self.bands, c - band) * (row * w + min(self.rows, h - row) * column * self.columns)

    def starts(self) -> list[int]:
        """Values before each block, and in all of them."""
        return [self.start(k) for k in range(len(self) + 1)]

    def runs(self, region: Region | None = None) -> list[list[Box]]:
        """The blocks that hold a region (None: all), in their order; those without another between them together, for one read.

        Blocks of one band or several that lie one above the other are one box.
        """
        c, h, w = self.shape
        region = region or Region(0, h, 0, w)
        wanted = range(c) if region.bands is None else region.bands
        rows = region.top // self.rows, -(-region.bottom // self.rows)
        columns = region.left // self.columns, -(-region.right // self.columns)
        groups = tuple(sorted({band // self.bands for band in wanted}))
        few = len(groups) * (rows[1] - rows[0]) * (columns[1] - columns[0]) <= REMEMBERED
        return (_runs if few else _runs.__wrapped__)(self, groups, rows, columns)


@functools.lru_cache(maxsize=4096)
def _runs(layout: Layout, groups: tuple[int, ...], rows: tuple[int, int], columns: tuple[int, int]) -> list[list[Box]]:
    """Of ranges of blocks along each axis; remembered, for crops that differ by pixels mostly touch the same blocks."""
    runs: list[list[Box]] = []
    for box in _boxes(layout, groups, rows, columns):
        if runs and runs[-1][-1].last == box.first:
            runs[-1].append(box)
        else:
            runs.append([box])
    return runs


def _boxes(layout: Layout, groups: tuple[int, ...], rows: tuple[int, int], columns: tuple[int, int]) -> Iterator[Box]:
    c, h, w = layout.shape
    _, strips, across = layout.grid
    for group in groups:
        band, at = group * layout.bands, group * strips * across
        bands = min(layout.bands, c - band)
        if layout.in_order:
            row = rows[0] * layout.rows
            yield Box(at + rows[0], at + rows[1], band, row, 0, (bands, min(h, rows[1] * layout.rows) - row, w))
            continue
        for y, x in itertools.product(range(*rows), range(*columns)):
            row, column, k = y * layout.rows, x * layout.columns, at + y * across + x
            yield Box(k, k + 1, band, row, column, (bands, min(layout.rows, h - row), min(layout.columns, w - column)))


def paste(values_N: np.ndarray, box: Box, region: Region | None, out_CHW: np.ndarray) -> None:
    """Copy what a box holds of a region (None: of the whole array) to where it belongs in `out_CHW`."""
    region = region or Region(0, out_CHW.shape[1], 0, out_CHW.shape[2])
    _, _, first, row, column, (bands, rows, columns) = box
    y0, y1, x0, x1 = max(region.top, row), min(region.bottom, row + rows), max(region.left, column), min(region.right, column + columns)
    values_CHW = values_N.reshape(bands, rows, columns)[:, y0 - row : y1 - row, x0 - column : x1 - column]
    y, x = slice(y0 - region.top, y1 - region.top), slice(x0 - region.left, x1 - region.left)
    if region.bands is None:
        out_CHW[first : first + bands, y, x] = values_CHW
        return
    for c, band in enumerate(region.bands):
        if 0 <= band - first < bands:
            out_CHW[c, y, x] = values_CHW[band - first]
