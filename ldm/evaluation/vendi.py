"""Variety of one set by itself: the Vendi score (Friedman & Dieng 2023), the effective number of images that differ.

Legend: N image, D feature.
"""

from __future__ import annotations

import numpy as np
import torch

from data_shards.errors import InputError
from ldm.evaluation.frechet import Features, checked
from ldm.threads import one_thread


def vendi_score(x_ND: Features, weight_N: np.ndarray | None = None) -> float:
    """exp(- Σ λ ln λ) over the eigenvalues λ of K / n, K the cosines of all pairs of images (Friedman & Dieng 2023, §3).

    1 where all images are alike, n where no two share a direction; never above D. With weights p the eigenvalues are those of
    diag(√p) K diag(√p) (their score of sets with probabilities), so an image of weight 2/n counts as two, and a bootstrap copies nothing.
    The same eigenvalues, but for zeros, has Xᵀ diag(p) X, D×D: the smaller of the two matrices is taken.

    Cosines are taken about 0: features with a common mean make all images alike, so give them centred on the real images.

    Args:
        weight_N: of each image, together 1; evenly by default.

    Raises:
        InputError: fewer than two images, values that are not finite, features that are all 0, weights that do not sum to 1.
    """
    x_ND = checked("the set's", x_ND)
    length_N = x_ND.norm(dim=1)
    if not length_N.all():
        raise InputError(f"{int((length_N == 0).sum())} images have features that are all 0", expected="a direction for each image")
    weight_N = torch.full_like(length_N, 1 / len(x_ND)) if weight_N is None else torch.as_tensor(weight_N).to(length_N)
    if weight_N.shape != length_N.shape or (weight_N < 0).any() or abs(float(weight_N.sum()) - 1) > 1e-9:
        raise InputError(
            f"weights of shape {tuple(weight_N.shape)} that sum to {float(weight_N.sum()):.6g}",
            expected=f"{len(x_ND)}, none below 0, that sum to 1",
        )
    drawn_N = weight_N > 0
    scaled_ND = x_ND[drawn_N] * (weight_N[drawn_N].sqrt() / length_N[drawn_N])[:, None]
    matrix = scaled_ND @ scaled_ND.T if len(scaled_ND) < scaled_ND.shape[1] else scaled_ND.T @ scaled_ND
    with one_thread():
        eigenvalues = torch.linalg.eigvalsh(matrix).clamp(min=0)  # rounding leaves -1e-17
    return float(torch.special.entr(eigenvalues).sum().exp())
