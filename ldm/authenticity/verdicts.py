"""What distances say of a synthetic set, each figure beside what it would be of an honest one.

Everything is counted by people: images of one person are no independent draws. Of synthetic images those that are alike are one draw.

Legend: M synthetic image, N real image, P person, R resample, Q cell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from ldm.authenticity.yardstick import LEAST_RANK, Yardstick, least_copies, most_copies, tail_probability, telling

POWER = 0.8
RATE = 0.01  # share of honest images below the threshold, where nobody says otherwise
LEAST_PEOPLE = 4
LEAST_IN_CELL = 20  # images of either side (Meehan et al. 2020 take τ = 20)
RESAMPLES = 4000
BLOCK = 1 << 22  # random numbers at once


@dataclass(frozen=True, kw_only=True)
class CopyRate:
    """Images that lie nearer to training images than all but a few held-out people do.

    Attributes:
        rate: share of honest images that lie there: the false rate of the threshold.
        wanted_rate: the false rate that was asked for; with too few people the threshold is at a higher one.
        people_for_it: how many people held out the wanted rate takes.
        people: held out, as independent draws.
        threshold: the distance, or the ratio.
        n: images, those that are alike and below the threshold counted once.
        below: of these below the threshold. expected: of an honest set. honest: between which two numbers 95 % of honest sets lie.
        p_value: that an honest set has so many there, or more.
        copies: at least, and at most, so many of them are copies (95 %).
        telling: the least number below that is more than chance at the level; None: none is.
        visible: the share of copies, all below the threshold, that is seen in four of five sets; None: not even all.
        reason: why there is no verdict.
    """

    rate: float | None = None
    wanted_rate: float
    people_for_it: int
    people: int
    threshold: float | None = None
    n: int
    below: int | None = None
    expected: float | None = None
    honest: tuple[int, int] | None = None
    p_value: float | None = None
    copies: tuple[int, int] | None = None
    telling: int | None = None
    visible: float | None = None
    reason: str | None = None


def rank_for(yardstick: Yardstick, rate: float) -> int:
    """Of the person whose distance is the threshold; where the people do not bear the rate, the least that they bear; 0: none."""
    if yardstick.people < LEAST_PEOPLE:
        return 0
    return yardstick.rank(rate) or LEAST_RANK


def copy_rate(below: int, images: int, yardstick: Yardstick, *, rate: float, level: float) -> CopyRate:
    """Args:
    below, images: of the synthetic set, as independent draws; `below` by `rank_for`.
    rate: wanted; level: how often an honest set may be accused.
    """
    wanted = {"wanted_rate": rate, "people_for_it": math.ceil(LEAST_RANK / rate * (1 - 1e-12)) - 1, "people": yardstick.people, "n": images}
    r, people = rank_for(yardstick, rate), yardstick.people
    if not r:
        return CopyRate(**wanted, reason=f"{people} people held out, as independent draws: at least {LEAST_PEOPLE} wanted")
    low, high = stats.betabinom.ppf([0.025, 0.975], images, r, people + 1 - r)
    tells = telling(images, r, people, level)
    return CopyRate(
        **wanted,
        rate=r / (people + 1),
        threshold=yardstick.threshold(r),
        below=below,
        expected=images * r / (people + 1),
        honest=(int(low), int(high)),
        p_value=tail_probability(below, images, r, people),
        copies=(least_copies(below, images, r, people, 0.025), most_copies(below, images, r, people, 0.025)),
        telling=tells,
        visible=None if tells is None else visible_share(images, r, people, tells),
    )


def visible_share(images: int, r: int, people: int, tells: int) -> float | None:
    """The least share of copies at which `tells` images or more lie below the threshold in four of five sets."""
    low, high = 0, images
    while low < high:
        middle = (low + high) // 2
        if tail_probability(tells - middle, images - middle, r, people) >= POWER:
            high = middle
        else:
            low = middle + 1
    return low / images if tail_probability(tells - low, images - low, r, people) >= POWER else None


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share of the synthetic images beside the same share of images of people held out.

    Attributes:
        value, real: the shares; `real` is the mean over people.
        excess_interval: 95 %, of value - real.
        p_value: that an honest set's share exceeds the people's by so much.
        reason: why there is none.
    """

    value: float | None = None
    real: float | None = None
    excess_interval: tuple[float, float] | None = None
    p_value: float | None = None
    reason: str | None = None


def share_nearer_than_real(nearer_M: np.ndarray, real_nearer_N: np.ndarray, person_N: np.ndarray) -> Share:
    """Images nearer to their training image than that one is to any of another person: 1 - AuthPct (Alaa et al. 2022, §3.3).

    Of an honest set it is what it is of people held out. By Welch's t, a person being one draw.
    """
    if not len(nearer_M) or not len(real_nearer_N):
        return Share(value=float(nearer_M.mean()) if len(nearer_M) else None, reason="no people held out")
    _, person_N = np.unique(person_N, return_inverse=True)
    real_P = np.bincount(person_N, real_nearer_N) / np.bincount(person_N)
    value, real = float(nearer_M.mean()), float(real_P.mean())
    if len(real_P) < LEAST_PEOPLE:
        return Share(value=value, real=real, reason=f"{len(real_P)} people held out: at least {LEAST_PEOPLE} wanted")
    nearer_M = nearer_M.astype(float)
    variances = [(x.var(ddof=1) / len(x), len(x) - 1) for x in (nearer_M, real_P) if len(x) > 1]  # of the means, and their freedom
    if not (variance := sum(of_mean for of_mean, _ in variances)):
        return Share(value=value, real=real, reason="all images are alike in this")
    deviation, freedom = variance**0.5, variance**2 / sum(of_mean**2 / n for of_mean, n in variances)
    half, excess = float(stats.t.ppf(0.975, freedom)) * deviation, value - real
    p_value = float(stats.t.sf(excess / deviation, freedom))
    return Share(value=value, real=real, excess_interval=(excess - half, excess + half), p_value=p_value)


@dataclass(frozen=True, kw_only=True)
class CloserToTraining:
    """Distance to the closest record, of training people against people held out.

    Attributes:
        share: of synthetic images whose nearest real person was trained on, among people who are compared.
        expected: of an honest set.
        honest: between which shares 95 % of honest sets lie.
        p_value: that an honest set's share is so high: people change sides by lot.
        people: who are compared, on both sides together.
        reason: why there is none.
    """

    share: float | None = None
    expected: float | None = None
    honest: tuple[float, float] | None = None
    p_value: float | None = None
    people: int = 0
    reason: str | None = None


def closer_to_training(nearest_M: np.ndarray, images_P: np.ndarray, trained_P: np.ndarray, *, seed: int = 0) -> CloserToTraining:
    """Whether training people are nearest to synthetic images more often than people who were not trained on.

    Which people were held out was drawn by lot, so of an honest set every draw of as many people is as likely to be nearest as often. Who
    has more images is nearest more often, so people change sides with those who have as many; who has no such counterpart is left out.

    Args:
        nearest_M: number of the person who is nearest to each image, of both sides together.
        images_P, trained_P: of each person how many images there are, and whether they were trained on.
    """
    counts_P = np.bincount(nearest_M, minlength=len(images_P))
    rng, alike = np.random.default_rng(np.random.SeedSequence((seed, 4))), []
    for images in np.unique(images_P):
        of_these_P = images_P == images
        if 0 < trained_P[of_these_P].sum() < of_these_P.sum():
            alike.append(of_these_P)
    compared_P = np.any(alike, axis=0) if alike else np.zeros(len(images_P), bool)
    held_out, images = int((compared_P & ~trained_P).sum()), int(counts_P[compared_P].sum())
    if held_out < LEAST_PEOPLE or not images:
        return CloserToTraining(
            people=int(compared_P.sum()),
            reason=f"{held_out} people held out who have as many images as some training person: at least {LEAST_PEOPLE} wanted",
        )
    share = float(counts_P[compared_P & trained_P].sum() / images)
    expected = float(sum(counts_P[of_these_P].sum() * trained_P[of_these_P].mean() for of_these_P in alike) / images)
    share_R = sum(_by_lot(counts_P[of_these_P], int(trained_P[of_these_P].sum()), rng) for of_these_P in alike) / images
    low, high = np.quantile(share_R, (0.025, 0.975))
    p_value = (1 + (share_R >= share - 1e-12).sum()) / (RESAMPLES + 1)
    return CloserToTraining(
        share=share, expected=expected, honest=(float(low), float(high)), p_value=float(p_value), people=int(compared_P.sum())
    )


def _by_lot(counts_P: np.ndarray, some: int, rng: np.random.Generator) -> np.ndarray:
    """Sums over so many people, drawn by lot, RESAMPLES times."""
    at_once = max(1, BLOCK // len(counts_P))
    lots = (rng.random((min(at_once, RESAMPLES - done), len(counts_P))) for done in range(0, RESAMPLES, at_once))
    return np.concatenate([counts_P[np.argpartition(lot_RP, some - 1, axis=1)[:, :some]].sum(1) for lot_RP in lots])


@dataclass(frozen=True, kw_only=True)
class DataCopying:
    """The test of Meehan et al. 2020 (arXiv:2004.05675): are synthetic images nearer to training images than held-out ones are?

    Attributes:
        c_t: the statistic C_T, of all images; far below 0: copying, above 0: underfitting.
        cells: of the training set, by k-means, in which there were images enough.
        p_value: that an honest set's is so low, of one image of each person held out.
        reason: why there is none.
    """

    c_t: float | None = None
    cells: int = 0
    p_value: float | None = None
    reason: str | None = None


def data_copying(
    distance_M: np.ndarray, cell_M: np.ndarray, real_N: np.ndarray, cell_N: np.ndarray, person_N: np.ndarray, *, least: int = LEAST_IN_CELL
) -> DataCopying:
    """C_T of distances to the nearest training image.

    Args:
        cell_M, cell_N: cells of the training set that the images lie in.
        person_N: whose the held-out images are.
        least: τ, images of either side in a cell.
    """
    statistic, cells = c_t(distance_M, cell_M, real_N, cell_N, least)
    if not cells:
        cell_M, cell_N = np.zeros_like(cell_M), np.zeros_like(cell_N)  # one cell, the whole space
        statistic, cells = c_t(distance_M, cell_M, real_N, cell_N, least)
    if not cells:
        return DataCopying(reason=f"{len(distance_M)} images, {len(real_N)} of people held out: at least {least} of each wanted")
    _, first_P = np.unique(person_N, return_index=True)
    if len(first_P) < LEAST_PEOPLE:
        return DataCopying(c_t=statistic, cells=cells, reason=f"{len(first_P)} people held out: at least {LEAST_PEOPLE} wanted")
    test = stats.mannwhitneyu(distance_M, real_N[first_P], alternative="less")
    return DataCopying(c_t=statistic, cells=cells, p_value=float(test.pvalue))


def c_t(distance_M: np.ndarray, cell_M: np.ndarray, real_N: np.ndarray, cell_N: np.ndarray, least: int) -> tuple[float | None, int]:
    """Σ_π P(π) Z_U(π) / Σ_π P(π) over cells π with `least` images of both sides, P the share of held-out images there; and how many cells.

    Z_U is the Mann–Whitney statistic, how often a synthetic image lies farther than a held-out one, standardised (§3, eq. 2 and 3).
    """
    weights, scores = [], []
    for cell in np.intersect1d(cell_M, cell_N):
        made_M, held_N = distance_M[cell_M == cell], real_N[cell_N == cell]
        m, n = len(made_M), len(held_N)
        if min(m, n) < least:
            continue
        u = stats.rankdata(np.concatenate([made_M, held_N]))[:m].sum() - m * (m + 1) / 2
        scores.append((u - m * n / 2) / math.sqrt(m * n * (m + n + 1) / 12))
        weights.append(n / len(real_N))
    return (float(np.average(scores, weights=weights)), len(scores)) if scores else (None, 0)


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """Images of the set that are nearer to another one of it than people are to one another, for a set of this size.

    Attributes:
        threshold: a distance below which an honest set of this size has one pair of images, or less.
        images, share: nearer than that to another image, and of all.
        exact: the same as another one, but for rounding.
        expected: images that an honest set has there, about.
        p_value: that an honest set has so many.
        reason: why there is no threshold.
    """

    threshold: float | None = None
    images: int | None = None
    share: float | None = None
    exact: int = 0
    expected: float | None = None
    p_value: float | None = None
    reason: str | None = None


def repeats(nearest_M: np.ndarray, yardstick: Yardstick, training_people: int, *, exact: int, dimension: float | None) -> Repeats:
    """Repeats beside what chance makes of n images, which have n (n - 1) / 2 pairs.

    Of P held-out people and T training people, P T pairs, the r nearest lie below the r-th person's distance. That share of all pairs
    follows about a gamma law of shape r, so the pairs of an honest set there are negative binomial. Of a large set even honest pairs lie
    nearer than any of the people's. The share of pairs nearer than x falls as x^m (ldm/authenticity/ratio.py), so the threshold is taken
    in to where one pair is expected.
    """
    n, people, r = len(nearest_M), yardstick.people, LEAST_RANK
    if n < 2:
        return Repeats(images=0, share=0.0, expected=0.0, exact=exact)
    if people < LEAST_PEOPLE:
        return Repeats(exact=exact, reason=f"{people} people held out, as independent draws: at least {LEAST_PEOPLE} wanted")
    pairs, of_people = n * (n - 1) / 2, people * training_people
    taken_in = min(1.0, of_people / (r * pairs)) if dimension else 1.0
    threshold = yardstick.threshold(r) * (taken_in ** (1 / dimension) if dimension else 1.0)
    images = int((nearest_M < threshold).sum())
    seen = math.ceil(images / 2)  # pairs, at least
    p_value = float(stats.nbinom.sf(seen - 1, r, of_people / (of_people + pairs * taken_in))) if seen else 1.0
    return Repeats(
        threshold=threshold,
        images=images,
        share=images / n,
        exact=exact,
        expected=min(float(n), 2 * pairs * taken_in * r / of_people),
        p_value=p_value,
    )
