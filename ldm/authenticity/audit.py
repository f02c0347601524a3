"""Search a synthetic set for copies of its training images, with the distances between real people as the yardstick.

What it can show: that an image, or its mirror image, is a training image, and that more images lie nearer to training images than any
held-out person does than chance puts there (ldm/authenticity/chance.py). Nobody is named without one of the two. What it cannot show:
that a set is safe. Sets that pass distance tests still leak membership (Yao et al. 2025, arXiv:2505.01524).

Legend: N query, M reference, K neighbour, D dimension, B batch, C band, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np

from data_shards.errors import InputError, nearest
from data_shards.reading.dataset import Dataset
from ldm.authenticity.audit_figures import descriptor_figures
from ldm.authenticity.audit_result import DescriptorFigures
from ldm.authenticity.descriptors import DESCRIPTORS, Nearest, mirrored, nearest_of
from ldm.evaluation.features import standardise
from ldm.evaluation.measurements import Arrays, ImageMeasurements, Piece, beside, requested, written
from ldm.evaluation.sets import Images, ImagesOfPeople, Part, Watch, check_comparable, reflectance

FORMAT = "retinaforge-audit-2"  # a new field of the result has a default, or the format another number
CAVEAT = (
    "A distance test finds copies that are near under its descriptors (also mirrored ones; 'contrast' also brightened ones). It cannot see "
    "rotated, cropped or partly copied images, and finding none does not show that no patient can be recognised. Blurred images are "
    "nearer to everything: look at the pairs."
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
class AuditResult:
    """audit.json: distances of synthetic images to their nearest training images, beside those of real images of other people.

    Attributes:
        train: images whose copies were looked for.
        floor_from: real images whose distances are the floor.
        caveat: what the audit cannot show.
        descriptors: figures by descriptor, 'pooled' and 'contrast'.
    """

    format: str = FORMAT
    train: ImagesOfPeople
    synthetic: Images
    floor_from: ImagesOfPeople
    config: AuditConfig
    caveat: str = CAVEAT
    descriptors: dict[str, DescriptorFigures]


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
        self.train, self.floor = (Part.of(real, split) for split in (config.train, config.against))
        self.made = Part.of(synthetic, split, config.limit, independent=True)
        parts = [self.train, self.floor, self.made]
        out = beside(
            path,
            {
                "format": FORMAT,
                "sets": [real.digest, synthetic.digest],
                "config": requested(config),
            },
        )
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

    def result(self) -> AuditResult:
        """The judgement, of units that are all there."""
        return AuditResult(
            train=self.train.described(),
            synthetic=self.made.described(),
            floor_from=self.floor.described(),
            config=self.config,
            descriptors={name: descriptor_figures(self, name) for name in DESCRIPTORS},
        )

    def finish(self) -> AuditResult:
        return written(self.path, self.result(), self.out)


def audit(real: Dataset, synthetic: Dataset, config: AuditConfig, watch: Watch = iter) -> AuditResult:
    """Search a set for copies, by this process alone.

    Raises:
        InputError: sets that cannot be compared, an empty or unknown split. CorruptData: damaged shards.
    """
    units = Audit(real, synthetic, config)
    units.descriptors.complete(watch)
    return units.complete(watch)
