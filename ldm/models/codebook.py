"""The codebook: settings of all kinds, what all do, and the one of kind 'ema': averages, re-initialisation, revival.

All state is fp32 buffers, never parameters: an optimizer or a half-precision engine that owned them would round or zero
them in silence. The codebook is handed to the autoencoder at each call, and so stays outside whatever wraps that.

Legend: B batch, D latent channel, H W latent pixels, K code, N vector (B·H·W).
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_shards.errors import InputError
from ldm.kmeans.nearest import nearest_code
from ldm.models.config import CodebookConfig


class Codebook(nn.Module):
    """K codes of D numbers, of which a latent takes the nearest. How they come to be says the kind.

    What a step asks of any kind: `statistics` of each batch, added up over ranks, then `update`; `dead` codes to revive; and what an
    optimizer has to learn.
    """

    codes_KD: Tensor

    def __init__(self, config: CodebookConfig, codes_KD: Tensor) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("codes_KD", codes_KD)

    def forward(self, h_BDHW: Tensor) -> tuple[Tensor, Tensor]:
        """Latents → (quantised latents with the straight-through gradient, code index as B, H, W)."""
        index_BHW = nearest_code(vectors(h_BDHW), self.codes_KD).view(h_BDHW.shape[0], *h_BDHW.shape[2:])
        q_BDHW = self.codes_KD[index_BHW].movedim(-1, 1)
        if self.config.gradient == "rotation" and h_BDHW.requires_grad:
            return rotated(h_BDHW, q_BDHW), index_BHW
        return h_BDHW + (q_BDHW.to(h_BDHW.dtype) - h_BDHW).detach(), index_BHW

    def commitment(self, h_BDHW: Tensor, index_BHW: Tensor) -> Tensor:
        """Mean of (h − sg(z_q))², unweighted: keeps the encoder near its codes."""
        return F.mse_loss(h_BDHW.float(), self.codes_KD[index_BHW].movedim(-1, 1))

    def learned(self) -> nn.Module | None:
        """What an optimizer has to learn of it, to be called with `fixed_KD` for the codes; None: nothing."""
        return None

    def statistics(self, h_BDHW: Tensor, index_BHW: Tensor) -> Tensor:
        """What `update` takes, float64; its last column counts how often each code was taken."""
        return torch.bincount(index_BHW.flatten(), minlength=self.config.codes).double()[:, None]

    def update(self, statistics: Tensor) -> None:
        """A step's move of the codes, from the statistics of all ranks: none."""

    def dead(self) -> Tensor:
        """Indices of the codes to revive: none."""
        return torch.empty(0, dtype=torch.int64, device=self.codes_KD.device)


class EMACodebook(Codebook):
    """Codes moved by exponential averages of the latents assigned to them (van den Oord et al. 2017, appendix A.1)."""

    share_K: Tensor
    sum_KD: Tensor

    def __init__(self, config: CodebookConfig, *, channels: int, seed: int) -> None:
        super().__init__(config, normal_codes(config.codes, channels, seed))
        self.register_buffer("share_K", torch.ones(config.codes))
        self.register_buffer("sum_KD", self.codes_KD.clone())

    def statistics(self, h_BDHW: Tensor, index_BHW: Tensor) -> Tensor:
        """Sums of the assigned latents, and their counts: (K, D + 1)."""
        z_ND = vectors(h_BDHW).double()
        packed = z_ND.new_zeros(self.config.codes, z_ND.shape[1] + 1)
        return packed.index_add_(0, index_BHW.reshape(-1), torch.cat([z_ND, z_ND.new_ones(len(z_ND), 1)], dim=1))

    def update(self, statistics: Tensor) -> None:
        """Counts enter as shares of an even spread, so batch size does not matter."""
        sums_KD, counts_K = statistics[:, :-1], statistics[:, -1]
        even = counts_K.sum() / self.config.codes
        decay = self.config.decay
        self.share_K.mul_(decay).add_((counts_K / even).to(self.share_K), alpha=1 - decay)
        self.sum_KD.mul_(decay).add_((sums_KD / even).to(self.sum_KD), alpha=1 - decay)
        alive_K = self.share_K > 1e-6  # an unused code keeps its place until revival moves it
        self.codes_KD[alive_K] = self.sum_KD[alive_K] / self.share_K[alive_K, None]

    def reset(self, codes_KD: Tensor, counts_K: Tensor) -> None:
        """New codes, with averages to match: stale sums would pull the codes back (the fault of many revivals)."""
        share_K = counts_K.double() * (len(counts_K) / counts_K.sum())
        self.codes_KD.copy_(codes_KD)
        self.share_K.copy_(share_K)
        self.sum_KD.copy_(codes_KD.to(self.sum_KD) * self.share_K[:, None])

    def dead(self) -> Tensor:
        """Indices of the codes to revive."""
        return torch.nonzero(self.share_K < self.config.dead_below).flatten()

    def revive(self, dead: Tensor, z_ND: Tensor) -> None:
        """Move dead codes onto given latents; each gets enough share to live for some steps, and sums to match."""
        self.codes_KD[dead] = z_ND.to(self.codes_KD)
        self.share_K[dead] = 4 * self.config.dead_below
        self.sum_KD[dead] = self.codes_KD[dead] * self.share_K[dead, None]


def vectors(h_BDHW: Tensor) -> Tensor:
    """Latents one by one, (N, D), without gradient."""
    return h_BDHW.detach().movedim(1, -1).reshape(-1, h_BDHW.shape[1])


def normal_codes(codes: int, channels: int, seed: int) -> Tensor:
    """Standard normal, a function of the seed: (K, D)."""
    return torch.randn(codes, channels, generator=torch.Generator().manual_seed(seed), device="cpu")


def rotated(h_BDHW: Tensor, q_BDHW: Tensor) -> Tensor:
    """The codes, as the latents turned and scaled: q = λ R h with λ and R held constant (Fifty et al. 2024, section 4.2)."""
    rotate_to = library("vector_quantize_pytorch.vector_quantize_pytorch", "vqgan.codebook.gradient=rotation").rotate_to
    with torch.autocast(h_BDHW.device.type, enabled=False):
        turned_BHWD = rotate_to(h_BDHW.movedim(1, -1).float(), q_BDHW.movedim(1, -1).float())
    return turned_BHWD.movedim(-1, 1).to(h_BDHW.dtype)


def library(module: str, wanted_by: str) -> Any:
    """vector-quantize-pytorch, or a part of it; only few want it, so it is no requirement.

    Raises:
        InputError: not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"{wanted_by} without the Python package vector-quantize-pytorch",
            expected="the extra 'codebooks'",
            mend="pip install -c constraints.txt -e '.[codebooks]'",
        ) from error


def usage_and_perplexity(counts_K: Tensor) -> tuple[float, float]:
    """Share of the codes used at least once, and exp of the entropy of their use, over what `counts_K` counted."""
    p_K = counts_K.double() / counts_K.sum().clamp(min=1)
    return float((counts_K > 0).double().mean()), float(torch.exp(-(p_K * p_K.clamp(min=1e-300).log()).sum()))
