"""PatchGAN discriminator (Isola et al. 2017, §3.2), with group instead of batch normalisation.

Batch statistics would make the result depend on how the global batch is spread over ranks.
Legend: B batch, C band, H W pixels.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from ldm.models.config import PatchGANConfig


class PatchGAN(nn.Module):
    """Strided 4×4 convolutions; one logit for each patch."""

    def __init__(self, config: PatchGANConfig) -> None:
        super().__init__()
        self.config = config
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
