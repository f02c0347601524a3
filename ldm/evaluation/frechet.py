"""Distances between two sets of features: Fréchet (Heusel et al. 2017), its limit for many images, and KID.

All in float64: float32 statistics give negative distances of a set to itself. Features may be numpy arrays or tensors, which
stay on their device.

Legend: N image, D feature, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import lapack
from torch import Tensor

from data_shards.errors import InputError
from ldm.threads import one_thread

Features = np.ndarray | Tensor


def checked(name: str, x_ND: Features) -> Tensor:
    """Features as float64.

    Raises:
        InputError: fewer than two images, or values that are not finite.
    """
    x_ND = torch.as_tensor(x_ND, dtype=torch.float64)
    if x_ND.ndim != 2 or len(x_ND) < 2:
        raise InputError(f"{name} features of shape {tuple(x_ND.shape)}", expected="(N, D) with N at least 2: a spread needs two images")
    if not x_ND.sum().isfinite() and not x_ND.isfinite().all():  # the sum alone is ten times as fast
        bad = int((~x_ND.isfinite()).any(1).sum())
        raise InputError(f"{name} features: {bad} images have NaN or infinite values", expected="finite features")
    return x_ND


ROWS_AT_ONCE = 1024  # centred in memory that is used again
WELL_CONDITIONED = 1e6
"""Up to this condition a Cholesky factor errs by 1e-10 of the largest singular value at most (2⁻⁵³ times the condition)."""


def spread_factor(x_ND: Tensor) -> Tensor:
    """A factor F (R, D) with Fᵀ F = the sample covariance and R = min(N, D).

    Centred features serve as they are when N < D. Otherwise the R of their QR decomposition, which is smaller; by Cholesky of their
    products, in a third of the time, where that loses nothing: squares halve the digits of what is small beside the largest.
    """
    mean_D, freedom = x_ND.mean(0), (len(x_ND) - 1) ** 0.5
    if len(x_ND) <= x_ND.shape[1]:
        return (x_ND - mean_D) / freedom
    products_DD = torch.zeros(x_ND.shape[1], x_ND.shape[1]).to(x_ND)
    for rows_ND in x_ND.split(ROWS_AT_ONCE):
        products_DD += with_itself(rows_ND - mean_D)
    with one_thread():
        factor_DD, failed = torch.linalg.cholesky_ex(products_DD, upper=True)
        if not failed and condition(factor_DD) < WELL_CONDITIONED:
            return factor_DD / freedom
        return torch.linalg.qr(x_ND - mean_D, mode="r").R / freedom


def condition(upper_DD: Tensor) -> float:
    """At least the condition of a triangular matrix, but for LAPACK's estimate: the geometric mean of those in the norms 1 and ∞.

    |A|₂² ≤ |A|₁ |A|∞, and so of the inverse. An estimate takes 1 ms for 1024 columns, the inverse itself 40.
    """
    inverse_1, inverse_inf = (lapack.dtrcon(upper_DD.cpu().numpy(), norm=norm)[0] for norm in ("1", "I"))
    return (inverse_1 * inverse_inf) ** -0.5 if inverse_1 and inverse_inf else float("inf")


def with_itself(x_ND: Tensor) -> Tensor:
    """Xᵀ X. On the CPU by numpy, which works out one half alone, where torch does both."""
    return x_ND.T @ x_ND if x_ND.is_cuda else torch.from_numpy(x_ND.numpy().T @ x_ND.numpy())


def frechet_distance(a_ND: Features, b_ND: Features) -> float:
    """Squared Fréchet distance of the two normal fits: |μa - μb|² + tr(Σa + Σb - 2 (Σa Σb)^½)  (Heusel et al. 2017, Eq. 6).

    With Σ = Fᵀ F the eigenvalues of Σa Σb are the squared singular values of Fa Fbᵀ, so tr (Σa Σb)^½ is their plain sum:
    no matrix square root, exact for singular covariances, and min(N, D)² in size.

    Raises:
        InputError: fewer than two images, different D, or values that are not finite.
    """
    a_ND, b_ND = checked("first", a_ND), checked("second", b_ND)
    if a_ND.shape[1] != b_ND.shape[1]:
        raise InputError(f"features of {a_ND.shape[1]} and {b_ND.shape[1]} dimensions", expected="one extractor for both sets")
    a_RD, b_RD = spread_factor(a_ND), spread_factor(b_ND)
    gap_D = a_ND.mean(0) - b_ND.mean(0)
    product_RR = a_RD @ b_RD.T
    with one_thread():
        cross = torch.linalg.svdvals(product_RR).sum()
    distance = gap_D @ gap_D + (a_RD**2).sum() + (b_RD**2).sum() - 2 * cross
    return max(float(distance), 0.0)  # rounding leaves ±1e-15 of the traces on equal sets


def subset(x_ND: Features, n: int, words: tuple[int, ...]) -> Features:
    """`n` images drawn without replacement, a pure function of `words`; all of them, in order, where n is their number."""
    if n >= len(x_ND):
        return x_ND
    return x_ND[np.random.default_rng(np.random.SeedSequence(words)).choice(len(x_ND), n, replace=False)]


@dataclass(frozen=True, kw_only=True)
class Infinity:
    """FID∞ with the standard error of its line (too small, as its points share images).

    It may be negative: an unbiased estimate of 0 is, half of the time.
    """

    value: float
    standard_error: float
    smallest_n: int
    largest_n: int


def frechet_infinity(a_ND: Features, b_ND: Features, *, seed: int = 0, points: int = 8, draws: int = 4) -> Infinity | None:
    """FID∞ (Chong & Forsyth 2020, §4): the distance at several N, fitted by a line in 1/N, taken at 1/N = 0.

    Unlike the paper, which holds the real statistics fixed, both sets are thinned to the same N, so that the bias of the
    real side goes as well: our real sets are small. Below N = 40 the line means nothing, and None is returned.
    """
    largest = min(len(a_ND), len(b_ND))
    if largest < 40:
        return None
    sizes = np.unique(np.linspace(largest // 2, largest, points).astype(int))
    inverse, distance = [], []
    for n in sizes:
        for k in range(draws):
            inverse.append(1 / n)
            distance.append(frechet_distance(subset(a_ND, n, (seed, 0, n, k)), subset(b_ND, n, (seed, 1, n, k))))
    design = np.stack([np.ones(len(inverse)), inverse], 1)
    fit, *_ = np.linalg.lstsq(design, np.array(distance), rcond=None)
    residual = np.array(distance) - design @ fit
    variance = residual @ residual / (len(distance) - 2) * np.linalg.inv(design.T @ design)[0, 0]
    return Infinity(value=float(fit[0]), standard_error=float(np.sqrt(variance)), smallest_n=int(sizes[0]), largest_n=int(largest))


def kid(a_ND: Features, b_ND: Features) -> float:
    """Unbiased squared MMD with the kernel (x·y / D + 1)³ (Bińkowski et al. 2018, Eq. 4 and §3). May be negative near 0.

    Raises:
        InputError: fewer than two images, or values that are not finite.
    """
    a_ND, b_ND = checked("first", a_ND), checked("second", b_ND)

    def kernel(x_ND: Tensor, y_ND: Tensor) -> Tensor:
        return (x_ND @ y_ND.T / x_ND.shape[1] + 1) ** 3

    def within(x_ND: Tensor) -> Tensor:
        k_NN = kernel(x_ND, x_ND)
        return (k_NN.sum() - k_NN.trace()) / (len(x_ND) * (len(x_ND) - 1))

    return float(within(a_ND) + within(b_ND) - 2 * kernel(a_ND, b_ND).mean())


def conditioned(real_ND: Features, other_ND: Features) -> tuple[Tensor, Tensor]:
    """Both sets about the real mean, in units of the real features' root mean square about it.

    So KID, whose kernel has a fixed constant, does not hang on the extractor's scale.
    """
    real_ND, other_ND = checked("real", real_ND), checked("other", other_ND)
    centre_D = real_ND.mean(0)
    scale = float(((real_ND - centre_D) ** 2).mean().sqrt()) or 1.0
    return (real_ND - centre_D) / scale, (other_ND - centre_D) / scale
