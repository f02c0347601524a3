"""The engine: the one place where accelerate and deepspeed enter, and where ranks, devices, precision and gradients are handled.

Trainers hand over plain modules and get wrapped ones back; they never ask which rank they are, nor how a model is spread.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from data_shards.errors import InputError, TryAgain
from ldm.checkpoints.store import Reader, State
from ldm.comm import Alone, Communicator, Group, is_of_a_collective
from ldm.training.config import EngineConfig
from ldm.training.engine.config import MODES, deepspeed_config, mode_of
from ldm.training.engine.plain import PlainNetwork
from ldm.training.engine.start import started
from ldm.training.engine.tracking import Tracking
from ldm.training.engine.watchdog import Pace, watching
from ldm.training.engine.zero import HeldAdamW, ZeroNetwork

__all__ = ["MODES", "Engine", "deepspeed_config", "mode_of"]

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_KEPT: list[Engine] = []  # engines of several ranks, closed


class Engine:
    """The trained networks, as the ranks hold them, and their steps.

    Args:
        batch: global batch in samples.
        run_folder: where the tracker writes; None for no tracker.

    Attributes:
        comm: the ranks, as the loop, k-means and checkpoints ask them.
        pace: is told the phases of the training, so that who stays in one is known by its name.
        networks: those taken in, by name.

    Raises:
        InputError: the world or the wrapping that came up is not the one the launcher and the configuration asked for.
    """

    def __init__(self, config: EngineConfig, *, batch: int = 1, run_folder: Path | None = None) -> None:
        self.config = config
        self.mode = mode_of(config, os.environ)
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if batch % (config.accumulation * world):
            raise InputError(
                f"global batch {batch}",
                where="loop.batch",
                expected=f"a multiple of accumulation × world = {config.accumulation} × {world}",
                mend="change loop.batch or engine.accumulation",
            )
        self.accelerator = started(config, self.mode, world=world, batch=batch, run_folder=run_folder)
        self.device = self.accelerator.device
        self.comm: Communicator = Group() if world > 1 else Alone()
        self.rank, self.world = self.comm.rank, self.comm.world
        self.tracking = Tracking(self.accelerator, config.tracker)
        self.pace = Pace(hang_s=config.hang_seconds, patience_s=60 * config.timeout_minutes)
        self.watchdog = watching(self.comm, self.pace, os.environ.get("MASTER_ADDR", "127.0.0.1")) if world > 1 else None
        self.networks: dict[str, PlainNetwork | ZeroNetwork] = {}

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def add(self, name: str, module: nn.Module, *, lr: float, betas: tuple[float, float], weight_decay: float) -> nn.Module:
        """Take a network in: moved, wrapped, given AdamW. Returns the wrapped module, to be called in `losses`."""
        self._adjust(module)
        zero = self.mode.startswith("zero")
        cls = HeldAdamW if zero else torch.optim.AdamW
        optimizer = cls(module.to(self.device).parameters(), lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
        if zero:
            if self.dtype is not torch.float32:  # on a GPU, DeepSpeed turns the caller's autocast off in its forward
                module.forward = self.autocast()(module.forward)
            engine, _ = self.accelerator.prepare(module, optimizer)
            assert engine.zero_optimization_stage() == int(self.mode[-1]), "DeepSpeed took another stage"
            self.networks[name] = ZeroNetwork(module, engine, optimizer)
        else:
            wrapped = self.accelerator.prepare_model(module)
            assert isinstance(wrapped, DistributedDataParallel) == (self.world > 1), "gradients would not be exchanged"
            self.networks[name] = PlainNetwork(module, wrapped, optimizer, clip=self.config.clip, fp16=self.config.precision == "fp16")
        return self.networks[name].wrapped

    def _adjust(self, module: nn.Module) -> None:
        """Switches of the configuration that change how a network computes, and not what."""
        if self.config.activation_checkpointing:
            for block in module.modules():
                if hasattr(block, "gradient_checkpointing"):  # diffusers' encoders, decoders, and blocks of the U-Net
                    block.gradient_checkpointing = True
                    block._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=False)
        if self.config.channels_last and not self.mode.startswith("zero"):  # DeepSpeed lays weights out flat
            module.to(memory_format=torch.channels_last)
        if self.config.compile:
            module.compile()

    def laid_out(self, x_BCHW: Tensor) -> Tensor:
        """Cubes or latents in the memory format that the networks are to compute in."""
        return x_BCHW.contiguous(memory_format=torch.channels_last) if self.config.channels_last else x_BCHW

    @property
    def dtype(self) -> torch.dtype:
        """What matrix products are computed in."""
        return AUTOCAST.get(self.config.precision, torch.float32)

    def autocast(self) -> contextlib.AbstractContextManager:
        """The precision that networks are called in."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not torch.float32)

    @contextlib.contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        """Around forward and backward of one micro batch: autocast, and where gradients are exchanged."""
        with contextlib.ExitStack() as stack:
            for network in self.networks.values():
                stack.enter_context(network.micro_batch(last=last))
            stack.enter_context(self.autocast())
            yield

    def backward(self, losses: dict[str, Tensor]) -> None:
        """Gradients of one micro batch's share of the losses, one loss a network: each its own graph."""
        for name, loss in losses.items():
            self.networks[name].backward(loss / self.config.accumulation)

    def gradient_norms(self) -> dict[str, Tensor]:
        """Norm of the gradient of each network that a loss was given for, before clipping."""
        return {name: network.gradient_norm() for name, network in self.networks.items()}

    def step(self, lrs: dict[str, float]) -> None:
        """One optimizer step for each network that has a learning rate now, with that rate; all gradients are dropped.

        With no rates at all the step is left out: gradients are dropped and nothing moves.
        """
        for name, network in self.networks.items():
            if name in lrs:
                network.step(lrs[name])
        for network in self.networks.values():
            network.finish()

    def any_rank(self, *flags: bool) -> list[bool]:
        """For each flag, True on all ranks when it is on one: how ranks agree to stop or to skip a step."""
        return (self.comm.all_reduce_sum_(torch.tensor([float(flag) for flag in flags], device=self.device)) > 0).tolist()

    def state(self) -> State:
        """This rank's share of weights and optimizer states of every network, by name."""
        return {f"{name}.{key}": value for name, network in self.networks.items() for key, value in network.state().items()}

    def load(self, read: Reader) -> None:
        """The inverse of `state`.

        Raises:
            InputError: names or shapes that do not fit the models as configured.
        """
        for name, network in self.networks.items():
            network.load(lambda key, name=name, **stretch: read(f"{name}.{key}", **stretch))

    def close(self, error: BaseException | None = None) -> None:
        """Flush trackers. With an error, the other ranks hear of it and leave too.

        The process group stays, and with it all that refers to it: destroying it may wait for ever, see launch/cli.

        Raises:
            TryAgain: the error is that of a collective, and a rank is gone: which one.
        """
        if self.watchdog and is_of_a_collective(error) and (gone := self.watchdog.wait_for_verdict()):
            raise TryAgain(gone, mend="run the same command again; it goes on from the last checkpoint") from error
        if self.watchdog:
            self.watchdog.close(error)
        if torch.distributed.is_initialized():
            _KEPT.append(self)
        self.tracking.close()
