"""Fidelity and variety apart: precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

A set may be near to the real one because each image is good, or because the images are as varied; one distance cannot say which.

Legend: N image, D feature.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist

from data_shards.errors import InputError
from ldm.evaluation.frechet import Features, checked

TILE_BYTES = 64 * 2**20
"""Most memory for distances at a time: a whole matrix of a million by a hundred thousand images would take 800 GB."""


@dataclass(frozen=True, kw_only=True)
class Prdc:
    """All of them without unit. A ball reaches from an image to its k-th nearest neighbour in its own set.

    Attributes:
        precision: share of synthetic images in the ball of some real image: how many look real. 0 to 1.
        recall: share of real images in the ball of some synthetic one: how much of the real variety is there. 0 to 1.
        density: real balls around a synthetic image, over k. One outlier among the real images cannot lift it as it lifts precision;
            about 1 where both sets come from one distribution, and above 1 where synthetic images crowd where real ones are densest.
        coverage: share of real images whose ball holds some synthetic image. 0 to 1.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(real_ND: Features, synthetic_ND: Features, *, k: int = 5) -> Prdc:
    """The four shares, by Euclidean distances in float64 (Kynkäänniemi et al. 2019, Eq. 1–2; Naeem et al. 2020, §3).

    Each distance is summed from the differences themselves: by |x|² - 2 x·y + |y|² an exact copy would not lie at distance 0, and
    whether it lies in a ball of the same radius would hang on rounding.

    Raises:
        InputError: fewer than k + 1 images of either set, different D, or values that are not finite.
    """
    real_ND, synthetic_ND = checked("real", real_ND).cpu().numpy(), checked("synthetic", synthetic_ND).cpu().numpy()
    for name, x_ND in (("real", real_ND), ("synthetic", synthetic_ND)):
        if len(x_ND) <= k:
            raise InputError(f"{len(x_ND)} {name} images", expected=f"at least {k + 1}: the balls reach to the neighbour number {k}")
    if real_ND.shape[1] != synthetic_ND.shape[1]:
        raise InputError(f"features of {real_ND.shape[1]} and {synthetic_ND.shape[1]} dimensions", expected="one extractor for both sets")
    real_radius_N, synthetic_radius_N = radii(real_ND, k), radii(synthetic_ND, k)
    balls_N = np.zeros(len(synthetic_ND), np.int64)  # real balls that hold each synthetic image
    recalled = covered = 0
    for rows in tiles(len(real_ND), len(synthetic_ND)):
        distance_NN = cdist(real_ND[rows], synthetic_ND)
        held_NN = distance_NN < real_radius_N[rows, None]
        balls_N += held_NN.sum(0)
        covered += int(held_NN.any(1).sum())
        recalled += int((distance_NN < synthetic_radius_N).any(1).sum())
    return Prdc(
        precision=float((balls_N > 0).mean()),
        recall=recalled / len(real_ND),
        density=float(balls_N.mean() / k),
        coverage=covered / len(real_ND),
    )


def radii(x_ND: np.ndarray, k: int) -> np.ndarray:
    """Distance (N,) of each image to its k-th nearest neighbour in the set, itself not counted."""
    # the image itself, at distance 0, is the nearest: so the k-th neighbour stands at place k, counted from 0
    return np.concatenate([np.partition(cdist(x_ND[rows], x_ND), k, axis=1)[:, k] for rows in tiles(len(x_ND), len(x_ND))])


def tiles(rows: int, columns: int) -> list[slice]:
    """Rows of a matrix of distances, as many at a time as TILE_BYTES hold."""
    at_once = max(1, TILE_BYTES // (8 * columns))
    return [slice(start, start + at_once) for start in range(0, rows, at_once)]
