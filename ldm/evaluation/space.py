"""How far a synthetic set lies from real images in one feature space: each figure beside its floor, with intervals by person.

Intervals come from halves: half of the people of every set, drawn without replacement. A mean over half of n people so drawn varies as
one over all n does, for the finite-population factor 1 - b/n is 1/2 at b = n/2 (Politis and Romano 1994). Of an odd number b is the
larger half, and the spread is scaled by √(b/(n - b)). Drawn with replacement, images would stand there twice, and a nearest neighbour at
distance 0 is no neighbour.

Legend: N image, D feature, R resample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from data_shards.errors import InputError
from ldm.evaluation.features import Extractor
from ldm.evaluation.frechet import conditioned, frechet_distance, frechet_infinity, kid, subset
from ldm.evaluation.intervals import LEAST_PEOPLE, about
from ldm.evaluation.prdc import prdc
from ldm.evaluation.sets import evenly
from ldm.evaluation.vendi import vendi_score
from ldm.evaluation.whitening import Whitening

NEIGHBOURS = 5  # of precision, recall, density and coverage, as Naeem et al. 2020 take it
MOST = 2000  # images of each set at most, evenly spaced, for what looks at all pairs of them
BY_NEIGHBOURS = ("precision", "recall", "density", "coverage")
LEAST_IN_HALF = 4 * NEIGHBOURS
"""Images of a half of each set, for the spread of what neighbours say. A ball to the fifth of six images holds nearly all that there is:
halves then all say the same, and the least difference would count."""

RESAMPLES = 100
DRAWS = 10

Sets = Mapping[str, np.ndarray]
Figures = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A figure of the synthetic set, and the same with other real images in its place.

    Attributes:
        value, floor: of as many images each; None: could not be had.
        interval, floor_interval: 95 %, from halves of the people; None with fewer than 4 on a side and, of what neighbours say, with
            fewer than 20 images in a half.
        excess: value - floor, what the set differs by from honest images of the same number.
        excess_interval: 99 %: the halves of the reference are the same in both.
        reason: why there is no value.
    """

    value: float | None = None
    interval: tuple[float, float] | None = None
    floor: float | None = None
    floor_interval: tuple[float, float] | None = None
    excess: float | None = None
    excess_interval: tuple[float, float] | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class InfinityFigures:
    """FID∞ of the synthetic set and of the floor, with the standard errors of the lines that give them."""

    value: float | None = None
    standard_error: float | None = None
    floor: float | None = None
    floor_standard_error: float | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class SpaceFigures:
    """A synthetic set in one feature space, whitened by training people (ldm/evaluation/whitening.py) who are not the floor's.

    Attributes:
        extractor: what gives the features, with seed or digest.
        d: dimensions.
        effective_rank, effective_rank_whitened: effective dimensions of the training features, as they are and whitened.
        n_real, people_real: images of the reference, and their people.
        n_synthetic, n_floor: images compared with it; of the floor at most as many.
        reason: why there are no figures.
        no_floor: why there is no floor, where the evaluation has one.
        frechet_all: Fréchet distance of all synthetic images; `frechet` is at the floor's number.
        frechet: squared Fréchet distance (Heusel et al. 2017).
        infinity: its limit for many images.
        kid: squared MMD with a cubic kernel (Bińkowski et al. 2018).
        precision, recall, density, coverage: of 5 nearest neighbours (Kynkäänniemi et al. 2019; Naeem et al. 2020).
        vendi: effective number of different images (Friedman and Dieng 2023).
        triplets: `frechet` on neighbouring bands alone, by their wavelengths; of the seeded network only.
    """

    extractor: str
    d: int
    effective_rank: float | None = None
    effective_rank_whitened: float | None = None
    n_real: int = 0
    people_real: int = 0
    n_synthetic: int = 0
    n_floor: int = 0
    reason: str | None = None
    frechet_all: float | None = None
    frechet: Compared = Compared()
    infinity: InfinityFigures = InfinityFigures()
    kid: Compared = Compared()
    precision: Compared = Compared()
    recall: Compared = Compared()
    density: Compared = Compared()
    coverage: Compared = Compared()
    vendi: Compared = Compared()
    triplets: dict[str, Compared] = field(default_factory=dict)
    no_floor: str | None = None


def distance_alone(real_ND: np.ndarray, other_ND: np.ndarray) -> Figures:
    """The Fréchet distance."""
    return {"frechet": frechet_distance(real_ND, other_ND)}


def all_figures(real_ND: np.ndarray, other_ND: np.ndarray) -> Figures:
    """All that compares two sets of whitened features, by the names of SpaceFigures; without neighbours where there are too few images."""
    figures = distance_alone(real_ND, other_ND)
    real_ND, other_ND = (x_ND[evenly(len(x_ND), MOST)] for x_ND in (real_ND, other_ND))
    figures["kid"] = kid(*conditioned(real_ND, other_ND))
    figures["vendi"] = vendi_score(other_ND)
    if min(len(real_ND), len(other_ND)) > NEIGHBOURS:
        figures |= vars(prdc(real_ND, other_ND, k=NEIGHBOURS))
    return figures


SIGNED = ("kid",)  # an unbiased estimate of 0 is negative half of the time; others are not below 0


def compare(
    sets: Sets, units: Mapping[str, np.ndarray], measure: Callable[[np.ndarray, np.ndarray], Figures], *, seed: int
) -> dict[str, Compared]:
    """Figures of the synthetic set and of the floor against the reference.

    Args:
        sets: features (N, D) of 'real', 'synthetic' and, where there is one, 'floor'.
        units: person of each image, (N,); of synthetic images each its own.
        measure: figures of (real, other).
    """
    others = [name for name in ("synthetic", "floor") if name in sets]
    n = min(len(sets[name]) for name in others)
    values = {name: _mean_over_draws(sets["real"], sets[name], n, measure, seed) for name in others}
    halves = _halves(sets, units, others, measure, seed)
    scale = max(widening(len(np.unique(units[name]))) for name in ("real", *others))
    return {key: _compared(key, values, halves, scale) for key in values["synthetic"]}


def _mean_over_draws(real_ND: np.ndarray, other_ND: np.ndarray, n: int, measure: Callable[..., Figures], seed: int) -> Figures:
    """At n images; sets of different size compare only at one n, for most figures hang on it."""
    draws = DRAWS if n < len(other_ND) else 1
    found = [measure(real_ND, subset(other_ND, n, (seed, n, k))) for k in range(draws)]
    return {key: float(np.mean([figures[key] for figures in found])) for key in found[0]}


def _halves(
    sets: Sets, units: Mapping[str, np.ndarray], others: list[str], measure: Callable[..., Figures], seed: int
) -> dict[str, list[Figures]]:
    """The figures of RESAMPLES halves of all sets, by the other set; empty where a side has too few people."""
    if min(len(np.unique(units[name])) for name in ("real", *others)) < LEAST_PEOPLE:
        return {name: [] for name in others}
    rng, found, least = np.random.default_rng(np.random.SeedSequence((seed, 11))), {name: [] for name in others}, MOST
    for _ in range(RESAMPLES):
        half = {name: sets[name][_half(units[name], rng)] for name in ("real", *others)}
        n = min(len(half[name]) for name in others)
        least = min(least, n, len(half["real"]))
        for name in others:
            found[name].append(measure(half["real"], half[name][np.sort(rng.permutation(len(half[name]))[:n])]))
    left_out = BY_NEIGHBOURS if least < LEAST_IN_HALF else ()
    return {name: [{key: value for key, value in of.items() if key not in left_out} for of in each] for name, each in found.items()}


def _half(unit_N: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Images of half of the people."""
    people = np.unique(unit_N)
    return np.flatnonzero(np.isin(unit_N, rng.permutation(people)[: larger_half(len(people))]))


def larger_half(n: int) -> int:
    """Of n people."""
    return (n + 1) // 2


def widening(n: int) -> float:
    """How much more a mean over n people varies than one over their larger half, drawn without replacement: √(b/(n - b))."""
    b = larger_half(n)
    return (b / (n - b)) ** 0.5 if n > b else 1.0


def _compared(key: str, values: dict[str, Figures], halves: dict[str, list[Figures]], scale: float) -> Compared:
    least = -np.inf if key in SIGNED else 0.0
    spread = {name: np.array([figures[key] for figures in found if key in figures]) for name, found in halves.items()}
    intervals = {name: about(values[name][key], spread_R, least=least, scale=scale) for name, spread_R in spread.items()}
    value = Compared(value=values["synthetic"][key], interval=intervals["synthetic"])
    if "floor" not in values:
        return value
    excess, both = values["synthetic"][key] - values["floor"][key], min(len(x) for x in spread.values())
    return Compared(
        value=value.value,
        interval=value.interval,
        floor=values["floor"][key],
        floor_interval=intervals["floor"],
        excess=excess,
        excess_interval=about(excess, spread["synthetic"][:both] - spread["floor"][:both], level=0.99, scale=scale),
    )


def space_figures(
    features: Sets,
    units: Mapping[str, np.ndarray],
    white: Whitening | None,
    extractor: Extractor,
    *,
    triplets: Mapping[str, tuple[Sets, Whitening | None]],
    reason: str | None,
    no_floor: str | None = None,
    seed: int,
) -> SpaceFigures:
    """All figures of one space.

    Args:
        features: of 'real', 'synthetic' and, where there is one, 'floor', as the extractor gives them; empty where it is refused.
        units: person of each of their images.
        triplets: the same features of some bands alone, with their whitening.
        reason: why no distance to the real images is a mark of quality, if so.
        no_floor: why the floor's images are no floor in this space, if so.
    """
    figures = {"extractor": extractor.name, "d": extractor.dimension, "no_floor": no_floor}
    if features:
        figures |= {
            "n_real": len(features["real"]),
            "people_real": len(np.unique(units["real"])),
            "n_synthetic": len(features["synthetic"]),
            "n_floor": 0 if no_floor else min(len(features.get("floor", ())), len(features["synthetic"])),
        }
    if white is not None:
        figures |= {"effective_rank": white.effective_rank, "effective_rank_whitened": white.effective_rank_whitened}
    if reason := extractor.refused or reason or _unfit(features, white):
        return SpaceFigures(**figures, reason=reason)
    sets = {name: white(x_ND) for name, x_ND in features.items() if len(x_ND) > 1 and not (no_floor and name == "floor")}
    try:
        compared = compare(sets, units, all_figures, seed=seed)
    except InputError as error:  # features that no figure can be had of, such as 0 in all dimensions
        return SpaceFigures(**figures, reason=error.what)
    too_few = Compared(reason=f"{NEIGHBOURS + 1} images of each set wanted, for {NEIGHBOURS} neighbours")
    return SpaceFigures(
        **figures,
        frechet_all=frechet_distance(sets["real"], sets["synthetic"]),
        infinity=_infinity(sets, extractor.dimension, seed),
        triplets={name: _triplet(of_bands, units, narrow, seed) for name, (of_bands, narrow) in triplets.items()},
        **{key: compared.get(key, too_few) for key in ("frechet", "kid", "precision", "recall", "density", "coverage", "vendi")},
    )


def _unfit(features: Sets, white: Whitening | None) -> str | None:
    """Why no figure can be had of these features; None where it can."""
    if bad := sum(int((~np.isfinite(x_ND)).any(1).sum()) for x_ND in features.values()):
        return f"{bad} images have features that are not finite"
    if white is None:
        return "the training images do not differ in their features"
    if len(features["synthetic"]) < 2:
        return "a synthetic set of one image has no spread"
    return None


def _triplet(features: Sets, units: Mapping[str, np.ndarray], white: Whitening | None, seed: int) -> Compared:
    if white is None:
        return Compared(reason="the training images do not differ in these bands")
    sets = {name: white(x_ND) for name, x_ND in features.items() if len(x_ND) > 1}
    try:
        return compare(sets, units, distance_alone, seed=seed)["frechet"]
    except InputError as error:  # values that are not finite in these bands
        return Compared(reason=error.what)


def _infinity(sets: Sets, d: int, seed: int) -> InfinityFigures:
    """Only where its smallest sets have as many images as dimensions: below, it is no line in 1/N (Chong and Forsyth 2020, §4)."""
    n = min(len(x_ND) for x_ND in sets.values())
    if n // 2 < d:
        return InfinityFigures(reason=f"{n} images for {d} dimensions: at least {2 * d} wanted")
    of_set = frechet_infinity(sets["real"], sets["synthetic"], seed=seed)
    of_floor = frechet_infinity(sets["real"], sets["floor"], seed=seed) if "floor" in sets else None
    if of_set is None:
        return InfinityFigures(reason="fewer than 40 images in a set")
    return InfinityFigures(
        value=of_set.value,
        standard_error=of_set.standard_error,
        floor=of_floor.value if of_floor else None,
        floor_standard_error=of_floor.standard_error if of_floor else None,
    )


def disagreements(spaces: Mapping[str, SpaceFigures]) -> tuple[str, ...]:
    """Where feature spaces put the synthetic set and the floor in different orders, in words."""
    excess = {name: figures.frechet.excess for name, figures in spaces.items() if figures.frechet.excess is not None}
    nearer, farther = ([name for name, value in excess.items() if (value < 0) == side] for side in (True, False))
    if not (nearer and farther):
        return ()
    return (
        "the feature spaces disagree: the synthetic set is farther from held-out people than other real images are by "
        f"{', '.join(farther)}, nearer by {', '.join(nearer)}",
    )
