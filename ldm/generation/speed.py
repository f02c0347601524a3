"""What images cost, and how fast a process made them.

Legend: B batch, D latent channel, h w latent pixels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from ldm.models.feature_cache import cached
from ldm.models.inference import DTYPES
from ldm.models.sampler import scheduler_for, solve
from ldm.speed import Clock, OperationCounter, matmul_flops_per_s

if TYPE_CHECKING:
    from ldm.generation.images import Generator

DENOISING, DECODING = "denoising", "decoding"
HELD = 8  # as large as the largest tensor, that a network holds at once (1.7 GiB at 1344² and 32 channels: benchmarks/frames.py)
MOST = 64  # images at a time: more fill no device better
SHARE = 0.7  # of the memory that is free
LEAST = 3  # shards that a pace is of
FORMAT = "retinaforge-speed-1"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one image.

    Attributes:
        denoising_flops, decoding_flops: floating-point operations of products, attention and convolutions.
        largest_bytes: the largest tensor on the way.
    """

    denoising_flops: int
    decoding_flops: int
    largest_bytes: int

    def batch(self, free_bytes: int) -> int:
        """Images at a time that so much memory bears."""
        return int(max(1, min(MOST, SHARE * free_bytes / (HELD * self.largest_bytes))))


@torch.no_grad()
def cost_of(generator: Generator) -> Cost:
    """What an image costs, from the shapes alone: on the meta device nothing is computed."""
    denoiser, sampler = generator.denoiser, generator.sampler
    scheduler = scheduler_for(sampler, denoiser.objective.target)

    def solved(net: nn.Module, noise_BDHW: Tensor) -> Tensor:
        return solve(cached(net, sampler.cache_every, scheduler.order), noise_BDHW, scheduler, sampler.steps)

    denoising = operations(denoiser.net, solved, denoiser.latent_shape)
    decoding = operations(generator.autoencoder.vqgan, lambda vqgan, z_BDHW: vqgan.decode(z_BDHW), denoiser.latent_shape)
    return Cost(
        denoising_flops=denoising.flops,
        decoding_flops=decoding.flops,
        largest_bytes=max(denoising.largest_bytes, decoding.largest_bytes),
    )


def operations(net: nn.Module, use: Callable[[nn.Module, Tensor], Tensor], shape: tuple[int, ...]) -> OperationCounter:
    """What it takes to use a network on one input of this shape. The network itself stays where it is."""
    using = _Using(net, use)
    shapes = {name: torch.empty_like(x, device="meta") for name, x in (*using.named_parameters(), *using.named_buffers())}
    with torch.compiler.set_stance("force_eager"), OperationCounter() as counter:
        functional_call(using, shapes, torch.empty(1, *shape, device="meta"))
    return counter


class _Using(nn.Module):
    """A use of a network as a module, whose weights can be exchanged for a call."""

    def __init__(self, net: nn.Module, use: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.use = net, use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self.net, x)


@dataclass(frozen=True, kw_only=True)
class Pace:
    """speed.json: images a second over the whole path, from noise to the published shard: denoised, decoded, looked at, stored.

    Attributes:
        device: its name. Rates of different devices do not compare.
        precision, batch: of the networks, images at a time.
        images: of a shard.
        shards: that were timed; the first of a process, which warms up, is left out.
        images_per_s: of the median shard.
        quartiles: of the shards' rates.
        alone: whether no other piece of a sweep was being made on the device meanwhile; a run that is no sweep does not know.
    """

    format: str = FORMAT
    device: str
    precision: str
    batch: int
    images: int
    shards: int
    images_per_s: float
    quartiles: tuple[float, float]
    alone: bool = False


class Speed:
    """Adds up what a process makes, on one device.

    Attributes:
        images: made, those counted that a gate refused, and those that only fill a batch.
        shards: (images, seconds) of each that was published, in their order.
    """

    def __init__(self) -> None:
        self.images, self.began, self.ended = 0, 0.0, 0.0
        self.shards: list[tuple[int, float]] = []
        self.clock: Clock | None = None
        self.generator: Generator | None = None

    @contextmanager
    def phase(self, name: str, generator: Generator) -> Iterator[None]:
        """Around a phase of a batch."""
        if self.clock is None:
            self.clock, self.began = Clock(generator.device), time.perf_counter()
        self.generator = generator
        with self.clock(name):
            yield

    def made(self, images: int) -> None:
        """So many more."""
        if self.clock:
            self.clock.gather()
        self.images += images
        self.ended = time.perf_counter()

    @contextmanager
    def shard(self, images: int) -> Iterator[None]:
        """Around a shard from its first noise to its publication; one that fails is not counted."""
        began = time.perf_counter()
        yield
        self.shards.append((images, time.perf_counter() - began))

    def pace(self, device: str) -> Pace | None:
        """The pace of whole shards without the first, which warms up; None where there are fewer than LEAST of them.

        Args:
            device: its name.
        """
        timed = self.shards[1:]
        whole = max((images for images, _ in timed), default=0)
        rates = [images / seconds for images, seconds in timed if images == whole]
        if self.generator is None or len(rates) < LEAST:
            return None
        low, median, high = (float(value) for value in np.quantile(rates, (0.25, 0.5, 0.75)))
        precision = self.generator.denoiser.inference.precision
        return Pace(
            device=device,
            precision=precision,
            batch=self.generator.batch,
            images=whole,
            shards=len(rates),
            images_per_s=median,
            quartiles=(low, high),
        )

    def line(self) -> str:
        """In words, beside a bare matrix product on the same device in the same precision; empty where nothing was made."""
        if self.clock is None or self.generator is None:
            return ""
        cost, seconds, precision = cost_of(self.generator), self.clock.seconds(), self.generator.denoiser.inference.precision
        bare = matmul_flops_per_s(self.generator.device, DTYPES[precision])
        flops_per_s = {
            phase: self.images * flops / seconds[phase]
            for phase, flops in ((DENOISING, cost.denoising_flops), (DECODING, cost.decoding_flops))
            if phase in seconds
        }
        reached = ", ".join(f"{phase} {words(flops)}" for phase, flops in flops_per_s.items())
        shares = " and ".join(f"{100 * flops / bare:.0f} %" for flops in flops_per_s.values())
        per_s = self.images / max(self.ended - self.began, 1e-9)
        beside = f"{shares} of a bare {precision} matrix product's {words(bare)}"
        return f"{per_s:.3g} images/s, {self.generator.batch} at a time; {reached}: {beside}"


def words(flops_per_s: float) -> str:
    """`1.23 TFLOP/s`, `12.3 GFLOP/s`."""
    return f"{flops_per_s / 1e12:.3g} TFLOP/s" if flops_per_s >= 1e12 else f"{flops_per_s / 1e9:.3g} GFLOP/s"
