"""Fidelity and variety of a synthetic set by nearest neighbours in a feature space.

Legend: N image, D feature, T image of a tile, K neighbour.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data_shards.errors import InputError

TILE = 1024  # images at a time: no matrix of all distances is ever held


@dataclass(frozen=True, kw_only=True)
class Prdc:
    """Attributes:
    precision: share of synthetic images within the ball of some real one; a ball reaches to its image's k-th neighbour in its own set
        (Kynkäänniemi et al. 2019, Eq. 1–2).
    recall: share of real images within the ball of some synthetic one.
    density: mean number of real balls that hold a synthetic image, over k (Naeem et al. 2020, Eq. 4); 1 for the same law, above it where
        images crowd at the middle.
    coverage: share of real images whose ball holds a synthetic one (Eq. 6).
    """

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(real_ND: np.ndarray, synthetic_ND: np.ndarray, *, k: int = 5) -> Prdc:
    """All four, in float64.

    Raises:
        InputError: k images or fewer in a set.
    """
    least = min(len(real_ND), len(synthetic_ND))
    if least <= k:
        raise InputError(f"{least} images in a set", expected=f"at least {k + 1}, for {k} neighbours")
    radius2_real, radius2_synthetic = (_radius2(x_ND, k) for x_ND in (real_ND, synthetic_ND))
    held, any_held = 0, 0
    within_N, nearest2_N = np.zeros(len(real_ND), bool), np.full(len(real_ND), np.inf)
    for rows, distance2_TN in _tiles(synthetic_ND, real_ND):
        in_real_TN = distance2_TN < radius2_real
        held += int(in_real_TN.sum())
        any_held += int(in_real_TN.any(1).sum())
        within_N |= (distance2_TN < radius2_synthetic[rows, None]).any(0)
        nearest2_N = np.minimum(nearest2_N, distance2_TN.min(0))
    return Prdc(
        precision=any_held / len(synthetic_ND),
        recall=float(within_N.mean()),
        density=held / (k * len(synthetic_ND)),
        coverage=float((nearest2_N < radius2_real).mean()),
    )


def _radius2(x_ND: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of each image to its k-th neighbour in the set, itself not counted."""
    return np.concatenate([np.partition(distance2_TN, k, axis=1)[:, k] for _, distance2_TN in _tiles(x_ND, x_ND)])


def _tiles(a_ND: np.ndarray, b_ND: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Squared distances from some images of `a` at a time to all of `b`; both about the middle of `b`, so that little cancels."""
    centre_D = b_ND.mean(0)
    a_ND, b_ND = (np.asarray(x_ND, np.float64) - centre_D for x_ND in (a_ND, b_ND))
    square_N = (b_ND**2).sum(1)
    for start in range(0, len(a_ND), TILE):
        rows = slice(start, start + TILE)
        distance2_TN = (a_ND[rows] ** 2).sum(1)[:, None] + square_N - 2 * a_ND[rows] @ b_ND.T
        yield rows, np.maximum(distance2_TN, 0)
