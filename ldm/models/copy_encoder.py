"""The encoder that knows a photograph again when it was turned, mirrored, moved or cut out.

What turns and mirrors do is left to the architecture, so that little has to be learned: filters are the same when turned by 90° or
mirrored, sizes are halved by means, which are, and what is kept of a level are means and deviations over all its pixels. A
mirrored image therefore has the embedding of the image itself, to rounding, and one that is turned by any angle nearly has. What is cut,
moved, lit and blurred is left to the last layer, which begins as Fisher's discriminant, and to the training.

Legend: B batch, C band, H W pixels, h w pixels of a level, K channel, V view, N photograph, P pooled feature, D dimension.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_shards.errors import InputError
from ldm.models.config import CopyEncoderConfig
from ldm.models.feature_encoder import FURTHEST
from ldm.normalise import CubeNormaliser

BLACK = 1e-2  # counts, for rounding
LEAST_SHARE = 1e-3
"""Of the mean variance within photographs, at which each feature's is taken at least (shrinkage)."""


class Symmetric(nn.Conv2d):
    """A 3×3 convolution whose filters are the means of themselves under the eight turns and mirrors of a square."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__(before, after, 3)
        with torch.no_grad():
            self.weight.mul_(2.0)  # a mean of eight has less variance

    def forward(self, x_BKHW: Tensor) -> Tensor:
        weight = (self.weight + self.weight.flip(-1)) / 2
        weight = (weight + weight.flip(-2)) / 2
        weight = (weight + weight.transpose(-1, -2)) / 2
        return F.conv2d(F.pad(x_BKHW, (1, 1, 1, 1), mode="replicate"), weight, self.bias)


class CopyEncoder(nn.Module):
    """Mean spectrum; then, of what is left when it is taken out, spectra pixel by pixel and levels of symmetric filters.

    Pixels that are 0 in all bands are no part of the photograph: see `seen`.
    """

    def __init__(self, config: CopyEncoderConfig) -> None:
        super().__init__()
        assert config.bands > 0, "bands are filled in from the dataset before a model is built"
        self.config = config
        widths = [config.channels, *([2 * config.channels] * (config.levels - 1))]
        self.spectra = nn.Conv2d(config.bands, config.channels, 1)
        self.levels = nn.ModuleList(Symmetric(*pair) for pair in zip([config.channels, *widths], widths, strict=False))
        pooled = config.bands + 2 * (config.channels + sum(widths))
        self.scale_P, self.shift_P = nn.Parameter(torch.ones(pooled)), nn.Parameter(torch.zeros(pooled))
        self.last = nn.Linear(pooled, config.dimension)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Normalised cubes → embeddings (B, D); a distance of about 1 a dimension is what copies of one photograph have.

        Raises:
            InputError: cubes of other bands than it was built for, or with too few pixels.
        """
        return self.last(self.pooled(x_BCHW) * self.scale_P + self.shift_P)

    def pooled(self, x_BCHW: Tensor) -> Tensor:
        """What the last layer is given, (B, P), fp32.

        Raises:
            InputError: as `forward`.
        """
        if x_BCHW.shape[1] != self.config.bands:
            raise InputError(f"cubes of {x_BCHW.shape[1]} bands", expected=f"the {self.config.bands} bands that the encoder was trained on")
        lit_B1HW = (x_BCHW != 0).any(1, keepdim=True).float()
        x_BCHW = x_BCHW.float().clamp(-FURTHEST, FURTHEST)
        x_BCHW, lit_B1HW = (smaller(each, self.config.side) for each in (x_BCHW, lit_B1HW))
        if min(x_BCHW.shape[2:]) < 2 ** (self.config.levels - 1):
            raise InputError(
                f"cubes of {x_BCHW.shape[2]}×{x_BCHW.shape[3]}",
                expected=f"{2 ** (self.config.levels - 1)} pixels or more: {self.config.levels} levels halve them",
                mend="a lower copies.model.levels",
            )
        mean_BC = x_BCHW.sum((2, 3)) / lit_B1HW.sum((2, 3)).clamp(min=1)
        z_BKhw = F.silu(self.spectra(x_BCHW - mean_BC[:, :, None, None] * lit_B1HW))
        found = [mean_BC, over_lit(z_BKhw, lit_B1HW)]
        for number, level in enumerate(self.levels):
            if number:
                z_BKhw, lit_B1HW = F.avg_pool2d(z_BKhw, 2), F.avg_pool2d(lit_B1HW, 2)
            z_BKhw = F.silu(level(z_BKhw))
            found.append(over_lit(z_BKhw, lit_B1HW))
        return torch.cat(found, dim=1)


def over_lit(z_BKhw: Tensor, lit_B1hw: Tensor) -> Tensor:
    """Mean and deviation of each channel over the lit pixels, (B, 2 K), fp32."""
    z_BKhw, weight_B1hw = z_BKhw.float(), lit_B1hw / lit_B1hw.sum((2, 3), keepdim=True).clamp(min=1e-3)
    mean_BK = (z_BKhw * weight_B1hw).sum((2, 3))
    variance_BK = ((z_BKhw - mean_BK[:, :, None, None]).square() * weight_B1hw).sum((2, 3))
    return torch.cat([mean_BK, (variance_BK + 1e-4).sqrt()], dim=1)


def seen(counts_BCHW: Tensor, normaliser: CubeNormaliser) -> Tensor:
    """Cubes for the encoder: normalised, and 0 where all bands are black, outside the field of view or beyond the border of what was moved.

    Args:
        counts_BCHW: above reflectance 0, in stored counts.
    """
    return normaliser(counts_BCHW + normaliser.log_zero, (counts_BCHW > BLACK).any(1))


def smaller(x_BCHW: Tensor, side: int) -> Tensor:
    """Means over as large blocks as leave `side` pixels of the shorter side; 0: as it is."""
    block = max(1, min(x_BCHW.shape[2:]) // side) if side else 1
    return F.avg_pool2d(x_BCHW, block) if block > 1 else x_BCHW


@torch.no_grad()
def begin_apart(net: CopyEncoder, batches: Iterable[list[Tensor]]) -> None:
    """Set the last layer to Fisher's linear discriminant: what varies between photographs, in units of how views of one of them vary.

    Args:
        batches: of photographs, for each the same views of all of them, as normalised cubes.
    """
    pooled_VNP = torch.cat([torch.stack([net.pooled(x_BCHW) for x_BCHW in views]) for views in batches], dim=1).double().cpu()
    of_each_NP, mean_P = pooled_VNP.mean(0), pooled_VNP.mean((0, 1))
    within_MP = (pooled_VNP - of_each_NP).flatten(0, 1)
    deviation_P = within_MP.std(0).clamp(min=1e-6)
    within_MP = within_MP / deviation_P
    covariance_PP = within_MP.T @ within_MP / (pooled_VNP.shape[1] * max(1, pooled_VNP.shape[0] - 1))
    size = covariance_PP.diagonal().mean()
    covariance_PP = (1 - LEAST_SHARE) * covariance_PP + LEAST_SHARE * size * torch.eye(len(mean_P), dtype=torch.float64)
    value_P, vector_PP = torch.linalg.eigh(covariance_PP)
    white_PP = vector_PP / value_P.sqrt()
    _, _, direction_RP = torch.linalg.svd((of_each_NP - mean_P) / deviation_P @ white_PP, full_matrices=False)
    kept = min(net.config.dimension, len(direction_RP))
    weight_DP = torch.zeros(net.last.weight.shape, dtype=torch.float64)
    weight_DP[:kept] = direction_RP[:kept] @ white_PP.T
    net.scale_P.copy_(1 / deviation_P)
    net.shift_P.copy_(-mean_P / deviation_P)
    net.last.weight.copy_(weight_DP)
    net.last.bias.zero_()
