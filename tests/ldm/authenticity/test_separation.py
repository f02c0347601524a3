"""Areas under the curve against their definition, p-values against honest chance, intervals and power against simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import kstest, norm

from ldm.authenticity.separation import at_low_fpr, auc_interval, holm, least_auc, separation


def test_area_and_p_value_are_those_of_all_orders() -> None:
    rng = np.random.default_rng(0)
    scores, members = rng.normal(size=9), 4
    member_M, other_N = scores[:members] + 0.7, scores[members:]
    pooled = np.concatenate([member_M, other_N])

    def area(rows: tuple[int, ...]) -> float:
        rest = [i for i in range(9) if i not in rows]
        return float(np.mean([pooled[i] > pooled[j] for i in rows for j in rest]))

    by_order = np.array([area(rows) for rows in itertools.combinations(range(9), members)])
    found = separation(member_M, other_N)
    assert found.auc == pytest.approx(by_order[0])
    assert found.p_value == pytest.approx((by_order >= by_order[0] - 1e-12).mean())
    both = separation(member_M, other_N, alternative="two-sided")
    assert both.p_value == pytest.approx(
        min(1, 2 * min((by_order >= by_order[0] - 1e-12).mean(), (by_order <= by_order[0] + 1e-12).mean()))
    )


def test_ties_count_half_and_equal_scores_say_nothing() -> None:
    assert separation(np.array([1.0, 2.0]), np.array([1.0, 0.0])).auc == 0.875
    same = separation(np.ones(5), np.ones(6))
    assert (same.auc, same.p_value) == (0.5, 1.0)


def test_p_values_of_honest_scores_are_uniform() -> None:
    rng = np.random.default_rng(1)
    scores = rng.gamma(1.5, size=30)
    for members in (8, 15):
        p = []
        for _ in range(400):
            mixed = rng.permutation(scores)
            p.append(separation(mixed[:members], mixed[members:]).p_value)
        assert kstest(p, "uniform").pvalue > 0.01


@pytest.mark.parametrize(("members", "others", "area"), [(20, 180, 0.5), (20, 20, 0.9), (100, 100, 0.7)])
def test_intervals_hold_the_true_area_as_often_as_they_say(members: int, others: int, area: float) -> None:
    rng, apart = np.random.default_rng(2), 2**0.5 * norm.ppf(area)
    held = []
    for _ in range(300):
        seen = float((rng.normal(apart, 1, members)[:, None] > rng.normal(0, 1, others)).mean())
        low, high = auc_interval(seen, members, others)
        held.append(low <= area <= high)
    assert np.mean(held) > 0.91
    assert auc_interval(1.0, members, others)[0] < 1 and auc_interval(1.0, members, others)[1] == 1


def test_power_is_what_simulations_find() -> None:
    rng, area = np.random.default_rng(3), least_auc(20, 40, level=0.0125)
    apart = 2**0.5 * norm.ppf(area)
    found = [separation(rng.normal(apart, 1, 20), rng.normal(0, 1, 40)).p_value <= 0.0125 for _ in range(300)]
    assert 0.74 < np.mean(found) < 0.9
    assert least_auc(3, 4, level=0.0125) is None  # no order of so few is rare enough
    assert least_auc(1000, 1000, level=0.0125) < 0.55 < least_auc(20, 180, level=0.0125)


def test_members_found_at_the_lowest_false_positive_rate_that_people_bear() -> None:
    others = np.arange(200.0)
    found = at_low_fpr(np.array([198.0, 197.5, 199.5, 100.0]), others)  # above 197 are 2 of 200, 1 %
    assert (found.fpr, found.tpr, found.reason) == (0.01, 0.75, None)
    assert found.expected == pytest.approx(3 / 201) and found.interval[0] < 0.75 < found.interval[1]
    few = at_low_fpr(np.array([18.5, 30.0]), np.arange(20.0))
    assert (few.fpr, few.tpr) == (0.05, 1.0) and "100 wanted" in few.reason
    rng = np.random.default_rng(4)
    honest = [at_low_fpr(rng.normal(size=10), rng.normal(size=20)) for _ in range(1000)]
    assert np.mean([of.tpr for of in honest]) == pytest.approx(honest[0].expected, abs=0.015)


def test_several_tests_are_corrected_as_holm_does() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
