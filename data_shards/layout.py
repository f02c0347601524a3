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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

STORED_BYTES = 64 << 10  # of a block that lies as it is: a crop reads little beside what it shows
ENCODED_BYTES = 256 << 10  # of one that is encoded: smaller ones cost reading threads more in waiting for each other than in work
TILE_BYTES = 512 << 10  # of a tile at most: then it holds fewer bands
TILE = 96  # pixels: 256 x 256 crops were read fastest with 84 to 112 of 48 to 112


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

    def boxes(self, region: Region | None = None) -> list[Box]:
        """The blocks that hold a region (None: all), in their order; those of one band or several, one above the other, as one box."""
        c, h, w = self.shape
        region = region or Region(0, h, 0, w)
        wanted = range(c) if region.bands is None else region.bands
        _, strips, across = self.grid
        above, below = region.top // self.rows, math.ceil(region.bottom / self.rows)
        before, behind = region.left // self.columns, math.ceil(region.right / self.columns)
        boxes = []
        for group in sorted({band // self.bands for band in wanted}):
            band, at = group * self.bands, group * strips * across
            bands = min(self.bands, c - band)
            if self.in_order:
                row = above * self.rows
                boxes.append(Box(at + above, at + below, band, row, 0, (bands, min(h, below * self.rows) - row, w)))
                continue
            for y, x in itertools.product(range(above, below), range(before, behind)):
                row, column, k = y * self.rows, x * self.columns, at + y * across + x
                boxes.append(Box(k, k + 1, band, row, column, (bands, min(self.rows, h - row), min(self.columns, w - column))))
        return boxes


def neighbours(boxes: Sequence[Box]) -> list[tuple[int, int]]:
    """First and last (exclusive) block of each run of boxes without a gap."""
    runs: list[tuple[int, int]] = []
    for box in boxes:
        if runs and runs[-1][1] == box.first:
            runs[-1] = runs[-1][0], box.last
        else:
            runs.append((box.first, box.last))
    return runs


def place(values_N: np.ndarray, box: Box, region: Region | None, out_CHW: np.ndarray) -> None:
    """Copy what a box holds of a region (None: of the whole array) to where it belongs in `out_CHW`."""
    region = region or Region(0, out_CHW.shape[1], 0, out_CHW.shape[2])
    rows = slice(max(region.top, box.row), min(region.bottom, box.row + box.shape[1]))
    columns = slice(max(region.left, box.column), min(region.right, box.column + box.shape[2]))
    values_CHW = values_N.reshape(box.shape)[
        :, rows.start - box.row : rows.stop - box.row, columns.start - box.column : columns.stop - box.column
    ]
    target_CHW = out_CHW[:, rows.start - region.top : rows.stop - region.top, columns.start - region.left : columns.stop - region.left]
    if region.bands is None:
        target_CHW[box.band : box.band + len(values_CHW)] = values_CHW
        return
    for c, band in enumerate(region.bands):
        if 0 <= band - box.band < len(values_CHW):
            target_CHW[c] = values_CHW[band - box.band]
