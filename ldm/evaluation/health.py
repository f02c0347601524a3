"""Is this autoencoder fit to diffuse on? Spectrum and moments of its latents, use of its codes, with plain warnings.

Large latent dimensions tend to collapse: most of the channels then carry noise that a diffusion model spends itself on.
Legend: N vector, D latent channel, K code.
"""

from __future__ import annotations

from typing import Any

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


def check(latents: Dataset, autoencoder: Autoencoder, *, split: str = "train", samples: int = 512) -> dict[str, Any]:
    """Figures over up to `samples` images of a split, evenly spaced, and `warnings`: sentences, empty when all is well."""
    moments = Moments(np.array(latents.stats.mean_C))
    counts_K = torch.zeros(autoencoder.codebook.config.codes, dtype=torch.float64)
    stream, chosen_N = CubeStream(latents, split, batch_size=16), evenly(latents.count(split), samples)
    for a in range(0, len(chosen_N), 16):
        h_BDHW = stream.read(chosen_N[a : a + 16]).cubes_BCHW
        _, index_BHW = autoencoder.codebook(h_BDHW.to(autoencoder.codebook.codes_KD.device))
        counts_K += torch.bincount(index_BHW.flatten().cpu(), minlength=len(counts_K))
        for h_DHW in h_BDHW:
            moments.add(h_DHW.flatten(1).T.numpy())
    usage, perplexity = usage_and_perplexity(counts_K)
    figures = {"samples": len(chosen_N), **latent_figures(moments), "codes_usage": usage, "codes_perplexity": perplexity}
    return {**figures, "warnings": warnings_of(figures)}


def latent_figures(moments: Moments) -> dict[str, Any]:
    """What the moments of latents say: by channel, and along the principal directions of their covariance."""
    D = len(moments.about_D)
    spectrum_D = np.linalg.eigvalsh(moments.covariance_DD)[::-1].clip(0)
    total = spectrum_D.sum()
    live = int((spectrum_D > min(LIVE_SHARE, 0.1 / D) * total).sum())
    return {
        "latent_channels": D,
        "mean_D": moments.mean_D.tolist(),
        "std_D": moments.std_D.tolist(),
        "excess_kurtosis_D": moments.excess_kurtosis_D.tolist(),
        "spectrum_D": spectrum_D.tolist(),
        "live_directions": live,
        "effective_rank": effective_rank(spectrum_D) if total > 0 else 0.0,
        "wanted": {"codes_usage": USAGE_LEAST, "effective_rank": RANK_LEAST * D, "live_directions": LIVE_LEAST * D},
    }


def warnings_of(figures: dict[str, Any]) -> list[str]:
    """What a person should know before spending GPU hours on this autoencoder."""
    D, found, wanted = figures["latent_channels"], [], figures["wanted"]
    if figures["codes_usage"] < wanted["codes_usage"]:
        found.append(
            f"only {figures['codes_usage']:.0%} of the codes are used (wanted: {wanted['codes_usage']:.0%}): the codebook has collapsed; "
            "set vqgan.codebook.kmeans=every_epoch (with kind=ema), or use fewer codes"
        )
    live = figures["live_directions"]
    if live < wanted["live_directions"]:
        found.append(
            f"{D - live} of the {D} directions of the latents are dead: each has less than {min(LIVE_SHARE, 0.1 / D):.2%} of the variance; "
            f"a diffusion model would spend itself on their noise; lower vqgan.model.latent_channels to {max(live, 1)}"
        )
    if figures["effective_rank"] < wanted["effective_rank"]:
        found.append(
            f"the {D} latent channels carry {figures['effective_rank']:.2f} effective dimensions (wanted: {wanted['effective_rank']:g}): "
            "most of the variance lies in few of them; lower vqgan.model.latent_channels"
        )
    std_D = np.array(figures["std_D"])
    if std_D.min() <= 0 or std_D.max() / std_D.min() > SPREAD_MOST:
        found.append(f"channel deviations range from {std_D.min():.3g} to {std_D.max():.3g}: some channels are dead")
    worst = max(figures["excess_kurtosis_D"])
    if worst > KURTOSIS_MOST:
        found.append(
            f"a latent channel has excess kurtosis {worst:.1f} (most {KURTOSIS_MOST:g}): outliers will dominate the denoiser's loss"
        )
    return found
