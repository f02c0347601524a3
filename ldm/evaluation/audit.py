"""Search a synthetic set for copies of its training images, with the distances between real people as the yardstick.

What it can show: that an image, or its mirror image, is a training image, and that more images lie nearer to training images than any
held-out person does than chance puts there (ldm/evaluation/chance.py). Nobody is named without one of the two. What it cannot show: that a
set is safe. Sets that pass distance tests still leak membership (Yao et al. 2025, arXiv:2505.01524).

Legend: N query, M reference, K neighbour, D dimension, B batch, C band, H W pixels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.errors import InputError, nearest
from data_shards.reading.dataset import Dataset
from ldm.evaluation.copies import EXACT_SHARE, Judged, judged, verdict
from ldm.evaluation.features import standardise
from ldm.evaluation.measurements import Arrays, ImageMeasurements, Piece, beside, written
from ldm.evaluation.neighbours import DESCRIPTORS, Nearest, mirrored, nearest_of
from ldm.evaluation.sets import Part, Watch, check_comparable, evenly, reflectance

FORMAT = "retinaforge-audit-2"
CAVEAT = (
    "A distance test finds copies that are near under its descriptors (also mirrored ones; 'contrast' also brightened ones). It cannot see "
    "rotated, cropped or partly copied images, and finding none does not show that no patient can be recognised. Blurred images are "
    "nearer to everything: look at the pairs."
)
LEVEL = 0.05  # of the whole audit: how often an honest set may be accused; the descriptors share it


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """
    Attributes:
        train: the split the generator was trained on: what copies would be copies of.
        against: the real split whose distances to the training images of other people are the floor; people held out
            of training by default. The training split itself serves where there is no other.
        limit: at most this many synthetic images, evenly spaced; None for all. The training set is always searched whole.
        closest: number of closest pairs, and of patients, to list.
        backend: of the search: 'faiss', 'torch' or 'auto'.
        batch_size, device: of the pass over the images.
    """

    train: str = "train"
    against: str = "val"
    limit: int | None = None
    closest: int = 12
    backend: str = "auto"
    batch_size: int = 8
    device: str = "cpu"


class Descriptors(ImageMeasurements):
    """Every descriptor of every image of some parts, standardised by the real training set's bands, in units."""

    def __init__(self, real: Dataset, parts: Sequence[Part], config: AuditConfig, out: Path | None) -> None:
        self.stats, self.config = real.stats, config
        super().__init__(parts, out)

    def measured(self, piece: Piece) -> Arrays:
        found: dict[str, list[np.ndarray]] = {name: [] for name in DESCRIPTORS}
        for batch in piece.batches(self.config.batch_size):
            x_BCHW = standardise(reflectance(piece.dataset, batch.cubes_BCHW, self.config.device), self.stats)
            for name, descriptor in DESCRIPTORS.items():
                found[name].append(descriptor(x_BCHW).cpu().numpy())
        return {name: np.concatenate(of_batches) for name, of_batches in found.items()}


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


class Audit(ImageMeasurements):
    """An audit in units: the nearest neighbours of each shard's images, in every descriptor; `result` judges them.

    `descriptors` are units too, and come first: what is searched is what they left.

    Args:
        path: file for the result, beside which the units lie; None: they are kept in memory.

    Raises:
        InputError: sets that cannot be compared, an empty or unknown split.
    """

    def __init__(self, real: Dataset, synthetic: Dataset, config: AuditConfig, path: Path | None = None) -> None:
        split, self.config, self.path = check_comparable(real, synthetic), config, path
        made_from = synthetic.manifest.source.get("sample", {}).get("dataset")
        if made_from not in (None, real.digest):
            raise InputError(
                f"made by models trained on dataset {made_from[:12]}",
                where=synthetic.path,
                expected=f"{real.digest[:12]}, that of {real.path}: copies are copies of the training set",
            )
        if config.against not in real.splits:
            raise InputError(f"unknown split {config.against!r}", where=real.path, expected=nearest(config.against, real.splits))
        self.train, self.floor = (Part(dataset=real, split=s, sample_N=np.arange(real.count(s))) for s in (config.train, config.against))
        self.made = Part(dataset=synthetic, split=split, sample_N=evenly(synthetic.count(split), config.limit), independent=True)
        parts = [self.train, self.floor, self.made]
        out = beside(path, {"format": FORMAT, "sets": [real.digest, synthetic.digest], "config": asdict(config)})
        self.descriptors = Descriptors(real, parts, config, out and out / "descriptors")
        self._references: dict[tuple[str, str], np.ndarray] = {}
        super().__init__(parts, out)

    @cached_property
    def train_people(self) -> np.ndarray:
        """Person of each training image."""
        return np.array(self.train.units())

    @cached_property
    def floor_people(self) -> np.ndarray:
        """Person of each of the floor's images."""
        return np.array(self.floor.units())

    def measured(self, piece: Piece) -> Arrays:
        arrays: Arrays = {}
        for name in DESCRIPTORS:
            query_ND = self.descriptors.arrays(piece.name)[name]
            views = query_ND, mirrored(query_ND, self.train.dataset.shape[0])
            for what, (reference, not_in) in self._searches(piece).items():
                near = nearest_of(*views, self._described(reference, name), self.config.backend, not_in=not_in)
                arrays |= {f"{what}.{name}.{key}": array for key, array in asdict(near).items()}
        return arrays

    def _searches(self, piece: Piece) -> dict[str, tuple[Part, tuple[np.ndarray, np.ndarray] | None]]:
        """What the images of a shard are looked for in, and which of it does not count."""
        if piece.holds(self.made):
            own_N = np.searchsorted(self.made.sample_N, piece.sample_N), np.arange(len(self.made.sample_N))
            return {"copies": (self.train, None), "repeats": (self.made, own_N)}
        people = np.array(piece.dataset.subjects(piece.split))[piece.sample_N]
        return {"people": (self.train, (people, self.train_people))}

    def _described(self, part: Part, name: str) -> np.ndarray:
        key = part.dataset.digest, name
        if key not in self._references:
            self._references[key] = self.descriptors.of(part, name)
        return self._references[key]

    def nearest(self, part: Part, what: str, name: str) -> Nearest:
        """What a search found for the images of a part."""
        return Nearest(**{field.name: self.of(part, f"{what}.{name}.{field.name}") for field in fields(Nearest)})

    def result(self) -> dict[str, Any]:
        """The judgement, of units that are all there; see `audit`."""
        return {
            "format": FORMAT,
            "train": self.train.described(),
            "synthetic": self.made.described(),
            "floor_from": self.floor.described(),
            "config": asdict(self.config),
            "caveat": CAVEAT,
            "descriptors": {name: descriptor_figures(self, name) for name in DESCRIPTORS},
        }

    def finish(self) -> dict[str, Any]:
        return written(self.path, self.result(), self.out)


def audit(real: Dataset, synthetic: Dataset, config: AuditConfig, watch: Watch = iter) -> dict[str, Any]:
    """Distances of synthetic images to their nearest training images, beside those of real images of other people.

    Keys:
        format, train, synthetic, floor_from: what was compared (path, digest, split, n, subjects); config; caveat.
        descriptors: {pooled | contrast: see `descriptor_figures`}.

    Raises:
        InputError: sets that cannot be compared, an empty or unknown split. CorruptData: damaged shards.
    """
    units = Audit(real, synthetic, config)
    units.descriptors.complete(watch)
    return units.complete(watch)


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
        "closest": [
            {
                "synthetic_key": keys[n],
                "synthetic_index": int(generated.sample_N[n]),
                "train_key": str(train_keys[near.index_N[n]]) if found.flagged_N[n] else None,
                "train_index": int(near.index_N[n]),
                "subject": str(subjects[near.index_N[n]]) if found.flagged_N[n] else None,
                "distance": float(near.distance_N[n]),
                "of_floor_median": float(near.distance_N[n]) / floor["median"] if floor else None,
                "mirrored": bool(near.mirrored_N[n]),
                "exact": bool(found.exact_N[n]),
                "flagged": bool(found.flagged_N[n]),
            }
            for n in np.argsort(near.distance_N, kind="stable")[: config.closest]
        ],
    }


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
