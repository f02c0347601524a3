"""How an array is cut into blocks, so that a crop reads only its rows and a subset of bands only those bands.

A block is some rows of one band or, where a whole band is small, several whole bands: always one run of the array in C
order. So the blocks of `raw` lie in the payload as they are, and anybody reads it without knowing of them.

Legend: C band, H W pixels, K block.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

STORED_BYTES = 64 << 10  # of a block that lies as it is: a crop reads little beside what it shows
ENCODED_BYTES = 256 << 10  # of one that is encoded: smaller ones cost reading threads more in waiting for each other than in work


@dataclass(frozen=True)
class Region:
    """What of an array is wanted: rows `top` to `bottom`, columns `left` to `right`, as in slices, and which bands (None: all)."""

    top: int
    bottom: int
    left: int
    right: int
    bands: tuple[int, ...] | None = None


class Run(NamedTuple):
    """Neighbouring blocks `first` to `last` (exclusive), which hold rows from `row` on of bands from `band` on."""

    first: int
    last: int
    band: int
    row: int


@dataclass(frozen=True)
class Layout:
    """Blocks of `bands` × `rows` × all columns; the last of each kind may be smaller.

    Attributes:
        shape: (C, H, W) of the array.
        bands, rows: of a block; one of them is 1 band, or all rows.
    """

    shape: tuple[int, int, int]
    bands: int
    rows: int

    def __post_init__(self) -> None:
        c, h, w = self.shape
        if min(c, h, w) < 1 or not (1 <= self.bands <= c and 1 <= self.rows <= h) or (self.bands > 1 and self.rows != h):
            raise ValueError(f"blocks of {self.bands} bands and {self.rows} rows do not divide an array of shape {self.shape}")

    @classmethod
    def fitting(cls, shape: Sequence[int], itemsize: int, block_bytes: int) -> Layout:
        """Blocks of about `block_bytes`."""
        c, h, w = (int(n) for n in shape)
        rows = min(h, max(1, block_bytes // (w * itemsize)))
        bands = min(c, max(1, block_bytes // (h * w * itemsize))) if rows == h else 1
        return cls((c, h, w), bands, rows)

    @functools.cached_property
    def row_blocks(self) -> int:
        """Blocks one above the other."""
        return math.ceil(self.shape[1] / self.rows)

    def __len__(self) -> int:
        return math.ceil(self.shape[0] / self.bands) * self.row_blocks

    def start(self, k: int) -> int:
        """Where block k begins, in values from the array's first; k = len(self) is the array's end."""
        c, h, w = self.shape
        band, row = divmod(k, self.row_blocks)
        return min(c, band * self.bands) * h * w + row * self.rows * w

    def runs(self, region: Region) -> list[Run]:
        """The blocks that hold a region, neighbours together."""
        wanted = range(self.shape[0]) if region.bands is None else region.bands
        above, below = region.top // self.rows, math.ceil(region.bottom / self.rows)
        runs: list[Run] = []
        for group in sorted({band // self.bands for band in wanted}):
            first, last = group * self.row_blocks + above, group * self.row_blocks + below
            if runs and runs[-1].last == first and self.row_blocks == 1:
                runs[-1] = runs[-1]._replace(last=last)
            else:
                runs.append(Run(first, last, group * self.bands, above * self.rows))
        return runs
