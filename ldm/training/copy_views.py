"""Views of a photograph that somebody could have made of it to pass it off as another: each a pure function of (seed, sample, epoch, view).

Turned by any angle about the middle of the image, mirrored, moved, cut out and enlarged, brighter or darker, blurred, noisy, rounded. One
resampling does all that moves pixels. Bands stay what they are, in their order. This is not what ldm/training/views.py allows: there two
visits of one eye shall look alike, here the copies of one photograph, and nothing else.

Legend: B batch, C band, H W pixels.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.training.config import CopyViewsConfig
from ldm.training.views import drawn, lit, with_noise

WORD = 0x636F70696573  # tells these draws apart from all others of a seed
DRAWS = 14


def copy_of(
    counts_BCHW: Tensor,
    sample_B: np.ndarray,
    epoch_B: np.ndarray,
    *,
    view: int,
    seed: int,
    mean_C: Tensor,
    config: CopyViewsConfig,
) -> Tensor:
    """One changed copy of each photograph, float32, on the cubes' device. What comes in from beyond the border is 0.

    Args:
        counts_BCHW: above reflectance 0, as stored.
        mean_C: mean count of each band, above reflectance 0, over the training split.
    """
    u_BU = drawn(seed, sample_B, epoch_B, view, draws=DRAWS, word=WORD)
    x_BCHW = moved(counts_BCHW.float(), affine(u_BU[:, :6], counts_BCHW.shape[2:], config))
    x_BCHW = lit(x_BCHW, 2 * u_BU[:, 6:9] - 1, gain=config.gain, tilt=config.tilt)
    if config.blur:
        x_BCHW = blurred(x_BCHW, config.blur * x_BCHW.shape[2] * u_BU[:, 9])
    if config.noise:
        x_BCHW = with_noise(x_BCHW, config.noise * u_BU[:, 10], u_BU[:, 11:13], mean_C, view=view, seed=seed)
    if config.rounding:
        step_B = config.rounding * float(mean_C.max()) * u_BU[:, 13]
        step_B111 = torch.from_numpy(step_B).to(x_BCHW).clamp(min=1e-6)[:, None, None, None]
        x_BCHW = (x_BCHW / step_B111).round() * step_B111
    return x_BCHW


def affine(u_B6: np.ndarray, sides: tuple[int, int], config: CopyViewsConfig) -> Tensor:
    """Matrices (B, 2, 3) from where a pixel shall lie to where it is found, in half sides from the middle, x first, for affine_grid.

    Args:
        u_B6: uniform numbers: angle, mirrored, side cut out, where along x and y.
    """
    angle_B = 2 * math.pi * u_B6[:, 0] * config.turn
    mirror_B = np.where((u_B6[:, 1] < 0.5) & config.mirror, -1.0, 1.0)
    side_B = config.zoom ** u_B6[:, 2]
    half_2 = np.array(sides[::-1]) / 2
    turn_B22 = np.stack(
        [np.stack([mirror_B * np.cos(angle_B), -np.sin(angle_B)], 1), np.stack([mirror_B * np.sin(angle_B), np.cos(angle_B)], 1)], 1
    )
    matrix_B22 = side_B[:, None, None] * turn_B22 * half_2 / half_2[:, None]
    room_B1 = 1 - side_B[:, None] + 2 * config.shift
    return torch.from_numpy(np.concatenate([matrix_B22, ((2 * u_B6[:, 3:5] - 1) * room_B1)[:, :, None]], axis=2)).float()


def moved(x_BCHW: Tensor, theta_B23: Tensor) -> Tensor:
    """Resampled bilinearly by `affine`'s matrices."""
    grid_BHW2 = F.affine_grid(theta_B23.to(x_BCHW), list(x_BCHW.shape), align_corners=False)
    return F.grid_sample(x_BCHW, grid_BHW2, mode="bilinear", padding_mode="zeros", align_corners=False)


def blurred(x_BCHW: Tensor, deviation_px_B: np.ndarray) -> Tensor:
    """Each cube blurred by a Gaussian of its own deviation, in pixels."""
    B, C, H, W = x_BCHW.shape
    reach = max(1, math.ceil(2.5 * float(deviation_px_B.max())))
    offset_K = np.arange(-reach, reach + 1)
    weight_BK = np.exp(-0.5 * (offset_K / np.maximum(deviation_px_B, 1e-3)[:, None]) ** 2)
    kernel_NK = torch.from_numpy(weight_BK / weight_BK.sum(1, keepdims=True)).to(x_BCHW).repeat_interleave(C, 0)
    flat_1NHW = x_BCHW.reshape(1, B * C, H, W)
    rows_1NHW = F.conv2d(flat_1NHW, kernel_NK[:, None, :, None], padding=(reach, 0), groups=B * C)
    return F.conv2d(rows_1NHW, kernel_NK[:, None, None, :], padding=(0, reach), groups=B * C).view(B, C, H, W)
