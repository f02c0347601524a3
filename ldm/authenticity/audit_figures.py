"""What an audit says of one descriptor: distances beside those between real people, copies, repeats, and whom they concern.

Legend: N query, M reference, D dimension.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from ldm.authenticity.audit_result import (
    AlikePair,
    ByPatient,
    ClosestPair,
    DescriptorFigures,
    Duplicates,
    Flagged,
    FloorDoubles,
    Patient,
    Quantiles,
    RepeatedPair,
)
from ldm.authenticity.copies import EXACT_SHARE, Judged, judged, verdict
from ldm.authenticity.descriptors import DESCRIPTORS, Nearest
from ldm.evaluation.sets import Part

if TYPE_CHECKING:
    from ldm.authenticity.audit import Audit

LEVEL = 0.05  # of the whole audit: how often an honest set may be accused; the descriptors share it


def quantiles(distance_N: np.ndarray) -> Quantiles | None:
    """None where no distance is finite."""
    finite_N = distance_N[np.isfinite(distance_N)]
    if not len(finite_N):
        return None
    least, p1, p5, median, greatest = map(float, np.quantile(finite_N, (0, 0.01, 0.05, 0.5, 1)))
    return Quantiles(min=least, p1=p1, p5=p5, median=median, max=greatest)


def duplicates(near: Nearest, keys: list[str], judgement: Judged, pairs_real: int, most: int) -> Duplicates:
    """Repeats in the synthetic set.

    Args:
        near: of each synthetic image, the nearest other one.
        pairs_real: pairs of people among which the floor's least distance is the least. An honest set of n images has
            n (n - 1) / 2 pairs, each as likely to lie below it: `expected`, about.
    """
    n = len(keys)
    if n < 2:
        return Duplicates()
    images = int((near.distance_N < judgement.real_N.min()).sum()) if len(judgement.real_N) else None
    seen, pairs = set(), []
    for i in np.argsort(near.distance_N, kind="stable"):
        pair = tuple(sorted((int(i), int(near.index_N[i]))))
        if pair not in seen and len(pairs) < most:
            seen.add(pair)
            both = keys[pair[0]], keys[pair[1]]
            pairs.append(RepeatedPair(keys=both, distance=float(near.distance_N[i]), mirrored=bool(near.mirrored_N[i])))
    return Duplicates(
        share=None if images is None else images / n,
        images=images,
        exact=int((near.distance_N <= EXACT_SHARE * judgement.scale).sum()),
        expected=None if images is None else min(float(n), n * (n - 1) / (pairs_real + 1)),
        closest=tuple(pairs),
        distances=quantiles(near.distance_N),
    )


def by_patient(near: Nearest, judgement: Judged, subjects: np.ndarray, most: int) -> ByPatient:
    """Training patients by the synthetic images that are flagged as copies of theirs, worst first."""
    nearest_to: dict[str, list[int]] = defaultdict(list)
    for n, i in enumerate(near.index_N):
        nearest_to[str(subjects[i])].append(n)
    listed = [
        Patient(
            subject=subject,
            flagged=int(judgement.flagged_N[rows].sum()),
            exact=int(judgement.exact_N[rows].sum()),
            nearest_to=len(rows),
            least_distance=float(near.distance_N[rows].min()),
        )
        for subject, rows in nearest_to.items()
        if judgement.flagged_N[rows].any()
    ]
    listed.sort(key=lambda patient: (-patient.flagged, patient.least_distance))
    return ByPatient(
        patients=len(set(subjects)),
        patients_flagged=len(listed),
        largest_share_of_one_patient=max(map(len, nearest_to.values())) / len(near.index_N),
        worst=tuple(listed[:most]),
    )


def descriptor_figures(units: Audit, name: str) -> DescriptorFigures:
    """One descriptor's figures."""
    train, generated, config, subjects = units.train, units.made, units.config, units.train_people
    train_keys, keys = np.array(train.dataset.keys(train.split)), generated.units()
    near, real = units.nearest(generated, "copies", name), units.nearest(units.floor, "people", name)
    radius_M = units.nearest(train, "people", name).distance_N
    level, own = LEVEL / len(DESCRIPTORS), config.against == config.train
    repeats, made_ND = units.nearest(generated, "repeats", name), units.descriptors.of(generated, name)
    judgement = judged(near.distance_N, made_ND, real.distance_N, units.floor_people, radius_M, own=own, level=level)
    counted_N = np.isfinite(real.distance_N) & ~judgement.double_N
    floor = quantiles(judgement.real_N)
    return DescriptorFigures(
        dimension=made_ND.shape[1],
        synthetic_to_train=quantiles(near.distance_N),
        floor_to_train=floor,
        floor_doubles=doubles(real, judgement, units.floor, train_keys, config.closest),
        flagged=Flagged(
            below_min=int(judgement.below_N.sum()) if floor else None,
            **(vars(judgement.chance) if judgement.chance else {}),
            level=level,
            people=judgement.people,
            exact=int(judgement.exact_N.sum()),
            images=int(judgement.flagged_N.sum()),
            share_below_p1=float((near.distance_N <= floor.p1).mean()) if floor else None,
            floor_share_below_p1=float((judgement.real_N <= floor.p1).mean()) if floor else None,
        ),
        verdict=verdict(judgement, len(keys), level),
        share_nearer_than_real=float((near.distance_N < radius_M[near.index_N]).mean()),
        floor_share_nearer_than_real=float((real.distance_N < radius_M[real.index_N])[counted_N].mean()) if floor else None,
        duplicates=duplicates(repeats, keys, judgement, judgement.people * len(set(subjects)), config.closest),
        by_patient=by_patient(near, judgement, subjects, config.closest),
        closest=closest(units, near, judgement, train_keys, floor.median if floor else None),
    )


def closest(units: Audit, near: Nearest, judgement: Judged, train_keys: np.ndarray, floor_median: float | None) -> tuple[ClosestPair, ...]:
    """The closest pairs; whose image a training image is stands only where the pair is flagged."""
    keys, subjects = units.made.units(), units.train_people
    return tuple(
        ClosestPair(
            synthetic_key=keys[n],
            synthetic_index=int(units.made.sample_N[n]),
            train_key=str(train_keys[near.index_N[n]]) if judgement.flagged_N[n] else None,
            train_index=int(near.index_N[n]),
            subject=str(subjects[near.index_N[n]]) if judgement.flagged_N[n] else None,
            distance=float(near.distance_N[n]),
            of_floor_median=float(near.distance_N[n]) / floor_median if floor_median else None,
            mirrored=bool(near.mirrored_N[n]),
            exact=bool(judgement.exact_N[n]),
            flagged=bool(judgement.flagged_N[n]),
        )
        for n in np.argsort(near.distance_N, kind="stable")[: units.config.closest]
    )


def doubles(real: Nearest, judgement: Judged, floor: Part, train_keys: np.ndarray, most: int) -> FloorDoubles:
    """Which real images stand in the floor's split and, under another name and person, in the training set."""
    floor_keys = floor.dataset.keys(floor.split)
    pairs = {
        tuple(sorted((floor_keys[floor.sample_N[n]], str(train_keys[real.index_N[n]])))): float(real.distance_N[n])
        for n in np.flatnonzero(judgement.double_N)
    }
    nearest_first = sorted(pairs, key=lambda pair: (pairs[pair], pair))
    return FloorDoubles(
        images=int(judgement.double_N.sum()), pairs=tuple(AlikePair(keys=pair, distance=pairs[pair]) for pair in nearest_first[:most])
    )
