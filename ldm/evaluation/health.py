"""Is this autoencoder fit to diffuse on? Spectrum and moments of its latents, use of its codes, with plain warnings.

Large latent dimensions tend to collapse: most of the channels then carry noise that a diffusion model spends itself on.
Legend: N vector, D latent channel, K code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from data_shards.reading.dataset import Dataset
from data_shards.reading.stream import CubeStream
from ldm.checkpoints.trained import Autoencoder
from ldm.evaluation.sets import evenly
from ldm.evaluation.whitening import effective_rank
from ldm.models.codebook import usage_and_perplexity

USAGE_LEAST, RANK_LEAST, LIVE_LEAST, KURTOSIS_MOST, SPREAD_MOST = 0.5, 0.5, 1.0, 10.0, 20.0
LIVE_SHARE = 1e-3  # of the variance: a direction with less is dead; with more than 100 channels a tenth of an even share


class Moments:
    """Sums of the first four powers of vectors about a fixed point, and of their products: what is kept does not grow with N.

    Sums about the same point add up, whoever made them.

    Args:
        about_D: a point near the mean, so that nothing cancels.
    """

    def __init__(self, about_D: np.ndarray) -> None:
        self.about_D, self.n = np.asarray(about_D, np.float64), 0
        self.powers_4D, self.products_DD = np.zeros((4, len(self.about_D))), np.zeros((len(self.about_D),) * 2)

    def add(self, z_ND: np.ndarray) -> None:
        """Add vectors."""
        gap_ND = z_ND.astype(np.float64) - self.about_D
        square_ND = gap_ND * gap_ND
        self.n += len(gap_ND)
        self.powers_4D += [gap_ND.sum(0), square_ND.sum(0), (square_ND * gap_ND).sum(0), (square_ND * square_ND).sum(0)]
        self.products_DD += gap_ND.T @ gap_ND

    def merge(self, other: Moments) -> None:
        """Add the sums of others' vectors, about the same point."""
        assert np.array_equal(self.about_D, other.about_D)
        self.n += other.n
        self.powers_4D += other.powers_4D
        self.products_DD += other.products_DD

    @property
    def mean_D(self) -> np.ndarray:
        return self.about_D + self.powers_4D[0] / self.n

    @property
    def covariance_DD(self) -> np.ndarray:
        first_D = self.powers_4D[0] / self.n
        return self.products_DD / self.n - np.outer(first_D, first_D)

    @property
    def std_D(self) -> np.ndarray:
        return np.sqrt(np.diag(self.covariance_DD).clip(0))

    @property
    def excess_kurtosis_D(self) -> np.ndarray:
        """E (z - μ)⁴ / σ⁴ - 3; -3 for a channel that never varies."""
        m1_D, m2_D, m3_D, m4_D = self.powers_4D / self.n
        fourth_D = m4_D - 4 * m1_D * m3_D + 6 * m1_D**2 * m2_D - 3 * m1_D**4
        return fourth_D / np.maximum(self.std_D, 1e-12) ** 4 - 3


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Least values that raise no warning: share of the codes, effective dimensions, directions that are not dead."""

    codes_usage: float
    effective_rank: float
    live_directions: float


@dataclass(frozen=True, kw_only=True)
class Health:
    """health.json.

    Attributes:
        latents: digest of the set that was looked at; None where an earlier version looked.
        samples: images, evenly spaced.
        latent_channels: D.
        mean_D, std_D, excess_kurtosis_D: of each channel, in latent units.
        spectrum_D: variance along the principal directions, greatest first, in latent units squared.
        live_directions: how many of them are not dead; None where an earlier version looked.
        effective_rank: effective dimensions of the spectrum.
        wanted: of some figures; None where an earlier version looked.
        codes_usage, codes_perplexity: share and perplexity of the codes.
        warnings: sentences, none when all is well.
    """

    latents: str | None = None
    samples: int
    latent_channels: int
    mean_D: tuple[float, ...]
    std_D: tuple[float, ...]
    excess_kurtosis_D: tuple[float, ...]
    spectrum_D: tuple[float, ...]
    live_directions: int | None = None
    effective_rank: float
    wanted: Wanted | None = None
    codes_usage: float
    codes_perplexity: float
    warnings: tuple[str, ...] = ()


def check(latents: Dataset, autoencoder: Autoencoder, *, split: str = "train", samples: int = 512) -> Health:
    """Figures over up to `samples` images of a split, evenly spaced."""
    moments = Moments(np.array(latents.stats.mean_C))
    counts_K = torch.zeros(autoencoder.codebook.config.codes, dtype=torch.float64)
    stream, chosen_N = CubeStream(latents, split, batch_size=16), evenly(latents.count(split), samples)
    for a in range(0, len(chosen_N), 16):
        h_BDHW = stream.read(chosen_N[a : a + 16]).cubes_BCHW
        _, index_BHW = autoencoder.codebook(h_BDHW.to(autoencoder.codebook.codes_KD.device))
        counts_K += torch.bincount(index_BHW.flatten().cpu(), minlength=len(counts_K))
        for h_DHW in h_BDHW:
            moments.add(h_DHW.flatten(1).T.numpy())
    return health_of(moments, counts_K, latents=latents.digest, samples=len(chosen_N))


def health_of(moments: Moments, counts_K: torch.Tensor, *, latents: str, samples: int) -> Health:
    """What the moments of latents and the use of codes say: by channel, and along the principal directions of the covariance."""
    D = len(moments.about_D)
    spectrum_D = np.linalg.eigvalsh(moments.covariance_DD)[::-1].clip(0)
    total = spectrum_D.sum()
    usage, perplexity = usage_and_perplexity(counts_K)
    health = Health(
        latents=latents,
        samples=samples,
        latent_channels=D,
        mean_D=tuple(moments.mean_D.tolist()),
        std_D=tuple(moments.std_D.tolist()),
        excess_kurtosis_D=tuple(moments.excess_kurtosis_D.tolist()),
        spectrum_D=tuple(spectrum_D.tolist()),
        live_directions=int((spectrum_D > live_share(D) * total).sum()),
        effective_rank=effective_rank(spectrum_D) if total > 0 else 0.0,
        wanted=Wanted(codes_usage=USAGE_LEAST, effective_rank=RANK_LEAST * D, live_directions=LIVE_LEAST * D),
        codes_usage=usage,
        codes_perplexity=perplexity,
    )
    return replace(health, warnings=warnings_of(health))


def live_share(D: int) -> float:
    """Share of the variance below which a direction of D is dead."""
    return min(LIVE_SHARE, 0.1 / D)


def warnings_of(health: Health) -> tuple[str, ...]:
    """What a person should know before spending GPU hours on this autoencoder."""
    D, wanted, live, warnings = health.latent_channels, health.wanted, health.live_directions, []
    if health.codes_usage < wanted.codes_usage:
        warnings.append(
            f"only {health.codes_usage:.0%} of the codes are used (wanted: {wanted.codes_usage:.0%}): the codebook has collapsed; "
            "set vqgan.codebook.kmeans=every_epoch (with kind=ema), or use fewer codes"
        )
    if live < wanted.live_directions:
        warnings.append(
            f"{D - live} of the {D} directions of the latents are dead: each has less than {live_share(D):.2%} of the variance; "
            f"a diffusion model may spend itself on their noise; try vqgan.model.latent_channels={max(live, 1)} and compare the samples: "
            "the demo's are better as they are (docs/quality.md)"
        )
    if health.effective_rank < wanted.effective_rank:
        warnings.append(
            f"the {D} latent channels carry {health.effective_rank:.2f} effective dimensions (wanted: {wanted.effective_rank:g}): "
            "most of the variance lies in few of them; fewer vqgan.model.latent_channels may do"
        )
    least, most = min(health.std_D), max(health.std_D)
    if least <= 0 or most / least > SPREAD_MOST:
        warnings.append(f"channel deviations range from {least:.3g} to {most:.3g}: some channels are dead")
    worst = max(health.excess_kurtosis_D)
    if worst > KURTOSIS_MOST:
        warnings.append(
            f"a latent channel has excess kurtosis {worst:.1f} (most {KURTOSIS_MOST:g}): outliers will dominate the denoiser's loss"
        )
    return tuple(warnings)
