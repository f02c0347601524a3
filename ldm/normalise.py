"""Stored counts ↔ reflectance ↔ what the networks see: per-band mean 0 and deviation 1 over the training split.

Legend: B batch, C band, H W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from data_shards.manifest import Manifest


class BandNormaliser(nn.Module):
    """Also for latents, whose 'bands' are the D channels. Buffers, so that they are saved with a model and moved with it."""

    def __init__(self, mean_C: Tensor, std_C: Tensor, *, scale: float, offset: float, stored_max: float) -> None:
        super().__init__()
        self.register_buffer("mean_C11", mean_C.float().view(-1, 1, 1))
        self.register_buffer("std_C11", std_C.float().clamp(min=1e-6).view(-1, 1, 1))
        self.scale, self.offset, self.stored_max = scale, offset, stored_max

    @classmethod
    def of(cls, manifest: Manifest) -> BandNormaliser:
        """From a dataset's manifest."""
        stats = manifest.stats
        assert stats is not None, "callers ask Dataset.stats first, which says how to mend its absence"
        stored_max = (max(stats.max_C) - manifest.offset) / manifest.scale
        return cls(
            torch.tensor(stats.mean_C), torch.tensor(stats.std_C), scale=manifest.scale, offset=manifest.offset, stored_max=stored_max
        )

    def forward(self, stored_BCHW: Tensor) -> Tensor:
        """Stored values → normalised float32."""
        return (stored_BCHW.float() * self.scale + self.offset - self.mean_C11) / self.std_C11

    def reflectance(self, x_BCHW: Tensor) -> Tensor:
        """Normalised → reflectance."""
        return x_BCHW * self.std_C11 + self.mean_C11

    def stored(self, x_BCHW: Tensor) -> Tensor:
        """Normalised → stored uint16, clipped to the range that the training split reaches: the sensor saturates there."""
        counts = (self.reflectance(x_BCHW) - self.offset) / self.scale
        return counts.round().clamp(0, self.stored_max).to(torch.uint16)
