"""Denoisers of the latent diffusion. Add one: its config in config.py, its class here or in a file beside, and a line in DENOISERS.

Legend: B batch, D latent channel, h w latent pixels.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from diffusers import UNet2DModel
from torch import Tensor, nn

from data_shards.errors import InputError
from ldm.models.config import UNetConfig


class UNet(nn.Module):
    """diffusers' U-Net on latents of three levels; h and w are multiples of 4."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        assert config.latent_channels > 0, "latent channels are filled in from the autoencoder before a model is built"
        self.config = config
        down = tuple("AttnDownBlock2D" if level in config.attention else "DownBlock2D" for level in range(3))
        up = tuple("AttnUpBlock2D" if level in config.attention else "UpBlock2D" for level in reversed(range(3)))
        self.net = UNet2DModel(
            in_channels=config.latent_channels,
            out_channels=config.latent_channels,
            layers_per_block=config.layers,
            block_out_channels=tuple(config.channels * m for m in (1, 2, 4)),
            down_block_types=down,
            up_block_types=up,
            norm_num_groups=min(32, config.channels),
            attention_head_dim=config.head_channels,  # diffusers' own is 8: attention takes 3.5 times as long as with 64
        )
        self.head: nn.Module | None = None

    def forward(self, z_BDHW: Tensor, t_B: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Prediction of the objective's target at time t in [0, 1000); where it has a head, also what that makes of the middle."""
        if self.head is None:
            return self.net(z_BDHW, t_B, return_dict=False)[0]
        middle: list[Tensor] = []
        hook = self.net.mid_block.register_forward_hook(lambda _, __, out: middle.append(out))
        try:
            predicted = self.net(z_BDHW, t_B, return_dict=False)[0]
        finally:
            hook.remove()
        return predicted, self.head(middle[0])

    def add_head(self, channels: int) -> None:
        """While training: two layers at each pixel of the middle, (B, channels, h/4, w/4). Denoisers that are loaded have none."""
        width = 4 * self.config.channels
        self.head = nn.Sequential(nn.Conv2d(width, width, 1), nn.SiLU(), nn.Conv2d(width, channels, 1))


DENOISERS = {UNetConfig: UNet}


def described(config: UNetConfig) -> dict[str, Any]:
    """A denoiser's kind and configuration, as a checkpoint keeps them."""
    return json.loads(json.dumps({"kind": config.kind, **dataclasses.asdict(config)}))


def denoiser_from(description: dict[str, Any]) -> nn.Module:
    """The denoiser of a `described`.

    Raises:
        InputError: a kind or a setting that this version does not have.
    """
    kinds = {config.kind: config for config in DENOISERS}
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in description.items() if k != "kind"}
    config = kinds.get(description["kind"])
    if config is None:
        raise InputError(f"a denoiser of kind {description['kind']!r}", expected=f"one of {', '.join(kinds)}")
    if unknown := fields.keys() - {f.name for f in dataclasses.fields(config)}:
        raise InputError(f"a {description['kind']} with {', '.join(sorted(unknown))}", expected="settings of this version, or an older one")
    return DENOISERS[config](config(**fields))
