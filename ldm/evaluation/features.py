"""Feature spaces for the Fréchet distance and its relatives: the table of them, and the one that is always there.

`seeded-conv-v1` is a fixed random convolutional network: nothing in it was learned, and its distances are not
comparable with published FID figures, which use Inception features of RGB photographs. Random networks are known to
separate image sets (Naeem et al. 2020 use an untrained VGG where ImageNet features do not fit), and every figure is
shown beside a real-against-real floor.

To add an extractor: write its class in one file (an `Extractor`), and one line in EXTRACTORS; one that takes a setting, such as a path,
is named in WITH_SETTING, too.

Legend: B batch, C band, H W pixels, K kernels of a level, D feature.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F

from data_shards.errors import CorruptData, InputError, moved_aside, nearest
from data_shards.manifest import BandStats
from ldm.evaluation.false_colour import FalseColour
from ldm.evaluation.learned import Learned
from ldm.evaluation.torchscript import TorchScript


class Extractor(Protocol):
    """What a feature network has to be.

    Attributes:
        name: says what it is, seed or digest of the weights and dimension included; recorded with every figure.
        dimension: D.
        refused: why it is no judge of images; None where it is one, or was not probed (probes.py).
    """

    name: str
    dimension: int
    refused: str | None

    def __call__(self, reflectance_BCHW: torch.Tensor) -> torch.Tensor:
        """Features (B, D), float64 on the CPU, of cubes in reflectance units on any device."""
        ...


def standardise(reflectance_BCHW: torch.Tensor, stats: BandStats) -> torch.Tensor:
    """(x - mean) / std by the real training set's bands, float32; a band that never varies is only centred.

    Raises:
        InputError: another number of bands than the statistics have.
    """
    if reflectance_BCHW.shape[1] != len(stats.mean_C):
        raise InputError(f"cubes of {reflectance_BCHW.shape[1]} bands", expected=f"the {len(stats.mean_C)} bands of the real training set")
    mean_C, std_C = (torch.tensor(v, dtype=torch.float32, device=reflectance_BCHW.device) for v in (stats.mean_C, stats.std_C))
    std_C = torch.where(std_C > 0, std_C, 1.0)
    return (reflectance_BCHW.float() - mean_C[:, None, None]) / std_C[:, None, None]


def seeded_weights(shape: tuple[int, ...], words: tuple[int, ...]) -> np.ndarray:
    """Uniform weights of variance 1/fan-in, a pure function of `words`.

    Taken from Philox' raw 64-bit output, which numpy keeps stable for good; the distributions of its Generator, and the
    initialisation code of torch, may change between releases and would silently change every figure.
    """
    raw = np.random.Philox(np.random.SeedSequence(words)).random_raw(math.prod(shape))
    unit = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return ((2 * unit - 1) * math.sqrt(3 / math.prod(shape[1:]))).reshape(shape)


class SeededConv:
    """A random network of four levels; the mean and the standard deviation of every channel of every level are its features.

    Level 0 mixes bands pixel by pixel (1x1), so its features are about spectra. Levels 1 to 3 are 3x3 with stride 2.
    Half of their kernels sum to zero over space: those see edges and texture alone, whatever the brightness.

    Args:
        stats: bands of the real training set; cubes are standardised by them first.
        seed: of the weights; with the number of bands it determines them.
        kernels: K of every level, so that D = 8 K.
    """

    levels = 4
    refused: str | None = None

    def __init__(self, stats: BandStats, *, seed: int = 0, kernels: int = 24) -> None:
        self.stats, self.dimension = stats, 2 * self.levels * kernels
        self.name = f"seeded-conv-v1, seed {seed}, bands {len(stats.mean_C)}, d={self.dimension}"
        self.weights: list[torch.Tensor] = []
        for level in range(self.levels):
            shape = (kernels, kernels, 3, 3) if level else (kernels, len(stats.mean_C), 1, 1)
            weight = seeded_weights(shape, (seed, len(stats.mean_C), level))
            if level:
                weight[::2] -= weight[::2].mean(axis=(2, 3), keepdims=True)
            self.weights.append(torch.from_numpy(weight).float())

    @torch.no_grad()
    def __call__(self, reflectance_BCHW: torch.Tensor) -> torch.Tensor:
        x_BKHW, pooled = standardise(reflectance_BCHW, self.stats), []
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):  # the same figures on CPU and GPU
            for level, weight in enumerate(self.weights):
                if level:
                    x_BKHW = F.pad(x_BKHW, (1, 1, 1, 1), mode="replicate")  # zeros would draw a frame around the image
                x_BKHW = F.conv2d(x_BKHW, weight.to(x_BKHW.device), stride=2 if level else 1)
                # sqrt(2) keeps the second moment through the half-wave rectifier (He et al. 2015, Eq. 10)
                x_BKHW = F.leaky_relu(x_BKHW, 0.1) * math.sqrt(2)
                flat_BKN = x_BKHW.flatten(2).double()
                pooled += [flat_BKN.mean(2), flat_BKN.std(2, correction=0)]
        return torch.cat(pooled, 1).cpu()


class SomeBands:
    """The seeded network on some bands alone.

    Args:
        band_C: their positions.
    """

    refused: str | None = None

    def __init__(self, stats: BandStats, band_C: np.ndarray, *, kernels: int) -> None:
        self.band_C = band_C.tolist()
        of_bands = {name: tuple(getattr(stats, name)[c] for c in self.band_C) for name in ("mean_C", "std_C", "min_C", "max_C")}
        self.net = SeededConv(replace(stats, **of_bands, log_mean_C=(), log_std_C=()), kernels=kernels)
        self.name, self.dimension = f"{self.net.name}, bands {self.band_C}", self.net.dimension

    def __call__(self, reflectance_BCHW: torch.Tensor) -> torch.Tensor:
        return self.net(reflectance_BCHW[:, self.band_C])


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What an extractor is made of.

    Attributes:
        setting: what stands behind the colon of its name; '' where nothing does.
        stats: bands of the real training set.
        wavelengths_nm: of its bands; empty: not known.
        learned: folder of the run's trained feature encoder, RUN/features; None: there is none.
        device: that it computes on.
    """

    setting: str
    stats: BandStats
    wavelengths_nm: tuple[float, ...]
    learned: Path | None
    device: str


EXTRACTORS: dict[str, Callable[[Asked], Extractor]] = {
    "seeded-conv-v1": lambda asked: SeededConv(asked.stats),
    "learned": lambda asked: Learned(
        asked.learned, bands=len(asked.stats.mean_C), wavelengths_nm=asked.wavelengths_nm, device=asked.device
    ),
    "efficientnet-lite0": lambda asked: FalseColour(asked.setting, asked.stats, wavelengths_nm=asked.wavelengths_nm, device=asked.device),
    "torchscript": lambda asked: TorchScript(asked.setting, asked.stats, device=asked.device),
}
"""By what stands before the colon of a name, such as `torchscript` of `torchscript:net.pt`."""
WITH_SETTING = ("efficientnet-lite0", "torchscript")
"""Those that take something behind it."""
ONLY_ASKED = ("torchscript",)
"""Those that are nothing without it."""


def get_extractor(
    name: str, stats: BandStats, *, wavelengths_nm: tuple[float, ...] = (), learned: Path | None = None, device: str = "cpu"
) -> Extractor:
    """Extractor by name. What was found out of it by the probes beside `learned` (probes.py), it says: whether it is refused.

    Args:
        wavelengths_nm: of the bands; empty: not known.
        learned: folder of the run's trained feature encoder, RUN/features; None: there is none.
        device: that it computes on.

    Raises:
        InputError: unknown name, with the nearest known one; what it needs is not there.
    """
    kind, colon, setting = name.partition(":")
    if kind not in EXTRACTORS:
        raise InputError(f"unknown feature extractor {name!r}", expected=nearest(kind, EXTRACTORS))
    if colon and kind not in WITH_SETTING:
        raise InputError(f"feature extractor {name!r}", expected=f"{kind!r}: it takes no setting")
    asked = Asked(setting=setting, stats=stats, wavelengths_nm=tuple(wavelengths_nm), learned=learned, device=device)
    extractor = EXTRACTORS[kind](asked)
    if learned is not None:
        extractor.refused = refusal(learned.with_suffix(".json"), extractor.name)
    return extractor


def refusal(path: Path, name: str) -> str | None:
    """Why probes that stand in a file refused the extractor of this very name, digest and all; None where they did not, or saw another.

    Raises:
        CorruptData: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        spaces = json.loads(path.read_bytes())["spaces"].values()
        return next((space["refused"] for space in spaces if space["extractor"] == name), None)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        mend = f"{moved_aside(path)}, then retinaforge train features PRESET makes it anew"
        raise CorruptData(f"a damaged result of probes: {error}", where=path, mend=mend) from error
