"""What an audit says of one space: distances beside those between real people, verdicts in words, and whom they concern.

Legend: M synthetic image, N query, D dimension.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ldm.authenticity.audit_result import (
    AlikePair,
    ByPatient,
    ClosestPair,
    Flagged,
    FloorDoubles,
    Histogram,
    Patient,
    Quantiles,
    RepeatedPair,
    SpaceVerdicts,
)
from ldm.authenticity.flagged import FlaggedImage
from ldm.authenticity.judged import Evidence, Judged, judge
from ldm.authenticity.near import Near

if TYPE_CHECKING:
    from ldm.authenticity.audit import Audit

LEVEL = 0.05  # of the whole audit: how often an honest set may be accused; the spaces share it
BINS = 40
FIGURES = 5  # copies, AuthPct, closest record, C_T, repeats: words are made of those that are told from chance at a share of the level


def space_verdicts(audit: Audit, name: str) -> tuple[SpaceVerdicts, list[FlaggedImage]]:
    """One space's figures, and the images that it flags, of units that are all there."""
    of, config, space = audit.evidence(name), audit.config, audit.of_space[name]
    judged, keys = judge(of, rate=config.rate, level=LEVEL / len(audit.of_space)), audit.made.units()
    real = quantiles(judged.real.yardstick.distance_N)
    found = SpaceVerdicts(
        space=space.name,
        d=space.dimension,
        yardstick=judged.real.yardstick_is,
        synthetic_to_train=quantiles(of.made.distance_N),
        floor_to_train=real,
        histogram=histogram(of, judged),
        floor_doubles=doubles(audit, of, judged),
        flagged=Flagged(
            below_min=int((of.made.distance_N < real.min).sum()) if real else None,
            images=int(judged.flagged_M.sum()),
            exact=int(judged.exact_M.sum()),
            near=int((judged.near_M & ~judged.exact_M).sum()),
            beyond_chance=int((judged.beyond_M & ~judged.near_M & ~judged.exact_M).sum()),
            level=LEVEL / len(audit.of_space),
            dimension=judged.real.dimension,
        ),
        recognised=judged.recognised,
        copies=judged.copies,
        ratio=judged.ratio,
        nearer_than_real=judged.nearer_than_real,
        closer_to_training=judged.closer_to_training,
        data_copying=judged.data_copying,
        duplicates=judged.repeats,
        repeated=repeated(of.repeated, keys, config.closest),
        by_patient=by_patient(of.made, judged, audit.train_people, config.closest),
        closest=closest(audit, of.made, judged, real.median if real else None),
        verdict=tuple(said(judged, len(keys), LEVEL / len(audit.of_space))),
    )
    return found, flagged_images(audit, name, of.made, judged)


def flagged_images(audit: Audit, name: str, near: Near, judged: Judged) -> list[FlaggedImage]:
    """Nearest first."""
    keys, train_keys, flagged = audit.made.units(), audit.train.dataset.keys(audit.train.split), np.flatnonzero(judged.flagged_M)
    return [
        FlaggedImage(
            synthetic_key=keys[m],
            synthetic_index=int(audit.made.sample_N[m]),
            space=name,
            why="exact" if judged.exact_M[m] else "near" if judged.near_M[m] else "beyond chance",
            distance=float(near.distance_N[m]),
            p_value=None if judged.p_value_M is None else float(judged.p_value_M[m]),
            train_key=train_keys[near.index_N[m]],
            subject=str(audit.train_people[near.index_N[m]]),
            mirrored=bool(near.mirrored_N[m]),
        )
        for m in flagged[np.argsort(near.distance_N[flagged], kind="stable")]
    ]


def said(judged: Judged, images: int, level: float) -> Iterator[str]:
    """The verdicts in words; they accuse only with a p-value, and never acquit."""
    of_figure = level / FIGURES
    flagged, exact, near = (int(x_M.sum()) for x_M in (judged.flagged_M, judged.exact_M, judged.near_M & ~judged.exact_M))
    if exact:
        yield f"{exact} of {images} images are training images, but for rounding"
    if near:
        yield f"{near} of {images} images lie so near to one person, for how the next ones lie, that it is no chance (level {level:g})"
    c, who = judged.copies, judged.real.yardstick_is
    if c.reason:
        yield f"no count of copies: {c.reason}"
    else:
        below = f"{c.below} of {c.n} images lie below a distance that {100 * c.rate:.2g} % of honest images have ({who})"
        yield f"{below}; an honest set has {c.honest[0]} to {c.honest[1]} there (p = {c.p_value:.2g})"
        if c.rate > c.wanted_rate * 1.0001:
            yield f"no verdict at {100 * c.wanted_rate:g} %: it takes {c.people_for_it} people held out, here are {c.people}"
        if flagged > exact + near:
            yield f"{flagged - exact - near} more of these are no chance (level {level:g})"
        if not flagged:
            yield (
                f"no image is flagged; a share of copies below {100 * c.visible:.2g} % would mostly stay unseen" if c.visible is not None
                else "no image is flagged, and with so few people no share of copies would be seen, but of those that are all but the same"
            )  # fmt: skip
    for words, figure, direction in (
        ("nearer to a training image than that one is to any other person's", judged.nearer_than_real, "value"),
        ("nearer to a training person than to any held out", judged.closer_to_training, "share"),
    ):
        if figure.p_value is not None and figure.p_value <= of_figure:
            expected = figure.real if direction == "value" else figure.expected
            share = f"{100 * getattr(figure, direction):.3g} % of the images"
            yield f"{share} are {words}, of an honest set {100 * expected:.3g} % (p = {figure.p_value:.2g})"
    if judged.data_copying.p_value is not None and judged.data_copying.p_value <= of_figure:
        c_t = f"C_T = {judged.data_copying.c_t:.2f} (p = {judged.data_copying.p_value:.2g})"
        yield f"the set lies nearer to the training images than people held out do: {c_t}"
    if judged.recognised is not None:
        yield f"of the images of people held out {100 * judged.recognised:.2g} % lie as near to another image of the same person"
    if judged.repeats.p_value is not None and judged.repeats.p_value <= of_figure:
        by_chance = f"of an honest set {judged.repeats.expected:.3g} (p = {judged.repeats.p_value:.2g})"
        repeated = f"{judged.repeats.images} images are nearer to another one than two people are in a set of this size"
        yield f"the set repeats itself: {repeated}, {by_chance}"
    if judged.repeats.exact:
        yield f"{judged.repeats.exact} images are another one of the set, but for rounding"


def quantiles(distance_N: np.ndarray) -> Quantiles | None:
    """None where no distance is finite."""
    finite_N = distance_N[np.isfinite(distance_N)]
    if not len(finite_N):
        return None
    least, p1, p5, median, greatest = map(float, np.quantile(finite_N, (0, 0.01, 0.05, 0.5, 1)))
    return Quantiles(min=least, p1=p1, p5=p5, median=median, max=greatest)


def histogram(of: Evidence, judged: Judged) -> Histogram:
    """Nearest distances of all three kinds of images, real ones without doubles, between 0 and the greatest."""
    kinds = [of.made.distance_N, of.held.distance_N[~judged.real.double_N], of.train.distance_N[~judged.real.double_T]]
    kinds = [x_N[np.isfinite(x_N)] for x_N in kinds]
    edges = np.linspace(0, max((float(x_N.max()) for x_N in kinds if len(x_N)), default=0) or 1.0, BINS + 1)
    made, held, train = (tuple(map(int, np.histogram(x_N, edges)[0])) for x_N in kinds)
    return Histogram(edges=tuple(map(float, edges)), synthetic=made, held_out=held, training=train)


def repeated(near: Near, keys: list[str], most: int) -> tuple[RepeatedPair, ...]:
    """The closest pairs of the set, each once."""
    pairs: dict[tuple[int, int], RepeatedPair] = {}
    for m in np.argsort(near.distance_N, kind="stable"):
        if len(pairs) == most or near.index_N[m] < 0:
            break
        pair = (min(int(m), int(near.index_N[m])), max(int(m), int(near.index_N[m])))
        both = keys[pair[0]], keys[pair[1]]
        pairs.setdefault(pair, RepeatedPair(keys=both, distance=float(near.distance_N[m]), mirrored=bool(near.mirrored_N[m])))
    return tuple(pairs.values())


def by_patient(near: Near, judged: Judged, subjects: np.ndarray, most: int) -> ByPatient:
    """Training patients by the synthetic images that are flagged as copies of theirs, worst first."""
    nearest_to: dict[str, list[int]] = defaultdict(list)
    for m, i in enumerate(near.index_N):
        nearest_to[str(subjects[i])].append(m)
    listed = [
        Patient(
            subject=subject,
            flagged=int(judged.flagged_M[rows].sum()),
            exact=int(judged.exact_M[rows].sum()),
            nearest_to=len(rows),
            least_distance=float(near.distance_N[rows].min()),
        )
        for subject, rows in nearest_to.items()
        if judged.flagged_M[rows].any()
    ]
    listed.sort(key=lambda patient: (-patient.flagged, patient.least_distance))
    return ByPatient(
        patients=len(set(subjects)),
        patients_flagged=len(listed),
        largest_share_of_one_patient=max(map(len, nearest_to.values())) / len(near.index_N),
        worst=tuple(listed[:most]),
    )


def closest(audit: Audit, near: Near, judged: Judged, real_median: float | None) -> tuple[ClosestPair, ...]:
    """The closest pairs; whose image a training image is stands only where the pair is flagged."""
    keys, train_keys = audit.made.units(), audit.train.dataset.keys(audit.train.split)
    return tuple(
        ClosestPair(
            synthetic_key=keys[m],
            synthetic_index=int(audit.made.sample_N[m]),
            train_key=train_keys[near.index_N[m]] if judged.flagged_M[m] else None,
            train_index=int(near.index_N[m]),
            subject=str(audit.train_people[near.index_N[m]]) if judged.flagged_M[m] else None,
            distance=float(near.distance_N[m]),
            of_floor_median=float(near.distance_N[m]) / real_median if real_median else None,
            p_value=None if judged.p_value_M is None else float(judged.p_value_M[m]),
            mirrored=bool(near.mirrored_N[m]),
            exact=bool(judged.exact_M[m]),
            flagged=bool(judged.flagged_M[m]),
        )
        for m in np.argsort(near.distance_N, kind="stable")[: audit.config.closest]
    )


def doubles(audit: Audit, of: Evidence, judged: Judged) -> FloorDoubles:
    """Which real images are, under another name and person, in the training set too."""
    train_keys = audit.train.dataset.keys(audit.train.split)
    held_keys = [key for part in audit.held for key in part.dataset.keys(part.split)]
    pairs = {
        tuple(sorted((keys[n], train_keys[near.index_N[n]]))): float(near.distance_N[n])
        for near, double_N, keys in ((of.held, judged.real.double_N, held_keys), (of.train, judged.real.double_T, train_keys))
        for n in np.flatnonzero(double_N)
    }
    nearest_first = sorted(pairs, key=lambda pair: (pairs[pair], pair))
    return FloorDoubles(
        images=int(judged.real.double_N.sum() + judged.real.double_T.sum()),
        pairs=tuple(AlikePair(keys=pair, distance=pairs[pair]) for pair in nearest_first[: audit.config.closest]),
    )
