"""How well held-out subjects are reconstructed, against the simplest predictor there is; and a baseline for samples.

Legend: B batch, C band, H W pixels, D latent channel, K code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_shards.cube import Cube, CubeMeta
from data_shards.reading.dataset import Dataset
from data_shards.reading.stream import CubeStream
from ldm.checkpoints.trained import Autoencoder, Denoiser
from ldm.models.codebook import usage_and_perplexity
from ldm.models.objective import normal_at
from ldm.training.losses import spectral_angle_rad


def mean_cube(dataset: Dataset, autoencoder: Autoencoder) -> Tensor:
    """Mean reflectance of the training split, pixel by pixel, (C, H, W) float64."""
    total, count = torch.zeros(dataset.shape, dtype=torch.float64), 0
    normaliser = autoencoder.normaliser
    for batch in CubeStream(dataset, "train", batch_size=16).once():
        stored = batch.cubes_BCHW.double()
        total += (stored * normaliser.scale + normaliser.offset).sum(0)
        count += len(stored)
    return total / count


def reconstruction(dataset: Dataset, autoencoder: Autoencoder, *, batch: int = 16) -> dict[str, Any]:
    """PSNR within the field of view on every held-out split together, and that of the training mean image.

    Peak: the range of reflectance over the training split, the same for both, so their difference does not depend on
    it. Also the mean spectral angle, and the share and perplexity of codes used over the training split.
    """
    held_out = [name for name, info in dataset.splits.items() if info.count and name != "train"] or ["train"]
    mean_CHW = mean_cube(dataset, autoencoder)
    device = autoencoder.normaliser.mean_C11.device
    error = baseline = pixels = angle = 0.0
    count = 0
    for split in held_out:
        for part in CubeStream(dataset, split, batch_size=batch, maps=True).once():
            truth = part.cubes_BCHW.double() * autoencoder.normaliser.scale + autoencoder.normaliser.offset
            rec, _ = autoencoder.reconstruct(part.cubes_BCHW.to(device), part.fov_BHW.to(device) if part.fov_BHW is not None else None)
            rec = rec.double().cpu()
            within_BHW = part.fov_BHW if part.fov_BHW is not None else torch.ones(truth.shape[0], *truth.shape[2:], dtype=torch.bool)
            within = within_BHW[:, None].double()
            error += float(((rec - truth).square() * within).sum())
            baseline += float(((mean_CHW - truth).square() * within).sum())
            pixels += float(within.sum()) * truth.shape[1]
            angle += float(spectral_angle_rad(rec, truth, within_BHW)) * len(truth)
            count += len(truth)
    stats = dataset.stats
    peak = max(stats.max_C) - min(stats.min_C)
    psnr, mean_psnr = (10 * math.log10(peak**2 / max(e / pixels, 1e-30)) for e in (error, baseline))
    usage, perplexity = training_codes(dataset, autoencoder, batch=batch)
    return {
        "splits": held_out,
        "cubes": count,
        "psnr_db": psnr,
        "mean_image_psnr_db": mean_psnr,
        "psnr_gain_db": psnr - mean_psnr,
        "peak_reflectance": peak,
        "spectral_angle_rad": angle / count,
        "codes_used": usage,
        "codes_perplexity": perplexity,
    }


def training_codes(dataset: Dataset, autoencoder: Autoencoder, *, batch: int = 16) -> tuple[float, float]:
    """Usage and perplexity of the final codebook over one pass of the training split."""
    counts_K = torch.zeros(autoencoder.codebook.config.codes, dtype=torch.float64)
    device = autoencoder.normaliser.mean_C11.device
    with torch.no_grad():
        for part in CubeStream(dataset, "train", batch_size=batch, maps=True).once():
            fov_BHW = part.fov_BHW.to(device) if part.fov_BHW is not None else None
            _, index_BHW = autoencoder.codebook(autoencoder.vqgan.encode(autoencoder.normaliser(part.cubes_BCHW.to(device), fov_BHW)))
            counts_K += torch.bincount(index_BHW.flatten().cpu(), minlength=len(counts_K))
    return usage_and_perplexity(counts_K)


def decoded_gaussian_latents(
    autoencoder: Autoencoder, denoiser: Denoiser, count: int, *, seed: int, batch: int = 16, quantise: bool = True
) -> Iterator[Cube]:
    """Cubes decoded from white noise of the latents' own per-channel mean and deviation: what samples have to beat."""
    data = autoencoder.data
    kind = {
        "wavelengths_nm": tuple(data["wavelengths_nm"]),
        "scale": data["scale"],
        "offset": data["offset"],
        "subject_id": "gaussian-latents",
    }
    for ids in np.array_split(np.arange(count), max(1, -(-count // batch))):
        noise = normal_at(seed, ids, denoiser.latent_shape, stream=3).to(denoiser.normaliser.mean_C11.device)
        stored_BCHW = autoencoder.decode(denoiser.normaliser.latents(noise), quantise=quantise).cpu().numpy()
        for i, stored_CHW in zip(ids, stored_BCHW, strict=True):
            yield Cube(data_CHW=stored_CHW, meta=CubeMeta(key=f"{i:09d}", **kind), fov_HW=autoencoder.fov_HW.cpu().numpy())
