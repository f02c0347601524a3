"""The segmenter: a U-Net that says of each pixel whether it shows an artery, a vein, the optic nerve head, or none of them.

Legend: B batch, C band, L class, H W pixels.
"""

from __future__ import annotations

from torch import Tensor, nn

from data_shards.cube import LABELS
from data_shards.errors import InputError
from ldm.models.config import SegmenterConfig

LEAST_PIXELS = 32
"""Height and width: four halvings leave 2, and a layer that normalises each image by itself wants more than one."""


class SegmenterNet(nn.Module):
    """MONAI's BasicUNet (Falk et al. 2019) on all bands; height and width of LEAST_PIXELS or more."""

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        from monai.networks.nets.basic_unet import BasicUNet  # takes seconds

        assert config.bands > 0, "bands are filled in from the dataset before a model is built"
        self.config = config
        c = config.channels
        self.features = c, c, 2 * c, 4 * c, 8 * c, c
        self.net = BasicUNet(spatial_dims=2, in_channels=config.bands, out_channels=len(LABELS), features=self.features)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Normalised cubes → logits of the classes in LABELS, (B, L, H, W)."""
        return self.net(x_BCHW)


def check_size(height: int, width: int, where: object) -> None:
    """Raises: InputError: images too small for it."""
    if min(height, width) < LEAST_PIXELS:
        raise InputError(f"images of {height}×{width} for the segmenter", where=where, expected=f"{LEAST_PIXELS} pixels or more a side")
