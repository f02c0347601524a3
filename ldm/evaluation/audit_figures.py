"""What an audit says of one descriptor: distances beside those between real people, copies, repeats, and whom they concern.

Legend: N query, M reference, D dimension.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from ldm.evaluation.copies import EXACT_SHARE, Judged, judged, verdict
from ldm.evaluation.neighbours import DESCRIPTORS, Nearest
from ldm.evaluation.sets import Part

if TYPE_CHECKING:
    from ldm.evaluation.audit import Audit

LEVEL = 0.05  # of the whole audit: how often an honest set may be accused; the descriptors share it


def quantiles(distance_N: np.ndarray) -> dict[str, float] | None:
    """Least, 1 %, 5 %, median and greatest of the finite distances; None where there are none."""
    finite_N = distance_N[np.isfinite(distance_N)]
    if not len(finite_N):
        return None
    return dict(zip(("min", "p1", "p5", "median", "max"), map(float, np.quantile(finite_N, (0, 0.01, 0.05, 0.5, 1))), strict=True))


def duplicates(near: Nearest, keys: list[str], found: Judged, pairs_real: int, most: int) -> dict[str, Any]:
    """Synthetic images nearer to another synthetic image than the floor's least distance: a generator that repeats itself.

    Args:
        near: of each synthetic image, the nearest other one.
        pairs_real: pairs of people among which the floor's least distance is the least. An honest set of n images has
            n (n - 1) / 2 pairs, each as likely to lie below it: `expected`, about.
    """
    n = len(keys)
    if n < 2:
        return {"share": None, "images": 0, "exact": 0, "expected": None, "closest": [], "distances": None}
    images = int((near.distance_N < found.real_N.min()).sum()) if len(found.real_N) else None
    seen, pairs = set(), []
    for i in np.argsort(near.distance_N, kind="stable"):
        pair = tuple(sorted((int(i), int(near.index_N[i]))))
        if pair not in seen and len(pairs) < most:
            seen.add(pair)
            pairs.append({"keys": [keys[k] for k in pair], "distance": float(near.distance_N[i]), "mirrored": bool(near.mirrored_N[i])})
    return {
        "share": None if images is None else images / n,
        "images": images,
        "exact": int((near.distance_N <= EXACT_SHARE * found.scale).sum()),
        "expected": None if images is None else min(float(n), n * (n - 1) / (pairs_real + 1)),
        "closest": pairs,
        "distances": quantiles(near.distance_N),
    }


def by_patient(near: Nearest, found: Judged, subjects: np.ndarray, most: int) -> dict[str, Any]:
    """Training patients by the synthetic images that are flagged as copies of theirs, worst first; nobody else is named."""
    nearest_to: dict[str, list[int]] = defaultdict(list)
    for n, i in enumerate(near.index_N):
        nearest_to[str(subjects[i])].append(n)
    listed = [
        {
            "subject": subject,
            "flagged": int(found.flagged_N[rows].sum()),
            "exact": int(found.exact_N[rows].sum()),
            "nearest_to": len(rows),
            "least_distance": float(near.distance_N[rows].min()),
        }
        for subject, rows in nearest_to.items()
        if found.flagged_N[rows].any()
    ]
    listed.sort(key=lambda row: (-row["flagged"], row["least_distance"]))
    return {
        "patients": len(set(subjects)),
        "patients_flagged": len(listed),
        "largest_share_of_one_patient": max(map(len, nearest_to.values())) / len(near.index_N),
        "worst": listed[:most],
    }


def descriptor_figures(units: Audit, name: str) -> dict[str, Any]:
    """One descriptor's figures.

    Keys:
        dimension; synthetic_to_train, floor_to_train: quantiles of nearest distances; the floor's queries are real
            images, and a person's own training images do not count. None where there is one person alone.
        floor_doubles: the floor's images that are pictures of the training set under another name, left out of the floor:
            `images`, and `pairs` of their keys.
        flagged: images nearer than any floor image: `below_min`, beside the `expected` number in an honest set of this size, the
            `p_value` of so many, the least number that would be `telling` at the `level`, and that of `people` who are the floor;
            `exact`: images that are training images; `at_least` so many are no chance; `images`: flagged in all. `share_below_p1`,
            the share within the nearest 1 % of the floor's distances, beside `floor_share_below_p1`, which differs from 0.01 where
            the floor is small.
        verdict: the same in words.
        share_nearer_than_real: synthetic images nearer to their training image than that one is to any training image of
            another person (after AuthPct, Alaa et al. 2022, §3.3, with people in place of images).
        floor_share_nearer_than_real: the same share among the floor's images.
        duplicates, by_patient; closest: the closest pairs, for people to look at. The training image's key and person stand in it
            only where the pair is flagged; `train_index` finds the image.
    """
    train, generated, config, subjects = units.train, units.made, units.config, units.train_people
    train_keys, keys = np.array(train.dataset.keys(train.split)), generated.units()
    near, real = units.nearest(generated, "copies", name), units.nearest(units.floor, "people", name)
    radius_M = units.nearest(train, "people", name).distance_N
    level, own = LEVEL / len(DESCRIPTORS), config.against == config.train
    repeats, made_ND = units.nearest(generated, "repeats", name), units.descriptors.of(generated, name)
    found = judged(near.distance_N, made_ND, real.distance_N, units.floor_people, radius_M, own=own, level=level)
    counted_N = np.isfinite(real.distance_N) & ~found.double_N
    floor = quantiles(found.real_N)
    p1 = floor["p1"] if floor else None
    return {
        "dimension": made_ND.shape[1],
        "synthetic_to_train": quantiles(near.distance_N),
        "floor_to_train": floor,
        "floor_doubles": doubles(real, found, units.floor, train_keys, config.closest),
        "flagged": {
            "below_min": int(found.below_N.sum()) if floor else None,
            **(asdict(found.chance) if found.chance else dict.fromkeys(("expected", "p_value", "telling", "at_least"))),
            "level": level,
            "people": found.people,
            "exact": int(found.exact_N.sum()),
            "images": int(found.flagged_N.sum()),
            "share_below_p1": float((near.distance_N <= p1).mean()) if floor else None,
            "floor_share_below_p1": float((found.real_N <= p1).mean()) if floor else None,
        },
        "verdict": verdict(found, len(keys), level),
        "share_nearer_than_real": float((near.distance_N < radius_M[near.index_N]).mean()),
        "floor_share_nearer_than_real": float((real.distance_N < radius_M[real.index_N])[counted_N].mean()) if floor else None,
        "duplicates": duplicates(repeats, keys, found, found.people * len(set(subjects)), config.closest),
        "by_patient": by_patient(near, found, subjects, config.closest),
        "closest": closest(units, near, found, train_keys, floor["median"] if floor else None),
    }


def closest(units: Audit, near: Nearest, found: Judged, train_keys: np.ndarray, floor_median: float | None) -> list[dict[str, Any]]:
    """The closest pairs; whose image a training image is stands only where the pair is flagged."""
    keys, subjects = units.made.units(), units.train_people
    return [
        {
            "synthetic_key": keys[n],
            "synthetic_index": int(units.made.sample_N[n]),
            "train_key": str(train_keys[near.index_N[n]]) if found.flagged_N[n] else None,
            "train_index": int(near.index_N[n]),
            "subject": str(subjects[near.index_N[n]]) if found.flagged_N[n] else None,
            "distance": float(near.distance_N[n]),
            "of_floor_median": float(near.distance_N[n]) / floor_median if floor_median else None,
            "mirrored": bool(near.mirrored_N[n]),
            "exact": bool(found.exact_N[n]),
            "flagged": bool(found.flagged_N[n]),
        }
        for n in np.argsort(near.distance_N, kind="stable")[: units.config.closest]
    ]


def doubles(real: Nearest, found: Judged, floor: Part, train_keys: np.ndarray, most: int) -> dict[str, Any]:
    """Which real images stand in the floor's split and, under another name and person, in the training set."""
    floor_keys = floor.dataset.keys(floor.split)
    pairs = {
        tuple(sorted((floor_keys[floor.sample_N[n]], str(train_keys[real.index_N[n]])))): float(real.distance_N[n])
        for n in np.flatnonzero(found.double_N)
    }
    nearest_first = sorted(pairs, key=lambda pair: (pairs[pair], pair))
    return {
        "images": int(found.double_N.sum()),
        "pairs": [{"keys": list(pair), "distance": pairs[pair]} for pair in nearest_first[:most]],
    }
