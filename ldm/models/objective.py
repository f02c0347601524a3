"""Diffusion objectives: what a denoiser is trained to predict, and on which time scale.

Legend: B batch, D latent channel, h w latent pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from data_shards.reading.order import hash64
from ldm.models.config import ObjectiveConfig
from ldm.models.noise import DISCRETE_TIMES, TIMES, TRAINING, normal_at

STEPS = 1000
SCHEDULES: dict[str, dict[str, Any]] = {
    "epsilon": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "v": {"beta_schedule": "squaredcos_cap_v2"},
}
"""diffusers' settings of a target's noise schedule, for training, sampling and export alike; 'flow' has none.

What the denoiser gets wrong of the noise is divided by the signal that is left when the solver turns it into a latent. The cosine
schedule ends at a signal of 5e-5: samples came out hundreds of times too wide. The linear one ends at 6e-3
and changes slowly there: nearly all that one step of the solver divides by, the same step multiplies by again. 'v' is not divided.
"""


def schedule(target: str) -> DDPMScheduler | None:
    """The noise schedule of a target; None for 'flow', whose path is a straight line."""
    return DDPMScheduler(num_train_timesteps=STEPS, **SCHEDULES[target]) if target in SCHEDULES else None


def white_loss(objective: ObjectiveConfig) -> float:
    """The loss of the best denoiser that takes normalised latents for white noise of variance 1, over the times of training.

    It knows no neighbour of a latent: its best answer is the mean of the target given the noised latent x, cov(x, target)/var(x) · x.
    For 'flow', x = (1-s) z + s noise and the target noise - z, that leaves 2 - (2s-1)²/(s² + (1-s)²); for 'v' the whole variance, 1; for
    'epsilon' ᾱ. Who stays above it has learnt nothing of the images.
    """
    if objective.target == "flow":
        normal = np.linspace(-6, 6, 2001)  # logit of the times (Esser et al. 2024, eq. 19)
        s, weight = 1 / (1 + np.exp(-normal)), np.exp(-(normal**2) / 2)
        if objective.times == "uniform":
            s, weight = np.linspace(0, 1, 2001), None
        return float(np.average(2 - (2 * s - 1) ** 2 / (s**2 + (1 - s) ** 2), weights=weight))
    scheduler = schedule(objective.target)
    return 1.0 if objective.target == "v" else float(scheduler.alphas_cumprod.mean())


def noised(
    z_BDHW: Tensor, position_B: np.ndarray, config: ObjectiveConfig, *, seed: int, scheduler: DDPMScheduler | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(noised latents, time in [0, 1000), target) for the samples at these global positions of the run."""
    noise = normal_at(seed, position_B, z_BDHW.shape[1:], TRAINING, device=z_BDHW.device).to(z_BDHW.dtype)
    if config.target == "flow":
        if config.times == "uniform":
            s_B = torch.from_numpy(hash64(seed, position_B, DISCRETE_TIMES) / 2.0**64).to(z_BDHW)
        else:
            s_B = torch.sigmoid(normal_at(seed, position_B, (), TIMES, device=z_BDHW.device)).to(z_BDHW.dtype)
        x_BDHW, target_BDHW = _on_the_line(z_BDHW, noise, s_B)
        return x_BDHW, s_B * STEPS, target_BDHW
    t_B = torch.from_numpy((hash64(seed, position_B, DISCRETE_TIMES) % np.uint64(STEPS)).astype(np.int64)).to(z_BDHW.device)
    x_BDHW, target_BDHW = _on_the_schedule(z_BDHW, noise, t_B, config, scheduler)
    return x_BDHW, t_B, target_BDHW


def noised_at(
    z_BDHW: Tensor, noise_BDHW: Tensor, t_B: Tensor, config: ObjectiveConfig, *, scheduler: DDPMScheduler | None
) -> tuple[Tensor, Tensor]:
    """(noised latents, target) at whole times in [0, 1000), with a noise of one's own."""
    if config.target == "flow":
        return _on_the_line(z_BDHW, noise_BDHW, t_B / STEPS)
    return _on_the_schedule(z_BDHW, noise_BDHW, t_B, config, scheduler)


def _on_the_line(z_BDHW: Tensor, noise_BDHW: Tensor, s_B: Tensor) -> tuple[Tensor, Tensor]:
    s = s_B.view(-1, 1, 1, 1)
    return (1 - s) * z_BDHW + s * noise_BDHW, noise_BDHW - z_BDHW


def _on_the_schedule(
    z_BDHW: Tensor, noise_BDHW: Tensor, t_B: Tensor, config: ObjectiveConfig, scheduler: DDPMScheduler | None
) -> tuple[Tensor, Tensor]:
    assert scheduler is not None, "only 'flow' does without"
    x_BDHW = scheduler.add_noise(z_BDHW, noise_BDHW, t_B)
    return x_BDHW, noise_BDHW if config.target == "epsilon" else scheduler.get_velocity(z_BDHW, noise_BDHW, t_B)


def clean(x_BDHW: Tensor, t_B: Tensor, predicted_BDHW: Tensor, config: ObjectiveConfig, *, scheduler: DDPMScheduler | None) -> Tensor:
    """The latents that a prediction of the target says the noised ones to be made of: the inverse of `noised`.

    For 'flow', x = (1-s) z + s noise and the target noise - z: x - s · target. For the others of signal √ᾱ and noise √(1-ᾱ) it is equation
    15 of Ho et al. 2020, and what follows from v = √ᾱ noise - √(1-ᾱ) z (Salimans and Ho 2022, appendix D).
    """
    if config.target == "flow":
        return x_BDHW - (t_B / STEPS).view(-1, 1, 1, 1) * predicted_BDHW
    assert scheduler is not None, "only 'flow' does without"
    share = scheduler.alphas_cumprod.to(x_BDHW)[t_B].view(-1, 1, 1, 1)
    if config.target == "epsilon":
        return (x_BDHW - (1 - share).sqrt() * predicted_BDHW) / share.sqrt()
    return share.sqrt() * x_BDHW - (1 - share).sqrt() * predicted_BDHW


def noise_in(x_BDHW: Tensor, t_B: Tensor, predicted_BDHW: Tensor, config: ObjectiveConfig, *, scheduler: DDPMScheduler | None) -> Tensor:
    """The noise that a prediction of the target says noised latents to hold, of deviation 1: what `clean` leaves, in its own unit.

    For 'flow' x + (1-s) · target; for 'v' √ᾱ v + √(1-ᾱ) x.
    """
    if config.target == "epsilon":
        return predicted_BDHW
    if config.target == "flow":
        return x_BDHW + (1 - t_B / STEPS).view(-1, 1, 1, 1) * predicted_BDHW
    assert scheduler is not None, "only 'flow' does without"
    share = scheduler.alphas_cumprod.to(x_BDHW)[t_B].view(-1, 1, 1, 1)
    return share.sqrt() * predicted_BDHW + (1 - share).sqrt() * x_BDHW
