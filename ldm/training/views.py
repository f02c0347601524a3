"""Two views of each cube that a person would call the same eye, each a pure function of (seed, sample, epoch, view).

What differs is what differs between two pictures that one camera takes of one eye: where it looks, how bright its light is, how the
spectrum of that light leans, noise. Bands are never shuffled: their order says which blood and which pigment is there. Nothing is scaled
either: calibres of vessels are a finding. No view is mirrored left to right, as that makes a right eye of a left one.

Legend: B batch, C band, H W pixels.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from data_shards.reading.order import hash64
from ldm.models.noise import normal_at
from ldm.training.config import ViewsConfig

DRAWS = 10
WORD = 0x7669657773  # tells these draws apart from all others of a seed


def drawn(seed: int, sample_B: np.ndarray, epoch_B: np.ndarray, view: int, *, draws: int = DRAWS, word: int = WORD) -> np.ndarray:
    """Uniform numbers in [0, 1), (B, draws)."""
    words = hash64(seed, sample_B[:, None], epoch_B[:, None], word, view, np.arange(draws)[None])
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def view_of(
    counts_BCHW: Tensor, sample_B: np.ndarray, epoch_B: np.ndarray, *, view: int, seed: int, mean_C: Tensor, config: ViewsConfig
) -> Tensor:
    """One view of each cube, float32, on the cubes' device.

    Args:
        counts_BCHW: above reflectance 0, as stored.
        view: 0 or 1.
        mean_C: mean count of each band, above reflectance 0, over the training split.
    """
    u_BU = drawn(seed, sample_B, epoch_B, view)
    x_BCHW = _shifted(counts_BCHW.float(), 2 * u_BU[:, :2] - 1, config.shift)
    x_BCHW = lit(x_BCHW, 2 * u_BU[:, 2:5] - 1, gain=config.gain, tilt=config.tilt)
    if config.noise:
        x_BCHW = with_noise(x_BCHW, config.noise * u_BU[:, 5], u_BU[:, 6:8], mean_C, view=view, seed=seed)
    return _turned(x_BCHW, u_BU[:, 8:]) if config.mirror else x_BCHW


def lit(x_BCHW: Tensor, u_B3: np.ndarray, *, gain: float, tilt: float) -> Tensor:
    """Under other light.

    Args:
        u_B3: from -1 to 1: of the gain of all bands, and of the spectrum's slope and bend.
        gain, tilt: of ViewsConfig.
    """
    band_C = torch.linspace(-1, 1, x_BCHW.shape[1], dtype=torch.float64) if x_BCHW.shape[1] > 1 else torch.zeros(1, dtype=torch.float64)
    light_B3 = torch.from_numpy(u_B3 * [gain, tilt, tilt])
    log_gain_BC = light_B3 @ torch.stack([torch.ones_like(band_C), band_C, 1.5 * band_C**2 - 0.5])  # Legendre's first three
    return x_BCHW * log_gain_BC.exp().float().to(x_BCHW.device)[:, :, None, None]


def with_noise(x_BCHW: Tensor, strength_B: np.ndarray, u_B2: np.ndarray, mean_C: Tensor, *, view: int, seed: int) -> Tensor:
    """With noise that grows as that of photons.

    Args:
        strength_B: deviation at a band's mean, as a share of it.
        u_B2: uniform numbers in [0, 1): the cube's own place in the noise.
    """
    deviation_BCHW = (x_BCHW.clamp(min=0) * mean_C.to(x_BCHW)[:, None, None].clamp(min=0)).sqrt()
    noise_BCHW = _noise(tuple(x_BCHW.shape[1:]), u_B2, view, seed, x_BCHW.device)
    return x_BCHW + torch.from_numpy(strength_B).float().to(x_BCHW.device)[:, None, None, None] * deviation_BCHW * noise_BCHW


def _shifted(x_BCHW: Tensor, u_B2: np.ndarray, furthest: float) -> Tensor:
    """Each cube moved by whole pixels; its pixels keep their values."""
    out_BCHW = torch.zeros_like(x_BCHW)
    sides = x_BCHW.shape[2:]
    for b, shifts in enumerate(np.rint(u_B2 * furthest * np.array(sides)).astype(int).tolist()):
        to = [slice(max(0, n), side + min(0, n)) for n, side in zip(shifts, sides, strict=True)]
        of = [slice(max(0, -n), side + min(0, -n)) for n, side in zip(shifts, sides, strict=True)]
        out_BCHW[b, :, to[0], to[1]] = x_BCHW[b, :, of[0], of[1]]
    return out_BCHW


def _turned(x_BCHW: Tensor, u_B2: np.ndarray) -> Tensor:
    """Half of them upside down; of square ones half by 90° besides."""
    turned = []
    for x_CHW, (flip, turn) in zip(x_BCHW, (u_B2 < 0.5).tolist(), strict=True):
        x_CHW = x_CHW.flip(1) if flip else x_CHW
        turned.append(torch.rot90(x_CHW, 1, (1, 2)) if turn and x_CHW.shape[1] == x_CHW.shape[2] else x_CHW)
    return torch.stack(turned)


@lru_cache(maxsize=2)
def _field(shape: tuple[int, int, int], view: int, seed: int, device: torch.device) -> Tensor:
    """One standard normal field, (C, H, W)."""
    return normal_at(seed, np.array([view]), shape, WORD & 0xFFFF, device=device)[0]


def _noise(shape: tuple[int, int, int], u_B2: np.ndarray, view: int, seed: int, device: torch.device) -> Tensor:
    """Noise of each cube: that one field, rolled to a place of the cube's own. To draw all anew takes longer than a step of the network."""
    field_CHW = _field(shape, view, seed, device)
    places = (u_B2 * np.array(shape[1:])).astype(int).tolist()
    return torch.stack([field_CHW.roll(place, dims=(1, 2)) for place in places])
