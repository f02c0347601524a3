"""The autoencoder on frames too large for one pass: in stripes from top to bottom, equal to the whole pass but for rounding.

Tiles that are decoded alone and blended show seams, because each has GroupNorm statistics and attention of its own. Here a stripe is only a
piece of the work. A convolution gets the rows beyond its stripe from the neighbours; GroupNorm waits until all stripes of its input are
made, and normalises by the mean and variance of the whole frame; attention, at the latent's resolution, sees the whole frame.
So what has to be kept is the input of a residual block and of its second norm, each stripe until it was used for the last time. The
whole pass also holds what GroupNorm, SiLU and the convolutions make of them.
Legend: B batch, C band, D latent channel, F feature, G group of features, H W pixels, R rows of a stripe.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, pairwise

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D
from torch import Tensor, nn

from ldm.models.vqgan import VQGAN

WHOLE_PIXELS = 1024 * 1024  # larger frames go in stripes. A constant: how an image rounds must not depend on the memory that is free
ROWS = 64  # pixels of height of a stripe

Stripes = Iterator[Tensor]
"""A frame's rows, (1, F, R, W) at a time, from top to bottom."""


def at_once(batch: int, height: int, width: int) -> int:
    """Frames to take at a time: those that go in stripes go one by one, and more would only fill memory."""
    return batch if height * width <= WHOLE_PIXELS else 1


def rows_of(height: int, width: int) -> int | None:
    """Of the stripes that such a frame goes in; None where it goes in one pass."""
    return None if height * width <= WHOLE_PIXELS else ROWS


@torch.no_grad()
def decode(vqgan: VQGAN, z_BDHW: Tensor) -> Tensor:
    """As VQGAN.decode; frames of more than WHOLE_PIXELS in stripes."""
    height, width = (vqgan.config.compression * side for side in z_BDHW.shape[2:])
    if height * width <= WHOLE_PIXELS:
        return vqgan.decode(z_BDHW)
    return _where_it_fits(lambda keep: decode_in_stripes(vqgan, z_BDHW, keep=keep), z_BDHW.device)


@torch.no_grad()
def encode(vqgan: VQGAN, x_BCHW: Tensor) -> Tensor:
    """As VQGAN.encode; frames of more than WHOLE_PIXELS in stripes."""
    if x_BCHW.shape[2] * x_BCHW.shape[3] <= WHOLE_PIXELS:
        return vqgan.encode(x_BCHW)
    return _where_it_fits(lambda keep: encode_in_stripes(vqgan, x_BCHW, keep=keep), x_BCHW.device)


@torch.no_grad()
def decode_in_stripes(vqgan: VQGAN, z_BDHW: Tensor, *, rows: int = ROWS, keep: torch.device | str | None = None) -> Tensor:
    """As VQGAN.decode, frame by frame, and each in stripes.

    Args:
        rows: pixels of height of a stripe, rounded to whole latent pixels.
        keep: where activations are kept between layers: None for the device of the latents, 'cpu' to have there no more than a few
            stripes and what attention needs. The result is the same.
    """
    keep = torch.device(keep or z_BDHW.device)
    latent_rows = max(1, rows // vqgan.config.compression)

    def decoded(z_1DHW: Tensor) -> Tensor:
        z = _convolved(vqgan.post_quant_conv, iter(z_1DHW.split(latent_rows, dim=2)))
        return torch.cat(list(_decoder(vqgan.decoder, z, keep)), dim=2)

    return torch.cat([decoded(z_1DHW) for z_1DHW in z_BDHW.split(1)])


@torch.no_grad()
def encode_in_stripes(vqgan: VQGAN, x_BCHW: Tensor, *, rows: int = ROWS, keep: torch.device | str | None = None) -> Tensor:
    """As VQGAN.encode, frame by frame, and each in stripes; as `decode_in_stripes`.

    Raises:
        InputError: as VQGAN.encode.
    """
    vqgan.check(x_BCHW)
    keep, f = torch.device(keep or x_BCHW.device), vqgan.config.compression

    def encoded(x_1CHW: Tensor) -> Tensor:
        h = _encoder(vqgan.encoder, iter(x_1CHW.split(max(1, rows // f) * f, dim=2)), keep)
        return torch.cat(list(_convolved(vqgan.quant_conv, h)), dim=2)

    return torch.cat([encoded(x_1CHW) for x_1CHW in x_BCHW.split(1)])


def _where_it_fits(run: Callable[[torch.device], Tensor], device: torch.device) -> Tensor:
    """Activations are kept on the device, or where its memory does not suffice, on the host."""
    try:
        return run(device)
    except torch.OutOfMemoryError:
        pass  # once the exception is gone, so is what its frames held
    torch.cuda.empty_cache()
    return run(torch.device("cpu"))


class _Frame:
    """All stripes of an activation, and the normalisation over them.

    Args:
        norm: the GroupNorm that reads them.
        keep: where they are kept. They come back to the device of `norm`.
    """

    def __init__(self, stripes: Stripes, norm: nn.GroupNorm, keep: torch.device) -> None:
        self.stripes: deque[Tensor] = deque()
        self.device = norm.weight.device
        moments = []
        for x_1FRW in stripes:
            moments.append(_moments(x_1FRW, norm.num_groups))
            self.stripes.append(x_1FRW.to(keep))
        self.scale_F11, self.shift_F11 = _affine(torch.stack(moments), norm)

    def once(self) -> Stripes:
        """The stripes, each let go as the next is asked for."""
        while self.stripes:
            yield self.stripes.popleft().to(self.device)

    def again(self) -> Stripes:
        """The stripes, which stay."""
        return (x_1FRW.to(self.device) for x_1FRW in self.stripes)

    def activated(self, stripes: Stripes) -> Stripes:
        """SiLU of the normalised stripes."""
        return (F.silu((x_1FRW * self.scale_F11).add_(self.shift_F11), inplace=True) for x_1FRW in stripes)


def _moments(x_1FRW: Tensor, groups: int) -> Tensor:
    """Count of values, mean and mean square of each group, (3, G)."""
    x_GFRW = _full(x_1FRW[0]).unflatten(0, (groups, -1))
    var_G, mean_G = (moment.double() for moment in torch.var_mean(x_GFRW, dim=(1, 2, 3), correction=0))
    return torch.stack([torch.full_like(mean_G, x_GFRW[0].numel()), mean_G, var_G + mean_G**2])


def _affine(moments_S3G: Tensor, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
    """GroupNorm (Wu and He 2018, eq. 1 and 6) by the moments of S stripes, as a factor and a summand for each feature."""
    count_SG, mean_SG, square_SG = moments_S3G.unbind(1)
    mean_G, square_G = ((count_SG * moment).sum(0) / count_SG.sum(0) for moment in (mean_SG, square_SG))
    rstd_G = (square_G - mean_G**2).clamp(min=0).add(norm.eps).rsqrt()
    mean_F, rstd_F = (each_G.repeat_interleave(norm.num_channels // norm.num_groups) for each_G in (mean_G, rstd_G))
    scale_F = norm.weight * rstd_F
    scale_F, shift_F = (each_F.to(_full(norm.weight)) for each_F in (scale_F, norm.bias - mean_F * scale_F))
    return scale_F[:, None, None], shift_F[:, None, None]


def _full(x: Tensor) -> Tensor:
    """At least float32, which GroupNorm is computed in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _with_neighbours(stripes: Stripes, above: int, below: int) -> Stripes:
    """Each stripe between the last rows of the one before and the first of the one after; beyond the frame are zeros."""
    before = None
    for x_1FRW, after in pairwise(chain(stripes, [None])):
        top = torch.zeros_like(x_1FRW[:, :, :above]) if before is None else before
        bottom = torch.zeros_like(x_1FRW[:, :, :below]) if after is None else after[:, :, :below]
        yield torch.cat([top, x_1FRW, bottom], dim=2)
        before = x_1FRW[:, :, x_1FRW.shape[2] - above :].clone()  # and not the stripe with it


def _convolved(conv: nn.Conv2d, stripes: Stripes) -> Stripes:
    """Stride 1, padded on all sides; or stride 2, padded below and on the right alone, as diffusers' encoder is."""
    (size, _), (stride, _), (padding, _) = conv.kernel_size, conv.stride, conv.padding
    beyond = size - stride - padding
    for x_1FRW in _with_neighbours(stripes, padding, beyond):
        if beyond > padding:
            x_1FRW = F.pad(x_1FRW, (0, beyond - padding))
        yield F.conv2d(x_1FRW.to(conv.weight.dtype), conv.weight, conv.bias, stride, padding=(0, padding))


def _resnet(block: ResnetBlock2D, stripes: Stripes, keep: torch.device) -> Stripes:
    """x + conv(silu(norm(conv(silu(norm(x)))))) (He et al. 2016, figure 4e), x through a 1×1 convolution where the width changes."""
    x = _Frame(stripes, block.norm1, keep)
    h = _Frame(_convolved(block.conv1, x.activated(x.again())), block.norm2, keep)
    residual = _convolved(block.conv2, h.activated(h.once()))
    shortcut = _convolved(block.conv_shortcut, x.once()) if block.conv_shortcut is not None else x.once()
    for x_1FRW, h_1FRW in zip(shortcut, residual, strict=True):
        yield x_1FRW + h_1FRW


def _resnets(blocks: Iterable[nn.Module], stripes: Stripes, keep: torch.device) -> Stripes:
    for block in blocks:
        stripes = _resnet(block, stripes, keep)
    return stripes


def _middle(mid: UNetMidBlock2D, stripes: Stripes, keep: torch.device) -> Stripes:
    first, second = mid.resnets
    (attention,) = mid.attentions
    before = list(_resnet(first, stripes, keep))
    after = attention(torch.cat(before, dim=2)).split([x_1FRW.shape[2] for x_1FRW in before], dim=2)
    return _resnet(second, iter(after), keep)


def _head(net: Encoder | Decoder, stripes: Stripes, keep: torch.device) -> Stripes:
    x = _Frame(stripes, net.conv_norm_out, keep)
    return _convolved(net.conv_out, x.activated(x.once()))


def _decoder(net: Decoder, z: Stripes, keep: torch.device) -> Stripes:
    x = _middle(net.mid_block, _convolved(net.conv_in, z), keep)
    for block in net.up_blocks:
        x = _resnets(block.resnets, x, keep)
        for upsampler in block.upsamplers or ():
            x = _convolved(upsampler.conv, (F.interpolate(x_1FRW, scale_factor=2.0, mode="nearest") for x_1FRW in x))
    return _head(net, x, keep)


def _encoder(net: Encoder, x: Stripes, keep: torch.device) -> Stripes:
    x = _convolved(net.conv_in, x)
    for block in net.down_blocks:
        x = _resnets(block.resnets, x, keep)
        for downsampler in block.downsamplers or ():
            x = _convolved(downsampler.conv, x)
    return _head(net, _middle(net.mid_block, x, keep), keep)
