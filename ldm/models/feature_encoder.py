"""The encoder whose outputs are the learned features: what a cube's spectra and textures are, as one vector.

Legend: B batch, C band, H W pixels, K channel of a level, D feature.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from data_shards.errors import InputError
from ldm.models.config import FeatureEncoderConfig

FURTHEST = 6.0
"""Deviations from a band's mean that are told apart. Outside the field of view cubes are black: far more would be all that a mean sees."""

LEAST_SHARE = 1e-3


class Residual(nn.Module):
    """GroupNorm, SiLU and a 3×3 convolution, twice, beside the identity (He et al. 2016, figure 4e, with GroupNorm)."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        half = lambda: (nn.GroupNorm(groups, channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1))  # noqa: E731
        self.branch = nn.Sequential(*half(), *half())

    def forward(self, x_BKHW: Tensor) -> Tensor:
        return x_BKHW + self.branch(x_BKHW)


class FeatureEncoder(nn.Module):
    """Pixel by pixel first, so that spectra are seen as such; then levels of residual blocks, each at half the size of the one before.

    Mean and deviation over all pixels of each level, and of the spectra, go through one linear layer. Any height and width
    do of which more than one pixel is left.
    """

    def __init__(self, config: FeatureEncoderConfig) -> None:
        super().__init__()
        assert config.bands > 0, "bands are filled in from the dataset before a model is built"
        self.config = config
        self.widths = widths = [config.channels * 2**level for level in range(config.levels)]
        self.spectra = nn.Conv2d(config.bands, config.channels, 1)
        self.levels = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, width, 3, stride=2, padding=1),
                *(Residual(width, config.norm_groups) for _ in range(config.layers)),
            )
            for before, width in zip([config.channels, *widths], widths, strict=False)
        )
        self.last = nn.Linear(2 * (config.channels + sum(widths)), config.dimension)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Normalised cubes → features (B, D).

        Raises:
            InputError: cubes of other bands than it was built for.
        """
        return self.last(self.pooled(x_BCHW))

    def pooled(self, x_BCHW: Tensor) -> Tensor:
        """What the last layer is given: (B, 2 × the channels of all levels), fp32.

        Raises:
            InputError: as `maps`.
        """
        return torch.cat([mean_and_deviation(x_BKHW) for x_BKHW in self.maps(x_BCHW)], dim=1)

    def maps(self, x_BCHW: Tensor) -> list[Tensor]:
        """The spectra, and what each level makes of them at half the size of the one before: (B, K, H, W), rectified.

        Raises:
            InputError: other bands than it was built for, or so few pixels that the last level is a single one.
        """
        if max(x_BCHW.shape[2:]) <= 2**self.config.levels:
            raise InputError(
                f"cubes of {x_BCHW.shape[2]}×{x_BCHW.shape[3]}",
                expected=f"more than {2**self.config.levels} pixels: {self.config.levels} levels halve them",
                mend="a lower features.model.levels",
            )
        if x_BCHW.shape[1] != self.config.bands:
            raise InputError(f"cubes of {x_BCHW.shape[1]} bands", expected=f"the {self.config.bands} bands that the encoder was trained on")
        found = [nn.functional.silu(self.spectra(x_BCHW.clamp(-FURTHEST, FURTHEST)))]
        for level in self.levels:
            found.append(nn.functional.silu(level(found[-1])))
        return found


def mean_and_deviation(x_BKHW: Tensor) -> Tensor:
    """(B, 2 K) over all pixels, fp32: sums of many pixels do not bear bfloat16."""
    flat_BKN = x_BKHW.flatten(2).float()
    return torch.cat([flat_BKN.mean(2), (flat_BKN.var(2, correction=0) + 1e-6).sqrt()], dim=1)


@torch.no_grad()
def begin_white(net: FeatureEncoder, batches: Iterable[Tensor]) -> None:
    """Set the last layer so that the features of these normalised cubes have mean 0, and deviation 1 in the directions that they span.

    What VICReg's variance and covariance terms ask for then holds from the first step, and the training is left with the third:
    that two views of one eye agree. Directions with a variance below LEAST_SHARE of the largest count as if they had it; where
    the cubes span fewer than D, the other features stay as they were drawn.
    """
    pooled_NK = torch.cat([net.pooled(x_BCHW) for x_BCHW in batches]).double().cpu()
    mean_K = pooled_NK.mean(0)
    _, value_R, vector_RK = torch.linalg.svd(pooled_NK - mean_K, full_matrices=False)
    deviation_R = value_R / max(1, len(pooled_NK) - 1) ** 0.5
    kept = min(net.config.dimension, len(deviation_R))
    weight_DK = net.last.weight.detach().double().cpu().clone()
    weight_DK[:kept] = vector_RK[:kept] / deviation_R[:kept, None].clamp(min=deviation_R[0] * LEAST_SHARE**0.5 + 1e-12)
    net.last.weight.copy_(weight_DK)
    net.last.bias.copy_(-weight_DK @ mean_K)
