"""Deep features used again: the plain network to the bit where they are computed, its finest level alone where they are not."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from data_shards.errors import InputError
from data_shards.manifest import BandStats
from ldm.generation.images import latents_of
from ldm.models.config import ObjectiveConfig, SamplerConfig, UNetConfig
from ldm.models.denoiser import UNet
from ldm.models.feature_cache import FeatureCache, cached
from ldm.models.vqgan import initialised
from ldm.normalise import LatentNormaliser

SHAPE = (2, 8, 12)


def unet(**settings: object) -> UNet:
    return initialised(lambda: UNet(UNetConfig(latent_channels=SHAPE[0], channels=8, **settings)), 0).eval()


def latents(number: int) -> torch.Tensor:
    return torch.randn((3, *SHAPE), generator=torch.Generator().manual_seed(number))


def times(t: float) -> torch.Tensor:
    return torch.full((3,), t)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("settings", [{"layers": 1}, {"layers": 2}, {"layers": 2, "attention": (0, 1, 2)}, {"layers": 1, "attention": ()}])
@torch.no_grad()
def test_where_deep_features_are_computed_it_is_the_plain_network_to_the_bit(settings: dict, bf16: bool) -> None:
    net = unet(**settings)
    cache = FeatureCache(net, every=2, calls_a_step=1)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        for step, t in enumerate((900.0, 600.0, 300.0, 0.0)):
            assert torch.equal(cache(latents(step), times(t)), net(latents(step), times(t))) == (step % 2 == 0)


@torch.no_grad()
def test_between_only_the_finest_level_runs_on_the_latents_and_the_time_of_now() -> None:
    net = unet(layers=1)
    ran: list[str] = []
    for name, block in {"down": net.net.down_blocks[1], "middle": net.net.mid_block, "up": net.net.up_blocks[0]}.items():
        block.register_forward_hook(lambda *_, name=name: ran.append(name))
    cache = FeatureCache(net, every=3, calls_a_step=1)
    for step in range(7):
        cache(latents(step), times(900.0 - step))
    assert ran == ["down", "middle", "up"] * 3

    def second(z: torch.Tensor, t: float) -> torch.Tensor:
        cache = FeatureCache(net, every=2, calls_a_step=1)
        cache(latents(0), times(900.0))
        return cache(z, times(t))

    assert torch.equal(second(latents(1), 800.0), second(latents(1), 800.0))
    assert not torch.equal(second(latents(1), 800.0), second(latents(2), 800.0))
    assert not torch.equal(second(latents(1), 800.0), second(latents(1), 100.0))


@torch.no_grad()
def test_both_calls_of_a_heun_step_compute_deep_features_or_neither_does() -> None:
    net = unet(layers=1)
    cache = FeatureCache(net, every=2, calls_a_step=2)
    plain = [torch.equal(cache(latents(i), times(900.0 - i)), net(latents(i), times(900.0 - i))) for i in range(7)]
    assert plain == [True, True, False, False, True, True, False]


def test_at_every_step_there_is_no_cache_and_a_denoiser_without_levels_has_none() -> None:
    net = unet(layers=1)
    assert cached(net, 1, 2) is net
    with pytest.raises(InputError, match=r"cache_every=2 with a Linear"):
        cached(nn.Linear(1, 1), 2, 1)


@pytest.mark.parametrize(("name", "target"), [("flow-heun", "flow"), ("flow-euler", "flow"), ("dpm++", "v"), ("ddim", "epsilon")])
def test_no_features_are_left_for_the_next_images(name: str, target: str) -> None:
    """The same images again, after others: the same to the bit, and not those of the plain network."""
    stats = BandStats(split="train", mean_C=(0.0, 0.0), std_C=(1.0, 1.0), min_C=(-3.0, -3.0), max_C=(3.0, 3.0), values=1)
    denoiser = SimpleNamespace(
        net=unet(layers=1), latent_shape=SHAPE, objective=ObjectiveConfig(target=target), normaliser=LatentNormaliser(stats)
    )

    def images(ids: range, every: int) -> torch.Tensor:
        return latents_of(denoiser, np.array(ids), seed=0, sampler=SamplerConfig(name=name, steps=5, cache_every=every))

    first = images(range(4), 2)
    images(range(4, 8), 2)
    assert torch.equal(images(range(4), 2), first)
    assert not torch.equal(images(range(4), 1), first)
    assert torch.equal(images(range(4), 100)[0], images(range(0, 8, 2), 100)[0]), "whichever others are made with it"
