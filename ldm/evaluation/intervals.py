"""Intervals of figures, from resamples of units: people with all that is of them, or independent synthetic images.

Pixels of one eye, and images of one person, are far from independent: to resample these would make intervals too narrow.

Legend: U resampling unit, S resample.
"""

from __future__ import annotations

import numpy as np

LEAST_PEOPLE = 4
"""Units on each side of a comparison: of fewer there is no interval, and so no verdict. Who two or three people are decides any figure."""

TAILS = {0.95: (0.025, 0.975), 0.99: (0.005, 0.995)}
"""The quantiles between which an interval of that level lies."""


def about(
    value: float, resampled_S: np.ndarray, *, level: float = 0.95, least: float = -np.inf, scale: float = 1.0
) -> tuple[float, float] | None:
    """The spread of resamples about their own mean, laid around the figure; None where they do not differ, which says nothing of chance.

    Resampling itself adds to a distance (a resample of people lies off the people, and a half is biased as smaller sets are), so plain
    percentiles of a distance near 0 would not even hold the figure. The same shift sits in figure and floor, so the two stay comparable.

    Args:
        level: of TAILS.
        least: what the figure cannot be below.
        scale: of that spread, where the resamples spread otherwise than the figure does.
    """
    if len(resampled_S) < 2 or not np.ptp(resampled_S) > 1e-12 * np.abs(resampled_S).max():
        return None
    low, high = value + scale * np.quantile(resampled_S - resampled_S.mean(), TAILS[level])
    return max(float(low), least), float(high)


def resampled_means(sums_U: np.ndarray, counts_U: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """Σ sums / Σ counts over units drawn with replacement, as many as there are: (S, …).

    Args:
        sums_U: (U, …).
    """
    n = len(counts_U)
    drawn_SU = rng.multinomial(n, np.full(n, 1 / n), size=resamples)
    counts_S = drawn_SU @ counts_U
    return drawn_SU @ sums_U / counts_S.reshape(-1, *(1,) * (sums_U.ndim - 1))
