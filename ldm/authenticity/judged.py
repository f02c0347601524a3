"""Which images of a set are copies, judged by the distances of one space, with real people as the yardstick.

Legend: M synthetic image, N held-out image, T training image, P person, J nearest person, K image below the threshold, D dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ldm.authenticity.near import Near
from ldm.authenticity.ratio import nearness_p_values, ratios
from ldm.authenticity.real_people import DOUBLE_SHARE, EXACT_SHARE, RealDistances, RealPeople, means_by_person, real_people
from ldm.authenticity.verdicts import (
    CloserToTraining,
    CopyRate,
    DataCopying,
    Repeats,
    Share,
    closer_to_training,
    copy_rate,
    data_copying,
    rank_for,
    repeats,
    share_nearer_than_real,
)
from ldm.authenticity.yardstick import Yardstick, least_copies

MOST_REPEATED = 20_000  # images that are compared with one another to tell which are alike
NOTHING = dict.fromkeys(("rate", "threshold", "below", "expected", "honest", "p_value", "copies", "telling", "visible"))


@dataclass(frozen=True, kw_only=True)
class Evidence(RealDistances):
    """All distances of one space.

    Attributes:
        made: synthetic images to the training set.
        made_held_M, made_held_index_M: distance to, and number of, the nearest held-out image.
        repeated: synthetic images to others of the set.
        made_cell_M, held_cell_N: cells of the training set that images lie in.
        rows: descriptors of some synthetic images, by their places.
        held_own_N: held-out images to the nearest other one of the same person; infinite where there is none.
    """

    made: Near
    made_held_M: np.ndarray
    made_held_index_M: np.ndarray
    repeated: Near
    made_cell_M: np.ndarray
    held_cell_N: np.ndarray
    rows: Callable[[np.ndarray], np.ndarray]
    held_own_N: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What one space says of a set.

    Attributes:
        real: what real people say.
        exact_M, near_M, beyond_M: synthetic images flagged, for each of the reasons; flagged_M: for any.
        p_value_M: of ranks among the people of the yardstick; None of none.
        recognised: share of held-out images that lie below the threshold from another image of the same person: what the space could see
            of a person who is not copied, but drawn anew. None without a threshold, or of people with one image each.
    """

    real: RealPeople
    exact_M: np.ndarray
    near_M: np.ndarray
    beyond_M: np.ndarray
    p_value_M: np.ndarray | None
    recognised: float | None
    copies: CopyRate
    ratio: CopyRate
    nearer_than_real: Share
    closer_to_training: CloserToTraining
    data_copying: DataCopying
    repeats: Repeats

    @property
    def flagged_M(self) -> np.ndarray:
        return self.exact_M | self.near_M | self.beyond_M


def judge(of: Evidence, *, rate: float, level: float, seed: int = 0) -> Judged:
    """Args:
    rate: false rate of the threshold that is wanted.
    level: how often an honest set may be flagged at all; both reasons that rest on chance share it.
    """
    real = real_people(of)
    yardstick, double_N, unfair = real.yardstick, real.double_N, real.unfair
    exact_M = of.made.distance_N <= EXACT_SHARE * real.scale
    near_M = nearness_p_values(of.made.distance_NJ, real.dimension) * max(1, len(exact_M)) <= level / 2
    r = rank_for(yardstick, rate)
    below_M = yardstick.below(of.made.distance_N, r) if r else np.zeros(len(exact_M), bool)
    draw_M = draws(of.rows, of.made.distance_N, below_M, yardstick.threshold(r) / 2 if r else 0.0)
    below, images = int(draw_M.max(initial=-1) + 1), len(draw_M) - int(below_M.sum()) + int(draw_M.max(initial=-1) + 1)
    beyond_M = np.zeros(len(exact_M), bool)
    if r:
        sure_K = np.unique(draw_M[(exact_M | near_M) & below_M])
        rest = np.setdiff1d(np.arange(below), sure_K)
        many = least_copies(len(rest), images - len(sure_K), r, yardstick.people, level / 2)
        beyond_M = np.isin(draw_M, rest[:many])
    copies = copy_rate(below, images, yardstick, rate=rate, level=level)
    alike = yardstick.threshold(r) / 2 if r else real.scale / 4
    once_M, unfair = (np.ones(len(exact_M), bool), unfair) if unfair else counted_once(of, alike)
    return Judged(
        real=real,
        exact_M=exact_M,
        near_M=near_M,
        beyond_M=beyond_M,
        p_value_M=yardstick.p_values(of.made.distance_N) if yardstick.people else None,
        recognised=recognised(of, yardstick, r),
        copies=copies,
        ratio=replace(copies, **NOTHING, reason=unfair) if unfair else ratio_rate(of, once_M, double_N, rate=rate, level=level),
        nearer_than_real=Share(reason=unfair) if unfair else _nearer_than_real(of, once_M, double_N, real.scale),
        closer_to_training=CloserToTraining(reason=unfair) if unfair else _closer_to_training(of, double_N, seed),
        data_copying=DataCopying(reason=unfair) if unfair else _data_copying(of, once_M, double_N),
        repeats=repeats(
            of.repeated.distance_N,
            yardstick,
            len(np.unique(of.train_person_T)),
            exact=int((of.repeated.distance_N <= EXACT_SHARE * real.scale).sum()),
            dimension=real.dimension,
        ),
    )


def recognised(of: Evidence, yardstick: Yardstick, r: int) -> float | None:
    """By person; of people with several images."""
    several_N = np.isfinite(of.held_own_N)
    if not r or not several_N.any():
        return None
    return float(means_by_person(yardstick.below(of.held_own_N[several_N], r).astype(float), of.held_person_N[several_N]).mean())


def counted_once(of: Evidence, alike: float) -> tuple[np.ndarray, str | None]:
    """Which images count as independent draws: of those that are alike the first; and why they cannot be told, if so."""
    repeated_M = of.repeated.distance_N < alike
    once_M = ~repeated_M
    if repeated_M.sum() > MOST_REPEATED:
        return once_M, f"{repeated_M.sum():,} images of the set are so near to another one that they are no independent draws"
    number_M = draws(of.rows, of.made.distance_N, repeated_M, alike)
    _, first = np.unique(number_M[repeated_M], return_index=True)
    once_M[np.flatnonzero(repeated_M)[first]] = True
    return once_M, None


def _data_copying(of: Evidence, once_M: np.ndarray, double_N: np.ndarray) -> DataCopying:
    counted_N = ~double_N
    return data_copying(
        of.made.distance_N[once_M],
        of.made_cell_M[once_M],
        of.held.distance_N[counted_N],
        of.held_cell_N[counted_N],
        of.held_person_N[counted_N],
    )


def ratio_rate(of: Evidence, once_M: np.ndarray, double_N: np.ndarray, *, rate: float, level: float) -> CopyRate:
    """Images that lie nearer to the nearest person, for how the next ones lie, than people held out do."""
    ratio_M, ratio_N = ratios(of.made.distance_NJ[once_M]), ratios(of.held.distance_NJ[~double_N])
    yardstick = Yardstick.of(ratio_N, of.held_person_N[~double_N])
    r = rank_for(yardstick, rate)
    below = int(yardstick.below(ratio_M, r).sum()) if r else 0
    return copy_rate(below, int(np.isfinite(ratio_M).sum()), yardstick, rate=rate, level=level)


def _nearer_than_real(of: Evidence, once_M: np.ndarray, double_N: np.ndarray, scale: float) -> Share:
    """A training image's distance to other people is that to the nearest who is no double of it."""
    distance_TJ = np.where(of.train.distance_NJ <= DOUBLE_SHARE * scale, np.inf, of.train.distance_NJ)
    radius_T = distance_TJ.min(1)
    known_M, known_N = (near.index_N >= 0 for near in (of.made, of.held))
    known_M = known_M & once_M & np.isfinite(radius_T[of.made.index_N])
    known_N = known_N & np.isfinite(radius_T[of.held.index_N]) & ~double_N
    nearer = [near.distance_N[known] < radius_T[near.index_N[known]] for near, known in ((of.made, known_M), (of.held, known_N))]
    return share_nearer_than_real(*nearer, of.held_person_N[known_N])


def _closer_to_training(of: Evidence, double_N: np.ndarray, seed: int) -> CloserToTraining:
    """People of whom some picture is also in the training set under another name are on both sides; they are left out."""
    _, trained_T, images_T = np.unique(of.train_person_T, return_inverse=True, return_counts=True)
    people, held_N, images_N = np.unique(of.held_person_N, return_inverse=True, return_counts=True)
    if not len(people):
        return CloserToTraining(reason="no people held out")
    held_M = held_N[of.made_held_index_M]
    known_M = ~np.isin(people[held_M], of.held_person_N[double_N])
    nearest_M = np.where(of.made.distance_N <= of.made_held_M, trained_T[of.made.index_N], len(images_T) + held_M)[known_M]
    images_P, trained_P = np.concatenate([images_T, images_N]), np.arange(len(images_T) + len(images_N)) < len(images_T)
    images_P[len(images_T) :][np.isin(people, of.held_person_N[double_N])] = 0
    return closer_to_training(nearest_M, images_P, trained_P, seed=seed)


def draws(rows: Callable[[np.ndarray], np.ndarray], distance_M: np.ndarray, below_M: np.ndarray, alike: float) -> np.ndarray:
    """Numbers (M,) of the draws that images below the threshold are, nearest first; -1 of the others.

    Images nearer to one another than `alike`, half of the threshold, are one draw: a generator that gives one blurred image over and over
    is near to somebody's every time, or never, and that proves no more than one image does. Half, so that copies of two people who are
    as far apart as the threshold says stay two.
    """
    below_K = np.flatnonzero(below_M)[np.argsort(distance_M[below_M], kind="stable")]
    draw_M = np.full(len(distance_M), -1)
    if not len(below_K):
        return draw_M
    x_KD = rows(below_K).astype(np.float64)
    x_KD = x_KD - x_KD.mean(0)
    draw_K, number, length_K = np.full(len(below_K), -1), 0, np.einsum("kd,kd->k", x_KD, x_KD)
    while len(left := np.flatnonzero(draw_K < 0)):
        block = left[:64]
        squared_BK = length_K[block, None] - 2 * x_KD[block] @ x_KD.T + length_K
        for first, alike_K in zip(block, squared_BK < alike**2, strict=True):
            if draw_K[first] < 0:
                draw_K[alike_K & (draw_K < 0)] = number
                draw_K[first] = number  # also where rounding says otherwise
                number += 1
    draw_M[below_K] = draw_K
    return draw_M
