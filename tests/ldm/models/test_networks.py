"""Networks: any band count, the three compressions, weights a function of the seed; and the adaptive weight is autograd's."""

from __future__ import annotations

import functools
import json

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch.utils.checkpoint import checkpoint

from data_shards.errors import InputError
from ldm.models.config import CodebookConfig, PatchGANConfig, UNetConfig, VQGANConfig
from ldm.models.denoiser import UNet, denoiser_from, described
from ldm.models.discriminator import PatchGAN
from ldm.models.other_codebooks import codebook_from
from ldm.models.vqgan import VQGAN, initialised
from ldm.training.losses import last_layer_gradient, spectral_angle_rad

SMALL = {"channels": 8, "layers": 1, "norm_groups": 4}


@pytest.mark.parametrize("compression", [4, 8, 16])
@pytest.mark.parametrize(("bands", "latent_channels"), [(3, 8), (16, 32), (198, 8), (16, 256)])
def test_shapes_at_each_compression(compression: int, bands: int, latent_channels: int) -> None:
    model = VQGAN(VQGANConfig(bands=bands, compression=compression, latent_channels=latent_channels, **SMALL))
    x = torch.rand(1, bands, 32, 48)
    out = model(x, codebook_from(CodebookConfig(), channels=latent_channels, seed=0))
    assert out.rec_BCHW.shape == x.shape
    assert out.h_BDHW.shape == (1, latent_channels, 32 // compression, 48 // compression)
    assert out.index_BHW.shape == out.h_BDHW.shape[:1] + out.h_BDHW.shape[2:]
    assert torch.equal(model(x).h_BDHW, out.h_BDHW) and model(x).rec_BCHW is None


def test_sizes_and_bands_that_do_not_fit_are_refused_with_the_mend() -> None:
    model = VQGAN(VQGANConfig(bands=4, compression=8, **SMALL))
    for shape in ((1, 4, 36, 32), (1, 3, 32, 32)):
        with pytest.raises(InputError, match="--resize"):
            model.encode(torch.rand(shape))
    with pytest.raises(InputError, match="one of"):
        VQGANConfig(compression=7)


def test_initial_weights_are_a_function_of_the_seed_alone() -> None:
    def build() -> VQGAN:
        return VQGAN(VQGANConfig(bands=4, **SMALL))

    torch.manual_seed(99)
    before = torch.get_rng_state()
    a = initialised(build, 1)
    assert torch.equal(torch.get_rng_state(), before), "the global generator was used up"
    torch.rand(7)
    b, c = initialised(build, 1), initialised(build, 2)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(a.parameters(), c.parameters(), strict=True))


def test_a_cube_is_judged_by_itself_whatever_its_batch() -> None:
    """No batch statistics anywhere: two ranks with half a batch each see what one rank sees."""
    nets = [
        PatchGAN(PatchGANConfig(bands=4, channels=8)),
        lambda x: [UNet(UNetConfig(latent_channels=4, channels=8, layers=1)).eval()(x, torch.full((len(x),), 5))],
    ]
    x = torch.rand(3, 4, 32, 32)
    torch.testing.assert_close(nets[0](x)[0][1:2], nets[0](x[1:2])[0], rtol=1e-5, atol=1e-6)


def test_last_layer_gradient_is_that_of_autograd() -> None:
    """The adaptive weight by leaf gradients, against autograd through the layer: equal."""
    model = initialised(lambda: VQGAN(VQGANConfig(bands=4, **SMALL)), 0)
    x = torch.rand(2, 4, 32, 32)
    out = model(x, codebook_from(CodebookConfig(), channels=8, seed=0))
    (through,) = torch.autograd.grad(F.l1_loss(out.rec_BCHW, x), model.last_layer.weight)
    leaf = out.rec_BCHW.detach().requires_grad_()
    (at_leaf,) = torch.autograd.grad(F.l1_loss(leaf, x), leaf)
    torch.testing.assert_close(last_layer_gradient(out.trunk_BFHW, at_leaf, model.last_layer.weight.shape), through, rtol=1e-4, atol=1e-9)


def test_trunk_and_last_layer_are_diffusers_decoder_with_and_without_recomputing() -> None:
    model = initialised(lambda: VQGAN(VQGANConfig(bands=4, **SMALL)), 0)
    z = torch.rand(2, 8, 4, 4)
    theirs, gradients = model.decoder(model.post_quant_conv(z)), []
    for recomputed in (False, True):
        model.decoder.gradient_checkpointing = recomputed
        model.decoder._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=False)
        decoded = model.decode(z)
        assert torch.equal(decoded, theirs)
        gradients.append(torch.autograd.grad(decoded.square().sum(), model.post_quant_conv.weight)[0])
    assert torch.equal(*gradients)


def test_spectral_angle_against_the_definition() -> None:
    a, b = torch.rand(2, 5, 6, 6).double() + 0.1, torch.rand(2, 5, 6, 6).double() + 0.1
    angle = torch.acos(((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).clamp(-1, 1))
    torch.testing.assert_close(spectral_angle_rad(a, b).double(), angle.mean(), rtol=1e-5, atol=0)
    inside = torch.zeros(2, 6, 6, dtype=torch.bool)
    inside[0, 2, 3] = inside[1, 0, 0] = True
    torch.testing.assert_close(spectral_angle_rad(a, b, inside).double(), (angle[0, 2, 3] + angle[1, 0, 0]) / 2, rtol=1e-5, atol=0)
    assert spectral_angle_rad(a, 3 * a) < 1e-5


def test_spectral_angle_has_a_finite_gradient_at_zero() -> None:
    a = torch.rand(1, 5, 4, 4).requires_grad_()
    spectral_angle_rad(a, a.detach()).backward()
    assert a.grad.isfinite().all()


@pytest.mark.parametrize(
    ("channels", "attention", "wanted", "heads"),
    [
        (128, (1, 2), 64, {(4, 64), (8, 64)}),
        (16, (1, 2), 64, {(1, 32), (2, 32)}),  # a level narrower than a head has one
        (96, (0, 1, 2), 64, {(2, 48), (4, 48), (8, 48)}),  # 64 does not divide 96
        (128, (), 64, {(8, 64)}),  # the middle
        (128, (1, 2), 8, {(32, 8), (64, 8)}),
    ],
)
def test_attention_heads_are_as_wide_as_asked_where_the_level_allows(channels: int, attention: tuple, wanted: int, heads: set) -> None:
    with torch.device("meta"):
        net = UNet(UNetConfig(latent_channels=4, channels=channels, layers=1, attention=attention, attention_head_dim=wanted))
    assert {(m.heads, m.inner_dim // m.heads) for m in net.modules() if isinstance(m, Attention)} == heads


def test_a_denoiser_is_kept_by_kind_and_what_is_unknown_is_refused() -> None:
    config = UNetConfig(latent_channels=4, channels=8, layers=1, attention=(2,))
    told = described(config)
    assert told["kind"] == "unet" and denoiser_from(json.loads(json.dumps(told))).config == config
    with pytest.raises(InputError, match="of kind 'dit'"):
        denoiser_from({**told, "kind": "dit"})
    with pytest.raises(InputError, match="a unet with registers"):
        denoiser_from({**told, "registers": 4})
