"""What is compared: parts of packed datasets, the real ones that make the floor, and the one field of view for all.

Legend: N image, B batch, C band, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from data_shards.errors import InputError, nearest, without_credentials
from data_shards.reading.dataset import Dataset
from data_shards.reading.fields_of_view import common_fov as common_fov
from data_shards.reading.order import hash64
from ldm.evaluation.intervals import LEAST_PEOPLE
from ldm.normalise import within

UNITS = 512  # above this many patients or images, several share a unit: still a fair resampling, at bounded memory
WHITENED_BY = 4096  # training images at most, evenly spaced
Watch = Callable[[Iterable[int]], Iterable[int]]
"""Wraps what passes as images are measured, to show progress."""


@dataclass(frozen=True, kw_only=True)
class Images:
    """Images that a result is of.

    Attributes:
        path, digest, split: of their dataset; a URL without its credentials.
        n: how many.
    """

    path: str
    digest: str
    split: str
    n: int


@dataclass(frozen=True, kw_only=True)
class ImagesOfPeople(Images):
    """Real images, of so many people (`subjects`)."""

    subjects: int


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some images of one split: what a set is measured on."""

    dataset: Dataset
    split: str
    sample_N: np.ndarray
    independent: bool = False  # synthetic images: each its own unit; real ones belong to a person

    @classmethod
    def of(cls, dataset: Dataset, split: str, most: int | None = None, *, independent: bool = False) -> Part:
        """All images of a split, or `most` of them, evenly spaced."""
        return cls(dataset=dataset, split=split, sample_N=evenly(dataset.count(split), most), independent=independent)

    def units(self) -> list[str]:
        """Resampling unit of each image."""
        names = self.dataset.keys(self.split) if self.independent else self.dataset.subjects(self.split)
        return [names[i] for i in self.sample_N]

    def unit_N(self, most: int = UNITS) -> np.ndarray:
        """Number of the resampling unit of each image, in the order in which they first come; neighbours share one where there are more."""
        _, first_U, number_N = np.unique(np.asarray(self.units()), return_index=True, return_inverse=True)
        rank_U = np.argsort(np.argsort(first_U))
        return rank_U[number_N] * min(most, len(first_U)) // len(first_U)

    def described(self) -> Images:
        """What a result says of them."""
        place = without_credentials(str(self.dataset.path))
        images = Images(path=place, digest=self.dataset.digest, split=self.split, n=len(self.sample_N))
        return images if self.independent else ImagesOfPeople(**vars(images), subjects=len(set(self.units())))


def reflectance(dataset: Dataset, cubes_BCHW: torch.Tensor, device: str, fov_HW: np.ndarray | None = None) -> torch.Tensor:
    """Stored values of a set as float32 reflectance on a device; outside the common field of view, where it is given, 0."""
    reflectance_BCHW = cubes_BCHW.to(device).float() * dataset.scale + dataset.offset
    return reflectance_BCHW if fov_HW is None else within(reflectance_BCHW, torch.from_numpy(fov_HW))


def evenly(count: int, limit: int | None) -> np.ndarray:
    """All positions, or `limit` of them, one at a drawn place in each of so many even stretches.

    The first ones would be the images of a few people, and at even steps all might be right eyes.
    """
    if limit is None or limit >= count:
        return np.arange(count)
    edge = np.arange(limit + 1) * count // limit
    return edge[:-1] + (hash64(count, np.arange(limit)) % np.diff(edge).astype(np.uint64)).astype(np.int64)


def check_comparable(real: Dataset, synthetic: Dataset) -> str:
    """The split of the synthetic set.

    Raises:
        InputError: latents instead of cubes, other bands or sizes, the real set itself, or no single split to take.
    """
    for dataset in (real, synthetic):
        dataset.expect("cube")
    if len(real.wavelengths_nm) != len(synthetic.wavelengths_nm) or not np.allclose(
        real.wavelengths_nm, synthetic.wavelengths_nm, atol=0.5
    ):
        bands = [", ".join(f"{nm:g}" for nm in d.wavelengths_nm) for d in (synthetic, real)]
        raise InputError(
            f"bands at {bands[0]} nm",
            where=synthetic.path,
            expected=f"those of {real.path}: {bands[1]} nm",
            mend="compare it with the set it was trained on",
        )
    if real.shape != synthetic.shape:
        raise InputError(f"cubes of shape {synthetic.shape}", where=synthetic.path, expected=f"{real.shape}, as in {real.path}")
    if real.digest == synthetic.digest:
        raise InputError(f"both are dataset {real.digest[:12]}", where=synthetic.path, expected="a synthetic set beside the real one")
    filled = [name for name, info in synthetic.splits.items() if info.count]
    if "synthetic" in filled:
        return "synthetic"
    if len(filled) != 1:
        raise InputError(
            f"splits {', '.join(filled) or 'none'}, all others empty",
            where=synthetic.path,
            expected="images in one split, named synthetic",
            mend="retinaforge data pack FOLDER DATASET --splits synthetic=1",
        )
    return filled[0]


def held_out_parts(dataset: Dataset) -> list[Part]:
    """Every split of people held out of training, whole; the training split where nobody was."""
    splits = [name for name, info in dataset.splits.items() if info.count and name != "train"]
    return [Part.of(dataset, split) for split in splits or ["train"]]


@dataclass(frozen=True, kw_only=True)
class RealParts:
    """Real images of an evaluation: three groups of people, none of them in two.

    A floor whose people also gave the whitening is too good, or too bad, to be honest: in their own units their features are exactly white,
    which those of no other people are.

    Attributes:
        reference: what the synthetic set is compared with.
        floor: other people, who take its place; None where there are none.
        floor_is: who they are, in words.
        whitened_by: whose features give the units of a feature space.
    """

    reference: Part
    floor: Part | None
    floor_is: str
    whitened_by: Part


def real_parts(real: Dataset, against: str, limit: int | None) -> RealParts:
    """Reference, floor and whitening.

    The floor is another split held out of training, of at least LEAST_PEOPLE people. Where there is none, the people of the reference are
    halved, if each half keeps so many. Else the training people are: one half whitens the features, the other one is the floor. A set of
    one split alone is divided by people into all three. Against the training split no distance is a mark of quality (`unfit_reference`):
    there all of it whitens the features.

    Raises:
        InputError: the split is empty or unknown.
    """
    if against not in real.splits:
        raise InputError(f"unknown split {against!r}", where=real.path, expected=nearest(against, real.splits))
    reference, train = Part.of(real, against, limit), real.stats.split
    if train not in real.splits or not real.splits[train].count:
        train = against
    filled = [name for name in dict.fromkeys(("test", "val", *real.splits)) if name in real.splits and real.splits[name].count]
    others = [name for name in filled if name not in (against, train)]
    enough = [name for name in others if real.splits[name].subjects >= LEAST_PEOPLE]
    if against == train:
        return _of_its_own(real, reference, limit, next(iter(enough or others), None))
    by_train = Part.of(real, train, WHITENED_BY)
    if enough:
        floor_is = f"people of split {enough[0]!r}"
        return RealParts(reference=reference, floor=Part.of(real, enough[0], limit), floor_is=floor_is, whitened_by=by_train)
    if real.splits[against].subjects >= 2 * LEAST_PEOPLE:
        reference, floor = shares(real, against, (limit, limit))
        return RealParts(reference=reference, floor=floor, floor_is=f"half of the people of split {against!r}", whitened_by=by_train)
    if real.splits[train].subjects < 2:
        return RealParts(reference=reference, floor=None, floor_is="", whitened_by=by_train)
    floor, by_train = shares(real, train, (limit, WHITENED_BY))
    floor_is = f"half of the people of split {train!r}, who are not those that whiten the features"
    return RealParts(reference=reference, floor=floor, floor_is=floor_is, whitened_by=by_train)


def _of_its_own(real: Dataset, reference: Part, limit: int | None, other: str | None) -> RealParts:
    """Where the reference is the split whose statistics are those of the set."""
    split, people, copies_win = reference.split, real.splits[reference.split].subjects, reference.split == "train"
    floor_is = f"people of split {other!r}" if other else f"a part of the people of split {split!r}"
    whole, other_part = Part.of(real, split, WHITENED_BY), Part.of(real, other, limit) if other else None
    if people < (2 if copies_win or other else 3):
        return RealParts(reference=reference, floor=other_part, floor_is=floor_is if other else "", whitened_by=whole)
    if copies_win:
        reference, floor = (reference, other_part) if other else shares(real, split, (limit, limit))
        return RealParts(reference=reference, floor=floor, floor_is=floor_is, whitened_by=whole)
    reference, by_others, *rest = shares(real, split, (limit, WHITENED_BY) if other else (limit, WHITENED_BY, limit))
    return RealParts(reference=reference, floor=other_part or rest[0], floor_is=floor_is, whitened_by=by_others)


def shares(real: Dataset, split: str, most: tuple[int | None, ...]) -> list[Part]:
    """A split divided by people into as many parts as `most` says, in turn; of each at most so many images, evenly spaced."""
    _, person_N = np.unique(real.subjects(split), return_inverse=True)
    of_people = [np.flatnonzero(person_N % len(most) == k) for k in range(len(most))]
    return [Part(dataset=real, split=split, sample_N=N[evenly(len(N), at_most)]) for N, at_most in zip(of_people, most, strict=True)]
