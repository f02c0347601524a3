"""The spaces that copies are looked for in: what of an image is compared, and what its mirror image's is.

To add a space: a class with the attributes of `Space`, and a line in SPACES, or in `spaces` where it needs a folder. Every extractor of
ldm/evaluation/features.py is one by its name already, in units of how training images differ.

Legend: B batch, N image, C band, H W pixels, D dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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

Views = tuple[np.ndarray, np.ndarray]
"""Descriptors (N, D) of images as they are, and mirrored left to right."""


class Space(Protocol):
    """
    Attributes:
        name: says what it is, seed or digest of weights included.
        dimension: D.
        whitened: whether distances are taken in units of how training images differ.
    """

    name: str
    dimension: int
    whitened: bool

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

    whitened = False

    def __init__(self, name: str, descriptor: Callable[[torch.Tensor], torch.Tensor], stats: BandStats) -> None:
        side = grid_side(len(stats.mean_C))
        self.name, self.dimension = f"{name}, {len(stats.mean_C)} bands, {side}×{side} cells", side * side * len(stats.mean_C)
        self.descriptor, self.stats = descriptor, stats

    def views(self, reflectance_BCHW: torch.Tensor) -> Views:
        x_BCHW = standardise(reflectance_BCHW, self.stats)
        plain, turned = (self.descriptor(x).cpu().numpy() for x in (x_BCHW, x_BCHW.flip(-1)))
        return plain, turned


class Learned:
    """The features of an extractor."""

    whitened = True

    def __init__(self, extractor: Extractor) -> None:
        self.extractor, self.name, self.dimension = extractor, extractor.name, extractor.dimension

    def views(self, reflectance_BCHW: torch.Tensor) -> Views:
        plain, turned = (self.extractor(x).float().cpu().numpy() for x in (reflectance_BCHW, reflectance_BCHW.flip(-1)))
        return plain, turned


class Copies:
    """The embedding of the copy-detection head (ldm/training/copies.py), in units of how copies of one photograph differ.

    A copy stays near when it is turned, mirrored, moved, cut out and enlarged, brighter or darker, blurred or noisy.
    """

    whitened = False

    def __init__(self, encoder: Encoder) -> None:
        self.encoder, self.name, self.dimension = encoder, encoder.name, encoder.dimension

    def views(self, reflectance_BCHW: torch.Tensor) -> Views:
        plain, turned = (self.encoder(x).float().numpy() for x in (reflectance_BCHW, reflectance_BCHW.flip(-1)))
        return plain, turned


COPIES = "copies"
SPACES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"pooled": pooled_descriptor, "contrast": contrast_descriptor}


def spaces(names: Sequence[str], real: Dataset, *, learned: Path | None, copies: Path | None = None, device: str) -> dict[str, Space]:
    """By name.

    Args:
        learned, copies: folders of a trained feature encoder, and of a copy-detection head; None: there is none.

    Raises:
        InputError: an unknown name, with the nearest known one; none at all.
    """
    if not names:
        raise InputError("no space to search in", expected=f"some of {', '.join((*SPACES, COPIES, *EXTRACTORS))}")
    found: dict[str, Space] = {}
    for name in dict.fromkeys(names):
        if name in SPACES:
            found[name] = Pooled(name, SPACES[name], real.stats)
        elif name == COPIES:
            how = {"bands": real.shape[0], "wavelengths_nm": real.wavelengths_nm, "device": device}
            found[name] = Copies(Encoder(copies, **how, stage=COPIES))
        elif name.partition(":")[0] in EXTRACTORS:
            found[name] = Learned(get_extractor(name, real.stats, wavelengths_nm=real.wavelengths_nm, learned=learned, device=device))
        else:
            raise InputError(f"unknown space {name!r}", expected=nearest(name, [*SPACES, COPIES, *EXTRACTORS]))
    return found
