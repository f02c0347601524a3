"""Diffusion objectives: what a denoiser is trained to predict, and on which time scale.

Legend: B batch, D latent channel, h w latent pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from data_shards.order import hash64

STEPS = 1000
BETA_SCHEDULE = "squaredcos_cap_v2"


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Attributes:
    target: 'epsilon' (Ho et al. 2020), 'v' (Salimans and Ho 2022) on the cosine schedule of Nichol and Dhariwal 2021;
        'flow': linear path and velocity (Lipman et al. 2023) with logit-normal times (Esser et al. 2024, eq. 19).
    """

    target: Literal["epsilon", "v", "flow"] = "flow"


def schedule() -> DDPMScheduler:
    """The cosine noise schedule of 'epsilon' and 'v'."""
    return DDPMScheduler(num_train_timesteps=STEPS, beta_schedule=BETA_SCHEDULE)


def normal_at(seed: int, ids: np.ndarray, shape: tuple[int, ...], stream: int = 0) -> Tensor:
    """Standard normal noise for each id, (len(ids), *shape): a function of (seed, id), of no batch and no rank."""
    draws = []
    for state in np.atleast_1d(hash64(seed, np.asarray(ids), stream)):
        generator = torch.Generator().manual_seed(int(state >> np.uint64(1)))
        draws.append(torch.randn(shape, generator=generator))
    return torch.stack(draws)


def noised(
    z_BDHW: Tensor, position_B: np.ndarray, config: ObjectiveConfig, *, seed: int, scheduler: DDPMScheduler
) -> tuple[Tensor, Tensor, Tensor]:
    """(noised latents, time in [0, 1000), target) for the samples at these global positions of the run."""
    noise = normal_at(seed, position_B, z_BDHW.shape[1:]).to(z_BDHW)
    if config.target == "flow":
        s_B = torch.sigmoid(normal_at(seed, position_B, (), stream=1)).to(z_BDHW)
        s = s_B.view(-1, 1, 1, 1)
        return (1 - s) * z_BDHW + s * noise, s_B * STEPS, noise - z_BDHW
    t_B = torch.from_numpy((hash64(seed, position_B, 2) % np.uint64(STEPS)).astype(np.int64)).to(z_BDHW.device)
    x = scheduler.add_noise(z_BDHW, noise, t_B)
    return x, t_B, noise if config.target == "epsilon" else scheduler.get_velocity(z_BDHW, noise, t_B)
