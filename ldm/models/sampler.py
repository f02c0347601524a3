"""Samplers, all of them diffusers' schedulers: a name, what objectives it serves, how it is built.

Legend: B batch, D latent channel, h w latent pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from data_shards.errors import InputError, nearest
from ldm.models.objective import SCHEDULES, STEPS

PREDICTION = {"epsilon": "epsilon", "v": "v_prediction"}


def _variance(cls: type, **extra: Any) -> Callable[[str], Any]:
    common = {"num_train_timesteps": STEPS, "timestep_spacing": "trailing"}
    return lambda target: cls(prediction_type=PREDICTION[target], **common, **SCHEDULES[target], **extra)


SAMPLERS: dict[str, tuple[tuple[str, ...], Callable[[str], Any]]] = {
    "ddim": (("epsilon", "v"), _variance(DDIMScheduler, clip_sample=False)),
    "dpm++": (
        ("epsilon", "v"),
        _variance(DPMSolverMultistepScheduler, algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero"),
    ),
    "unipc": (("epsilon", "v"), _variance(UniPCMultistepScheduler, final_sigmas_type="zero")),
    "flow-euler": (("flow",), lambda _: FlowMatchEulerDiscreteScheduler(num_train_timesteps=STEPS)),
    "flow-heun": (("flow",), lambda _: FlowMatchHeunDiscreteScheduler(num_train_timesteps=STEPS)),
}


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """Attributes:
    name: one of SAMPLERS; 'auto' takes 'flow-heun' or 'dpm++', as the objective asks.
    steps: of the solver; a Heun step calls the denoiser twice.
    """

    name: str = "auto"
    steps: int = 30

    def __post_init__(self) -> None:
        if self.name != "auto" and self.name not in SAMPLERS:
            raise InputError(f"unknown sampler {self.name!r}", expected=nearest(self.name, SAMPLERS))
        if self.steps < 1:
            raise InputError(f"{self.steps} steps", where="sampler.steps", expected="at least 1")


def scheduler_for(config: SamplerConfig, target: str) -> Any:
    """The scheduler that solves this objective.

    Raises:
        InputError: a sampler of the other family.
    """
    name = config.name if config.name != "auto" else ("flow-heun" if target == "flow" else "dpm++")
    serves, build = SAMPLERS[name]
    if target not in serves:
        fitting = [n for n, (targets, _) in SAMPLERS.items() if target in targets]
        raise InputError(f"sampler {name!r} does not solve objective {target!r}", expected=f"one of {', '.join(fitting)}")
    return build(target)


@torch.no_grad()
def solve(denoise: Callable[[Tensor, Tensor], Tensor], noise_BDHW: Tensor, scheduler: Any, steps: int) -> Tensor:
    """Integrate from noise to latents. Deterministic: the only randomness is the noise given."""
    scheduler.set_timesteps(steps)
    z_BDHW = noise_BDHW * scheduler.init_noise_sigma if hasattr(scheduler, "init_noise_sigma") else noise_BDHW
    for t in scheduler.timesteps:
        z_BDHW = scheduler.step(denoise(z_BDHW, t.to(z_BDHW.device).expand(len(z_BDHW))), t, z_BDHW, return_dict=False)[0]
    return z_BDHW
