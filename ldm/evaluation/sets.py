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

UNITS = 512  # above this many patients or images, several share a unit: still a fair resampling, at bounded memory
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


def reflectance(dataset: Dataset, cubes_BCHW: torch.Tensor, device: str) -> torch.Tensor:
    """Stored values of a set as float32 reflectance on a device."""
    return cubes_BCHW.to(device).float() * dataset.scale + dataset.offset


def evenly(count: int, limit: int | None) -> np.ndarray:
    """All positions, or `limit` of them evenly spaced: the first ones would be the images of a few people."""
    return np.arange(count) if limit is None or limit >= count else np.arange(limit) * count // limit


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


def real_parts(real: Dataset, against: str, limit: int | None) -> tuple[Part, Part | None]:
    """The reference, and other real people for the floor.

    The floor comes from the training split; where that is the reference itself, from another one; where there is none,
    the people of the only split are divided into two halves. None where there is only one person.

    Raises:
        InputError: the split is empty or unknown.
    """
    if against not in real.splits:
        raise InputError(f"unknown split {against!r}", where=real.path, expected=nearest(against, real.splits))
    reference = Part.of(real, against, limit)
    others = [
        name for name in ("train", "val", "test", *real.splits) if name != against and name in real.splits and real.splits[name].count
    ]
    if others:
        return reference, Part.of(real, others[0], limit)
    names, unit_N = np.unique(real.subjects(against), return_inverse=True)
    if len(names) < 2:
        return reference, None
    halves = [np.flatnonzero(unit_N % 2 == side) for side in (0, 1)]
    return tuple(Part(dataset=real, split=against, sample_N=half[evenly(len(half), limit)]) for half in halves)
