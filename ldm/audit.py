"""Search a synthetic set for copies of its training images, with the distances between real people as the yardstick.

What it can show: that an image, or its mirror image, is nearer to one training image than real images of other people
ever are. What it cannot show: that a set is safe. Sets that pass distance tests still leak membership (Yao et al. 2025,
arXiv:2505.01524), so the result says 'no copy found', by patient, and never more.

Legend: N query, M reference, K neighbour, D dimension, B batch, C band, H W pixels.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from data_shards.dataset import Dataset
from data_shards.errors import InputError, nearest
from ldm.metrics.features import standardise
from ldm.metrics.neighbours import DESCRIPTORS, nearest_neighbours
from ldm.metrics.sets import Part, Watch, check_comparable, evenly, silent

FORMAT = "retinaforge-audit-1"
CAVEAT = (
    "A distance test finds copies that are near under its descriptors (also mirrored ones; 'contrast' also brightened ones). It cannot see "
    "rotated, cropped or partly copied images, and finding none does not show that no patient can be recognised."
)


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


def duplicates(synthetic: Described, keys: list[str], threshold: float | None, most: int, backend: str) -> dict[str, Any]:
    """Synthetic images nearer to another synthetic image than the floor's least distance: a generator that repeats itself."""
    if len(keys) < 2:
        return {"share": None, "images": 0, "closest": [], "distances": None}
    own_N = np.arange(len(keys))
    found = nearest_of(synthetic, synthetic.plain_ND, backend, not_in=(own_N, own_N))
    images = None if threshold is None else int((found.distance_N < threshold).sum())
    seen, pairs = set(), []
    for n in np.argsort(found.distance_N, kind="stable"):
        pair = tuple(sorted((int(n), int(found.index_N[n]))))
        if pair not in seen and len(pairs) < most:
            seen.add(pair)
            pairs.append({"keys": [keys[i] for i in pair], "distance": float(found.distance_N[n]), "mirrored": bool(found.mirrored_N[n])})
    share = None if images is None else images / len(keys)
    return {"share": share, "images": images, "closest": pairs, "distances": quantiles(found.distance_N)}


def by_patient(found: Nearest, flagged_N: np.ndarray, subjects: np.ndarray, most: int) -> dict[str, Any]:
    """Training patients by the synthetic images that are flagged as too near to one of theirs, worst first."""
    nearest_to: dict[str, list[int]] = defaultdict(list)
    for n, i in enumerate(found.index_N):
        nearest_to[str(subjects[i])].append(n)
    listed = [
        {
            "subject": subject,
            "flagged": int(flagged_N[rows].sum()),
            "nearest_to": len(rows),
            "least_distance": float(found.distance_N[rows].min()),
        }
        for subject, rows in nearest_to.items()
    ]
    listed.sort(key=lambda row: (-row["flagged"], row["least_distance"]))
    return {
        "patients": len(set(subjects)),
        "patients_flagged": sum(row["flagged"] > 0 for row in listed),
        "largest_share_of_one_patient": max(row["nearest_to"] for row in listed) / len(found.index_N),
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
        flagged: images nearer than any floor image: `below_min`; and `share_below_p1`, the share within the nearest 1 % of
            the floor's distances, beside `floor_share_below_p1`, which differs from 0.01 where the floor is small.
        share_nearer_than_real: synthetic images nearer to their training image than that one is to any training image of
            another person (after AuthPct, Alaa et al. 2022, §3.3, with people in place of images).
        floor_share_nearer_than_real: the same share among the floor's images.
        duplicates, by_patient; closest: the closest pairs, for people to look at.
    """
    train, generated = parts["train"], parts["synthetic"]
    train_keys, subjects = np.array(train.dataset.keys(train.split)), np.array(train.units())
    reference_MD = sets["train"].plain_ND
    found = nearest_of(sets["synthetic"], reference_MD, config.backend)
    below = (
        nearest_of(sets["floor"], reference_MD, config.backend, not_in=(np.array(parts["floor"].units()), subjects))
        if parts["floor"]
        else None
    )
    _, person_M = np.unique(subjects, return_inverse=True)
    radius_M = nearest_of(sets["train"], reference_MD, config.backend, not_in=(person_M, person_M)).distance_N
    floor = quantiles(below.distance_N)
    p1, least = (floor["p1"], floor["min"]) if floor else (None, None)
    flagged_N = found.distance_N < least if floor else np.zeros(len(found.distance_N), bool)
    keys = generated.units()
    order_N = np.argsort(found.distance_N, kind="stable")[: config.closest]
    return {
        "dimension": reference_MD.shape[1],
        "synthetic_to_train": quantiles(found.distance_N),
        "floor_to_train": floor,
        "flagged": {
            "below_min": int(flagged_N.sum()) if floor else None,
            "share_below_p1": float((found.distance_N <= p1).mean()) if floor else None,
            "floor_share_below_p1": float((below.distance_N <= p1).mean()) if floor else None,
        },
        "share_nearer_than_real": float((found.distance_N < radius_M[found.index_N]).mean()),
        "floor_share_nearer_than_real": float((below.distance_N < radius_M[below.index_N]).mean()) if floor else None,
        "duplicates": duplicates(sets["synthetic"], keys, least, config.closest, config.backend),
        "by_patient": by_patient(found, flagged_N, subjects, config.closest),
        "closest": [
            {
                "synthetic_key": keys[n],
                "synthetic_index": int(generated.sample_N[n]),
                "train_key": str(train_keys[found.index_N[n]]),
                "train_index": int(found.index_N[n]),
                "subject": str(subjects[found.index_N[n]]),
                "distance": float(found.distance_N[n]),
                "of_floor_median": float(found.distance_N[n]) / floor["median"] if floor and floor["median"] else None,
                "mirrored": bool(found.mirrored_N[n]),
                "flagged": bool(flagged_N[n]),
            }
            for n in order_N
        ],
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
                "floor": 0 if floor else None,
                "note": "images",
            },
            {
                "metric": f"{name}: people with such images",
                "value": d["by_patient"]["patients_flagged"],
                "floor": 0 if floor else None,
                "note": f"of {d['by_patient']['patients']}",
            },
            {"metric": f"{name}: repeats in the synthetic set", "value": d["duplicates"]["images"], "floor": None, "note": "images"},
        ]
    return [{"interval": None, "floor_interval": None, "n": n, "reason": None, **row} for row in table]
