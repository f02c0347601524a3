"""Training pairs are a function of position; the samplers solve what they claim to; EMA and rates are functions of samples seen."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from torch import nn

from data_shards.errors import InputError
from ldm.checkpoints.store import CheckpointStore, Fragment, Reader
from ldm.comm import Alone
from ldm.models.config import SAMPLERS, ObjectiveConfig, SamplerConfig
from ldm.models.noise import SAMPLES, normal_at
from ldm.models.objective import clean, noised, schedule
from ldm.models.sampler import scheduler_for, solve
from ldm.models.vqgan import initialised
from ldm.schedules import OptimizerConfig, learning_rate
from ldm.training.config import EMAConfig
from ldm.training.ema import EMA, decay_at


@pytest.mark.parametrize("target", ["epsilon", "v", "flow"])
def test_training_pairs_do_not_depend_on_the_spread_over_ranks(target: str) -> None:
    z, positions, config = torch.randn(6, 2, 4, 4), np.arange(100, 106), ObjectiveConfig(target=target)
    whole = noised(z, positions, config, seed=1, scheduler=schedule(target))
    half = noised(z[1::2], positions[1::2], config, seed=1, scheduler=schedule(target))
    assert all(torch.equal(a[1::2], b) for a, b in zip(whole, half, strict=True))


@pytest.mark.parametrize(("name", "target"), [(n, t) for n, targets in SAMPLERS.items() for t in targets])
def test_each_sampler_recovers_a_gaussian(name: str, target: str) -> None:
    """Data N(2, 0.5²): the exact denoiser is known in closed form, so the solver's own error is all that is left."""
    mean, var = 2.0, 0.25
    alphas = schedule(target).alphas_cumprod.double() if target != "flow" else None

    def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        x = x.double()
        if target == "flow":
            a, s = 1 - t.double().view(-1, 1, 1, 1) / 1000, t.double().view(-1, 1, 1, 1) / 1000
        else:
            a, s = (v.view(-1, 1, 1, 1) for v in (alphas[t.long()].sqrt(), (1 - alphas[t.long()]).sqrt()))
        x0 = mean + a * var / (a**2 * var + s**2) * (x - a * mean)
        eps = (x - a * x0) / s
        return {"epsilon": eps, "v": a * eps - s * x0, "flow": eps - x0}[target].float()

    noise = normal_at(1, np.arange(400), (1, 4, 4), SAMPLES)
    z = solve(denoise, noise, scheduler_for(SamplerConfig(name=name), target), 50)
    assert z.mean() == pytest.approx(mean, abs=0.03) and z.std() == pytest.approx(var**0.5, rel=0.06)


class Toy(nn.Module):
    """A small denoiser of four numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(20, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 4))

    def forward(self, x_BDHW: torch.Tensor, t_B: torch.Tensor) -> torch.Tensor:
        angle = t_B[:, None] / 1000 * np.pi * 2.0 ** torch.arange(-1, 7)
        return self.layers(torch.cat([x_BDHW.flatten(1), angle.sin(), angle.cos()], 1)).view(x_BDHW.shape)


@cache
def toy(target: str) -> Toy:
    """Trained for seconds, so that it errs as a trained network does, on two clusters; mean 0, deviation 1."""
    rng, config, scheduler = torch.Generator().manual_seed(0), ObjectiveConfig(target=target), schedule(target)
    net = initialised(Toy, 0)
    optimizer = torch.optim.AdamW(net.parameters())
    for step in range(800):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / 800)
        z = 0.5 * torch.randn(128, 4, 1, 1, generator=rng) + 0.866 * (2 * torch.randint(0, 2, (128, 1, 1, 1), generator=rng) - 1)
        x, t, wanted = noised(z, np.arange(128) + 128 * step, config, seed=0, scheduler=scheduler)
        F.mse_loss(net(x, t), wanted).backward()
        optimizer.step()
        optimizer.zero_grad()
    return net


@pytest.mark.parametrize(("name", "target"), [(n, t) for n, targets in SAMPLERS.items() for t in targets])
def test_what_is_trained_comes_out_of_every_sampler_with_its_mean_and_deviation(name: str, target: str) -> None:
    """A trained denoiser is never exact. 'epsilon' on a schedule that ends without signal made deviations of 50 for 1."""
    for steps in (12, 30):
        z = solve(toy(target), normal_at(1, np.arange(1000), (4, 1, 1), SAMPLES), scheduler_for(SamplerConfig(name=name), target), steps)
        assert abs(z.mean()) < 0.15 and z.std() == pytest.approx(1, abs=0.12) and z.abs().max() < 5, (steps, z.mean(), z.std())


@pytest.mark.parametrize("name", [n for n, targets in SAMPLERS.items() if "epsilon" in targets])
@pytest.mark.parametrize("target", ["epsilon", "v"])
def test_what_is_sampled_on_is_what_was_trained_on(name: str, target: str) -> None:
    """The exported scheduler is the sampler's."""
    sampled = scheduler_for(SamplerConfig(name=name), target)
    torch.testing.assert_close(sampled.alphas_cumprod, schedule(target).alphas_cumprod)


def test_a_sampler_of_the_other_family_is_refused() -> None:
    with pytest.raises(InputError, match="flow-euler, flow-heun"):
        scheduler_for(SamplerConfig(name="ddim"), "flow")
    with pytest.raises(InputError, match="did you mean 'ddim'"):
        SamplerConfig(name="dim")


FLOW = {"flow-euler": FlowMatchEulerDiscreteScheduler, "flow-heun": FlowMatchHeunDiscreteScheduler}


def flow_sigmas(name: str, steps: int, **settings: float) -> list[float]:
    """The noise levels that a flow solver goes through, each once."""
    scheduler = scheduler_for(SamplerConfig(name=name, steps=steps, **settings), "flow")
    scheduler.set_timesteps(steps)
    return list(dict.fromkeys(scheduler.sigmas.tolist()))


@pytest.mark.parametrize("name", FLOW)
@pytest.mark.parametrize("steps", [1, 2, 12, 30])
def test_flow_solvers_go_through_the_noise_levels_of_diffusers_to_the_bit_unless_told_otherwise(name: str, steps: int) -> None:
    ours, theirs = scheduler_for(SamplerConfig(name=name), "flow"), FLOW[name]()
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(steps)
    assert torch.equal(ours.sigmas, theirs.sigmas) and torch.equal(ours.timesteps, theirs.timesteps)


@pytest.mark.parametrize("name", FLOW)
@pytest.mark.parametrize("shift", [0.3, 1.0, 3.0])
def test_the_shift_moves_evenly_spaced_times_by_equation_23_and_the_last_step_begins_where_it_is_told(name: str, shift: float) -> None:
    time = np.linspace(1, 0.1, 10)
    shifted = shift * time / (1 + (shift - 1) * time)
    assert flow_sigmas(name, 10, shift=shift, sigma_min=0.1) == pytest.approx([*shifted, 0], abs=1e-6)
    assert flow_sigmas(name, 10, shift=shift)[-2] == pytest.approx(shift * 0.001 / (1 + (shift - 1) * 0.001), rel=1e-5), "not shifted twice"
    if shift == 1:
        assert np.diff(flow_sigmas(name, 10, sigma_min=1 / 10)) == pytest.approx(-1 / 10, abs=1e-6), "steps of one length"


@pytest.mark.parametrize("name", FLOW)
@pytest.mark.parametrize("settings", [{"shift": 3.0}, {"shift": 0.5}, {"sigma_min": 1 / 30}, {"shift": 3.0, "sigma_min": 1 / 30}])
def test_what_is_trained_comes_out_whatever_the_times_of_the_flow_solvers(name: str, settings: dict) -> None:
    scheduler = scheduler_for(SamplerConfig(name=name, **settings), "flow")
    z = solve(toy("flow"), normal_at(1, np.arange(1000), (4, 1, 1), SAMPLES), scheduler, 30)
    assert abs(z.mean()) < 0.15 and z.std() == pytest.approx(1, abs=0.12) and z.abs().max() < 5


@pytest.mark.parametrize("settings", [{"shift": 3.0}, {"sigma_min": 0.1}])
def test_a_flow_setting_with_another_solver_is_refused(settings: dict) -> None:
    for name in ("auto", "ddim", "dpm++", "unipc"):
        with pytest.raises(InputError, match="the flow solvers alone"):
            scheduler_for(SamplerConfig(name=name, **settings), "v")


@pytest.mark.parametrize("settings", [{"shift": 0.0}, {"shift": float("nan")}, {"sigma_min": 0.0}, {"sigma_min": 1.0}, {"cache_every": 0}])
def test_a_setting_out_of_range_is_refused_by_its_name(settings: dict) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        SamplerConfig(**settings)


def test_ema_horizon_does_not_depend_on_batch_size() -> None:
    config = EMAConfig(halflife_samples=100, rampup=1e9)
    assert decay_at(500, 10, config) ** 4 == pytest.approx(decay_at(500, 40, config))
    assert decay_at(500, 100, config) == pytest.approx(0.5)


def test_the_average_follows_live_weights_whole_or_in_stretches(tmp_path: Path) -> None:
    net = torch.nn.Linear(3, 2)
    begun = net.weight.detach().clone()
    whole = EMA(dict(net.named_parameters()))
    part = EMA({"weight": Fragment(net.weight.detach().view(-1)[2:5], 2, (2, 3))})
    with torch.no_grad():
        net.weight += 1
    whole.update(0.75)
    part.update(0.75)
    torch.testing.assert_close(whole.state("ema")["ema.weight"], begun + 0.25)
    torch.testing.assert_close(part.state("ema")["ema.weight"].values, (begun + 0.25).view(-1)[2:5])

    store = CheckpointStore(tmp_path, Alone())
    store.commit(8, {}, whole.state("ema"))
    again = EMA({"weight": Fragment(net.weight.detach().view(-1)[1:4], 1, (2, 3))})
    again.load(Reader(store.newest(progress_exists=True)), "ema")
    torch.testing.assert_close(again.state("ema")["ema.weight"].values, (begun + 0.25).view(-1)[1:4])


def test_learning_rate_is_a_function_of_samples() -> None:
    config = OptimizerConfig(lr=1.0, warmup_samples=100, decay="cosine")
    assert learning_rate(49, 1000, config) == pytest.approx(0.5, rel=0.02)
    assert learning_rate(1000, 1000, config) == pytest.approx(0.01)
    assert learning_rate(5, 1000, OptimizerConfig(lr=0.3)) == 0.3


def test_a_decay_of_its_own_length_does_not_depend_on_the_length_of_the_run() -> None:
    config = OptimizerConfig(lr=1.0, decay="cosine", decay_samples=500)
    assert [learning_rate(s, 1000, config) for s in (0, 250, 499)] == [learning_rate(s, 4000, config) for s in (0, 250, 499)]
    assert learning_rate(500, 1000, config) == learning_rate(900, 1000, config) == pytest.approx(0.01)


@pytest.mark.parametrize("target", ["flow", "v", "epsilon"])
def test_the_right_answer_names_the_latents_it_was_asked_about(target):
    z, config, scheduler = (
        torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(0)),
        ObjectiveConfig(target=target),
        schedule(target),
    )
    x, t, wanted = noised(z, np.arange(6), config, seed=1, scheduler=scheduler)
    torch.testing.assert_close(clean(x, t, wanted, config, scheduler=scheduler), z, rtol=1e-3, atol=1e-3)
