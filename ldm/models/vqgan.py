"""The autoencoder of the VQ-GAN: diffusers' encoder and decoder around a latent of D channels.

Legend: B batch, C band, H W pixels, D latent channel, F feature of the last layer's input, h w latent pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from data_shards.errors import InputError
from ldm.models.codebook import Codebook
from ldm.models.config import MULTIPLES, VQGANConfig


class VQGANOutput(NamedTuple):
    """What the autoencoder makes of normalised cubes. A tuple: DDP and DeepSpeed look for tensors in it.

    Attributes:
        h_BDHW: latents before quantisation.
        index_BHW: the nearest code of each. This and what follows: None where cubes were only encoded.
        trunk_BFHW: what the last layer was given, without gradient (for the adaptive weight).
        rec_BCHW: reconstruction.
    """

    h_BDHW: Tensor
    index_BHW: Tensor | None = None
    trunk_BFHW: Tensor | None = None
    rec_BCHW: Tensor | None = None


class VQGAN(nn.Module):
    """Encoder, decoder and the two 1×1 convolutions beside the codebook (Esser et al. 2021). Any number of bands."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        assert config.bands > 0, "bands are filled in from the dataset before a model is built"
        self.config = config
        widths = tuple(config.channels * m for m in MULTIPLES[config.compression])
        shared = {"block_out_channels": widths, "layers_per_block": config.layers, "norm_num_groups": config.norm_groups}
        D = config.latent_channels
        self.encoder = Encoder(config.bands, D, down_block_types=("DownEncoderBlock2D",) * len(widths), double_z=False, **shared)
        self.quant_conv = nn.Conv2d(D, D, 1)
        self.post_quant_conv = nn.Conv2d(D, D, 1)
        self.decoder = Decoder(D, config.bands, up_block_types=("UpDecoderBlock2D",) * len(widths), **shared)
        self._begin_as_identity()

    def _begin_as_identity(self) -> None:
        """Zero the last layer of every residual branch (Goyal et al. 2017, section 5.1): what begins near linear learns sooner."""
        for block in self.modules():
            if isinstance(block, (ResnetBlock2D, Attention)):
                last = block.conv2 if isinstance(block, ResnetBlock2D) else block.to_out[0]
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)

    def encode(self, x_BCHW: Tensor) -> Tensor:
        """Normalised cubes → latents before quantisation, (B, D, H/f, W/f).

        Raises:
            InputError: height or width is not a multiple of the compression, or the bands are not the model's.
        """
        self.check(x_BCHW)
        return self.quant_conv(self.encoder(x_BCHW))

    def check(self, x_BCHW: Tensor) -> None:
        """Refuse cubes that `encode` cannot take."""
        f = self.config.compression
        if x_BCHW.shape[1] != self.config.bands or x_BCHW.shape[2] % f or x_BCHW.shape[3] % f:
            raise InputError(
                f"cubes of shape {tuple(x_BCHW.shape[1:])}",
                expected=f"{self.config.bands} bands, height and width multiples of {f}",
                mend="retinaforge data import --resize HxW (or --crop)",
            )

    def decode(self, z_BDHW: Tensor) -> Tensor:
        """Quantised latents → normalised cubes."""
        return self.last_layer(self.trunk(z_BDHW))

    def trunk(self, z_BDHW: Tensor) -> Tensor:
        """Quantised latents → what the last layer makes cubes of: diffusers' decoder up to there."""
        decoder = self.decoder
        recomputed = decoder.gradient_checkpointing and torch.is_grad_enabled()
        x = decoder.conv_in(self.post_quant_conv(z_BDHW))
        for block in (decoder.mid_block, *decoder.up_blocks):
            x = decoder._gradient_checkpointing_func(block, x) if recomputed else block(x)
        return decoder.conv_act(decoder.conv_norm_out(x))

    @property
    def last_layer(self) -> nn.Conv2d:
        return self.decoder.conv_out

    def forward(
        self,
        x_BCHW: Tensor,
        codebook: Codebook | None = None,
        *,
        quantise: bool = True,
        moved: Callable[[Tensor], Tensor] | None = None,
    ) -> VQGANOutput:
        """Everything that a step needs, in one call: a wrapper that gathers weights, or exchanges gradients, sees no other.

        Args:
            codebook: None: encode only.
            quantise: whether the decoder is given the codes, or the latents as they are.
            moved: what is done to the latents first.
        """
        h_BDHW = self.encode(x_BCHW)
        if moved is not None:
            h_BDHW = moved(h_BDHW)
        if codebook is None:
            return VQGANOutput(h_BDHW)
        q_BDHW, index_BHW = codebook(h_BDHW)
        trunk_BFHW = self.trunk(q_BDHW if quantise else h_BDHW)
        return VQGANOutput(h_BDHW, index_BHW, trunk_BFHW.detach(), self.last_layer(trunk_BFHW))


def initialised(build, seed: int) -> nn.Module:
    """Build a module with its weights a function of `seed` alone; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()
