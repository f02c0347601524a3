"""PatchGAN discriminator (Isola et al. 2017, §3.2), with group instead of batch normalisation.

Batch statistics would make the result depend on how the global batch is spread over ranks.
Legend: B batch, C band, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from data_shards.errors import InputError


@dataclass(frozen=True, kw_only=True)
class PatchGANConfig:
    """Attributes:
    bands: C, taken from the dataset when 0.
    channels: width of the first layer, doubled at each of `layers` strided layers up to eightfold.
    """

    bands: int = 0
    channels: int = 64
    layers: int = 3

    def __post_init__(self) -> None:
        if min(self.channels, self.layers) < 1 or any(w % min(8, w) for w in (2 * self.channels, 4 * self.channels)):
            raise InputError(f"channels {self.channels}, layers {self.layers}", expected="channels a multiple of 4, layers at least 1")

    @property
    def least_pixels(self) -> int:
        """Height and width that leave one patch: each strided layer halves, and the last two convolutions take a pixel each."""
        return 3 << self.layers


class PatchGAN(nn.Module):
    """Strided 4×4 convolutions; one logit for each patch."""

    def __init__(self, config: PatchGANConfig) -> None:
        super().__init__()
        assert config.bands > 0, "bands are filled in from the dataset before a model is built"
        widths = [config.channels * min(2**i, 8) for i in range(config.layers + 1)]
        stages: list[nn.Module] = [nn.Sequential(nn.Conv2d(config.bands, widths[0], 4, 2, 1), nn.LeakyReLU(0.2))]
        for i, (a, b) in enumerate(pairwise(widths)):
            stride = 2 if i < config.layers - 1 else 1
            stages.append(nn.Sequential(nn.Conv2d(a, b, 4, stride, 1, bias=False), nn.GroupNorm(min(8, b), b), nn.LeakyReLU(0.2)))
        self.stages = nn.ModuleList(stages)
        self.head = nn.Conv2d(widths[-1], 1, 4, 1, 1)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Patch logits, and the features of each stage for feature matching (Wang et al. 2018, eq. 2)."""
        features = []
        for stage in self.stages:
            features.append(x_BCHW := stage(x_BCHW))
        return self.head(x_BCHW), features
