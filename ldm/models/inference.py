"""Networks where they are only used: in the precision, and compiled, as asked.

bfloat16 keeps 8 bits of a number's 24. What a network adds up, normalises and multiplies bears that; what it hands out does not: a cube
has 12 to 16 bits, and a solver adds up a step's small differences. So each network's last normalisation and convolution stay fp32.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ldm.models.config import InferenceConfig

Net = TypeVar("Net", bound=nn.Module)
FP32 = InferenceConfig(precision="fp32")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
ENDS = ("conv_norm_out", "conv_out", "quant_conv", "post_quant_conv")
"""The last layers of diffusers' Encoder, Decoder and UNet2DModel, and the two beside the codebook."""
VARIANTS = 64  # compiled ones of a block's code: one a width and a size, where torch gives up after 8


def settled(config: InferenceConfig, device: str, standing: dict[str, Any] | None = None) -> InferenceConfig:
    """With a precision in place of 'auto'.

    Args:
        standing: what was begun, and goes on as it began; as `stated` gives it.
    """
    if config.precision != "auto":
        return config
    if standing:
        return replace(config, precision=standing["precision"])
    bears_it = torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return replace(config, precision="bf16" if bears_it else "fp32")


def stated(config: InferenceConfig) -> dict[str, Any]:
    """As what was made states it."""
    return asdict(config)


def as_begun(asked: dict[str, Any]) -> str:
    """How to go on with what was asked for in another precision, or compiled otherwise."""
    inference = asked.get("inference", stated(FP32))
    return f"inference.precision={inference['precision']} inference.compile={str(inference['compile']).lower()} goes on as it was begun"


def ready(net: Net, config: InferenceConfig, device: torch.device | str) -> Net:
    """A trained network, on the device, as it is used. It takes and gives fp32, whatever it computes in."""
    net.eval().requires_grad_(False).to(device)
    if config.precision == "bf16":
        _in_bf16(net)
    if config.compile:
        _compile_blocks(net)
    return net


def _in_bf16(net: nn.Module) -> None:
    net.to(torch.bfloat16)
    for name, module in net.named_modules():
        last = name.rpartition(".")[2]
        if last in ENDS:
            module.float()
        if last in ("conv_in", *ENDS):
            module.register_forward_pre_hook(_cast)


def _cast(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What a layer is given, in the precision of its weights."""
    return tuple(x.to(module.weight.dtype) for x in args)


def _compile_blocks(net: nn.Module) -> None:
    """Block by block: what is around them (a feature cache, stripes of a large frame) stays Python."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    for part in net.modules():
        if hasattr(part, "mid_block"):
            for block in (*getattr(part, "down_blocks", ()), part.mid_block, *getattr(part, "up_blocks", ())):
                block.compile(dynamic=False)
