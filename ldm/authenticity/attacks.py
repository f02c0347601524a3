"""Attacks on trained networks: how well they know an image. Each is a score, higher for what they were trained on, as a rule.

`loss`: the denoising loss at fixed times is lower for training images (Yeom et al. 2018; for diffusion Matsumoto et al. 2023, Carlini et
al. 2023, section 5).
`sima`: what a denoiser says of an image without noise points to the mean of the training images near it, so its norm is smaller at a
training image itself (SimA: Rao et al. 2025, arXiv:2509.25003).
`band`: the error of the latents as rebuilt in one step, at middle frequencies alone: the low ones are easy in every image, the high ones
hard in every image (after FCRE, arXiv:2506.14919).
`autoencoder`: the autoencoder, which saw the same people, rebuilds its training images better; at the same frequencies.

Legend: B image, T time, N image, K measure, C band, D latent channel, H W pixels, h w latent pixels.
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

ATTACKS = ("loss", "sima", "band", "autoencoder")
DIFFICULTY = ("brightness", "contrast", "detail")
BAND = (0.25, 0.75)
"""Middle frequencies, of the highest that pixels (of the latents, for `band`) can show."""
SIMA_NORM = 4  # of the authors' own code
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
    h_BDHW = striped.encode(autoencoder.vqgan, x_BCHW)
    rebuilt_BCHW = striped.decode(autoencoder.vqgan, autoencoder.codebook(h_BDHW)[0])
    error_BCHW = (rebuilt_BCHW - x_BCHW) if fov_BHW is None else (rebuilt_BCHW - x_BCHW) * fov_BHW[:, None]
    z_BDHW = denoiser.normaliser(h_BDHW)
    loss_BT, band_BT = denoising_errors(denoiser, z_BDHW, times=times, draws=draws, seed=seed)
    errors = {"loss": loss_BT, "sima": noise_norms(denoiser, z_BDHW, times=times), "band": band_BT}
    errors["autoencoder"] = band_energy(error_BCHW)[:, None]
    scores = {name: -error.clamp(min=LEAST).log() for name, error in errors.items()}
    return {**scores, **difficulty(x_BCHW, fov_BHW)}


def denoising_errors(denoiser: Denoiser, z_BDHW: Tensor, *, times: tuple[int, ...], draws: int, seed: int) -> tuple[Tensor, Tensor]:
    """(B, T) each: the loss, and the energy in BAND of the error of the rebuilt latents, means over draws of the noise.

    All images get the same noises, functions of (seed, time, draw): what is particular to a noise is then in the scores of all.
    The rebuilt latents are off by a multiple of what the prediction is off that time alone decides, so both are of the prediction.
    """
    scheduler, loss_T, band_T = schedule(denoiser.objective.target), [], []
    for time in times:
        loss_S, band_S = [], []
        for draw in range(draws):
            noise = normal_at(seed, np.array([time]), z_BDHW.shape[1:], ATTACK, attempt=draw, device=z_BDHW.device).expand_as(z_BDHW)
            t_B = torch.full((len(z_BDHW),), time, device=z_BDHW.device)
            x_BDHW, target_BDHW = noised_at(z_BDHW, noise, t_B, denoiser.objective, scheduler=scheduler)
            error_BDHW = denoiser.net(x_BDHW, t_B).float() - target_BDHW
            loss_S.append(error_BDHW.square().mean((1, 2, 3)))
            band_S.append(band_energy(error_BDHW))
        loss_T.append(torch.stack(loss_S).mean(0))
        band_T.append(torch.stack(band_S).mean(0))
    return torch.stack(loss_T, 1), torch.stack(band_T, 1)


def noise_norms(denoiser: Denoiser, z_BDHW: Tensor, *, times: tuple[int, ...]) -> Tensor:
    """(B, T): the SIMA_NORM-norm, as a mean over the latents, of the noise that is seen in latents that have none."""
    scheduler, norm_T = schedule(denoiser.objective.target), []
    for time in times:
        t_B = torch.full((len(z_BDHW),), time, device=z_BDHW.device)
        x_BDHW, _ = noised_at(z_BDHW, torch.zeros_like(z_BDHW), t_B, denoiser.objective, scheduler=scheduler)
        seen_BDHW = noise_in(x_BDHW, t_B, denoiser.net(x_BDHW, t_B).float(), denoiser.objective, scheduler=scheduler)
        norm_T.append(seen_BDHW.abs().pow(SIMA_NORM).mean((1, 2, 3)).pow(1 / SIMA_NORM))
    return torch.stack(norm_T, 1)


def band_energy(x_BCHW: Tensor) -> Tensor:
    """(B,): mean square of an image's frequencies within BAND, all directions alike."""
    height, width = x_BCHW.shape[2:]
    of_highest_HW = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)) / 0.5
    within_HW = ((of_highest_HW >= BAND[0]) & (of_highest_HW <= BAND[1])).to(x_BCHW.device)
    energy_BCHW = torch.fft.fft2(x_BCHW.float(), norm="ortho").abs().square()
    return energy_BCHW[:, :, within_HW].mean((1, 2))


def difficulty(x_BCHW: Tensor, fov_BHW: Tensor | None) -> dict[str, Tensor]:
    """DIFFICULTY of normalised images within their field of view: mean, logarithm of the deviation, and of that of the finest detail."""
    within_B1HW = torch.ones_like(x_BCHW[:, :1]) if fov_BHW is None else fov_BHW[:, None].to(x_BCHW)
    count_B = within_B1HW.sum((1, 2, 3)) * x_BCHW.shape[1]
    mean_B = (x_BCHW * within_B1HW).sum((1, 2, 3)) / count_B
    away_BCHW = x_BCHW - mean_B.view(-1, 1, 1, 1)
    fine_BCHW = x_BCHW - F.avg_pool2d(x_BCHW, 3, stride=1, padding=1, count_include_pad=False)
    deviations = [((part * within_B1HW).square().sum((1, 2, 3)) / count_B).sqrt().log() for part in (away_BCHW, fine_BCHW)]
    return dict(zip(DIFFICULTY, (mean_B, *deviations), strict=True))
