"""The codebook: nearest-code assignment, EMA statistics, re-initialisation, revival, usage.

All state is fp32 buffers, never parameters: an optimizer or a half-precision engine that owned them would round or zero
them in silence. The codebook is handed to the autoencoder at each call, and so stays outside whatever wraps that.

Legend: B batch, D latent channel, H W latent pixels, K code, N vector (B·H·W).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from data_shards.errors import InputError


@dataclass(frozen=True, kw_only=True)
class CodebookConfig:
    """Attributes:
    codes: K.
    kmeans: when k-means sets the codes anew: at the start of the first epoch, of every epoch, or never.
    kmeans_vectors: latents drawn for it, over all ranks.
    start: a file of `retinaforge codebook fit` to begin with; empty: random codes, and k-means draws its own.
    warmup_epochs: epochs in which latents pass unquantised, so that the encoder learns what to say before it learns to
        say it in K words; the first k-means comes after them.
    decay: of the EMA, per optimizer step (van den Oord et al. 2017, appendix A.1).
    commitment: weight of ‖h − sg(z_q)‖².
    dead_below: a code whose EMA share is below this fraction of an even share is revived; 0 turns revival off.
    """

    codes: int = 1024
    start: str = ""
    kmeans: Literal["first", "every_epoch", "never"] = "every_epoch"
    kmeans_vectors: int = 65536
    kmeans_iterations: int = 10
    warmup_epochs: int = 0
    decay: float = 0.99
    commitment: float = 0.25
    dead_below: float = 0.02

    def __post_init__(self) -> None:
        if self.codes < 2 or not 0 <= self.decay < 1 or not 0 <= self.dead_below < 1 or self.kmeans_iterations < 1:
            raise InputError(
                f"codes {self.codes}, decay {self.decay}, dead_below {self.dead_below}, kmeans_iterations {self.kmeans_iterations}",
                expected="codes ≥ 2, decay and dead_below in [0, 1), kmeans_iterations ≥ 1",
            )
        if self.kmeans != "never" and self.kmeans_vectors < self.codes:
            raise InputError(f"kmeans_vectors {self.kmeans_vectors}", expected=f"at least as many as codes ({self.codes})")


class Codebook(nn.Module):
    """K codes of D numbers, moved by exponential averages of the latents assigned to them."""

    codes_KD: Tensor
    share_K: Tensor
    sum_KD: Tensor

    def __init__(self, config: CodebookConfig, *, channels: int, seed: int) -> None:
        super().__init__()
        self.config = config
        codes_KD = torch.randn(config.codes, channels, generator=torch.Generator().manual_seed(seed), device="cpu")
        self.register_buffer("codes_KD", codes_KD)
        self.register_buffer("share_K", torch.ones(config.codes))
        self.register_buffer("sum_KD", codes_KD.clone())

    def assign(self, z_ND: Tensor) -> Tensor:
        """Index of the nearest code of each vector, Euclidean; blocked, so that memory does not grow with N."""
        half_norm_K = 0.5 * self.codes_KD.square().sum(1)
        # autocast would round both factors to bfloat16, and near codes could no longer be told apart
        with torch.autocast(z_ND.device.type, enabled=False):
            # argmin ‖z − c‖² = argmax z·c − ‖c‖²/2
            return torch.cat([torch.addmm(-half_norm_K, block.float(), self.codes_KD.T).argmax(1) for block in z_ND.split(1 << 16)])

    def forward(self, h_BDHW: Tensor) -> tuple[Tensor, Tensor]:
        """Latents → (quantised latents with the straight-through gradient, code index as B, H, W)."""
        z_ND = h_BDHW.detach().movedim(1, -1).reshape(-1, h_BDHW.shape[1])
        index_N = self.assign(z_ND)
        index_BHW = index_N.view(h_BDHW.shape[0], *h_BDHW.shape[2:])
        q_BDHW = self.codes_KD[index_BHW].movedim(-1, 1).to(h_BDHW.dtype)
        return h_BDHW + (q_BDHW - h_BDHW).detach(), index_BHW

    def statistics(self, h_BDHW: Tensor, index_BHW: Tensor) -> Tensor:
        """Sums of the assigned latents and their counts, (K, D + 1) float64: add over ranks, then `update`."""
        z_ND = h_BDHW.detach().movedim(1, -1).reshape(-1, h_BDHW.shape[1]).double()
        packed = z_ND.new_zeros(self.config.codes, z_ND.shape[1] + 1)
        packed.index_add_(0, index_BHW.reshape(-1), torch.cat([z_ND, z_ND.new_ones(len(z_ND), 1)], dim=1))
        return packed

    def update(self, packed: Tensor) -> None:
        """EMA step from the global statistics. Counts enter as shares of an even spread, so batch size does not matter."""
        sums_KD, counts_K = packed[:, :-1], packed[:, -1]
        even = counts_K.sum() / self.config.codes
        decay = self.config.decay
        self.share_K.mul_(decay).add_((counts_K / even).to(self.share_K), alpha=1 - decay)
        self.sum_KD.mul_(decay).add_((sums_KD / even).to(self.sum_KD), alpha=1 - decay)
        alive_K = self.share_K > 1e-6  # an unused code keeps its place until revival moves it
        self.codes_KD[alive_K] = self.sum_KD[alive_K] / self.share_K[alive_K, None]

    def reset(self, codes_KD: Tensor, counts_K: Tensor) -> None:
        """New codes, with EMA state to match: stale sums would pull the codes back (the fault of many revivals)."""
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


def usage_and_perplexity(counts_K: Tensor) -> tuple[float, float]:
    """Share of the codes used at least once, and exp of the entropy of their use, over what `counts_K` counted."""
    p_K = counts_K.double() / counts_K.sum().clamp(min=1)
    return float((counts_K > 0).double().mean()), float(torch.exp(-(p_K * p_K.clamp(min=1e-300).log()).sum()))
