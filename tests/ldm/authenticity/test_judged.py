"""Verdicts on vectors in place of images: honest sets are accused no more often than is said, copies are found, and the world of one."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from ldm.authenticity.judged import Evidence, Judged, judge
from ldm.authenticity.near import near

LEVEL, D = 0.05, 8


def images_of(rng: np.random.Generator, people: int, each: int, *, spread: float = 0.1, far: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of people, and of each person's images about them; and whose they are."""
    x_ND = np.repeat(far + rng.normal(size=(people, D)), each, 0)
    return x_ND + spread * rng.normal(size=x_ND.shape), np.repeat(np.arange(people), each)


def evidence(train: tuple, held: tuple, made_MD: np.ndarray) -> Evidence:
    """All searches, by brute force of the real search; a query and its mirror image are the same here."""
    (train_TD, train_T), (held_ND, held_N) = train, held
    itself_M = np.arange(len(made_MD))
    of_held = near((made_MD, made_MD), held_ND, held_N, k=1)
    return Evidence(
        made=near((made_MD, made_MD), train_TD, train_T),
        held=near((held_ND, held_ND), train_TD, train_T),
        held_person_N=held_N,
        train=near((train_TD, train_TD), train_TD, train_T, own_N=train_T),
        train_person_T=train_T,
        made_held_M=of_held.distance_N,
        made_held_index_M=of_held.index_N,
        repeated=near((made_MD, made_MD), made_MD, itself_M, own_N=itself_M, k=1),
        made_cell_M=np.zeros(len(made_MD), int),
        held_cell_N=np.zeros(len(held_ND), int),
        rows=lambda places: made_MD[places],
        held_own_N=np.full(len(held_N), np.inf),
    )


def a_set(
    seed: int, *, held: int = 40, made: int = 40, each: int = 2, copies: int = 0, noise: float = 0.0, far: float = 0.0, times: int = 1
) -> Judged:
    """20 training people; an honest set of images of new people, each made so many times; the first ones are noisy copies, one a person."""
    rng = np.random.default_rng(seed)
    train = images_of(rng, 20, 2)
    held_out = images_of(rng, held, each, far=far)
    made_MD = np.repeat(images_of(rng, made // times, 1)[0], times, 0)
    made_MD[:copies] = train[0][: 2 * copies : 2] + noise * rng.normal(size=(copies, D))
    return judge(evidence(train, held_out, made_MD), rate=0.05, level=LEVEL)


@pytest.mark.parametrize(
    ("held", "far", "times"),
    [(40, 0.0, 1), (8, 0.0, 1), (0, 0.0, 1), (40, 3.0, 1), (40, 0.0, 10)],
    ids=["held-out people", "few of them", "nobody held out", "held-out people of another site", "each image ten times"],
)
def test_honest_sets_are_flagged_no_more_often_than_the_level_says(held: int, far: float, times: int) -> None:
    sets = 50
    flagged = np.mean([a_set(seed, held=held, far=far, times=times).flagged_M.any() for seed in range(sets)])
    assert flagged <= LEVEL + 2 * np.sqrt(LEVEL * (1 - LEVEL) / sets)


def test_p_values_of_200_honest_sets_are_uniform_or_above() -> None:
    """Each figure's; the counts are discrete, so their p-values lie above uniform ones, but not far."""
    sets = [a_set(1000 + seed) for seed in range(200)]
    for name in ("copies", "ratio", "nearer_than_real", "closer_to_training", "data_copying"):
        p_S = np.array([1.0 if getattr(found, name).reason else getattr(found, name).p_value for found in sets])
        assert sum(bool(getattr(found, name).reason) for found in sets) <= 8, name  # whose held-out people lie otherwise by chance
        assert stats.kstest(p_S, "uniform", alternative="greater").pvalue > 0.01, name  # no more small ones than uniform has
        assert np.mean(p_S < 0.3) > 0.1, name  # and they do fall


def test_a_generator_that_repeats_itself_is_no_more_often_accused_of_copying() -> None:
    sets = [a_set(4000 + seed, made=200, times=10) for seed in range(30)]
    for name in ("copies", "ratio", "nearer_than_real", "closer_to_training", "data_copying"):
        p_S = np.array([getattr(found, name).p_value or 1.0 for found in sets])
        assert np.mean(p_S <= LEVEL) <= LEVEL + 2.5 * np.sqrt(LEVEL * (1 - LEVEL) / len(sets)), name
    assert np.mean([found.repeats.p_value <= LEVEL for found in sets]) > 0.9


def test_exact_and_near_copies_are_flagged_and_no_other() -> None:
    exact, noisy = a_set(0, copies=5), a_set(0, copies=5, noise=0.02)
    assert exact.exact_M[:5].all() and not exact.flagged_M[5:].any()
    assert noisy.near_M[:5].all() and not noisy.exact_M.any() and not noisy.flagged_M[5:].any()


def test_many_copies_are_seen_by_every_figure() -> None:
    found = a_set(3, copies=20, noise=0.3)
    assert found.copies.p_value < 0.01 and found.copies.copies[0] > 0
    assert found.nearer_than_real.p_value < 0.05 and found.closer_to_training.p_value < 0.01 and found.data_copying.p_value < 0.05


def test_a_picture_under_two_names_leaves_every_yardstick() -> None:
    """One held-out image that is a training image: five copies are found as without it."""
    rng = np.random.default_rng(5)
    train, held, (made_MD, _) = images_of(rng, 20, 2), images_of(rng, 40, 2), images_of(rng, 40, 1)
    made_MD[:5] = train[0][:10:2] + 0.02 * rng.normal(size=(5, D))
    held[0][0] = train[0][3]
    found = judge(evidence(train, held, made_MD), rate=0.05, level=LEVEL)
    assert found.real.double_N.tolist() == [True, *[False] * 79] and found.flagged_M[:5].all() and not found.flagged_M[5:].any()
    train[0][6] = train[0][20]  # and within the training set
    found = judge(evidence(train, held, made_MD), rate=0.05, level=LEVEL)
    assert np.flatnonzero(found.real.double_T).tolist() == [6, 20]


def test_held_out_people_of_another_site_are_no_yardstick() -> None:
    assert "another site" in a_set(0, far=3.0).real.yardstick_is and a_set(0).real.yardstick_is == "40 people held out"


@pytest.mark.parametrize(("held", "made"), [(0, 1), (1, 1), (3, 2), (40, 1)])
def test_a_world_of_few_has_no_verdict_and_says_why(held: int, made: int) -> None:
    found = a_set(0, held=held, made=made)
    for figure in (found.copies, found.ratio, found.nearer_than_real, found.closer_to_training, found.data_copying, found.repeats):
        assert figure.p_value is not None or figure.reason or (figure is found.repeats and figure.images == 0)
    assert not found.flagged_M.any()


def test_too_few_people_for_the_wanted_rate_say_what_it_takes() -> None:
    found = a_set(0, held=12).copies
    assert found.rate == pytest.approx(2 / 13) and found.wanted_rate == 0.05 and found.people_for_it == 39
    assert a_set(0, held=39).copies.rate == pytest.approx(0.05)


def test_what_is_said_to_be_visible_is_seen() -> None:
    """Of sets with that share of copies, four of five are told from honest ones."""
    share = a_set(0, made=80).copies.visible
    seen = np.mean(
        [a_set(2000 + seed, made=80, copies=min(20, round(80 * share)), noise=0.02).copies.p_value <= LEVEL for seed in range(60)]
    )
    assert share <= 0.25 and seen >= 0.7
