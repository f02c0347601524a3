"""Figures of an audit equal what the papers' definitions give, computed by loops in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ldm.authenticity.near import near
from ldm.authenticity.ratio import dimension_bound, nearness_p_values, people_near, ratios
from ldm.authenticity.verdicts import c_t, share_nearer_than_real
from ldm.authenticity.yardstick import Yardstick, tail_probability

RNG = np.random.default_rng(19)
TRAIN_TD, HELD_ND, MADE_MD = (RNG.normal(size=(n, 5)) for n in (60, 50, 70))
ALONE_T = np.arange(len(TRAIN_TD))  # an image a person, as the papers have it


def apart(a_D: np.ndarray, b_D: np.ndarray) -> float:
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a_D.tolist(), b_D.tolist(), strict=True)))


def test_authpct() -> None:
    """Alaa et al. 2022, §3.3: an image is authentic where its nearest training image has a training image nearer than it."""
    authentic = []
    for made_D in MADE_MD:
        to_train = [apart(made_D, train_D) for train_D in TRAIN_TD]
        i = int(np.argmin(to_train))
        authentic.append(min(apart(TRAIN_TD[i], train_D) for j, train_D in enumerate(TRAIN_TD) if j != i) < to_train[i])
    made = near((MADE_MD, MADE_MD), TRAIN_TD, ALONE_T)
    train = near((TRAIN_TD, TRAIN_TD), TRAIN_TD, ALONE_T, own_N=ALONE_T)
    nearer_M = made.distance_N < train.distance_N[made.index_N]
    held = near((HELD_ND, HELD_ND), TRAIN_TD, ALONE_T)
    share = share_nearer_than_real(nearer_M, held.distance_N < train.distance_N[held.index_N], np.arange(len(HELD_ND)))
    assert share.value == pytest.approx(1 - np.mean(authentic), abs=1e-12)


def test_c_t() -> None:
    """Meehan et al. 2020, §3: Z_U of each cell by counting pairs, weighted by the share of held-out points there."""
    cells_M, cells_N = RNG.integers(0, 3, len(MADE_MD)), RNG.integers(0, 3, len(HELD_ND))
    distance_M, distance_N = ([min(apart(x, train_D) for train_D in TRAIN_TD) for x in xs] for xs in (MADE_MD, HELD_ND))
    weighted, weights = 0.0, 0.0
    for cell in range(3):
        made = [d for d, c in zip(distance_M, cells_M, strict=True) if c == cell]
        held = [d for d, c in zip(distance_N, cells_N, strict=True) if c == cell]
        u = sum(m > h for m in made for h in held)
        mean, deviation = len(made) * len(held) / 2, math.sqrt(len(made) * len(held) * (len(made) + len(held) + 1) / 12)
        weighted += len(held) / len(HELD_ND) * (u - mean) / deviation
        weights += len(held) / len(HELD_ND)
    found, cells = c_t(np.array(distance_M), cells_M, np.array(distance_N), cells_N, least=5)
    assert cells == 3 and found == pytest.approx(weighted / weights, abs=1e-9)
    assert c_t(np.array(distance_M), cells_M, np.array(distance_N), cells_N, least=1000) == (None, 0)


def test_ratio() -> None:
    """Carlini et al. 2023, §4.2, without α: the distance to the nearest over the mean of the n nearest, n people here."""
    expected = []
    for made_D in MADE_MD:
        ten = sorted(apart(made_D, train_D) for train_D in TRAIN_TD)[:10]
        expected.append(ten[0] / (sum(ten) / 10))
    assert ratios(near((MADE_MD, MADE_MD), TRAIN_TD, ALONE_T).distance_NJ) == pytest.approx(expected, abs=1e-9)


def test_people_count_once_by_their_nearest_image() -> None:
    distance_NK, person_NK = np.array([[1.0, 2, 3, 4, np.inf]]), np.array([[7, 7, 2, 7, 5]])
    assert people_near(distance_NK, person_NK)[0, :3].tolist() == [1.0, 3.0, np.inf]


def test_even_points_have_the_dimension_that_they_have_and_uniform_p_values() -> None:
    """Points of a torus: what Levina and Bickel's estimate and the law of the nearest assume."""
    rng, m = np.random.default_rng(0), 3
    points_ND, reference_MD = rng.random((300, m)), rng.random((4000, m))
    gap_NM = np.abs(points_ND[:, None] - reference_MD[None])
    distance_NK = np.sort(np.sqrt((np.minimum(gap_NM, 1 - gap_NM) ** 2).sum(2)), axis=1)[:, :10]
    bound = dimension_bound(distance_NK, np.arange(300), np.ones(300))
    assert 0.8 * m < bound < m
    p_N = nearness_p_values(distance_NK, float(m))
    assert np.abs(np.sort(p_N) - (np.arange(300) + 0.5) / 300).max() < 0.08  # Kolmogorov's statistic


def test_p_values_of_ranks_count_people_not_images() -> None:
    yardstick = Yardstick.of(np.array([1.0, 1.5, 4.0, 3.0]), np.array([0, 0, 0, 1]))
    assert yardstick.people == 2 and yardstick.p_values(np.array([0.5, 1.2, 3.5])) == pytest.approx(
        [1 / 3, (1 + 1 / 3) / 3, (1 + 2 / 3 + 1) / 3]
    )


def test_counts_below_a_threshold_are_beta_binomial() -> None:
    """By shuffles: so many of n images lie below the r-th of P people."""
    rng, images, people, r = np.random.default_rng(1), 30, 20, 3
    drawn = rng.random((20000, images + people))
    below = (drawn[:, people:] < np.sort(drawn[:, :people], axis=1)[:, r - 1 : r]).sum(1)
    for k in (1, 5, 10):
        assert tail_probability(k, images, r, people) == pytest.approx((below >= k).mean(), abs=0.012)
