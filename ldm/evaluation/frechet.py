"""Distances between two sets of features: Fréchet (Heusel et al. 2017), its limit for many images, and KID.

All in float64: float32 statistics give negative distances of a set to itself. Features may be numpy arrays or tensors, which
stay on their device.

Legend: N image, D feature, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.linalg import lapack
from torch import Tensor

from data_shards.errors import InputError
from ldm.evaluation.features import Extractor
from ldm.evaluation.whitening import Whitening
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


def frechet_at(a_ND: Features, b_ND: Features, n: int, *, seed: int = 0, draws: int = 10) -> float:
    """Mean Fréchet distance from `a` to `n` images of `b`. Sets of different size compare only at one n, for the bias goes as 1/n."""
    draws = draws if n < len(b_ND) else 1
    return float(np.mean([frechet_distance(a_ND, subset(b_ND, n, (seed, n, k))) for k in range(draws)]))


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


@dataclass(frozen=True, kw_only=True)
class Kid:
    """Mean of KID over subsets, its 2.5 and 97.5 percentiles among them, and the size of a subset."""

    value: float
    interval: tuple[float, float]
    subset: int


def kid_with_interval(a_ND: Features, b_ND: Features, *, seed: int = 0, subsets: int = 100, largest: int = 1000) -> Kid:
    """KID over pairs of subsets, each of half the smaller set (at most `largest`), as Bińkowski et al. 2018 do for speed and spread.

    The interval is that of a subset, so it is wider than that of the mean.
    """
    n = max(2, min(len(a_ND) // 2, len(b_ND) // 2, largest))
    values = [kid(subset(a_ND, n, (seed, 2, k)), subset(b_ND, n, (seed, 3, k))) for k in range(subsets)]
    low, high = np.quantile(values, (0.025, 0.975))
    return Kid(value=float(np.mean(values)), interval=(float(low), float(high)), subset=n)


def conditioned(real_ND: Features, other_ND: Features) -> tuple[Tensor, Tensor]:
    """Both sets about the real mean, in units of the real features' root mean square about it.

    So KID, whose kernel has a fixed constant, does not hang on the extractor's scale.
    """
    real_ND, other_ND = checked("real", real_ND), checked("other", other_ND)
    centre_D = real_ND.mean(0)
    scale = float(((real_ND - centre_D) ** 2).mean().sqrt()) or 1.0
    return (real_ND - centre_D) / scale, (other_ND - centre_D) / scale


@dataclass(frozen=True, kw_only=True)
class FrechetFigures:
    """Fréchet distance and KID of a synthetic set to the reference, real images, on whitened features (ldm/evaluation/whitening.py).

    `floor`, in the names: other real images in place of the synthetic ones. A figure that could not be had is None.

    Attributes:
        extractor, d: what gives the features, and how many.
        effective_rank, effective_rank_whitened: effective dimensions of the training features, as they are and whitened.
        n_real, people_real: images of the reference, and their people.
        n_synthetic, n_floor: images compared with it; n_floor: at most as many as synthetic ones, 0 without a floor.
        reason: why there are no figures.
        value: Fréchet distance of all synthetic images.
        floor, value_at_floor_n: Fréchet distances of n_floor images each, which compare with one another.
        infinity, infinity_floor: FID∞; None below 40 images.
        infinity_standard_error, infinity_floor_standard_error: of the line that gives it.
        kid, kid_floor: mean over subsets of kid_subset (kid_floor_subset) images.
        kid_interval, kid_floor_interval: 2.5 and 97.5 percentiles among the subsets.
    """

    extractor: str
    d: int
    effective_rank: float | None
    effective_rank_whitened: float | None
    n_real: int
    people_real: int
    n_synthetic: int
    reason: str | None
    value: float | None = None
    infinity: float | None = None
    infinity_standard_error: float | None = None
    kid: float | None = None
    kid_interval: tuple[float, float] | None = None
    kid_subset: int | None = None
    infinity_floor: float | None = None
    infinity_floor_standard_error: float | None = None
    kid_floor: float | None = None
    kid_floor_interval: tuple[float, float] | None = None
    kid_floor_subset: int | None = None
    n_floor: int = 0
    floor: float | None = None
    value_at_floor_n: float | None = None


def frechet_figures(
    features: dict[str, np.ndarray], white: Whitening | None, extractor: Extractor, *, people: int, reason: str | None, seed: int
) -> FrechetFigures:
    """Both distances, and their floors.

    Args:
        features: of 'real', 'synthetic' and, where there is one, 'floor', as the extractor gives them.
        people: of the real images.
        reason: why no distance to the real images is a mark of quality, if so.
    """
    if white is None:
        reason = reason or "the training images do not differ in their features"
    elif len(features["synthetic"]) < 2:
        reason = reason or "a synthetic set of one image has no spread"
    figures = FrechetFigures(
        extractor=extractor.name,
        d=extractor.dimension,
        effective_rank=white.effective_rank if white else None,
        effective_rank_whitened=white.effective_rank_whitened if white else None,
        n_real=len(features["real"]),
        people_real=people,
        n_synthetic=len(features["synthetic"]),
        reason=reason,
    )
    if reason:
        return figures
    white_ND = {name: white(x_ND) for name, x_ND in features.items()}
    return _distances(figures, white_ND["real"], white_ND["synthetic"], white_ND.get("floor", ()), seed)


def _distances(
    figures: FrechetFigures, real_ND: np.ndarray, synthetic_ND: np.ndarray, floor_ND: np.ndarray | tuple[()], seed: int
) -> FrechetFigures:
    """The figures with all distances of whitened features, and those of the floor where it has two images at least."""
    infinity, kid_ = frechet_infinity(real_ND, synthetic_ND, seed=seed), kid_with_interval(*conditioned(real_ND, synthetic_ND), seed=seed)
    figures = replace(
        figures,
        value=frechet_distance(real_ND, synthetic_ND),
        infinity=infinity.value if infinity else None,
        infinity_standard_error=infinity.standard_error if infinity else None,
        kid=kid_.value,
        kid_interval=kid_.interval,
        kid_subset=kid_.subset,
    )
    if len(floor_ND) < 2:
        return figures
    n = min(len(synthetic_ND), len(floor_ND))
    infinity, kid_ = frechet_infinity(real_ND, floor_ND, seed=seed), kid_with_interval(*conditioned(real_ND, floor_ND), seed=seed)
    return replace(
        figures,
        infinity_floor=infinity.value if infinity else None,
        infinity_floor_standard_error=infinity.standard_error if infinity else None,
        kid_floor=kid_.value,
        kid_floor_interval=kid_.interval,
        kid_floor_subset=kid_.subset,
        n_floor=n,
        floor=frechet_at(real_ND, floor_ND, n, seed=seed),
        value_at_floor_n=frechet_at(real_ND, synthetic_ND, n, seed=seed),
    )
