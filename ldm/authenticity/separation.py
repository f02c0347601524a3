"""How well a score tells two groups of people apart: area under the curve, p-value, interval, and what could have been seen.

The unit is a person, whose score is one number: two images of one person are not two draws. Where nobody of one group is other than
the people of the other one, any order of all scores is as likely as any other, and the area is .5 on average.

Legend: M people of the one group (members), N people of the other one (others).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import brentq
from scipy.stats import beta, mannwhitneyu, norm, rankdata

EXACT_PAIRS = 40_000  # M · N up to which the p-value counts all orders; beyond, the normal approximation is right to three digits
FPR = 0.01
POWER = 0.8


@dataclass(frozen=True, kw_only=True)
class Separation:
    """How well a score tells members from others.

    Attributes:
        auc: probability that a member has the higher score, ties counted half: Mann and Whitney's U over all pairs. `expected` where
            the two groups are alike.
        interval: of auc, 95 %, by person: `auc_interval`.
        p_value: of Mann and Whitney's test, exact up to EXACT_PAIRS pairs of scores without ties.
    """

    auc: float
    expected: float = 0.5
    interval: tuple[float, float]
    p_value: float


@dataclass(frozen=True, kw_only=True)
class AtLowFpr:
    """How many members are found where hardly any other person is taken for one.

    Attributes:
        fpr: share of the others above the threshold: FPR, or one person where that is more.
        tpr: share of the members above it. `expected` where the two groups are alike.
        interval: of tpr at this threshold, 95 % (Clopper and Pearson 1934), by person.
        reason: why fpr is not FPR, and what that would take.
    """

    fpr: float
    tpr: float
    expected: float
    interval: tuple[float, float]
    reason: str | None = None


def separation(member_M: np.ndarray, other_N: np.ndarray, *, alternative: Literal["greater", "two-sided"] = "greater") -> Separation:
    """Of two groups by the scores of their people.

    Args:
        alternative: 'greater': whether members have the higher scores; 'two-sided': whether they have others.
    """
    values, area = np.concatenate([member_M, other_N]), auc(member_M, other_N)
    exact = len(member_M) * len(other_N) <= EXACT_PAIRS and len(np.unique(values)) == len(values)
    p_value = 1.0  # where all scores are the same, and the approximation would divide by their spread
    if np.ptp(values) > 0:
        p_value = float(mannwhitneyu(member_M, other_N, alternative=alternative, method="exact" if exact else "asymptotic").pvalue)
    return Separation(auc=area, interval=auc_interval(area, len(member_M), len(other_N)), p_value=p_value)


def auc(member_M: np.ndarray, other_N: np.ndarray) -> float:
    """Share of pairs in which the member has the higher score, ties counted half."""
    rank_P = rankdata(np.concatenate([member_M, other_N]))
    members = len(member_M)
    return float((rank_P[:members].sum() - members * (members + 1) / 2) / (members * len(other_N)))


def auc_interval(seen: float, members: int, others: int, *, level: float = 0.95) -> tuple[float, float]:
    """All areas that lie within z standard errors of their own of the one seen (Newcombe 2006, part 2, method 5).

    Unlike DeLong's (1988) and a bootstrap's, it does not shrink to nothing where the groups do not overlap.
    """
    z, mean = norm.ppf((1 + level) / 2), (members + others) / 2 - 1

    def outside(area: float) -> float:
        spread = 1 + mean * (1 - area) / (2 - area) + mean * area / (1 + area)
        return (area - seen) ** 2 - z**2 * area * (1 - area) * spread / (members * others)

    nearly = 1e-9
    low = brentq(outside, 0, seen - nearly) if seen > nearly else 0.0
    high = brentq(outside, seen + nearly, 1) if seen < 1 - nearly else 1.0
    return float(low), float(high)


def at_low_fpr(member_M: np.ndarray, other_N: np.ndarray) -> AtLowFpr:
    """Members above the threshold that the least possible number of others, FPR of them or one, exceeds.

    Where the groups are alike, a member exceeds the (k + 1)-th highest of N others with probability (k + 1) / (N + 1).
    """
    others, members = len(other_N), len(member_M)
    above = max(1, math.floor(FPR * others))
    threshold = np.sort(other_N)[::-1][min(above, others - 1)]
    found = int((member_M > threshold).sum())
    low = float(beta.ppf(0.025, found, members - found + 1)) if found else 0.0
    high = float(beta.ppf(0.975, found + 1, members - found)) if found < members else 1.0
    wanted = math.ceil(1 / FPR)
    return AtLowFpr(
        fpr=above / others,
        tpr=found / members,
        expected=(above + 1) / (others + 1),
        interval=(low, high),
        reason=None if others >= wanted else f"{FPR:.0%} of {others} people held out is less than one person: {wanted} wanted",
    )


def least_auc(members: int, others: int, *, level: float, power: float = POWER) -> float | None:
    """The least area that a one-sided test at this level finds with this power; None: these numbers find none.

    The area lies zα standard errors of no difference and zβ of its own above .5; its own is Hanley and McNeil's (1982), table II.
    """
    if 1 / math.comb(members + others, members) > level:
        return None
    by_chance = math.sqrt((members + others + 1) / (12 * members * others))

    def beyond(area: float) -> float:
        one, two = area / (2 - area), 2 * area**2 / (1 + area)
        variance = area * (1 - area) + (members - 1) * (one - area**2) + (others - 1) * (two - area**2)
        own = math.sqrt(max(variance, 0) / (members * others))
        return area - 0.5 - norm.ppf(1 - level) * by_chance - norm.ppf(power) * own

    return float(brentq(beyond, 0.5, 1)) if beyond(1.0) > 0 else None


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values of several tests such that, of honest ones, any falls below a level no more often than that (Holm 1979)."""
    adjusted, largest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return adjusted
