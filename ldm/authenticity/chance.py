"""How many synthetic images lie nearer to the training set than every held-out person, when nothing was copied.

An honest synthetic image is one more draw from the people that the held-out ones were drawn from. Its distance to the training set
is then exchangeable with theirs: any order of the n + P distances is as likely as any other. People count, not images: two images
of one person are not two draws. With several images a person the least distance over all of them is at most that over one image of
each, so the p-value of P people is too large rather than too small.

Legend: n synthetic images, P held-out people, k synthetic images below the least held-out distance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Chance:
    """What chance makes of k images below the least held-out distance.

    Attributes:
        expected: images that an honest set has there, n / (P + 1).
        p_value: probability that an honest set has k or more there.
        telling: least count whose p-value is within the level; None where no count is: too few held-out people.
        at_least: with confidence 1 - level so many of the k are not there by chance.
    """

    expected: float
    p_value: float
    telling: int | None
    at_least: int


def chance(k: int, *, images: int, people: int, level: float) -> Chance:
    """P(K ≥ k) = Π_{j<k} (n - j) / (n + P - j): that the k nearest of n + P exchangeable distances are all synthetic.

    A negative hypergeometric tail. Of k images at least c + 1 are no chance when the other n - c images, with k - c of them below,
    are still too many: P(K ≥ k - c | n - c, P) is the same product from j = c on.
    """
    j_N = np.arange(images)
    log_ratio_N = np.log(images - j_N) - np.log(images + people - j_N)
    tails_N = np.exp(np.cumsum(log_ratio_N))
    telling_N = np.flatnonzero(tails_N <= level)
    after_K = np.exp(np.cumsum(log_ratio_N[:k][::-1])[::-1])  # its c-th: the product from j = c on
    return Chance(
        expected=images / (people + 1),
        p_value=float(tails_N[k - 1]) if k else 1.0,
        telling=int(telling_N[0]) + 1 if len(telling_N) else None,
        at_least=int((after_K <= level).sum()),
    )
