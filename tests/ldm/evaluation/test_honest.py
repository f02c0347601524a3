"""Honest sets, more people of the law that the real ones come of, are not accused: by simulation, for that is a promise about chance."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from ldm.evaluation.intervals import about
from ldm.evaluation.sets import Part, real_parts
from ldm.evaluation.space import Compared, all_figures, compare
from ldm.evaluation.spectral import region_distance
from ldm.evaluation.tables import NO_INTERVAL, WORSE, vessel_verdict
from ldm.evaluation.vessels import MORPHOMETRY, morphometry_figures
from ldm.evaluation.whitening import whitening

DIMENSIONS, ALIKE = 16, 0.7  # of the features; share of the variance that images of one person have in common


class RealSet:
    """A packed set as `real_parts` sees it, with features: Gaussian, of spectrum 1/d, images of one person alike."""

    path, digest, stats = "real", "0" * 64, SimpleNamespace(split="train")

    def __init__(self, rng: np.random.Generator, images: int, **people: int) -> None:
        self.splits = {split: SimpleNamespace(count=count * images, subjects=count) for split, count in people.items()}
        self.person = {split: [f"{split}{i // images}" for i in range(count * images)] for split, count in people.items()}
        self.features = {split: features(rng, count, images) for split, count in people.items()}

    def count(self, split: str) -> int:
        return self.splits[split].count

    def subjects(self, split: str) -> list[str]:
        return self.person[split]

    def of(self, part: Part) -> np.ndarray:
        return self.features[part.split][part.sample_N]


def features(rng: np.random.Generator, people: int, images: int) -> np.ndarray:
    of_person, of_image = (rng.normal(size=(n, DIMENSIONS)) for n in (people, people * images))
    return (ALIKE**0.5 * of_person.repeat(images, 0) + (1 - ALIKE) ** 0.5 * of_image) / np.arange(1, DIMENSIONS + 1) ** 0.5


def accusing(found: dict[str, Compared]) -> list[str]:
    """The figures whose interval of the excess says that the set is worse than real images."""
    sides = {"above": lambda low, high: low > 0, "below": lambda low, high: high < 0}
    return [key for key, side in WORSE.items() if key in found and (i := found[key].excess_interval) and sides[side](*i)]


def judged(seed: int, images: int, synthetic: int, by_the_floor: bool = False, **people: int) -> list[str]:
    """What accuses an honest set of so many images; with `by_the_floor` in features that the floor's own people whiten."""
    real = RealSet(np.random.default_rng((seed, 0)), images, **people)
    parts = real_parts(real, "val", None)
    white = whitening(real.of(parts.floor if by_the_floor else parts.whitened_by))
    sets = {"real": real.of(parts.reference), "floor": real.of(parts.floor)}
    units = {name: np.unique(part.units(), return_inverse=True)[1] for name, part in (("real", parts.reference), ("floor", parts.floor))}
    sets["synthetic"], units["synthetic"] = features(np.random.default_rng((seed, 1)), synthetic, 1), np.arange(synthetic)
    return accusing(compare({name: white(x_ND) for name, x_ND in sets.items()}, units, all_figures, seed=0))


@pytest.mark.parametrize(
    ("images", "synthetic", "people"),
    [
        (2, 32, {"train": 24, "val": 12, "test": 12}),
        (2, 32, {"train": 24, "val": 24}),
        (4, 32, {"train": 24, "val": 6}),
    ],
    ids=["another split is the floor", "the held-out people are halved", "the training people are halved"],
)
def test_an_honest_set_is_not_accused_by_a_floor_that_was_whitened_by_itself(images: int, synthetic: int, people: dict[str, int]) -> None:
    found = [judged(seed, images, synthetic, **people) for seed in range(2)]
    assert sum(map(bool, found)) == 0, found
    assert "vendi" in judged(0, images, synthetic, by_the_floor=True, **people), "which is what the division is for"


def test_what_neighbours_say_in_halves_of_a_few_images_has_no_interval_and_accuses_nobody() -> None:
    few, enough = ({"train": 12, "val": people, "test": people} for people in (12, 40))
    assert not any({"precision", "recall", "density", "coverage"} & {*judged(seed, 1, 24, **few)} for seed in range(4))
    rng = np.random.default_rng(0)
    for people in (few, enough):
        sets = {name: features(rng, people["val"], 1) for name in ("real", "synthetic", "floor")}
        found = compare(sets, dict.fromkeys(sets, np.arange(people["val"])), all_figures, seed=0)
        for key in ("precision", "recall", "density", "coverage"):
            assert found[key].value is not None and (found[key].interval is None) == (found[key].excess_interval is None) == (people is few)
        assert found["frechet"].excess_interval is not None and found["vendi"].excess_interval is not None


def test_halves_that_all_say_the_same_bear_no_interval() -> None:
    assert about(0.5, np.full(100, 0.25)) is None and about(0.5, np.array([0.2, 0.3])) is not None


@pytest.mark.parametrize(("real", "floor"), [(1, 1), (3, 24), (24, 3)])
def test_spectra_and_vessels_of_three_people_or_fewer_accuse_no_honest_set(real: int, floor: int) -> None:
    rng = np.random.default_rng(0)
    people = {"real": real, "synthetic": 64, "floor": floor}
    for _ in range(10):
        counts = {name: rng.multinomial(400, rng.dirichlet(np.full(16, 5.0), size=n))[:, None] for name, n in people.items()}
        values = {name: rng.normal(size=(n, len(MORPHOMETRY))) for name, n in people.items()}
        histograms = {name: SimpleNamespace(counts_UCK=lambda region, of=of: of, labelled=True) for name, of in counts.items()}
        by_kl = region_distance(histograms, "vein", seed=0)
        by_vessels = morphometry_figures(values, {name: [str(i) for i in range(n)] for name, n in people.items()}, 0, resamples=100)
        assert by_kl.kl_mean is not None and by_kl.kl_excess_interval is by_kl.js_excess_interval is None
        for figure in by_vessels.values():
            assert figure.excess is not None and figure.excess_interval is None and vessel_verdict(figure) == NO_INTERVAL


@pytest.mark.parametrize("people", [5, 7, 8])
def test_halves_spread_as_the_figure_itself_also_of_an_odd_number_of_people(people: int) -> None:
    """Of a mean that is known: 95 % intervals are as wide as the mean over all of them varies from draw to draw."""

    def measure(real_ND: np.ndarray, other_ND: np.ndarray) -> dict[str, float]:
        return {"kid": float(real_ND.mean())}

    rng, widths = np.random.default_rng(people), []
    for _ in range(40):
        sets = {"real": rng.normal(size=(people, 1)), "synthetic": np.zeros((200, 1))}
        interval = compare(sets, {name: np.arange(len(x_ND)) for name, x_ND in sets.items()}, measure, seed=0)["kid"].interval
        widths.append((interval[1] - interval[0]) ** 2)
    expected = (2 * 1.96) ** 2 / people
    assert 0.6 < np.mean(widths) / expected < 1.2
