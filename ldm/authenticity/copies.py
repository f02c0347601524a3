"""Which of a set's images are copies of training images, judged by distances alone, with real people as the yardstick.

Legend: N query, M reference, K image below the floor, D dimension, B block.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ldm.authenticity.chance import Chance, chance

EXACT_SHARE = 1e-3  # of the median distance between real people: nearer, an image is the training image but for rounding
DOUBLE_SHARE = 1e-2  # of the same: two real images that are nearer are one picture under two names, saved again perhaps


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What the distances of one descriptor say, and of whom.

    Attributes:
        real_N: nearest distances of the floor's images, doubles left out.
        double_N: which of the floor's images are doubles of a training image.
        people: whose distances the floor's are, as independent draws.
        scale: median distance of training images to the nearest one of another person; where one person alone was trained on, that of
            the floor's images.
        exact_N: synthetic images that are a training image, but for rounding.
        below_N: synthetic images nearer to a training image than any of real_N.
        chance: what is to be thought of their number; None without a floor. Images that are alike are one draw.
        flagged_N: exact_N, and the nearest of the others: as many as chance does not explain.
    """

    real_N: np.ndarray
    double_N: np.ndarray
    people: int
    scale: float
    exact_N: np.ndarray
    below_N: np.ndarray
    chance: Chance | None
    flagged_N: np.ndarray


def judged(
    synthetic_N: np.ndarray,
    made_ND: np.ndarray,
    floor_N: np.ndarray,
    person_N: np.ndarray,
    radius_M: np.ndarray,
    *,
    own: bool,
    level: float,
) -> Judged:
    """Judge nearest distances to the training set.

    Args:
        synthetic_N, floor_N: of synthetic images, and of the floor's real ones, whose people are person_N.
        made_ND: descriptors of the synthetic images.
        radius_M: of the training images to those of other people.
        own: the floor is the training set itself. Its distances then come in pairs, two people who are each other's nearest: as many
            independent draws as half of its people, less one, would give.
        level: how often an honest set may be flagged.
    """
    between = (x[np.isfinite(x) & (x > 0)] for x in (radius_M, floor_N))
    scale = next((float(np.median(x)) for x in between if len(x)), 0.0)
    double_N = floor_N <= DOUBLE_SHARE * scale
    counted_N = np.isfinite(floor_N) & ~double_N
    real_N, people = floor_N[counted_N], len(set(person_N[counted_N]))
    if own:
        people = (people - 1) // 2
    exact_N = synthetic_N <= EXACT_SHARE * scale
    below_N = synthetic_N < real_N.min() if len(real_N) else np.zeros(len(synthetic_N), bool)
    found, flagged_N = None, exact_N.copy()
    if len(real_N):
        draw_N = draws(made_ND, np.where(below_N, synthetic_N, np.inf), real_N.min() / 2)
        below, exact_K = int(draw_N.max() + 1), np.unique(draw_N[exact_N])
        images = len(draw_N) - int(below_N.sum()) + below
        found = chance(below, images=images, people=people, level=level)
        found = replace(found, expected=len(synthetic_N) / (people + 1))  # of images: repeats change the spread, not the mean
        rest = chance(below - len(exact_K), images=images - len(exact_K), people=people, level=level)
        nearest_K = np.setdiff1d(np.arange(below), exact_K)[: rest.at_least]
        flagged_N |= np.isin(draw_N, nearest_K)
    return Judged(
        real_N=real_N,
        double_N=double_N,
        people=people,
        scale=scale,
        exact_N=exact_N,
        below_N=below_N,
        chance=found,
        flagged_N=flagged_N,
    )


def draws(made_ND: np.ndarray, distance_N: np.ndarray, alike: float) -> np.ndarray:
    """Numbers (N,) of the draws that images below the floor are, nearest first; -1 where the distance is infinite.

    Images nearer to one another than `alike`, half of the floor's least distance, are one draw: a generator that gives one blurred image
    over and over is near to somebody's every time, or never, and that proves no more than one image does. Half, so that copies of two
    people who are as far apart as the floor says stay two.
    """
    below_K = np.argsort(distance_N, kind="stable")[: np.isfinite(distance_N).sum()]
    x_KD, draw_K, number = made_ND[below_K], np.full(len(below_K), -1), 0
    length_K = np.einsum("kd,kd->k", x_KD, x_KD)
    while len(left := np.flatnonzero(draw_K < 0)):
        block = left[:64]
        squared_BK = length_K[block, None] - 2 * x_KD[block] @ x_KD.T + length_K
        for first, alike_K in zip(block, squared_BK < alike**2, strict=True):
            if draw_K[first] < 0:
                draw_K[alike_K & (draw_K < 0)] = number
                draw_K[first] = number  # also where rounding says otherwise
                number += 1
    draw_N = np.full(len(distance_N), -1)
    draw_N[below_K] = draw_K
    return draw_N


def verdict(found: Judged, images: int, level: float) -> str:
    """The judgement in words; it accuses only where `flagged_N` does, and never acquits."""
    exact, c = int(found.exact_N.sum()), found.chance
    words = [f"{exact} of {images} synthetic images are training images, but for rounding"] if exact else []
    if c is None:
        return "; ".join([*words, "no other people to measure by: only copies that are the same could be found"])
    words.append(
        f"{int(found.below_N.sum())} images lie nearer to a training image than any real person does ({found.people} people), "
        f"chance puts {c.expected:.3g} there (p = {c.p_value:.2g}, level {level:g})"
    )
    if found.flagged_N.sum() > exact:
        words.append(f"at least {c.at_least} of them are no chance")
    elif not exact:
        words.append(f"fewer than {c.telling} could not be told from chance" if c.telling else "with so few people no number would tell")
    return "; ".join(words)
