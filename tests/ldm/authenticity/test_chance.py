"""How often chance puts images below the least held-out distance, and how seldom an honest set is accused for it."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from ldm.authenticity.chance import chance
from ldm.authenticity.copies import judged
from ldm.authenticity.descriptors import nearest_of

LEVEL = 0.05


@pytest.mark.parametrize(("k", "images", "people"), [(0, 5, 3), (1, 1, 1), (3, 10, 10), (5, 10, 9), (10, 10, 2)])
def test_the_p_value_counts_the_orders_in_which_the_k_nearest_are_all_synthetic(k: int, images: int, people: int) -> None:
    assert chance(k, images=images, people=people, level=LEVEL).p_value == pytest.approx(comb(images, k) / comb(images + people, k))


def test_expected_count_and_p_value_agree_with_shuffles() -> None:
    rng, images, people = np.random.default_rng(0), 30, 6
    ranks = np.array([rng.permutation(images + people) for _ in range(4000)])
    below = (ranks[:, people:] < ranks[:, :people].min(1, keepdims=True)).sum(1)
    assert chance(1, images=images, people=people, level=LEVEL).expected == pytest.approx(below.mean(), rel=0.05)
    for k in (1, 5, 12):
        assert chance(k, images=images, people=people, level=LEVEL).p_value == pytest.approx((below >= k).mean(), abs=0.02)


def test_the_least_telling_count_is_the_first_within_the_level() -> None:
    found = chance(0, images=100, people=20, level=LEVEL)
    assert chance(found.telling, images=100, people=20, level=LEVEL).p_value <= LEVEL
    assert chance(found.telling - 1, images=100, people=20, level=LEVEL).p_value > LEVEL
    assert chance(0, images=1, people=2, level=LEVEL).telling is None  # 1 of 3 is no rare place


def nearest_rows(rng: np.random.Generator, people: int, images: int, spread: float) -> np.ndarray:
    """People in 6 dimensions, and images of each about them."""
    return np.repeat(rng.normal(size=(people, 6)), images, 0) + spread * rng.normal(size=(people * images, 6))


def one_audit(seed: int, *, held_out: int, copies: int = 0, times: int = 1, varied: float = 0.0) -> object:
    """A training set of 20 people, a held-out one, 40 images of new people, each made so many times; the first copy one person each."""
    rng = np.random.default_rng(seed)
    train_MD, person_M = nearest_rows(rng, 20, 2, 0.1), np.repeat(np.arange(20), 2)
    floor_ND, floor_N = (nearest_rows(rng, held_out, 2, 0.1), 100 + np.repeat(np.arange(held_out), 2)) if held_out else (train_MD, person_M)
    made_ND = np.repeat(nearest_rows(rng, 40 // times, 1, 0.1), times, 0)
    made_ND += varied * rng.normal(size=made_ND.shape)
    made_ND[:copies] = train_MD[: 2 * copies : 2] + 0.02 * rng.normal(size=(copies, 6))

    def nearest(x_ND: np.ndarray, group_N: np.ndarray) -> np.ndarray:
        return nearest_of(x_ND, x_ND, train_MD, "auto", not_in=(group_N, person_M)).distance_N

    made_N, real_N, radius_M = (nearest(*pair) for pair in ((made_ND, np.full(40, -1)), (floor_ND, floor_N), (train_MD, person_M)))
    return judged(made_N, made_ND, real_N, floor_N, radius_M, own=not held_out, level=LEVEL)


@pytest.mark.parametrize(
    ("held_out", "times", "varied"),
    [(8, 1, 0), (0, 1, 0), (8, 10, 0), (8, 40, 0.05)],
    ids=["held-out people", "training people as their own floor", "each image ten times", "one blurred image, all over"],
)
def test_honest_sets_are_accused_no_more_often_than_the_level_says(held_out: int, times: int, varied: float) -> None:
    accused = np.mean([one_audit(seed, held_out=held_out, times=times, varied=varied).flagged_N.any() for seed in range(600)])
    assert accused <= LEVEL + 2 * np.sqrt(LEVEL * (1 - LEVEL) / 600)


def test_copies_are_flagged_and_counted_from_below() -> None:
    found = one_audit(0, held_out=20, copies=12)
    assert found.flagged_N[:12].sum() == found.flagged_N.sum() == found.chance.at_least >= 6
