"""What a training will take, said before it is started: batch arithmetic, DeepSpeed configuration, memory of a rank.

Legend: B batch, C band, D latent channel, H W pixels, h w latent pixels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from data_shards.errors import InputError
from data_shards.reading.dataset import Dataset
from launch import build, build_judges
from launch.config import Config
from ldm.models.config import CodebookConfig
from ldm.models.denoiser import DENOISERS
from ldm.training.engine import deepspeed_config, mode_of

GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one rank: an estimate, without buffers of communication, caches and the libraries themselves."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.activations


def cube_shape(config: Config) -> tuple[int, int, int]:
    """(C, H, W) of the run's cubes: of its dataset, or of the phantoms that will be made."""
    if config.data.dataset:
        return Dataset(config.data.dataset).shape
    phantom = config.data.phantom
    return len(phantom.wavelengths_nm), phantom.size, phantom.size


def state_bytes(parameters: int, mode: str, world: int, precision: str, offload: str) -> tuple[int, int, int]:
    """Bytes a rank for (weights, gradients, optimizer), after Rajbhandari et al. 2020, figure 1.

    Adam keeps two fp32 moments; ZeRO also an fp32 copy of the weights. ZeRO-1 divides the optimizer over the ranks, ZeRO-2 also the
    gradients, ZeRO-3 also the weights. What is offloaded lies in the memory of the host and is not counted.
    """
    if mode[:4] != "zero":
        return 4 * parameters, 4 * parameters, 8 * parameters
    stage, width = int(mode[-1]), 4 if precision == "fp32" else 2
    weights = width * parameters // (world if stage == 3 else 1)
    gradients = width * parameters // (world if stage >= 2 else 1)
    optimizer = 12 * parameters // world
    return (0 if offload == "parameters" else weights), gradients, (0 if offload != "none" else optimizer)


def activation_bytes(forward: Callable[[], object]) -> int:
    """Bytes that autograd keeps from `forward` for the backward pass; on the meta device, where nothing is computed."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        held.append(tensor)  # a freed storage's number may be given to another
        return tensor

    held: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        forward()
    return sum(kept.values())


def networks_of(config: Config, stage: str) -> tuple[list[nn.Module], Callable[[int], object]]:
    """The networks of a stage on the meta device, and its forward pass for a micro batch of so many samples."""
    C, H, W = cube_shape(config)
    f = config.vqgan.model.compression
    if stage == "diffusion":
        fields = replace(config.diffusion.model, latent_channels=config.vqgan.model.latent_channels)
        with torch.device("meta"):
            net = DENOISERS[type(fields)](fields)
        D = fields.latent_channels
        return [net], lambda B: net(torch.empty(B, D, H // f, W // f, device="meta"), torch.empty(B, device="meta"))
    if stage in ("features", "copies"):
        with torch.device("meta"):
            encoder = build_judges.encoder_module(getattr(config, stage), C, stage)
        return [encoder], lambda B: encoder(torch.empty(2 * B, C, H, W, device="meta"))
    if stage == "segmenter":
        with torch.device("meta"):
            net = build_judges.segmenter_module(config.segmenter, C)
        H, W = (config.segmenter.crop or n for n in (H, W))
        return [net], lambda B: net(torch.empty(B, C, H, W, device="meta"))
    H, W = (config.vqgan.crop or n for n in (H, W))
    small = replace(config.vqgan, codebook=CodebookConfig(codes=2, kmeans="never"))
    with torch.device("meta"):
        vqgan, _, discriminator = build.vqgan_modules(small, C)

    def forward(B: int) -> object:
        x_BCHW = torch.empty(B, C, H, W, device="meta")
        return vqgan.decode(vqgan.encode(x_BCHW)), discriminator(torch.cat([x_BCHW, x_BCHW]))

    return [vqgan, discriminator], forward


def plan(config: Config, stage: str, environ: Mapping[str, str]) -> str:
    """The text of `train … --dry-run` under the configuration.

    Raises:
        InputError: a batch that does not divide, a DeepSpeed configuration that contradicts the run.
    """
    settings = getattr(config, stage)
    engine, batch, world = settings.engine, settings.loop.batch, int(environ.get("WORLD_SIZE", "1"))
    mode = mode_of(engine, environ)
    if batch % (engine.accumulation * world):
        raise InputError(
            f"global batch {batch}", where=f"{stage}.loop.batch", expected=f"a multiple of {engine.accumulation} × {world} ranks"
        )
    micro = batch // (engine.accumulation * world)
    networks, forward = networks_of(config, stage)
    parameters = sum(p.numel() for net in networks for p in net.parameters())
    activations = activation_bytes(lambda: forward(micro)) // (1 if engine.precision == "fp32" else 2)
    weights, gradients, optimizer = state_bytes(parameters, mode, world, engine.precision, engine.offload)
    memory = Memory(parameters=weights, gradients=gradients, optimizer=optimizer, activations=activations)
    lines = [
        f"# {stage}: {mode}, {engine.precision}, {parameters:,} parameters",
        f"# batch {batch} = micro batch {micro} × accumulation {engine.accumulation} × world {world}",
        "# memory of a rank, estimated: "
        + ", ".join(f"{name} {getattr(memory, name) / GIB:.2f} GiB" for name in ("parameters", "gradients", "optimizer", "activations"))
        + f"; together {memory.total / GIB:.2f} GiB",
    ]
    if mode.startswith("zero"):
        user = Path(engine.ds_config) if engine.ds_config else None
        tree = deepspeed_config(engine, mode, batch=batch, world=world, user=user)
        lines += ["# DeepSpeed configuration:", *(f"#   {line}" for line in json.dumps(tree, indent=2).splitlines())]
    return "\n".join(lines)
