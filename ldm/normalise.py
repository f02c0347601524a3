"""What is stored ↔ what the networks see: per channel mean 0 and deviation 1 over the training split.

Cubes pass through a logarithm first: absorption is linear there (Beer–Lambert), and the optic nerve head, several times as
bright as the rest of the fundus in the blue, no longer sets the scale of a band and hides the vessels. Latents are linear.
Legend: B batch, C band, D latent channel, H W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from data_shards.errors import InputError
from data_shards.manifest import LOG_KNEE, BandStats

STORED_MAX = 65535.0  # of uint16


class _Normaliser(nn.Module):
    """Mean and deviation of each channel, as buffers, so that they move with a model."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean_C11", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std_C11", torch.tensor(std, dtype=torch.float32).clamp(min=1e-6).view(-1, 1, 1))


class LatentNormaliser(_Normaliser):
    """Between the autoencoder's latents and the denoiser's.

    Args:
        stats: of the latents of the training split.
    """

    def __init__(self, stats: BandStats) -> None:
        super().__init__(stats.mean_C, stats.std_C)

    def forward(self, h_BDHW: Tensor) -> Tensor:
        """The autoencoder's latents → normalised."""
        return (h_BDHW.float() - self.mean_C11) / self.std_C11

    def latents(self, z_BDHW: Tensor) -> Tensor:
        """Normalised → the autoencoder's latents."""
        return z_BDHW * self.std_C11 + self.mean_C11


class CubeNormaliser(_Normaliser):
    """Between stored counts and what the autoencoder sees.

    Args:
        stats: of the training split.
        scale, offset: reflectance = scale * stored + offset.

    Raises:
        InputError: statistics without the logarithmic ones.
    """

    def __init__(self, stats: BandStats, *, scale: float, offset: float) -> None:
        if not stats.log_mean_C:
            raise InputError("no logarithmic band statistics", expected="log_mean_C in dataset.json", mend="retinaforge data index DATASET")
        super().__init__(stats.log_mean_C, stats.log_std_C)
        self.scale, self.offset, self.log_zero = scale, offset, stats.log_zero

    def forward(self, stored_BCHW: Tensor, fov_BHW: Tensor | None = None) -> Tensor:
        """Stored counts → normalised; outside the field of view 0, so that no capacity goes into the camera's rim."""
        x_BCHW = (_signed_log(stored_BCHW.float() - self.log_zero) - self.mean_C11) / self.std_C11
        return x_BCHW if fov_BHW is None else x_BCHW * fov_BHW[:, None].to(x_BCHW)

    def reflectance(self, x_BCHW: Tensor) -> Tensor:
        """Normalised → reflectance, clipped to what can be stored."""
        # not at the largest value of the training split: a brighter disc than any of them is no fault. exp must not overflow
        least, most = _signed_log(torch.tensor([0.0, STORED_MAX]) - self.log_zero).tolist()
        value = (x_BCHW * self.std_C11 + self.mean_C11).clamp(least, most)
        counts = torch.copysign(LOG_KNEE * torch.expm1(value.abs()), value)
        return (counts + self.log_zero) * self.scale + self.offset

    def stored(self, x_BCHW: Tensor) -> Tensor:
        """Normalised → stored counts, uint16."""
        counts = (self.reflectance(x_BCHW) - self.offset) / self.scale
        return counts.round().clamp(0, STORED_MAX).to(torch.uint16)


def _signed_log(counts: Tensor) -> Tensor:
    """`data_shards.manifest.signed_log` on tensors."""
    return torch.copysign(torch.log1p(counts.abs() / LOG_KNEE), counts)


def within(x_BCHW: Tensor, fov_HW: Tensor, zero: float = 0.0) -> Tensor:
    """`zero` outside the field of view: there decoders write nothing, cameras their dark counts, and neither is of an eye.

    Args:
        zero: where reflectance is 0, in the unit of x.
    """
    return torch.where(fov_HW.to(x_BCHW.device), x_BCHW, zero)
