"""Per-band statistics of stored counts, exact and in any order.

Legend: C band, N pixels, V count that can be stored.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_shards.cube import Cube
from data_shards.errors import InputError
from data_shards.manifest import BandStats, signed_log

# Of the sums: a packing that was killed with others begins anew. Records of versions before histograms stay good: integers are equal, and
# their logarithms were added up pixel by pixel, which moves the last digits, as the cut into shards does.
FORMAT = "band-statistics-2"


@functools.lru_cache(maxsize=4)
def logarithms(log_zero: float) -> np.ndarray:
    """Those of all counts that can be stored."""
    return signed_log(np.arange(1 << 16, dtype=np.uint16) - log_zero)


@dataclass
class BandAccumulator:
    """Exact per-band sums of stored integers (Python integers: no order dependence, no overflow); floats in float64."""

    sums_C: list[Any] = field(default_factory=list)
    squares_C: list[Any] = field(default_factory=list)
    min_C: list[float] = field(default_factory=list)
    max_C: list[float] = field(default_factory=list)
    logs_C: np.ndarray | float = 0.0
    log_squares_C: np.ndarray | float = 0.0
    log_zero: float = 0.0
    values: int = 0

    def add(self, *cubes: Cube) -> None:
        """Add the pixels of these cubes."""
        self.merge(sums_of(cubes))

    def merge(self, other: BandAccumulator) -> None:
        """Add the sums of others' pixels."""
        if not other.values:
            return
        if not self.values:
            bands = len(other.sums_C)
            self.sums_C, self.squares_C = [0] * bands, [0] * bands
            self.min_C, self.max_C = [math.inf] * bands, [-math.inf] * bands
            self.log_zero = other.log_zero
        assert other.log_zero == self.log_zero, "cubes of one affine map"
        self.sums_C = [a + b for a, b in zip(self.sums_C, other.sums_C, strict=True)]
        self.squares_C = [a + b for a, b in zip(self.squares_C, other.squares_C, strict=True)]
        self.min_C = [min(a, b) for a, b in zip(self.min_C, other.min_C, strict=True)]
        self.max_C = [max(a, b) for a, b in zip(self.max_C, other.max_C, strict=True)]
        self.logs_C = np.asarray(self.logs_C) + other.logs_C
        self.log_squares_C = np.asarray(self.log_squares_C) + other.log_squares_C
        self.values += other.values

    def fields(self) -> dict[str, Any]:
        """As JSON; numbers come back as they are."""
        return {**vars(self), "logs_C": np.asarray(self.logs_C).tolist(), "log_squares_C": np.asarray(self.log_squares_C).tolist()}

    def stats(self, split: str, scale: float, offset: float) -> BandStats:
        """Reflectance statistics: mean and standard deviation follow the affine map of the stored values."""
        if not self.values:
            raise InputError(f"no pixel of split {split!r} lies in a field of view", mend="check the masks: retinaforge data ls")
        n = self.values
        means = [s / n for s in self.sums_C]
        # var = (n Σx² − (Σx)²)/n², in integers where the values are integers: no cancellation
        stds = [math.sqrt(max((n * q - s * s) / (n * n), 0.0)) for s, q in zip(self.sums_C, self.squares_C, strict=True)]
        counts = isinstance(self.sums_C[0], int)  # latents have no logarithm
        log_mean_C = np.asarray(self.logs_C) / n
        log_std_C = np.sqrt(np.maximum(np.asarray(self.log_squares_C) / n - log_mean_C**2, 0))
        return BandStats(
            split=split,
            log_mean_C=tuple(log_mean_C.tolist()) if counts else (),
            log_std_C=tuple(log_std_C.tolist()) if counts else (),
            mean_C=tuple(scale * m + offset for m in means),
            std_C=tuple(scale * s for s in stds),
            min_C=tuple(scale * v + offset for v in self.min_C),
            max_C=tuple(scale * v + offset for v in self.max_C),
            log_zero=self.log_zero,
            values=n,
        )


class Histogram:
    """How often each count occurs in each band: all sums follow from it, and a pixel costs one increment.

    Attributes:
        counts_CV: for each band, up to its largest count.
        log_zero: as in BandStats.
        values: pixels of a band.
    """

    def __init__(self, counts_CV: list[np.ndarray], log_zero: float, values: int) -> None:
        self.counts_CV, self.log_zero, self.values = counts_CV, log_zero, values

    @classmethod
    def of(cls, pixels_CN: np.ndarray, log_zero: float) -> Histogram:
        return cls([np.bincount(pixels_N) for pixels_N in pixels_CN], log_zero, pixels_CN.shape[1])

    def merge(self, other: Histogram) -> None:
        """Add others' pixels."""
        assert other.log_zero == self.log_zero, "cubes of one affine map"
        for c, (mine_V, theirs_V) in enumerate(zip(self.counts_CV, other.counts_CV, strict=True)):
            longer_V, shorter_V = (mine_V, theirs_V) if len(mine_V) >= len(theirs_V) else (theirs_V.copy(), mine_V)
            longer_V[: len(shorter_V)] += shorter_V
            self.counts_CV[c] = longer_V
        self.values += other.values

    def sums(self) -> BandAccumulator:
        """The sums: of integers exact, of logarithms the same for the same pixels in any order."""
        total, logs_V = BandAccumulator(log_zero=self.log_zero, values=self.values), logarithms(self.log_zero)
        logs, log_squares = [], []
        for counts_V in self.counts_CV:
            seen_V = counts_V.nonzero()[0]
            counts_V, logs_of_seen_V = counts_V[seen_V], logs_V[seen_V]
            largest = int(seen_V[-1])
            exact_V = seen_V if self.values * largest**2 < 1 << 63 else seen_V.astype(object)
            total.sums_C.append(int(counts_V @ exact_V))
            total.squares_C.append(int(counts_V @ (exact_V * exact_V)))
            total.min_C.append(int(seen_V[0]))
            total.max_C.append(largest)
            logs.append((counts_V * logs_of_seen_V).sum())
            log_squares.append((counts_V * (logs_of_seen_V * logs_of_seen_V)).sum())
        total.logs_C, total.log_squares_C = np.array(logs), np.array(log_squares)
        return total


def addends(cubes: Sequence[Cube]) -> list[Histogram] | list[BandAccumulator]:
    """What cubes of one kind add to the sums: of counts one histogram; of floats the sums of each cube, for these depend on the order."""
    if cubes[0].data_CHW.dtype.kind != "u":
        return [sums for cube in cubes if (sums := _float_sums(cube)).values]
    pixels_CN, meta = [_pixels(cube) for cube in cubes], cubes[0].meta
    all_CN = pixels_CN[0] if len(cubes) == 1 else np.concatenate(pixels_CN, axis=1)
    log_zero = 0.0 - meta.offset / meta.scale  # the stored value of reflectance 0 (never -0.0)
    return [Histogram.of(all_CN, log_zero)] if all_CN.shape[1] else []


class BandTally:
    """Adds up the bands of cubes of one kind."""

    def __init__(self) -> None:
        self.histogram: Histogram | None = None
        self.floats = BandAccumulator()

    def enter(self, more: list[Histogram] | list[BandAccumulator]) -> None:
        """Add what `addends` gave, in the order of the cubes."""
        for addend in more:
            if isinstance(addend, BandAccumulator):
                self.floats.merge(addend)
            elif self.histogram is None:
                self.histogram = addend
            else:
                self.histogram.merge(addend)

    def sums(self) -> BandAccumulator:
        return self.histogram.sums() if self.histogram else self.floats


def sums_of(cubes: Iterable[Cube]) -> BandAccumulator:
    """The sums of some cubes of one kind. Those of a set are merged shard by shard, so that they are the same to the last digit."""
    tally = BandTally()
    for cube in cubes:
        tally.enter(addends([cube]))
    return tally.sums()


def _pixels(cube: Cube) -> np.ndarray:
    """Those in the field of view: (C, N)."""
    pixels_CN = cube.data_CHW.reshape(len(cube.data_CHW), -1)
    return pixels_CN if cube.fov_HW is None else pixels_CN.take(cube.fov_HW.ravel().nonzero()[0], axis=1)


def _float_sums(cube: Cube) -> BandAccumulator:
    pixels_CN = cube.data_CHW[:, cube.fov_HW] if cube.fov_HW is not None else cube.data_CHW.reshape(len(cube.data_CHW), -1)
    if not pixels_CN.shape[1]:
        return BandAccumulator()
    wide_CN, zeros_C = pixels_CN.astype(np.float64), np.zeros(len(pixels_CN))  # latents have no logarithm
    return BandAccumulator(
        sums_C=wide_CN.sum(1).tolist(),
        squares_C=(wide_CN * wide_CN).sum(1).tolist(),
        min_C=pixels_CN.min(1).tolist(),
        max_C=pixels_CN.max(1).tolist(),
        logs_C=zeros_C,
        log_squares_C=zeros_C,
        values=pixels_CN.shape[1],
    )
