"""The codebook: settings of all kinds, what all do, and the one of kind 'ema': averages, re-initialisation, revival.

All state is fp32 buffers, never parameters: an optimizer or a half-precision engine that owned them would round or zero
them in silence. The codebook is handed to the autoencoder at each call, and so stays outside whatever wraps that.

Legend: B batch, D latent channel, H W latent pixels, K code, N vector (B·H·W).
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_shards.errors import InputError
from ldm.kmeans.nearest import nearest_code


@dataclass(frozen=True, kw_only=True)
class CodebookConfig:
    """Attributes:
    codes: K.
    kind: how codes come to be: 'ema' by k-means and exponential averages (EMACodebook); 'simvq' by a learned map of fixed vectors, 'fsq'
        by rounding (other_codebooks.py). The last two know no k-means.
    levels: of 'fsq': steps of each latent channel, 3 or more; their product is `codes`.
    gradient: what reaches the encoder through the rounding: 'straight_through' the decoder's gradient as it is, 'rotation' turned and
        scaled as the latent is to its code (Fifty et al. 2024); near the origin that is a large factor, which engine.clip bounds.
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
    kind: Literal["ema", "simvq", "fsq"] = "ema"
    levels: tuple[int, ...] = ()
    gradient: Literal["straight_through", "rotation"] = "straight_through"
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
        if self.kind != "ema" and (self.kmeans != "never" or self.start):
            raise InputError(
                f"kind {self.kind!r} with kmeans {self.kmeans!r}" + (f" and start {self.start!r}" if self.start else ""),
                expected="kmeans=never and no start: its codes are not means of latents",
            )
        steps = math.prod(self.levels) if self.levels else 0
        if (self.kind == "fsq") != bool(self.levels) or (self.levels and (min(self.levels) < 3 or steps != self.codes)):
            raise InputError(
                f"kind {self.kind!r} with levels {list(self.levels)} and {self.codes} codes",
                expected="levels for 'fsq' alone, each 3 or more, whose product is codes",
                mend="for example kind=fsq levels=[8,5,5,5] codes=1000, with four latent channels",
            )
        if self.kind == "fsq" and self.gradient != "straight_through":
            raise InputError(f"gradient {self.gradient!r} with kind 'fsq'", expected="straight_through, which rounding by channel has")
        if self.kind == "fsq" and self.warmup_epochs:
            raise InputError(
                f"warmup_epochs {self.warmup_epochs} with kind 'fsq'",
                expected="0: latents that pass as they are would learn to lie where the bounds then cut them off",
            )


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
