"""Is this autoencoder fit to diffuse on? Spectrum and moments of its latents, use of its codes, with plain warnings.

Large latent dimensions tend to collapse: most of the channels then carry noise that a diffusion model spends itself on.
Legend: N vector, D latent channel, K code.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from data_shards.dataset import Dataset
from data_shards.stream import CubeStream
from ldm.models.codebook import usage_and_perplexity
from ldm.trained import Autoencoder

USAGE_LEAST, RANK_LEAST, KURTOSIS_MOST, SPREAD_MOST = 0.25, 0.25, 10.0, 20.0


def effective_rank(eigenvalues_D: np.ndarray) -> float:
    """exp of the entropy of the normalised spectrum (Roy and Vetterli 2007): how many dimensions carry variance."""
    p = eigenvalues_D / eigenvalues_D.sum()
    p = p[p > 0]
    return float(np.exp(-(p * np.log(p)).sum()))


def check(latents: Dataset, autoencoder: Autoencoder, *, split: str = "train", samples: int = 512) -> dict[str, Any]:
    """Figures over up to `samples` images of a split, and `warnings`: sentences, empty when all is well."""
    vectors, counts_K = [], torch.zeros(autoencoder.codebook.config.codes, dtype=torch.float64)
    seen = 0
    for batch in CubeStream(latents, split, batch_size=16).once():
        h_BDHW = batch.cubes_BCHW
        _, index_BHW = autoencoder.codebook(h_BDHW.to(autoencoder.codebook.codes_KD.device))
        counts_K += torch.bincount(index_BHW.flatten().cpu(), minlength=len(counts_K))
        vectors.append(h_BDHW.movedim(1, -1).reshape(-1, h_BDHW.shape[1]).double().numpy())
        if (seen := seen + len(h_BDHW)) >= samples:
            break
    z_ND = np.concatenate(vectors)
    mean_D, std_D = z_ND.mean(0), z_ND.std(0)
    spectrum_D = np.linalg.eigvalsh(np.cov(z_ND.T).reshape(len(std_D), -1))[::-1].clip(0)
    kurtosis_D = (((z_ND - mean_D) / np.maximum(std_D, 1e-12)) ** 4).mean(0) - 3
    usage, perplexity = usage_and_perplexity(counts_K)
    figures = {
        "samples": seen,
        "latent_channels": len(std_D),
        "mean_D": mean_D.tolist(),
        "std_D": std_D.tolist(),
        "excess_kurtosis_D": kurtosis_D.tolist(),
        "spectrum_D": spectrum_D.tolist(),
        "effective_rank": effective_rank(spectrum_D) if spectrum_D.sum() > 0 else 0.0,
        "codes_usage": usage,
        "codes_perplexity": perplexity,
    }
    return {**figures, "warnings": warnings_of(figures)}


def warnings_of(figures: dict[str, Any]) -> list[str]:
    """What a person should know before spending GPU hours on this autoencoder."""
    D, found = figures["latent_channels"], []
    if figures["codes_usage"] < USAGE_LEAST:
        found.append(
            f"only {figures['codes_usage']:.0%} of the codes are used (least {USAGE_LEAST:.0%}): the codebook has collapsed; "
            "set vqgan.codebook.kmeans=every_epoch (with kind=ema), or use fewer codes"
        )
    if figures["effective_rank"] < RANK_LEAST * D:
        found.append(
            f"the {D} latent channels carry {figures['effective_rank']:.1f} effective dimensions (least {RANK_LEAST * D:.1f}): "
            "most of them are noise to a diffusion model; lower vqgan.model.latent_channels"
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
