"""Variety by MS-SSIM (Wang et al. 2003): how alike two images of a set are, compared with two real images of different people.

A set with less variety than the real one has a higher mean; so the figure is the difference of the two means.

Legend: P pair, B image, C band, H W pixels, U unit (a person, or an independent synthetic image).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import t as student
from torch import Tensor

from data_shards.manifest import BandStats
from ldm.evaluation.intervals import LEAST_PEOPLE, TAILS

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the levels, fine to coarse (Wang et al. 2003, §3.2)
LEVELS = len(WEIGHTS)
SIGMA_PX = 1.5
BANDS_AT_ONCE = 16
"""Of one pair. Two pairs together took three times as long at 672²: above 32 MiB the C library asks the kernel for every array anew,
and each page of it costs a fault. Fewer bands were slower too: 16 fill a vector."""


def window_for(height: int, width: int) -> int | None:
    """Side of the Gaussian window: 11 as published where it fits the coarsest of the five levels, else the largest odd one that does.

    It fits where the shorter side exceeds 16 (window - 1): 11 from 161 pixels on, 9 from 129, 7 from 97, 5 from 65, 3 from
    33. Smaller images have no five levels: None.
    """
    return next((side for side in (11, 9, 7, 5, 3) if min(height, width) > (side - 1) * 2 ** (LEVELS - 1)), None)


def data_range(stats: BandStats) -> float:
    """One range for the whole dataset, all bands alike: from the lowest to the highest value of the training split (of 0 and up)."""
    return float(max(stats.max_C) - min(0.0, *stats.min_C))


@torch.no_grad()
def ms_ssim_of_pairs(a_PCHW: torch.Tensor, b_PCHW: torch.Tensor, *, range_: float, window: int, by_band: bool = False) -> np.ndarray:
    """MS-SSIM of each pair (P,), float64: the mean over bands of each band's own value. With `by_band` those values (P, C)."""
    values_PC = np.array(
        [
            torch.cat(
                [
                    _of_bands(a_1CHW.float(), b_1CHW.float(), range_, window)
                    for a_1CHW, b_1CHW in zip(a_CHW[None].split(BANDS_AT_ONCE, 1), b_CHW[None].split(BANDS_AT_ONCE, 1), strict=True)
                ]
            ).tolist()
            for a_CHW, b_CHW in zip(a_PCHW, b_PCHW, strict=True)
        ]
    )
    return values_PC if by_band else values_PC.mean(1)


def _of_bands(a_1CHW: Tensor, b_1CHW: Tensor, range_: float, window: int) -> Tensor:
    """MS-SSIM (C,) of each band of one pair (Wang et al. 2003, Eq. 7), float64.

    A level whose mean is below 0 counts as 0, as in all public implementations: a negative number has no real power.
    """
    factors_LC = []
    for level in range(LEVELS):
        light_1CHW, contrast_1CHW = ssim_maps(a_1CHW, b_1CHW, range_=range_, window=window)
        last = level == LEVELS - 1
        factors_LC.append((light_1CHW * contrast_1CHW if last else contrast_1CHW).mean((0, 2, 3)))
        if not last:
            odd = [side % 2 for side in a_1CHW.shape[2:]]
            a_1CHW, b_1CHW = (F.avg_pool2d(x_1CHW, 2, padding=odd) for x_1CHW in (a_1CHW, b_1CHW))
    factors_LC = torch.stack(factors_LC).double().clamp(min=0)
    return (factors_LC ** factors_LC.new_tensor(WEIGHTS)[:, None]).prod(0)


def ssim_maps(a_BCHW: Tensor, b_BCHW: Tensor, *, range_: float, window: int) -> tuple[Tensor, Tensor]:
    """Luminance, and contrast with structure, whose product is SSIM (Wang et al. 2004, Eq. 6 and 13), of every window in the image.

    Maps are `window` - 1 smaller than the images: no padding. Moments are those of the Gaussian weights themselves (not n - 1).
    """
    side = torch.arange(window, dtype=torch.float64) - window // 2
    gauss = torch.exp(-(side**2) / (2 * SIGMA_PX**2))
    bands = a_BCHW.shape[1]
    kernel = (gauss / gauss.sum()).to(a_BCHW).expand(bands, 1, 1, window)

    def mean(x_BCHW: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x_BCHW, kernel.transpose(2, 3), groups=bands), kernel, groups=bands)

    c1, c2 = (0.01 * range_) ** 2, (0.03 * range_) ** 2
    mean_a, mean_b = mean(a_BCHW), mean(b_BCHW)
    product, squares = mean_a * mean_b, mean_a.square() + mean_b.square()
    covariance = mean(a_BCHW * b_BCHW) - product
    variances = mean(a_BCHW.square() + b_BCHW.square()) - squares  # only their sum is wanted: four means, not five
    return (2 * product + c1) / (squares + c1), (2 * covariance + c2) / (variances + c2)


def draw_pairs(units: Sequence[str], pairs: int, *, seed: int = 0) -> np.ndarray:
    """Positions (P, 2) of images of different units (people), no pair twice.

    A pure function of (units, seed); the first pairs do not hang on how many are asked for.

    Fewer than `pairs` come back where there are not that many; none where all images belong to one unit.
    """
    _, unit_N, size_U = np.unique(np.asarray(units), return_inverse=True, return_counts=True)
    n, order_N = len(unit_N), np.argsort(unit_N, kind="stable")
    start_U, outside_N = np.cumsum(size_U) - size_U, n - size_U[unit_N]
    wanted = min(pairs, int(outside_N.sum()) // 2)
    until_N, rng = np.cumsum(outside_N), np.random.default_rng(np.random.SeedSequence((seed, 5)))
    found: dict[tuple[int, int], None] = {}
    while len(found) < wanted:
        # the first image in proportion to how many it can be paired with, the second evenly among those: every pair is as likely
        i = int(np.searchsorted(until_N, rng.integers(until_N[-1]), side="right"))
        j = int(rng.integers(outside_N[i]))
        j = int(order_N[j if j < start_U[unit_N[i]] else j + size_U[unit_N[i]]])  # images sorted by unit, its own ones skipped
        found[min(i, j), max(i, j)] = None
    return np.array(list(found), np.int64).reshape(-1, 2)


@dataclass(frozen=True, kw_only=True)
class PairMean:
    """Mean MS-SSIM of a set's pairs; None where it has no pairs.

    Attributes:
        mean_C: of each band.
        variance, variance_C: of these means, by leaving out each unit in turn; None of fewer than LEAST_PEOPLE units.
        units: people, or images that are each their own, whom the pairs are of.
    """

    mean: float | None = None
    mean_C: np.ndarray = field(default_factory=lambda: np.empty(0))
    variance: float | None = None
    variance_C: np.ndarray | None = None
    units: int = 0
    pairs: int = 0

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 %."""
        if self.variance is None:
            return None
        half = float(student.ppf(TAILS[0.95][1], self.units - 1) * self.variance**0.5)
        return self.mean - half, self.mean + half


def pair_mean(values_PC: np.ndarray, unit_P2: Sequence[tuple[str, str]]) -> PairMean:
    """Mean over pairs, and its variance by the jackknife: (U - 1)/U Σ (mean without unit u - mean of these)² (Efron and Stein 1981).

    Pairs that share a person are not independent; what one pair more or less does would make the interval too narrow. A bootstrap of a few
    people draws some of them twice, and never a pair of these: its intervals were too narrow, too.
    """
    names, index = np.unique(np.asarray(unit_P2), return_inverse=True)
    index_P2, n = index.reshape(-1, 2), len(names)
    mean_C = values_PC.mean(0)
    found = PairMean(mean=float(mean_C.mean()), mean_C=mean_C, units=n, pairs=len(values_PC))
    sums_UC = np.zeros((n, values_PC.shape[1]))
    for side in (0, 1):
        np.add.at(sums_UC, index_P2[:, side], values_PC)
    left_U = len(values_PC) - np.bincount(index_P2.ravel(), minlength=n)
    if n < LEAST_PEOPLE or not left_U.all():
        return found
    without_UC = (values_PC.sum(0) - sums_UC) / left_U[:, None]
    variance, variance_C = ((n - 1) / n * ((x - x.mean(0)) ** 2).sum(0) for x in (without_UC.mean(1), without_UC))
    return replace(found, variance=float(variance), variance_C=variance_C)


def difference(a: PairMean, b: PairMean, *, level: float = 0.95) -> tuple[float, tuple[float, float] | None] | tuple[None, None]:
    """|mean a - mean b|, and the interval of the signed difference a - b by Welch's t; None of fewer than LEAST_PEOPLE units on a side."""
    if not (a.pairs and b.pairs):
        return None, None
    if a.variance is None or b.variance is None:
        return abs(a.mean - b.mean), None
    low, high = _welch(np.array(a.mean - b.mean), np.array([a.variance, b.variance]), (a.units, b.units), level)
    return abs(a.mean - b.mean), (float(low), float(high))


def _welch(difference_C: np.ndarray, variance_2C: np.ndarray, units: tuple[int, int], level: float) -> tuple[np.ndarray, np.ndarray]:
    """Low and high end of differences of means whose variances differ (Welch 1947)."""
    of_both_C = variance_2C.sum(0)
    freedom_C = of_both_C**2 / np.maximum((variance_2C.T**2 / (np.array(units) - 1)).sum(-1), np.finfo(float).tiny)
    half_C = student.ppf(TAILS[level][1], np.maximum(freedom_C, 1.0)) * np.sqrt(of_both_C)
    return difference_C - half_C, difference_C + half_C


@dataclass(frozen=True, kw_only=True)
class BandVariety:
    """MS-SSIM of pairs in one band.

    Attributes:
        real, synthetic, floor: mean of each set's pairs; None where it has no pairs.
        difference, difference_floor: |synthetic - real| and |floor - real|.
        difference_interval: 95 %, of the signed difference; None with fewer than 4 units on a side.
    """

    real: float
    synthetic: float
    floor: float | None
    difference: float
    difference_interval: tuple[float, float] | None
    difference_floor: float | None


def by_band(real: PairMean, synthetic: PairMean, floor: PairMean) -> tuple[BandVariety, ...]:
    """Of each band; none where one of the two sets has no pairs."""
    if not (real.pairs and synthetic.pairs):
        return ()
    intervals = [None] * len(real.mean_C)
    if synthetic.variance_C is not None and real.variance_C is not None:
        both_2C = np.stack([synthetic.variance_C, real.variance_C])
        ends = _welch(synthetic.mean_C - real.mean_C, both_2C, (synthetic.units, real.units), 0.95)
        intervals = list(zip(*(end_C.tolist() for end_C in ends), strict=True))
    return tuple(
        BandVariety(
            real=float(real.mean_C[c]),
            synthetic=float(synthetic.mean_C[c]),
            floor=float(floor.mean_C[c]) if floor.pairs else None,
            difference=float(abs(synthetic.mean_C[c] - real.mean_C[c])),
            difference_interval=intervals[c],
            difference_floor=float(abs(floor.mean_C[c] - real.mean_C[c])) if floor.pairs else None,
        )
        for c in range(len(real.mean_C))
    )


@dataclass(frozen=True, kw_only=True)
class MsSsimFigures:
    """Variety of a synthetic set beside that of real images.

    Attributes:
        window: side of the Gaussian window, in pixels; None where images are too small for five levels.
        sigma_px, levels, data_range: of MS-SSIM; the range in reflectance.
        reason: why there are no figures.
        real, synthetic, floor: mean MS-SSIM of each set's pairs, higher where a set varies less; None where it has no pairs.
        pairs_real, pairs_synthetic, pairs_floor: how many.
        difference, difference_floor: |synthetic - real| and |floor - real|.
        …_interval: 95 %, by people, or synthetic images; those of differences are signed. None with fewer than 4 of them on a side.
        bands: the same of each band alone.
        apart_interval: 99 %, of synthetic - real: what a verdict hangs on.
    """

    window: int | None
    sigma_px: float
    levels: int
    data_range: float
    reason: str | None
    real: float | None
    real_interval: tuple[float, float] | None
    pairs_real: int
    synthetic: float | None
    synthetic_interval: tuple[float, float] | None
    pairs_synthetic: int
    floor: float | None
    floor_interval: tuple[float, float] | None
    pairs_floor: int
    difference: float | None
    difference_interval: tuple[float, float] | None
    difference_floor: float | None
    difference_floor_interval: tuple[float, float] | None
    bands: tuple[BandVariety, ...] = ()
    apart_interval: tuple[float, float] | None = None


def ms_ssim_figures(real: PairMean, synthetic: PairMean, floor: PairMean, *, range_: float, window: int | None) -> MsSsimFigures:
    """The means of three sets side by side, and how far two of them lie from the real one's."""
    missing, reason = [name for name, mean in (("real", real), ("synthetic", synthetic)) if not mean.pairs], None
    if window is None:
        reason = "images of 32 pixels or less have no five levels"
    elif missing:
        reason = f"no two images of different people in the {' and the '.join(missing)} set"
    of_synthetic, synthetic_interval = difference(synthetic, real)
    of_floor, floor_interval = difference(floor, real)
    return MsSsimFigures(
        window=window,
        sigma_px=SIGMA_PX,
        levels=LEVELS,
        data_range=range_,
        reason=reason,
        real=real.mean,
        real_interval=real.interval,
        pairs_real=real.pairs,
        synthetic=synthetic.mean,
        synthetic_interval=synthetic.interval,
        pairs_synthetic=synthetic.pairs,
        floor=floor.mean,
        floor_interval=floor.interval,
        pairs_floor=floor.pairs,
        difference=of_synthetic,
        difference_interval=synthetic_interval,
        difference_floor=of_floor,
        difference_floor_interval=floor_interval,
        bands=by_band(real, synthetic, floor),
        apart_interval=difference(synthetic, real, level=0.99)[1],
    )
