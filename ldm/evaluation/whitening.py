"""Features in units of how real training images differ, so that a distance rests on more than the two directions that vary most.

Features of a random network are nearly copies of each other: most of their variance lies in two or three directions, brightness
above all, and a distance on them as they are is one number said 192 times.

Legend: N image, D feature.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ldm.threads import one_thread

LEAST_SHARE = 1e-2
"""Directions whose variance is below this share of the largest count as if they had it: there training images differ by noise, and
dividing by next to nothing would make that noise the figure. What only synthetic images do there still counts, by its own size."""


def effective_rank(eigenvalues_D: np.ndarray) -> float:
    """exp of the entropy of the normalised spectrum (Roy and Vetterli 2007): how many dimensions carry variance."""
    p = eigenvalues_D / eigenvalues_D.sum()
    p = p[p > 0]
    return float(np.exp(-(p * np.log(p)).sum()))


@dataclass(frozen=True, kw_only=True)
class Whitening:
    """(x - mean) V diag(1/√max(λ, LEAST_SHARE λ₁)), of the covariance V diag(λ) Vᵀ of training features.

    Attributes:
        effective_rank: of the training features as they are.
        effective_rank_whitened: of the same, whitened: how many directions a distance on them rests on.
    """

    mean_D: np.ndarray
    weight_DD: np.ndarray
    effective_rank: float
    effective_rank_whitened: float

    def __call__(self, x_ND: np.ndarray) -> np.ndarray:
        return (x_ND - self.mean_D) @ self.weight_DD


def whitening(train_ND: np.ndarray) -> Whitening | None:
    """The whitening of training features; None where there is no variance to whiten by: one image, or all the same."""
    if len(train_ND) < 2:
        return None
    with one_thread():
        value, vector = torch.linalg.eigh(torch.from_numpy(np.atleast_2d(np.cov(train_ND.T))))
    value_D, vector_DD = value.clamp(min=0).numpy(), vector.numpy()
    floored_D = np.maximum(value_D, LEAST_SHARE * value_D.max())
    if not floored_D.all():
        return None
    return Whitening(
        mean_D=train_ND.mean(0),
        weight_DD=vector_DD / np.sqrt(floored_D),
        effective_rank=effective_rank(value_D),
        effective_rank_whitened=effective_rank(value_D / floored_D),
    )
