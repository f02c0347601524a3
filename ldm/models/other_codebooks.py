"""Codebooks whose codes are no means of latents, and the table of all kinds.

Legend: B batch, D latent channel, H W latent pixels, K code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_shards.errors import InputError
from ldm.models.codebook import Codebook, EMACodebook, library, normal_codes
from ldm.models.config import CodebookConfig


class SimVQ(Codebook):
    """Codes c = v W: fixed normal vectors v under one learned map W, which moves all codes at once (Zhu et al. 2024, arXiv 2411.02038).

    `codes_KD` are those of the present map; who trains the map sets them after each of its steps.
    """

    fixed_KD: Tensor

    def __init__(self, config: CodebookConfig, *, channels: int, seed: int) -> None:
        super().__init__(config, normal_codes(config.codes, channels, seed))
        self.seed = seed
        self.register_buffer("fixed_KD", self.codes_KD * channels**-0.5)

    def learned(self) -> nn.Module:
        return CodeMap(self.codes_KD.shape[1], self.seed)


class CodeMap(nn.Module):
    """W of SimVQ. In full precision unless an engine holds the weights in another."""

    def __init__(self, channels: int, seed: int) -> None:
        super().__init__()
        bound = channels**-0.5  # as nn.Linear begins
        uniform_DD = torch.rand(channels, channels, generator=torch.Generator().manual_seed(seed + 2), device="cpu")
        self.weight = nn.Parameter((2 * uniform_DD - 1) * bound)

    def forward(self, fixed_KD: Tensor) -> Tensor:
        with torch.autocast(fixed_KD.device.type, enabled=False):
            return F.linear(fixed_KD.to(self.weight.dtype), self.weight).float()


class FSQ(Codebook):
    """Each channel bounded and rounded to a few levels (Mentzer et al. 2023, arXiv 2309.15505), by vector-quantize-pytorch.

    Raises:
        InputError: other levels than latent channels, or the library is not installed.
    """

    def __init__(self, config: CodebookConfig, *, channels: int, seed: int) -> None:  # nothing in it is random
        if channels != len(config.levels):
            raise InputError(
                f"{len(config.levels)} levels for {channels} latent channels",
                where="vqgan.codebook.levels",
                expected="one a channel",
                mend=f"vqgan.model.latent_channels={len(config.levels)}",
            )
        rounding = library("vector_quantize_pytorch", "vqgan.codebook.kind=fsq").FSQ(list(config.levels))
        super().__init__(config, rounding.implicit_codebook.clone())
        self.rounding = rounding

    def forward(self, h_BDHW: Tensor) -> tuple[Tensor, Tensor]:
        q_BDHW, index_BHW = self.rounding(h_BDHW)
        # what is not finite gets any index, as of the other kinds: the step that it spoils is skipped by all ranks together
        return q_BDHW.to(h_BDHW.dtype), index_BHW.long().clamp(0, len(self.codes_KD) - 1)

    def commitment(self, h_BDHW: Tensor, index_BHW: Tensor) -> Tensor:
        """0: latents are bounded already."""
        return h_BDHW.new_zeros(())


CODEBOOKS = {"ema": EMACodebook, "simvq": SimVQ, "fsq": FSQ}


def codebook_from(config: CodebookConfig, *, channels: int, seed: int) -> Codebook:
    """A freshly initialised codebook of the configured kind."""
    return CODEBOOKS[config.kind](config, channels=channels, seed=seed)
