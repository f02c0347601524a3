"""Stored values ↔ what the networks see: per channel mean 0 and deviation 1 over the training split.

Cubes pass through a logarithm first: absorption is linear there (Beer–Lambert), and the optic nerve head, several times as
bright as the rest of the fundus in the blue, no longer sets the scale of a band and hides the vessels. Latents are linear.
Legend: B batch, C band or latent channel, H W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from data_shards.errors import InputError
from data_shards.manifest import LOG_KNEE, BandStats

STORED_MAX = 65535.0  # of uint16


def _signed_log(counts: Tensor) -> Tensor:
    """`data_shards.manifest.signed_log` on tensors."""
    return torch.copysign(torch.log1p(counts.abs() / LOG_KNEE), counts)


class BandNormaliser(nn.Module):
    """Buffers, so that it moves with a model.

    Args:
        stats: of the training split.
        scale, offset: reflectance = scale * stored + offset.
        dtype: 'uint16' of cubes (logarithmic), 'float32' of latents (linear).

    Raises:
        InputError: statistics of cubes without the logarithmic ones.
    """

    def __init__(self, stats: BandStats, *, scale: float, offset: float, dtype: str) -> None:
        super().__init__()
        self.logarithmic = dtype == "uint16"
        if self.logarithmic and not stats.log_mean_C:
            raise InputError("no logarithmic band statistics", expected="log_mean_C in dataset.json", mend="retinaforge data index DATASET")
        mean_C, std_C = (stats.log_mean_C, stats.log_std_C) if self.logarithmic else (stats.mean_C, stats.std_C)
        self.register_buffer("mean_C11", torch.tensor(mean_C, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std_C11", torch.tensor(std_C, dtype=torch.float32).clamp(min=1e-6).view(-1, 1, 1))
        self.scale, self.offset = scale, offset
        self.log_zero = stats.log_zero

    def forward(self, stored_BCHW: Tensor, fov_BHW: Tensor | None = None) -> Tensor:
        """Stored values → normalised float32; outside the field of view 0, so that no capacity goes into the camera's rim."""
        value = stored_BCHW.float()
        value = _signed_log(value - self.log_zero) if self.logarithmic else value * self.scale + self.offset
        x_BCHW = (value - self.mean_C11) / self.std_C11
        return x_BCHW if fov_BHW is None else x_BCHW * fov_BHW[:, None].to(x_BCHW)

    def reflectance(self, x_BCHW: Tensor) -> Tensor:
        """Normalised → reflectance (latents: latent units); cubes clipped to what can be stored."""
        value = x_BCHW * self.std_C11 + self.mean_C11
        if not self.logarithmic:
            return value
        # not at the largest value of the training split: a brighter disc than any of them is no fault. exp must not overflow
        least, most = _signed_log(torch.tensor([0.0, STORED_MAX]) - self.log_zero).tolist()
        value = value.clamp(least, most)
        counts = torch.copysign(LOG_KNEE * torch.expm1(value.abs()), value)
        return (counts + self.log_zero) * self.scale + self.offset

    def stored(self, x_BCHW: Tensor) -> Tensor:
        """Normalised → stored uint16."""
        counts = (self.reflectance(x_BCHW) - self.offset) / self.scale
        return counts.round().clamp(0, STORED_MAX).to(torch.uint16)
