"""What the distances of real people make of a synthetic image's: p-values, thresholds of a stated false rate, and counts of copies.

The null hypothesis: a synthetic image is one image of one more person, drawn as the held-out people were. Its distance to the training
set is then exchangeable with theirs, person by person, and nothing is assumed of what distances look like. With P people no p-value is
below 1 / (P + 1): a few copies among many honest images are not told from chance by ranks alone, however near they are. What is so near
that no rank says it is judged in ldm/authenticity/ratio.py.

Legend: N real image, M synthetic image, P people, K image below a threshold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import betabinom

LEAST_RANK = 2  # of the person whose distance is a threshold: the least of all distances is that of whoever is oddest


@dataclass(frozen=True, kw_only=True)
class Yardstick:
    """Distances of real people to the training images of others.

    Attributes:
        distance_N: ascending.
        share_N: what each image counts, 1 / the images of its person: an image drawn of a person drawn.
        people: as independent draws; `share_N` sums to it.
    """

    distance_N: np.ndarray
    share_N: np.ndarray
    people: int

    @classmethod
    def of(cls, distance_N: np.ndarray, person_N: np.ndarray, *, among_themselves: bool = False) -> Yardstick:
        """Of images and whose they are; distances that are not finite do not count.

        Args:
            among_themselves: distances to one another, which come in pairs, two people who are each other's nearest: as many independent
                draws as half of the people, less one, would give.
        """
        finite_N = np.isfinite(distance_N)
        _, person_N, images_P = np.unique(person_N[finite_N], return_inverse=True, return_counts=True)
        order_N, here = np.argsort(distance_N[finite_N], kind="stable"), len(images_P)
        people = max(0, (here - 1) // 2) if among_themselves else here
        share_N = people / max(1, here) / images_P[person_N]
        return cls(distance_N=distance_N[finite_N][order_N].astype(float), share_N=share_N[order_N], people=people)

    def p_values(self, distance_M: np.ndarray) -> np.ndarray:
        """Probability that an honest image lies as near: (1 + people as near) / (P + 1).

        Hierarchical conformal prediction (Lee, Barber and Willett 2023, arXiv:2306.06342, eq. 10), a person counting by the share of
        their images that are as near.
        """
        before_N = np.concatenate([[0.0], np.cumsum(self.share_N)])
        return (1 + before_N[np.searchsorted(self.distance_N, distance_M, side="right")]) / (self.people + 1)

    def rank(self, rate: float) -> int:
        """r of the threshold at a false rate r / (P + 1), the greatest that is not above `rate`; 0: these people do not bear it."""
        r = math.floor(rate * (self.people + 1) * (1 + 1e-12))
        return r if LEAST_RANK <= r <= self.people else 0

    def below(self, distance_M: np.ndarray, r: int) -> np.ndarray:
        """Which images are nearer than all but r - 1 of the people: of honest ones a share of r / (P + 1)."""
        return self.p_values(distance_M) * (self.people + 1) <= r + 1e-9

    def threshold(self, r: int) -> float:
        """The distance from which on images are no longer below."""
        reached_N = np.cumsum(self.share_N) > r - 1 + 1e-9
        return float(self.distance_N[reached_N.argmax()]) if reached_N.any() else math.inf


def tail_probability(k: int, images: int, r: int, people: int) -> float:
    """P(K ≥ k) that so many of an honest set's images lie below the r-th of P people.

    The share of all people's images that lie there follows Beta(r, P + 1 - r), so K is beta-binomial. With several images a person
    that share varies less, and the probability is too large rather than too small.
    """
    if k <= 0:
        return 1.0
    return float(min(1.0, np.exp(betabinom.logpmf(np.arange(k, images + 1), images, r, people + 1 - r)).sum()))


def least_copies(k: int, images: int, r: int, people: int, level: float) -> int:
    """With confidence 1 - level, of k images below the threshold at least so many are there by no chance.

    c copies leave images - c honest ones with k - c of them below; the least c at which that is no longer too many.
    """
    low, high = 0, k  # at high nothing is left to explain
    while low < high:
        middle = (low + high) // 2
        if tail_probability(k - middle, images - middle, r, people) > level:
            high = middle
        else:
            low = middle + 1
    return low


def most_copies(k: int, images: int, r: int, people: int, level: float) -> int:
    """With confidence 1 - level no more than so many of k images below the threshold are copies: the greatest c that leaves not too few."""
    low, high = 0, k
    while low < high:
        middle = (low + high + 1) // 2
        if 1 - tail_probability(k - middle + 1, images - middle, r, people) > level:
            low = middle
        else:
            high = middle - 1
    return low


def telling(images: int, r: int, people: int, level: float) -> int | None:
    """The least number of images below the threshold that is more than chance; None: no number is."""
    if images < 1 or tail_probability(images, images, r, people) > level:
        return None
    low, high = 1, images
    while low < high:
        middle = (low + high) // 2
        if tail_probability(middle, images, r, people) <= level:
            high = middle
        else:
            low = middle + 1
    return low
