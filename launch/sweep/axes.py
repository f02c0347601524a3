"""The grid of a sweep: its axes, its configurations, which of them cannot be, and what each will cost.

Legend: B batch, C band, D latent channel, H W pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from data_shards.errors import InputError, RetinaforgeError
from launch.config import Config
from ldm.models.config import SamplerConfig

if TYPE_CHECKING:
    from pathlib import Path

BACKWARD = 3  # a step of training costs about three passes forward (Kaplan et al. 2020, section 2.1)


@dataclass(frozen=True, kw_only=True)
class Axes:
    """Attributes:
    compression: H / h of the autoencoder.
    latent_channels: D.
    channels: base width of the denoiser.
    samplers: solver and steps; each makes a set of every trained denoiser.
    """

    compression: tuple[int, ...] = (4, 8, 16)
    latent_channels: tuple[int, ...] = (8, 32, 256)
    channels: tuple[int, ...] = (128, 256, 512)
    samplers: tuple[SamplerConfig, ...]

    def __post_init__(self) -> None:
        for name, values in vars(self).items():
            if not values or len(set(values)) < len(values):
                raise InputError(f"--{name.replace('_', '-')} {list(values)}", expected="one value or more, each once")

    def cells(self) -> list[Cell]:
        """All configurations of networks."""
        grid = itertools.product(self.compression, self.latent_channels, self.channels)
        return [Cell(compression=f, latent_channels=D, channels=c) for f, D, c in grid]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One configuration of the networks: an autoencoder, which others may share, and a denoiser of its own."""

    compression: int
    latent_channels: int
    channels: int

    @property
    def autoencoder(self) -> str:
        """Name of the folder of its autoencoder."""
        return f"ae-f{self.compression}-z{self.latent_channels}"

    @property
    def name(self) -> str:
        return f"f{self.compression}-z{self.latent_channels}-c{self.channels}"

    def config(self, base: Config, folder: Path) -> Config:
        """The run in this folder: what the axes do not name is as in the base.

        Raises:
            InputError: networks that cannot be built.
        """
        vqgan, diffusion = base.vqgan, base.diffusion
        model = replace(vqgan.model, compression=self.compression, latent_channels=self.latent_channels)
        net, loop = replace(diffusion.model, channels=self.channels), diffusion.loop
        judged = min(loop.checkpoint_every, max(loop.batch, loop.samples // 4))  # so that there is a validation loss to stop it by
        return replace(
            base,
            run=str(folder),
            vqgan=replace(vqgan, model=model),
            diffusion=replace(diffusion, model=net, loop=replace(loop, checkpoint_every=judged)),
        )


def sampler_named(word: str, base: SamplerConfig, target: str) -> SamplerConfig:
    """`flow-heun:8` as a solver of this objective; the last noise level keeps its share of an even step.

    Raises:
        InputError: no such solver, or none of this objective; no number of steps.
    """
    name, colon, steps = word.partition(":")
    if not (colon and steps.isdecimal() and int(steps)):
        raise InputError(f"--samplers {word}", expected="NAME:STEPS, with commas between several, such as flow-heun:8,flow-euler:16")
    sigma_min = min(0.5, base.sigma_min * base.steps / int(steps)) if target == "flow" else base.sigma_min
    sampler = replace(base, name=name, steps=int(steps), sigma_min=sigma_min)
    sampler.solver(target)
    return sampler


def set_name(sampler: SamplerConfig, target: str) -> str:
    """Of the folder of a solver's sets."""
    return f"{sampler.solver(target)}-{sampler.steps}"


def impossible(base: Config, cell: Cell, shape: tuple[int, int, int], folder: Path) -> str | None:
    """Why a configuration cannot be trained on cubes of this shape; None where it can.

    Args:
        shape: (C, H, W).
    """
    try:
        config = cell.config(base, folder)
    except RetinaforgeError as error:
        return f"{error.what}; expected {error.expected}"
    sides, stage = shape[1:], config.vqgan
    if any(side % (4 * cell.compression) for side in sides):
        latents = "×".join(f"{side / cell.compression:g}" for side in sides)
        return f"latents of {latents}, which the denoiser cannot halve twice; expected sides that are multiples of {4 * cell.compression}"
    least = stage.discriminator.least_pixels if stage.loss.gan else 1
    if min(stage.crop or side for side in sides) < least:
        return f"sides below {least} pixels, which the discriminator's {stage.discriminator.layers} layers want"
    return None


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a configuration takes, from shapes alone.

    Attributes:
        autoencoder_parameters, denoiser_parameters: weights (the autoencoder's with its discriminator).
        autoencoder_flops, denoiser_flops: floating-point operations of its training.
    """

    autoencoder_parameters: int
    denoiser_parameters: int
    autoencoder_flops: float
    denoiser_flops: float


def cost_of(config: Config) -> Cost:
    """An estimate on the meta device, where nothing is computed."""
    from launch.plan import networks_of
    from ldm.speed import OperationCounter

    parameters, flops = {}, {}
    for stage in ("vqgan", "diffusion"):
        networks, forward = networks_of(config, stage)
        with OperationCounter() as counter:
            forward(1)
        parameters[stage] = sum(p.numel() for net in networks for p in net.parameters())
        flops[stage] = BACKWARD * counter.flops * getattr(config, stage).loop.samples
    return Cost(
        autoencoder_parameters=parameters["vqgan"],
        denoiser_parameters=parameters["diffusion"],
        autoencoder_flops=flops["vqgan"],
        denoiser_flops=flops["diffusion"],
    )


def in_order(cells: list[Cell], costs: dict[Cell, Cost]) -> Iterator[Cell]:
    """The cheapest first, an autoencoder counted with the first denoiser that needs it."""
    left, trained = list(cells), set()
    while left:
        cell = min(left, key=lambda c: costs[c].denoiser_flops + (0 if c.autoencoder in trained else costs[c].autoencoder_flops))
        left.remove(cell)
        trained.add(cell.autoencoder)
        yield cell
