"""Intervals of figures, from resamples of units: people with all that is of them, or independent synthetic images.

Pixels of one eye, and images of one person, are far from independent: to resample these would make intervals too narrow.

Legend: N image, U resampling unit, S resample.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def ratio_by_person(
    above_N: np.ndarray, below_N: np.ndarray, people: Sequence[str], words: tuple[int, ...], *, resamples: int = 1000
) -> tuple[float, tuple[float, float] | None]:
    """Σ above / Σ below over the images that have both, and its 95 % interval from resampling people; None of one person.

    Args:
        words: seed of the resamples.
    """
    has_N = np.isfinite(above_N) & np.isfinite(below_N)
    _, unit_N = np.unique(np.asarray(people)[has_N], return_inverse=True)
    above_U, below_U = (np.bincount(unit_N, weights=x_N[has_N]) for x_N in (above_N, below_N))
    ratio = float(above_U.sum() / below_U.sum())
    if len(above_U) < 2:
        return ratio, None
    rng = np.random.default_rng(np.random.SeedSequence(words))
    low, high = np.quantile(resampled_means(above_U, below_U, rng, resamples), TAILS[0.95])
    return ratio, (float(low), float(high))
