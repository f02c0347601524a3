"""Networks that are only used: near fp32 in bf16, the same compiled, and each in what it states."""

from __future__ import annotations

import copy

import pytest
import torch

from ldm.models.config import InferenceConfig, UNetConfig, VQGANConfig
from ldm.models.denoiser import UNet
from ldm.models.inference import FP32, ready, settled, stated
from ldm.models.vqgan import VQGAN, initialised
from ldm.speed import OperationCounter

BF16 = InferenceConfig(precision="bf16")


def woken(net: torch.nn.Module) -> torch.nn.Module:
    """With weights as after a training: those that begin as zero, too."""
    generator = torch.Generator().manual_seed(1)
    for p in net.parameters():
        if not p.any():
            p.data = torch.randn(p.shape, generator=generator) * 0.1
    return net


def unet() -> torch.nn.Module:
    return woken(initialised(lambda: UNet(UNetConfig(latent_channels=4, channels=16, layers=1, attention=(2,))), 0))


def vqgan() -> torch.nn.Module:
    return woken(initialised(lambda: VQGAN(VQGANConfig(bands=3, compression=4, latent_channels=4, channels=8, layers=1, norm_groups=4)), 0))


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found - exact).square().mean().sqrt() / exact.std())


@torch.no_grad()
def test_in_bf16_networks_take_and_give_fp32_within_two_hundredths_and_their_last_layers_stay_fp32() -> None:
    torch.manual_seed(0)
    z, t, x = torch.randn(2, 4, 8, 8), torch.tensor([999.0, 3.0]), torch.randn(2, 3, 32, 32)
    net, half = unet().eval(), ready(unet(), BF16, "cpu")
    found = half(z, t)
    assert found.dtype == torch.float32 and 0 < relative_error(found, net(z, t)) < 0.02
    assert all(p.dtype == torch.float32 for name, p in half.named_parameters() if ".conv_out." in name or ".conv_norm_out." in name)
    assert half.net.mid_block.resnets[0].conv1.weight.dtype == torch.bfloat16
    whole, halved = vqgan().eval(), ready(vqgan(), BF16, "cpu")
    for one, other in ((whole.encode(x), halved.encode(x)), (whole.decode(z), halved.decode(z))):
        assert other.dtype == torch.float32 and 0 < relative_error(other, one) < 0.02
    levels = len(torch.unique(halved.decode(z)))
    assert levels > 0.9 * whole.decode(z).numel(), "a bf16 output would have a few hundred values"


def test_auto_goes_on_as_a_set_was_begun_and_is_fp32_on_a_cpu() -> None:
    auto = InferenceConfig()
    assert settled(auto, "cpu") == FP32
    assert settled(auto, "cpu", stated(BF16)) == BF16
    assert settled(FP32, "cpu", stated(BF16)) == FP32, "what is asked for by name is not changed; the set then refuses"


@torch.no_grad()
def test_compiled_block_by_block_it_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks, compiled_by = [], torch.compile

    def traced(function, *, dynamic: bool):
        """Traces as torch.compile does, and leaves out the compiler, which takes minutes on a CPU."""
        blocks.append((type(function.__self__).__name__, dynamic))
        return compiled_by(function, dynamic=dynamic, backend="aot_eager")

    z, t = torch.randn(2, 4, 8, 8), torch.tensor([500.0, 3.0])
    net = unet().eval()
    monkeypatch.setattr(torch, "compile", traced)
    compiled = ready(copy.deepcopy(net), InferenceConfig(precision="fp32", compile=True), "cpu")
    names = ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "UNetMidBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D")
    assert blocks == [(name, False) for name in names]
    torch.testing.assert_close(compiled(z, t), net(z, t), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_operations_are_counted_without_computing() -> None:
    conv = torch.nn.Conv2d(3, 5, 3, padding=1, bias=False, device="meta")
    with OperationCounter() as counter:
        conv(torch.empty(2, 3, 8, 8, device="meta"))
    assert (counter.flops, counter.largest_bytes) == (2 * 2 * 64 * 5 * 3 * 9, 2 * 5 * 64 * 4)
