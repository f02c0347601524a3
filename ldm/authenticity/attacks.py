"""Attacks on trained networks: how well they know an image. Each is a score, higher for what they were trained on, as a rule.

`loss`: the denoising loss at fixed times is lower for training images (Yeom et al. 2018; for diffusion Matsumoto et al. 2023, Carlini et
al. 2023, section 5).
`sima`: what a denoiser says of an image without noise points to the mean of the training images near it, so its norm is smaller at a
training image itself (SimA: Rao et al. 2025, arXiv:2509.25003).
`sima_mirrored`: the same, less that of the image mirrored left to right, which is as hard and was not trained on.
`frequency`: the error of the latents as rebuilt in one step, each ring of spatial frequencies counted alike but the lowest, which is easy
in every image (after FCRE, arXiv:2506.14919; unlike there the high ones count: latents hold no frequencies but an image's lower ones).
`autoencoder`: the autoencoder, which saw the same people, rebuilds its training images better; by the same rings.

Legend: B image, T time, S draw, C band, D latent channel, H W pixels, h w latent pixels.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.checkpoints.trained import Autoencoder, Denoiser
from ldm.models import striped
from ldm.models.noise import ATTACK, normal_at
from ldm.models.objective import noise_in, noised_at, schedule

ATTACKS = ("loss", "sima", "sima_mirrored", "frequency", "autoencoder")
DIFFICULTY = ("brightness", "contrast", "detail")
RINGS = 8  # of equal width, up to the highest frequency along an axis; what lies beyond it counts to the last
LEAST = 1e-12  # error that is told from none: what is known by heart has a score, too


@torch.no_grad()
def attacked(
    autoencoder: Autoencoder,
    denoiser: Denoiser,
    stored_BCHW: Tensor,
    fov_BHW: Tensor | None,
    *,
    times: tuple[int, ...],
    draws: int,
    seed: int,
) -> dict[str, Tensor]:
    """Scores of images by ATTACKS, (B, T), `autoencoder` (B, 1), and their DIFFICULTY, (B,), which no network knows of."""
    x_BCHW = autoencoder.normaliser(stored_BCHW, fov_BHW)
    h_BDHW, mirrored_BDHW = (striped.encode(autoencoder.vqgan, view_BCHW) for view_BCHW in (x_BCHW, x_BCHW.flip(-1)))
    error_BCHW = striped.decode(autoencoder.vqgan, autoencoder.codebook(h_BDHW)[0]) - x_BCHW
    if fov_BHW is not None:
        error_BCHW = error_BCHW * fov_BHW[:, None]
    z_BDHW = denoiser.normaliser(h_BDHW)
    loss_BT, frequency_BT = denoising_errors(denoiser, z_BDHW, times=times, draws=draws, seed=seed)
    seen_BT, seen_mirrored_BT = (noise_seen(denoiser, z, times=times) for z in (z_BDHW, denoiser.normaliser(mirrored_BDHW)))
    scores = {
        "loss": -loss_BT,
        "sima": -seen_BT,
        "sima_mirrored": seen_mirrored_BT - seen_BT,
        "frequency": -frequency_BT,
        "autoencoder": -log_error_of_rings(error_BCHW)[:, None],
    }
    return {**scores, **difficulty(x_BCHW, fov_BHW)}


def denoising_errors(denoiser: Denoiser, z_BDHW: Tensor, *, times: tuple[int, ...], draws: int, seed: int) -> tuple[Tensor, Tensor]:
    """(B, T) each: logarithms of the loss, a mean over draws of the noise, and of the error of the rebuilt latents by rings.

    All images get the same noises, functions of (seed, time, draw). The rebuilt latents are off by what the prediction is off, times a
    factor of the time alone, which says nothing of an image: it is left out.
    """
    scheduler, loss_T, rings_T = schedule(denoiser.objective.target), [], []
    for time in times:
        t_B = torch.full((len(z_BDHW),), time, device=z_BDHW.device)
        loss_S, rings_S = [], []
        for draw in range(draws):
            noise = normal_at(seed, np.array([time]), z_BDHW.shape[1:], ATTACK, attempt=draw, device=z_BDHW.device).expand_as(z_BDHW)
            x_BDHW, target_BDHW = noised_at(z_BDHW, noise, t_B, denoiser.objective, scheduler=scheduler)
            error_BDHW = denoiser.net(x_BDHW, t_B).float() - target_BDHW
            loss_S.append(error_BDHW.square().mean((1, 2, 3)))
            rings_S.append(log_error_of_rings(error_BDHW))
        loss_T.append(torch.stack(loss_S).mean(0).clamp(min=LEAST).log())
        rings_T.append(torch.stack(rings_S).mean(0))
    return torch.stack(loss_T, 1), torch.stack(rings_T, 1)


def noise_seen(denoiser: Denoiser, z_BDHW: Tensor, *, times: tuple[int, ...]) -> Tensor:
    """(B, T): logarithm of the root mean square of the noise that is seen in latents that have none."""
    scheduler, seen_T = schedule(denoiser.objective.target), []
    for time in times:
        t_B = torch.full((len(z_BDHW),), time, device=z_BDHW.device)
        x_BDHW, _ = noised_at(z_BDHW, torch.zeros_like(z_BDHW), t_B, denoiser.objective, scheduler=scheduler)
        seen_BDHW = noise_in(x_BDHW, t_B, denoiser.net(x_BDHW, t_B).float(), denoiser.objective, scheduler=scheduler)
        seen_T.append(seen_BDHW.square().mean((1, 2, 3)).clamp(min=LEAST).log() / 2)
    return torch.stack(seen_T, 1)


def log_error_of_rings(error_BCHW: Tensor) -> Tensor:
    """(B,): logarithm of the mean square of an error at the frequencies of a ring, the mean over all RINGS but the lowest."""
    height, width = error_BCHW.shape[2:]
    of_highest_HW = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)) / 0.5
    ring_HW = (of_highest_HW * RINGS).long().clamp(max=RINGS - 1).to(error_BCHW.device)
    energy_BHW = torch.fft.fft2(error_BCHW.float(), norm="ortho").abs().square().mean(1)
    energies = [energy_BHW[:, ring_HW == ring] for ring in range(1, RINGS)]
    return torch.stack([energy_BN.mean(1).clamp(min=LEAST).log() for energy_BN in energies if energy_BN.shape[1]]).mean(0)


def difficulty(x_BCHW: Tensor, fov_BHW: Tensor | None) -> dict[str, Tensor]:
    """DIFFICULTY of normalised images within their field of view: mean, logarithm of the deviation, and of that of the finest detail."""
    within_B1HW = torch.ones_like(x_BCHW[:, :1]) if fov_BHW is None else fov_BHW[:, None].to(x_BCHW)
    count_B = within_B1HW.sum((1, 2, 3)) * x_BCHW.shape[1]
    mean_B = (x_BCHW * within_B1HW).sum((1, 2, 3)) / count_B
    away_BCHW = x_BCHW - mean_B.view(-1, 1, 1, 1)
    fine_BCHW = x_BCHW - F.avg_pool2d(x_BCHW, 3, stride=1, padding=1, count_include_pad=False)
    variances = [(part * within_B1HW).square().sum((1, 2, 3)) / count_B for part in (away_BCHW, fine_BCHW)]
    deviations = [variance_B.clamp(min=LEAST).log() / 2 for variance_B in variances]
    return dict(zip(DIFFICULTY, (mean_B, *deviations), strict=True))
