"""The spaces that copies are looked for in: what of an image is compared, and what its mirror image's is.

To add a space: a class with the attributes of `Space`, and a line in SPACES, or in `spaces` where it needs a folder. Every extractor of
ldm/evaluation/features.py is one by its name already, in units of how training images differ.

Legend: B batch, N image, C band, H W pixels, D dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F

from data_shards.errors import InputError, nearest
from data_shards.manifest import BandStats
from data_shards.reading.dataset import Dataset
from ldm.evaluation.features import EXTRACTORS, Extractor, get_extractor, standardise
from ldm.evaluation.learned import Learned as Encoder
from ldm.evaluation.whitening import whitening
from ldm.threads import one_thread

COPIES, IDENTITY = "copies", "identity"
Views = tuple[np.ndarray, np.ndarray]
"""Descriptors (N, D) of images as they are, and mirrored left to right."""


class Units(Protocol):
    """(x - mean_D) @ weight_DD."""

    mean_D: np.ndarray
    weight_DD: np.ndarray


class Space(Protocol):
    """
    Attributes:
        name: says what it is, seed or digest of weights included.
        dimension: D.
        source: of the descriptors; spaces of one source differ in their units alone.
        units: what makes of training descriptors (T, D), and whose they are (T,), the units in which distances are taken; None: as they
            are.
        directions: whether lengths are brought to 1 then: distances are those between directions.
    """

    name: str
    dimension: int
    source: str
    units: Callable[[np.ndarray, np.ndarray], Units | None] | None
    directions: bool

    def views(self, reflectance_BCHW: torch.Tensor) -> Views:
        """Of cubes in reflectance on any device; float32, on the CPU."""
        ...


def grid_side(bands: int, most: int = 4096) -> int:
    """Cells a side of a pooled descriptor: as many as keep it within `most` numbers, from 4 to 32 (16 for 16 bands)."""
    return max(4, min(32, math.isqrt(most // bands)))


def pooled_descriptor(standardised_BCHW: torch.Tensor) -> torch.Tensor:
    """(B, D) float32: each band's area means over a grid. Divided by √D, so that distances are root mean squares in standardised units.

    A copy stays near under noise, compression and small shifts. A mirrored copy is found by asking for the mirrored
    image too; a rotated, cropped or strongly recoloured one is not found.
    """
    side = grid_side(standardised_BCHW.shape[1])
    flat_BD = F.adaptive_avg_pool2d(standardised_BCHW.float(), side).flatten(1)
    return flat_BD / math.sqrt(flat_BD.shape[1])


def contrast_descriptor(standardised_BCHW: torch.Tensor) -> torch.Tensor:
    """The pooled descriptor with each band's mean taken out and the cube's deviation set to 1.

    Blind to one gain for all bands and to an offset of each: a copy that was only made brighter or darker still has
    distance about 0. Distances run from 0 (same) over √2 (unrelated) to 2 (negative). A constant cube is all 0.
    """
    x_BCN = F.adaptive_avg_pool2d(standardised_BCHW.float(), grid_side(standardised_BCHW.shape[1])).flatten(2)
    x_BD = (x_BCN - x_BCN.mean(2, keepdim=True)).flatten(1)
    return x_BD / x_BD.norm(dim=1, keepdim=True).clamp(min=1e-12)


class Pooled:
    """Down-sampled pixels of all bands, by one of the descriptors above."""

    units, directions = None, False

    def __init__(self, name: str, descriptor: Callable[[torch.Tensor], torch.Tensor], stats: BandStats) -> None:
        side = grid_side(len(stats.mean_C))
        self.name, self.dimension = f"{name}, {len(stats.mean_C)} bands, {side}×{side} cells", side * side * len(stats.mean_C)
        self.descriptor, self.stats, self.source = descriptor, stats, name

    def views(self, reflectance_BCHW: torch.Tensor) -> Views:
        x_BCHW = standardise(reflectance_BCHW, self.stats)
        plain, turned = (self.descriptor(x).cpu().numpy() for x in (x_BCHW, x_BCHW.flip(-1)))
        return plain, turned


class Features:
    """The features of an extractor, in units of how training images differ."""

    directions = False

    def __init__(self, extractor: Extractor) -> None:
        self.extractor, self.name, self.dimension, self.source = extractor, extractor.name, extractor.dimension, extractor.name

    def units(self, train_TD: np.ndarray, person_T: np.ndarray) -> Units | None:
        return whitening(train_TD)

    def views(self, reflectance_BCHW: torch.Tensor) -> Views:
        plain, turned = (self.extractor(x).float().cpu().numpy() for x in (reflectance_BCHW, reflectance_BCHW.flip(-1)))
        return plain, turned


class Identity(Features):
    """A head that verifies persons, on the features of an extractor: two images are near where they seem to be of one person, of either eye
    and any visit. In this space a set near to training people tells who they are."""

    directions = True

    def __init__(self, extractor: Extractor) -> None:
        super().__init__(extractor)
        self.name = f"identity on {extractor.name}"

    def units(self, train_TD: np.ndarray, person_T: np.ndarray) -> Units | None:
        return within_people(train_TD, person_T)


@dataclass(frozen=True, kw_only=True)
class WithinPeople:
    """(x - mean) W^(-1/2), W the covariance of images about the mean of their person."""

    mean_D: np.ndarray
    weight_DD: np.ndarray


def within_people(train_TD: np.ndarray, person_T: np.ndarray) -> WithinPeople | None:
    """Within-class covariance normalisation (Hatch et al. 2006), with W shrunk towards its mean diagonal (Ledoit and Wolf 2004): of how
    images of one person differ, eye, visit and light, little is left. None where nobody has two images."""
    _, person_T, images_P = np.unique(person_T, return_inverse=True, return_counts=True)
    mean_PD = np.stack([np.bincount(person_T, x_T) / images_P for x_T in train_TD.T], axis=1)
    several_T = images_P[person_T] > 1
    if not several_T.any():
        return None
    scale_T = np.sqrt(images_P[person_T] / np.maximum(1, images_P[person_T] - 1))  # a mean of its own takes one degree of freedom
    about_TD = ((train_TD - mean_PD[person_T]) * scale_T[:, None])[several_T]
    from sklearn.covariance import ledoit_wolf  # takes a second to import

    with one_thread():
        value_D, vector_DD = np.linalg.eigh(ledoit_wolf(about_TD, assume_centered=True)[0])
    return WithinPeople(mean_D=mean_PD.mean(0), weight_DD=vector_DD / np.sqrt(value_D.clip(1e-12 * value_D.max())))


class Copies:
    """The embedding of the copy-detection head (ldm/training/copies.py), in units of how copies of one photograph differ.

    A copy stays near when it is turned, mirrored, moved, cut out and enlarged, brighter or darker, blurred or noisy.
    """

    units, directions = None, False

    def __init__(self, encoder: Encoder) -> None:
        self.encoder, self.name, self.dimension, self.source = encoder, encoder.name, encoder.dimension, encoder.name

    def views(self, reflectance_BCHW: torch.Tensor) -> Views:
        plain, turned = (self.encoder(x).float().numpy() for x in (reflectance_BCHW, reflectance_BCHW.flip(-1)))
        return plain, turned


SPACES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"pooled": pooled_descriptor, "contrast": contrast_descriptor}


def spaces(names: Sequence[str], real: Dataset, *, learned: Path | None, copies: Path | None = None, device: str) -> dict[str, Space]:
    """By name.

    Args:
        learned, copies: folders of a trained feature encoder, and of a copy-detection head; None: there is none.

    Raises:
        InputError: an unknown name, with the nearest known one; none at all.
    """
    if not names:
        raise InputError("no space to search in", expected=f"some of {', '.join((*SPACES, COPIES, IDENTITY, *EXTRACTORS))}")
    found: dict[str, Space] = {}
    for name in dict.fromkeys(names):
        if name in SPACES:
            found[name] = Pooled(name, SPACES[name], real.stats)
        elif name == IDENTITY:
            found[name] = Identity(get_extractor("learned", real.stats, wavelengths_nm=real.wavelengths_nm, learned=learned, device=device))
        elif name == COPIES:
            how = {"bands": real.shape[0], "wavelengths_nm": real.wavelengths_nm, "device": device}
            found[name] = Copies(Encoder(copies, **how, stage=COPIES))
        elif name.partition(":")[0] in EXTRACTORS:
            found[name] = Features(get_extractor(name, real.stats, wavelengths_nm=real.wavelengths_nm, learned=learned, device=device))
        else:
            raise InputError(f"unknown space {name!r}", expected=nearest(name, [*SPACES, COPIES, IDENTITY, *EXTRACTORS]))
    return found
