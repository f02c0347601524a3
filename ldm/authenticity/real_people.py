"""What real people say in one space: who serves as a yardstick, which pictures are there twice, in how many dimensions people lie.

Legend: N held-out image, T training image, P person, J nearest person.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from ldm.authenticity.near import Near
from ldm.authenticity.ratio import dimension_bound
from ldm.authenticity.yardstick import Yardstick

EXACT_SHARE = 1e-3  # of the median distance between real people: nearer, an image is the training image but for rounding
DOUBLE_SHARE = 1e-2  # of the same: two real images that are nearer are one picture under two names, saved again perhaps
UNLIKE = 1e-2  # p-value below which held-out people are no yardstick: they lie farther off than training people do from one another


@dataclass(frozen=True, kw_only=True)
class RealDistances:
    """Of one space.

    Attributes:
        held: held-out images to the training set, of people held_person_N. train: training images to other people in it, of people
            train_person_T.
    """

    held: Near
    held_person_N: np.ndarray
    train: Near
    train_person_T: np.ndarray


@dataclass(frozen=True, kw_only=True)
class RealPeople:
    """What real people say in one space.

    Attributes:
        scale: median distance of training images to the nearest other person.
        double_N, double_T: held-out and training images that are another person's training image.
        unfair: why people held out are no yardstick, if so.
        yardstick: distances of real people; yardstick_is: who they are.
        dimension: m of ldm/authenticity/ratio.py.
    """

    scale: float
    double_N: np.ndarray
    double_T: np.ndarray
    unfair: str | None
    yardstick: Yardstick
    yardstick_is: str
    dimension: float | None


def real_people(of: RealDistances) -> RealPeople:
    """Of all distances between real images."""
    between_T = of.train.distance_N[np.isfinite(of.train.distance_N) & (of.train.distance_N > 0)]
    held_N = of.held.distance_N[np.isfinite(of.held.distance_N) & (of.held.distance_N > 0)]
    scale = float(np.median(between_T)) if len(between_T) else float(np.median(held_N)) if len(held_N) else 0.0
    double_N, double_T = (near.distance_N <= DOUBLE_SHARE * scale for near in (of.held, of.train))
    unfair = why_unfair(of, double_N, double_T)
    yardstick, yardstick_is = chosen_yardstick(of, double_N, double_T, unfair)
    return RealPeople(
        scale=scale,
        double_N=double_N,
        double_T=double_T,
        unfair=unfair,
        yardstick=yardstick,
        yardstick_is=yardstick_is,
        dimension=dimension_bound(*spread(of, double_N | bool(unfair), double_T)),
    )


def why_unfair(of: RealDistances, double_N: np.ndarray, double_T: np.ndarray) -> str | None:
    """Why the people held out are no yardstick, if so.

    People of another site, or of another camera, lie far from all training people. As a yardstick they would call an honest set, which
    looks like the training people, a set of copies.
    """
    held_P = means_by_person(of.held.distance_N[~double_N], of.held_person_N[~double_N])
    train_P = means_by_person(of.train.distance_N[~double_T], of.train_person_T[~double_T])
    if not len(held_P):
        return "nobody was held out"
    if min(len(held_P), len(train_P)) < 2 or stats.mannwhitneyu(held_P, train_P, alternative="greater").pvalue >= UNLIKE:
        return None
    return f"the {len(held_P)} people held out lie farther from training people than these from one another (another site or camera?)"


def chosen_yardstick(of: RealDistances, double_N: np.ndarray, double_T: np.ndarray, unfair: str | None) -> tuple[Yardstick, str]:
    """Held-out people, doubles left out; where they are none, training people among themselves."""
    if unfair:
        among = Yardstick.of(of.train.distance_N[~double_T], of.train_person_T[~double_T], among_themselves=True)
        return among, f"training people among themselves, as half as many: {unfair}"
    held = Yardstick.of(of.held.distance_N[~double_N], of.held_person_N[~double_N])
    return held, f"{held.people} people held out"


def means_by_person(distance_N: np.ndarray, person_N: np.ndarray) -> np.ndarray:
    """Mean distance of each person who has a finite one."""
    finite_N = np.isfinite(distance_N)
    if not finite_N.any():
        return np.empty(0)
    _, person_N = np.unique(person_N[finite_N], return_inverse=True)
    return np.bincount(person_N, distance_N[finite_N]) / np.bincount(person_N)


def spread(of: RealDistances, double_N: np.ndarray, double_T: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distances of real images to the nearest people (N + T, J), whose they are, and what each counts: training people come in pairs, and
    count half."""
    weights, people, others = [], [], 0
    for person, double, worth in ((of.held_person_N, double_N, 1.0), (of.train_person_T, double_T, 0.5)):
        _, number, images_P = np.unique(person, return_inverse=True, return_counts=True)
        weights.append((worth / images_P[number])[~double] if len(person) else np.empty(0))
        people.append(others + number[~double])
        others += len(images_P)
    return (
        np.concatenate([of.held.distance_NJ[~double_N], of.train.distance_NJ[~double_T]]),
        np.concatenate(people),
        np.concatenate(weights),
    )
