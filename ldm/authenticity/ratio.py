"""How near an image lies to the nearest person, beside how near it lies to the next ones.

A distance says little by itself: in a dense region of the feature space everything is near to something. The ratio to the next people
does (Carlini et al. 2023, arXiv:2301.13188, §4.2). Of people spread evenly around an image, in m dimensions, the number nearer than x
grows as x^m, so the volumes (d_j / d_J)^m of the J - 1 nearest people within the ball to the J-th are independent and uniform. From
this Levina and Bickel (2005) estimate m, and from this follows how often the nearest of an honest image lies as near as it does:
1 - (1 - (d_1 / d_J)^m)^(J - 1). The training people are spread about one another in the same way, so a few held-out people suffice.
Real people are not spread evenly: some have a near relative in the set, others have none. So m is lowered until no real people come out
nearer to their nearest than as many uniform p-values would; a low m accuses less.

Legend: N image, K neighbour, J nearest person.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import beta, gamma

MOST_PEOPLE = 10  # J at most
LEAST_PEOPLE = 4  # J at least, for a ratio
NEIGHBOURS = 50  # images searched for them, as many as Carlini et al. take the mean of
CONFIDENCE = 0.95  # of the bounds of m
STEP, STEPS = 0.9, 60  # by which m is lowered, at most so often: to a 500th


def people_near(distance_NK: np.ndarray, person_NK: np.ndarray) -> np.ndarray:
    """Distances to the J nearest people, each by their nearest image: (N, MOST_PEOPLE), infinite where there are fewer.

    Args:
        distance_NK: to the nearest images, ascending; person_NK: whose they are. Infinite ones do not count.
    """
    distance_NJ = np.full((len(distance_NK), MOST_PEOPLE), np.inf)
    seen_NK = np.zeros(person_NK.shape, bool)  # by an image before it
    for k in range(1, person_NK.shape[1]):
        seen_NK[:, k] = (person_NK[:, :k] == person_NK[:, k : k + 1]).any(1)
    place_NK = np.cumsum(~seen_NK, axis=1) - 1
    n_I, k_I = np.nonzero(~seen_NK & np.isfinite(distance_NK) & (place_NK < MOST_PEOPLE))
    distance_NJ[n_I, place_NK[n_I, k_I]] = distance_NK[n_I, k_I]
    return distance_NJ


def counted(distance_NJ: np.ndarray) -> np.ndarray:
    """J of each image; 0 where there are too few for a ratio, or the farthest is at distance 0."""
    people_N = np.isfinite(distance_NJ).sum(1)
    return np.where((people_N >= LEAST_PEOPLE) & (_farthest(distance_NJ) > 0), people_N, 0)


def _farthest(distance_NJ: np.ndarray) -> np.ndarray:
    last_N = np.isfinite(distance_NJ).sum(1).clip(1) - 1
    return np.take_along_axis(distance_NJ, last_N[:, None], 1)[:, 0]


def ratios(distance_NJ: np.ndarray) -> np.ndarray:
    """The distance to the nearest person over the mean of those to all J; infinite where there are too few.

    Carlini et al. 2023, §4.2, with people in place of images, and without their constant α = 1/2.
    """
    has_N, ratio_N = counted(distance_NJ) > 0, np.full(len(distance_NJ), np.inf)
    of_NJ = distance_NJ[has_N]
    mean_N = np.where(np.isfinite(of_NJ), of_NJ, 0).sum(1) / np.isfinite(of_NJ).sum(1)
    ratio_N[has_N] = of_NJ[:, 0] / mean_N
    return ratio_N


def dimension_bound(distance_NJ: np.ndarray, person_N: np.ndarray, weight_N: np.ndarray) -> float | None:
    """The least m that real people bear, and that does not accuse them. None of none.

    Σ ln(d_J / d_j) over people is a gamma variable of as many terms, over m: its lower bound is the first. Then the p-values of real
    people, each the mean of their images', must not be smaller than those of as many uniform ones: the j-th of P follows
    Beta(j, P + 1 - j).

    Args:
        distance_NJ: of real images to other people, and whose they are (N,).
        weight_N: what each image counts as an independent draw; those of one person sum to 1 at most.
    """
    people_N = counted(distance_NJ)
    use_N = (people_N > 0) & (distance_NJ[:, 0] > 0)
    if not use_N.any():
        return None
    of_NJ, terms_N = distance_NJ[use_N], people_N[use_N] - 1
    log_N = np.where(np.isfinite(of_NJ), np.log(_farthest(of_NJ)[:, None]) - np.log(of_NJ), 0).sum(1)
    total = float(weight_N[use_N] @ log_N)
    if not total > 0:
        return None
    bound = float(gamma.ppf(1 - CONFIDENCE, weight_N[use_N] @ terms_N) / total)
    _, person_N = np.unique(person_N[use_N], return_inverse=True)
    for _ in range(STEPS):
        p_N = nearness_p_values(of_NJ, bound)
        middle_P = np.sort(np.bincount(person_N, p_N) / np.bincount(person_N))
        rank_P = np.arange(1, len(middle_P) + 1)
        if (middle_P >= beta.ppf(1 - CONFIDENCE, rank_P, len(middle_P) + 1 - rank_P)).all():
            break
        bound *= STEP
    return bound


def nearness_p_values(distance_NJ: np.ndarray, dimension: float | None) -> np.ndarray:
    """Probability that the nearest person to an honest image lies as near; 1 where nothing says so."""
    people_N, p_N = counted(distance_NJ), np.ones(len(distance_NJ))
    if dimension is None:
        return p_N
    of_NJ, terms_N = distance_NJ[people_N > 0], people_N[people_N > 0] - 1
    with np.errstate(divide="ignore"):  # a copy at distance 0: log 0, and a p-value of 0
        volume_N = np.exp(dimension * (np.log(of_NJ[:, 0]) - np.log(_farthest(of_NJ))))
        p_N[people_N > 0] = -np.expm1(terms_N * np.log1p(-np.minimum(volume_N, 1.0)))
    return p_N
