"""Per-band statistics of stored counts, exact and in any order.

Legend: C band, N pixels.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_shards.cube import Cube
from data_shards.errors import InputError
from data_shards.manifest import BandStats, signed_log

FORMAT = "band-statistics-2"  # of the sums: a packing that was killed with others begins anew


@functools.lru_cache(maxsize=4)
def logarithms(log_zero: float) -> np.ndarray:
    """Those of all counts that can be stored: looked up, where taking them of each pixel would be most of the work of a packing."""
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

    def add(self, cube: Cube) -> None:
        flat_CN = cube.data_CHW[:, cube.fov_HW] if cube.fov_HW is not None else cube.data_CHW.reshape(len(cube.data_CHW), -1)
        if not flat_CN.shape[1]:
            return
        exact = flat_CN.dtype.kind == "u"
        wide_CN = flat_CN.astype(np.uint64 if exact else np.float64)
        to = int if exact else float
        log_zero = 0.0 - cube.meta.offset / cube.meta.scale if exact else 0.0  # the stored value of reflectance 0 (never -0.0)
        logs_CN = logarithms(log_zero)[flat_CN] if exact else np.zeros((len(flat_CN), 1))
        self.merge(
            BandAccumulator(
                sums_C=[to(v) for v in wide_CN.sum(1)],
                squares_C=[to(v) for v in (wide_CN * wide_CN).sum(1)],
                min_C=flat_CN.min(1).tolist(),
                max_C=flat_CN.max(1).tolist(),
                logs_C=logs_CN.sum(1),
                log_squares_C=(logs_CN * logs_CN).sum(1),
                log_zero=log_zero,
                values=flat_CN.shape[1],
            )
        )

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
