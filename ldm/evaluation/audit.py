"""Search a synthetic set for copies of its training images, with the distances between real people as the yardstick.

What it can show: that an image, or its mirror image, is a training image, and that more images lie nearer to training images than any
held-out person does than chance puts there (ldm/evaluation/chance.py). Nobody is named without one of the two. What it cannot show: that a
set is safe. Sets that pass distance tests still leak membership (Yao et al. 2025, arXiv:2505.01524).

Legend: N query, M reference, K neighbour, D dimension, B batch, C band, H W pixels.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from data_shards.errors import InputError, nearest
from data_shards.reading.dataset import Dataset
from ldm.evaluation.copies import EXACT_SHARE, Judged, judged, verdict
from ldm.evaluation.features import standardise
from ldm.evaluation.neighbours import DESCRIPTORS, nearest_neighbours
from ldm.evaluation.sets import Part, Watch, check_comparable, evenly, silent

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


@dataclass(frozen=True, kw_only=True)
class Described:
    """A set in one descriptor: as it is, and mirrored left to right."""

    plain_ND: np.ndarray
    mirrored_ND: np.ndarray


def describe(part: Part, real: Dataset, config: AuditConfig, watch: Watch, title: str) -> dict[str, Described]:
    """Every descriptor of every image of a part, in one pass; standardised by the real training set's bands."""
    found: dict[str, tuple[list, list]] = {name: ([], []) for name in DESCRIPTORS}
    for batch in part.batches(config.batch_size, watch, title):
        x_BCHW = standardise(part.reflectance(batch.cubes_BCHW, config.device), real.stats)
        for name, descriptor in DESCRIPTORS.items():
            for into, view_BCHW in zip(found[name], (x_BCHW, x_BCHW.flip(-1)), strict=True):
                into.append(descriptor(view_BCHW).cpu().numpy())
    return {
        name: Described(plain_ND=np.concatenate(plain), mirrored_ND=np.concatenate(mirrored)) for name, (plain, mirrored) in found.items()
    }


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """The nearest reference image of each query, over the query as it is and mirrored."""

    distance_N: np.ndarray
    index_N: np.ndarray
    mirrored_N: np.ndarray


def nearest_of(
    queries: Described, reference_MD: np.ndarray, backend: str, *, not_in: tuple[np.ndarray, np.ndarray] | None = None
) -> Nearest:
    """Nearest reference image of each query.

    Args:
        not_in: groups (N,) and (M,): a reference of the query's own group does not count (the person's other images;
            the image itself). A query with no reference of another group has distance infinity and index -1.
    """
    k = 1 if not_in is None else int(np.unique(not_in[1], return_counts=True)[1].max()) + 1
    k = min(k, len(reference_MD))
    best: list[tuple[np.ndarray, np.ndarray]] = []
    for query_ND in (queries.plain_ND, queries.mirrored_ND):
        distance_NK, index_NK = nearest_neighbours(query_ND, reference_MD, k, backend=backend)
        if not_in is not None:
            distance_NK[not_in[1][index_NK] == not_in[0][:, None]] = np.inf
        first_N = distance_NK.argmin(1)[:, None]
        best.append((np.take_along_axis(distance_NK, first_N, 1)[:, 0], np.take_along_axis(index_NK, first_N, 1)[:, 0]))
    (plain_N, plain_index_N), (mirrored_N, mirrored_index_N) = best
    turned_N = mirrored_N < plain_N
    distance_N = np.where(turned_N, mirrored_N, plain_N)
    index_N = np.where(np.isinf(distance_N), -1, np.where(turned_N, mirrored_index_N, plain_index_N))
    return Nearest(distance_N=distance_N, index_N=index_N, mirrored_N=turned_N)


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


def audit(real: Dataset, synthetic: Dataset, config: AuditConfig, watch: Watch = silent) -> dict[str, Any]:
    """Distances of synthetic images to their nearest training images, beside those of real images of other people.

    Keys:
        format, train, synthetic, floor_from: what was compared (path, digest, split, n, subjects); config; caveat.
        descriptors: {pooled | contrast: see `descriptor_figures`}.

    Raises:
        InputError: sets that cannot be compared, an empty or unknown split. CorruptData: damaged shards.
    """
    split = check_comparable(real, synthetic)
    made_from = synthetic.manifest.source.get("sample", {}).get("dataset")
    if made_from not in (None, real.digest):
        raise InputError(
            f"made by models trained on dataset {made_from[:12]}",
            where=synthetic.path,
            expected=f"{real.digest[:12]}, that of {real.path}: copies are copies of the training set",
        )
    train = Part(dataset=real, split=config.train, sample_N=np.arange(real.count(config.train)))
    generated = Part(dataset=synthetic, split=split, sample_N=evenly(synthetic.count(split), config.limit), independent=True)
    if config.against not in real.splits:
        raise InputError(f"unknown split {config.against!r}", where=real.path, expected=nearest(config.against, real.splits))
    floor = Part(dataset=real, split=config.against, sample_N=np.arange(real.count(config.against)))
    parts = {"train": train, "synthetic": generated, "floor": floor}
    described = {name: describe(part, real, config, watch, f"descriptors, {name}") for name, part in parts.items()}
    return {
        "format": FORMAT,
        "train": train.described(),
        "synthetic": generated.described(),
        "floor_from": floor.described(),
        "config": asdict(config),
        "caveat": CAVEAT,
        "descriptors": {
            name: descriptor_figures({part: sets[name] for part, sets in described.items()}, parts, config) for name in DESCRIPTORS
        },
    }


def descriptor_figures(sets: dict[str, Described], parts: dict[str, Part], config: AuditConfig) -> dict[str, Any]:
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
    train, generated = parts["train"], parts["synthetic"]
    train_keys, subjects = np.array(train.dataset.keys(train.split)), np.array(train.units())
    floor_people, reference_MD = np.array(parts["floor"].units()), sets["train"].plain_ND
    near = nearest_of(sets["synthetic"], reference_MD, config.backend)
    real = nearest_of(sets["floor"], reference_MD, config.backend, not_in=(floor_people, subjects))
    _, person_M = np.unique(subjects, return_inverse=True)
    radius_M = nearest_of(sets["train"], reference_MD, config.backend, not_in=(person_M, person_M)).distance_N
    level = LEVEL / len(DESCRIPTORS)
    image_N = np.arange(len(near.index_N))
    repeats = nearest_of(sets["synthetic"], sets["synthetic"].plain_ND, config.backend, not_in=(image_N, image_N))
    own, made_ND = config.against == config.train, sets["synthetic"].plain_ND
    found = judged(near.distance_N, made_ND, real.distance_N, floor_people, radius_M, own=own, level=level)
    counted_N = np.isfinite(real.distance_N) & ~found.double_N
    floor = quantiles(found.real_N)
    p1 = floor["p1"] if floor else None
    keys = generated.units()
    return {
        "dimension": reference_MD.shape[1],
        "synthetic_to_train": quantiles(near.distance_N),
        "floor_to_train": floor,
        "floor_doubles": doubles(real, found, parts["floor"], train_keys, config.closest),
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


def rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The result as a table for people: metric, value, interval, floor, floor_interval, n (synthetic / training images), note."""
    n = f"{result['synthetic']['n']} / {result['train']['n']}"
    table = []
    for name, d in result["descriptors"].items():
        floor, found, flagged = d["floor_to_train"] or {}, d["synthetic_to_train"], d["flagged"]
        for at, words in (("min", "least"), ("p1", "1 %"), ("median", "median")):
            table.append(
                {"metric": f"{name}: distance to nearest training image, {words}", "value": found[at], "floor": floor.get(at), "note": ""}
            )
        table += [
            {
                "metric": f"{name}: within the floor's nearest 1 %",
                "value": flagged["share_below_p1"],
                "floor": flagged["floor_share_below_p1"],
                "note": "share",
            },
            {
                "metric": f"{name}: nearer than two people are",
                "value": d["share_nearer_than_real"],
                "floor": d["floor_share_nearer_than_real"],
                "note": "share",
            },
            {
                "metric": f"{name}: nearer than the floor's least",
                "value": flagged["below_min"],
                "floor": flagged["expected"],
                "note": "images" if flagged["p_value"] is None else f"images; floor: by chance; p = {flagged['p_value']:.2g}",
            },
            {"metric": f"{name}: training images, but for rounding", "value": flagged["exact"], "floor": 0, "note": "images"},
            {
                "metric": f"{name}: people with flagged images",
                "value": d["by_patient"]["patients_flagged"],
                "floor": None,
                "note": f"of {d['by_patient']['patients']}",
            },
            {
                "metric": f"{name}: repeats in the synthetic set",
                "value": d["duplicates"]["images"],
                "floor": d["duplicates"]["expected"],
                "note": "images; floor: about so many by chance",
            },
        ]
    return [{"interval": None, "floor_interval": None, "n": n, "reason": None, "verdict": "", **row} for row in table]
