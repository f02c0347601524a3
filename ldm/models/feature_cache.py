"""Deep features of a denoiser, used again at the steps that follow: DeepCache (Ma, Fang and Wang, CVPR 2024).

From one step of a solver to the next a U-Net's coarse levels change little. They are computed at every N-th step; at those between,
only the finest level runs, on the features that the last such step left it.
Legend: B batch, D latent channel, F feature channel, h w latent pixels.
"""

from __future__ import annotations

from collections.abc import Callable

from diffusers import UNet2DModel
from torch import Tensor, nn

from data_shards.errors import InputError
from ldm.models.denoiser import UNet


class FeatureCache:
    """A denoiser for one solution of the solver: begin the next one with a new one.

    Args:
        every: N; steps from one computation of the deep features to the next.
        calls_a_step: how often the solver asks the denoiser in a step. All calls of a step compute deep features, or none does.
    """

    def __init__(self, net: UNet, every: int, calls_a_step: int) -> None:
        self.net, self.every, self.calls_a_step = net.net, every, calls_a_step
        self.calls = 0
        self.deep_BFHW: Tensor | None = None

    def __call__(self, z_BDHW: Tensor, t_B: Tensor) -> Tensor:
        """As UNet.forward; the same to the bit at each step that computes the deep features."""
        net, step = self.net, self.calls // self.calls_a_step
        self.calls += 1
        time_BF = net.time_embedding(net.time_proj(t_B).to(net.dtype))
        entry_BFHW = net.conv_in(z_BDHW)
        h_BFHW, (*fine, _) = net.down_blocks[0](entry_BFHW, time_BF)  # the last of its outputs is h itself, which goes down
        if step % self.every == 0:
            self.deep_BFHW = _deep(net, h_BFHW, time_BF)
        h_BFHW = net.up_blocks[-1](self.deep_BFHW, (entry_BFHW, *fine), time_BF)
        return net.conv_out(net.conv_act(net.conv_norm_out(h_BFHW)))


def _deep(net: UNet2DModel, h_BFHW: Tensor, time_BF: Tensor) -> Tensor:
    """All levels but the finest: from what it hands down to what it takes up again."""
    skips = (h_BFHW,)
    for block in net.down_blocks[1:]:
        h_BFHW, outputs = block(h_BFHW, time_BF)
        skips += outputs
    h_BFHW = net.mid_block(h_BFHW, time_BF)
    for block in net.up_blocks[:-1]:
        taken = len(block.resnets)
        h_BFHW, skips = block(h_BFHW, skips[-taken:], time_BF), skips[:-taken]
    return h_BFHW


def cached(net: nn.Module, every: int, calls_a_step: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The denoiser for one solution, with a cache of its own; itself where nothing is to be cached.

    Raises:
        InputError: a denoiser that has no levels.
    """
    if every == 1:
        return net
    if not isinstance(net, UNet):
        raise InputError(f"sampler.cache_every={every} with a {type(net).__name__}", expected="1, or a UNet: it has levels of features")
    return FeatureCache(net, every, calls_a_step)
