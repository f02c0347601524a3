"""Samplers, all of them diffusers' schedulers: a name, what objectives it serves, how it is built.

Legend: B batch, D latent channel, h w latent pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from ldm.models.config import SAMPLERS, SamplerConfig
from ldm.models.objective import SCHEDULES, STEPS

PREDICTION = {"epsilon": "epsilon", "v": "v_prediction"}


def _variance(cls: type, **extra: Any) -> Callable[[SamplerConfig, str], Any]:
    common = {"num_train_timesteps": STEPS, "timestep_spacing": "trailing"}
    return lambda _, target: cls(prediction_type=PREDICTION[target], **common, **SCHEDULES[target], **extra)


def _flow(cls: type) -> Callable[[SamplerConfig, str], Any]:
    def built(config: SamplerConfig, _: str) -> Any:
        scheduler = cls(num_train_timesteps=STEPS, shift=config.shift)
        # set_timesteps shifts what lies between sigma_max and this, which the constructor has shifted already
        scheduler.sigma_min = float(np.float32(config.sigma_min))
        return scheduler

    return built


BUILDERS: dict[str, Callable[[SamplerConfig, str], Any]] = {
    "ddim": _variance(DDIMScheduler, clip_sample=False),
    "dpm++": _variance(DPMSolverMultistepScheduler, algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero"),
    "unipc": _variance(UniPCMultistepScheduler, final_sigmas_type="zero"),
    "flow-euler": _flow(FlowMatchEulerDiscreteScheduler),
    "flow-heun": _flow(FlowMatchHeunDiscreteScheduler),
}
assert BUILDERS.keys() == SAMPLERS.keys()


def scheduler_for(config: SamplerConfig, target: str) -> Any:
    """The scheduler that solves this objective.

    Raises:
        InputError: a sampler of the other family, or a setting of the other.
    """
    return BUILDERS[config.solver(target)](config, target)


@torch.no_grad()
def solve(denoise: Callable[[Tensor, Tensor], Tensor], noise_BDHW: Tensor, scheduler: Any, steps: int) -> Tensor:
    """Integrate from noise to latents. Deterministic: the only randomness is the noise given."""
    scheduler.set_timesteps(steps)
    z_BDHW = noise_BDHW * scheduler.init_noise_sigma if hasattr(scheduler, "init_noise_sigma") else noise_BDHW
    for t, time in zip(scheduler.timesteps, scheduler.timesteps.to(z_BDHW.device), strict=True):  # moved at once: each move waits for a GPU
        z_BDHW = scheduler.step(denoise(z_BDHW, time.expand(len(z_BDHW))), t, z_BDHW, return_dict=False)[0]
    return z_BDHW
