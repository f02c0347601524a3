"""The engine: the one place where accelerate and deepspeed enter, and where ranks, devices, precision and gradients are handled.

Trainers hand over plain modules and get wrapped ones back; they never ask which rank they are, nor how a model is spread.
The engine is also the communicator (rank, world, all_reduce_sum_, broadcast, barrier) that the loop and k-means are given.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import logging
import os
import socket
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs, TorchDynamoPlugin
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from data_shards import durable
from data_shards.errors import InputError, RetinaforgeError, TryAgain
from ldm.checkpoints.store import Reader, State
from ldm.training.engine.config import MODES, TRACKERS, EngineConfig, deepspeed_config, mode_of
from ldm.training.engine.plain import PlainPart
from ldm.training.engine.watchdog import Pace, Watchdog, joined, served
from ldm.training.engine.zero import HeldAdamW, ZeroPart

__all__ = ["MODES", "TRACKERS", "Engine", "EngineConfig", "deepspeed_config", "load_strictly", "mode_of"]

LOGGER = logging.getLogger("retinaforge")
_KEPT: list[Engine] = []  # engines of several ranks, closed
TRACKED_RUN: dict[str, tuple[str, dict[str, str], Callable[[Any], str]]] = {
    "wandb": ("id", {"resume": "allow"}, lambda tracker: tracker.run.id),
    "mlflow": ("run_id", {}, lambda tracker: tracker.active_run.info.run_id),
}
"""Trackers that know a run by a name of their own: the option that takes it, what goes with it, and how to ask for it."""
WORLD = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""What launchers call a process's place among the others."""
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Engine:
    """Owns the process group and the trained parts.

    Args:
        batch: global batch in samples.
        run_folder: where the tracker writes; None for no tracker.

    Raises:
        InputError: the world or the wrapping that came up is not the one the launcher and the configuration asked for.
    """

    def __init__(self, config: EngineConfig, *, batch: int = 1, run_folder: Path | None = None) -> None:
        self.config = config
        self.mode = mode_of(config, os.environ)
        asked = int(os.environ.get("WORLD_SIZE", "1"))
        if batch % (config.accumulation * asked):
            raise InputError(
                f"global batch {batch}",
                where="loop.batch",
                expected=f"a multiple of accumulation × world = {config.accumulation} × {asked}",
                mend="change loop.batch or engine.accumulation",
            )
        self.accelerator = self._accelerator(asked, batch, run_folder)
        self.rank, self.world, self.device = self.accelerator.process_index, self.accelerator.num_processes, self.accelerator.device
        self.parts: dict[str, PlainPart | ZeroPart] = {}
        self.tracker_run: str | None = None
        self.tracking = False
        self._check(asked)
        self.watchdog = self._watchdog() if self.world > 1 else None

    def _watchdog(self) -> Watchdog:
        host, store = os.environ.get("MASTER_ADDR", "127.0.0.1"), None
        if self.is_main:
            store = served(host, self.world)
        port = self.broadcast(store.port if store else None)
        store = store or joined(host, port, self.world)
        pace = Pace(hang_s=self.config.hang_seconds, patience_s=60 * self.config.timeout_minutes)
        return Watchdog(self.rank, self.world, store, pace)

    def entered(self, phase: str) -> None:
        """The training goes on with this phase: who stays in one is known by its name."""
        if self.watchdog:
            self.watchdog.pace.entered(phase)

    def changed(self) -> None:
        """Other networks take part from here on: the next steps may take long, as the first do."""
        if self.watchdog:
            self.watchdog.pace.changed()

    def _accelerator(self, asked: int, batch: int, run_folder: Path | None) -> Accelerator:
        config, on_cpu = self.config, not torch.cuda.is_available()
        zero = None
        if self.mode.startswith("zero"):
            self._ready_for_deepspeed(on_cpu)
            user = config.ds_config or os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
            tree = deepspeed_config(config, self.mode, batch=batch, world=asked, user=None if user == "none" else Path(user))
            zero = DeepSpeedPlugin(hf_ds_config=tree)
        elif asked == 1:
            for name in WORLD:  # of a launched world of one, accelerate would make a process group, and DDP
                os.environ.pop(name, None)
        group = InitProcessGroupKwargs(backend="gloo" if on_cpu else "nccl", timeout=timedelta(minutes=config.timeout_minutes))
        # After its first step DDP would lay gradients out anew, in the order of their arrival. Of more than two ranks' numbers the place in
        # a bucket decides in which order they are added up, so the first step after a resume would round otherwise than one in between.
        ddp = DistributedDataParallelKwargs(find_unused_parameters=asked > 2)
        tracked = config.tracker != "none" and run_folder is not None
        accelerator = Accelerator(
            cpu=on_cpu and zero is None,  # with DeepSpeed, accelerate would take it for a request to do without
            mixed_precision="no" if zero is None else {"fp32": "no"}.get(config.precision, config.precision),
            gradient_accumulation_steps=1 if zero is None else config.accumulation,
            deepspeed_plugin=zero,
            kwargs_handlers=[group, ddp] if asked > 1 or zero else [],
            dynamo_plugin=TorchDynamoPlugin(),
            log_with=config.tracker if tracked else None,
            project_dir=run_folder if tracked else None,
        )
        if tracked and not accelerator.log_with:  # accelerate leaves out in silence what it cannot import
            raise InputError(
                f"tracker {config.tracker!r} is not installed here",
                where="engine.tracker",
                expected=f"the Python package {config.tracker}",
                mend=f"pip install -c constraints.txt {config.tracker}   (or engine.tracker=none)",
            )
        return accelerator

    def track(self, samples: int, run: str | None = None) -> None:
        """Begin to track, or begin anew after going back: what a tracker holds beyond `samples` is not shown any more.

        Args:
            run: the tracker's own name of the run to go on with, as `tracker_run` gave it.
        """
        if not self.accelerator.log_with:
            return
        name, identified = self.config.tracker, TRACKED_RUN.get(self.config.tracker)
        self._finish_tracking()
        folder = Path(self.accelerator.project_dir)
        options = {"purge_step": samples + 1} if name == "tensorboard" else {}
        if identified and run:
            options = {identified[0]: run, **identified[1]}
        with durable.explained(folder):
            durable.make_folder(folder)
        try:
            self.accelerator.init_trackers(name, init_kwargs={name: options})
        except Exception as error:  # whatever a service or its library may raise
            raise InputError(
                f"the tracker {name!r} did not start: {type(error).__name__}: {error}",
                where="engine.tracker",
                expected="an account, a server or a folder that it can reach",
                mend=f"see the documentation of {name}, or engine.tracker=none",
            ) from error
        self.tracking = True
        if identified and self.is_main:
            self.tracker_run = identified[2](self.accelerator.get_tracker(name))

    def _finish_tracking(self) -> None:
        """Flush trackers, where they have been started."""
        if self.tracking:
            for tracker in self.accelerator.trackers:
                tracker.finish()
        self.tracking = False

    def _ready_for_deepspeed(self, on_cpu: bool) -> None:
        """What DeepSpeed and accelerate look for in the environment."""
        for package in ("deepspeed", "transformers"):
            if importlib.util.find_spec(package) is None:
                raise InputError(
                    f"engine.mode {self.mode!r} without the Python package {package}",
                    where="engine.mode",
                    expected="the extra 'deepspeed'",
                    mend="pip install -c constraints.txt -e '.[deepspeed]'",
                )
        os.environ.pop("ACCELERATE_USE_CPU", None)  # turns DeepSpeed into DDP in silence
        if on_cpu:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
            # DeepSpeed would compile an all-reduce for inference at the start of every first run: a minute, and a compiler
            vars(importlib.import_module("deepspeed.ops"))["__compatible_ops__"] = {}
        here = importlib.import_module("deepspeed.accelerator").get_accelerator()
        if not {"fp32": lambda: True, "bf16": here.is_bf16_supported, "fp16": here.is_fp16_supported}[self.config.precision]():
            raise InputError(
                f"precision {self.config.precision!r} in mode {self.mode!r}",
                where="engine.precision",
                expected=f"what DeepSpeed can on this device ({here.device_name()})",
                mend="engine.precision=bf16, or fp32",
            )
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:  # DeepSpeed has no world of one without a process group
            meets = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port("127.0.0.1"))}
            for name, value in {**dict(zip(WORLD, "0101", strict=True)), **meets}.items():
                os.environ.setdefault(name, value)  # what a launcher says counts: torchrun's agent listens at the port that it names

    def _check(self, asked: int) -> None:
        """Accelerate falls back to one process, or to DDP, in silence; a run that trains copies of itself is worse than none."""
        came = self.accelerator.distributed_type
        zero, several = came is DistributedType.DEEPSPEED, came not in (DistributedType.NO, DistributedType.DEEPSPEED)
        if self.world != asked or zero != self.mode.startswith("zero") or (not zero and several != (asked > 1)):
            raise InputError(
                f"{self.world} process(es) came up as {came}",
                where="WORLD_SIZE",
                expected=f"{asked} in mode {self.mode!r}, as the launcher and the configuration say",
                mend="accelerate launch --config_file launch/accelerate/cpu-2ranks.yaml -m launch …",
            )

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def add(self, name: str, module: nn.Module, *, lr: float, betas: tuple[float, float], weight_decay: float) -> nn.Module:
        """Take a network in: moved, wrapped, given AdamW. Returns the wrapped module, to be called in `losses`."""
        self._prepared(module)
        zero = self.mode.startswith("zero")
        cls = HeldAdamW if zero else torch.optim.AdamW
        optimizer = cls(module.to(self.device).parameters(), lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
        if zero:
            if self.dtype is not torch.float32:  # on a GPU, DeepSpeed turns the caller's autocast off in its forward
                module.forward = self.autocast()(module.forward)
            engine, _ = self.accelerator.prepare(module, optimizer)
            assert engine.zero_optimization_stage() == int(self.mode[-1]), "DeepSpeed took another stage"
            self.parts[name] = ZeroPart(module, engine, optimizer)
        else:
            wrapped = self.accelerator.prepare_model(module)
            assert isinstance(wrapped, DistributedDataParallel) == (self.world > 1), "gradients would not be exchanged"
            self.parts[name] = PlainPart(module, wrapped, optimizer, clip=self.config.clip, fp16=self.config.precision == "fp16")
        return self.parts[name].wrapped

    def _prepared(self, module: nn.Module) -> None:
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
            for part in self.parts.values():
                stack.enter_context(part.micro_batch(last=last))
            stack.enter_context(self.autocast())
            yield

    def backward(self, losses: dict[str, Tensor]) -> None:
        """Gradients of one micro batch's share of the losses, one loss a part: each its own graph."""
        for name, loss in losses.items():
            self.parts[name].backward(loss / self.config.accumulation)

    def gradient_norms(self) -> dict[str, Tensor]:
        """Norm of the gradient of each part that a loss was given for, before clipping."""
        return {name: part.gradient_norm() for name, part in self.parts.items()}

    def step(self, lrs: dict[str, float]) -> None:
        """One optimizer step for each part that has a learning rate now, with that rate; all gradients are dropped.

        With no rates at all the step is left out: gradients are dropped and nothing moves.
        """
        for name, part in self.parts.items():
            if name in lrs:
                part.step(lrs[name])
        for part in self.parts.values():
            part.finish()

    # --- communicator -------------------------------------------------------------------------------------------

    def all_reduce_sum_(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        if self.world > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def any_rank(self, *flags: bool) -> list[bool]:
        """For each flag, True on all ranks when it is on one: how ranks agree to stop or to skip a step."""
        return (self.all_reduce_sum_(torch.tensor([float(flag) for flag in flags], device=self.device)) > 0).tolist()

    def broadcast(self, value: Any) -> Any:
        """Rank 0's JSON-like value, on every rank."""
        box = [value]
        if self.world > 1:
            torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's JSON-like value, on every rank, by rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        if self.world > 1:
            torch.distributed.barrier()

    def on_main(self, action: Callable[[], None]) -> None:
        """Rank 0 does `action`; the others wait, and leave with its error instead of waiting for a rank that is gone."""
        error: RetinaforgeError | None = None
        if self.is_main:
            try:
                action()
            except RetinaforgeError as raised:
                error = raised
        if error := self.broadcast(error):
            raise error

    # --- state and log ------------------------------------------------------------------------------------------

    def state(self) -> State:
        """This rank's share of weights and optimizer states of every part, by name."""
        return {f"{name}.{key}": value for name, part in self.parts.items() for key, value in part.state().items()}

    def load(self, read: Reader) -> None:
        """The inverse of `state`.

        Raises:
            InputError: names or shapes that do not fit the models as configured.
        """
        for name, part in self.parts.items():
            part.load(lambda key, name=name, **stretch: read(f"{name}.{key}", **stretch))

    def log(self, values: dict[str, float], samples: int) -> None:
        """To the tracker, on rank 0. One that fails on the way, as a server that is gone, ends no training; the log file has all rows."""
        if not self.tracking:
            return
        # mlflow's folders bear no 'loss' beside 'loss/l1'
        named = {"loss/total" if name == "loss" else name: value for name, value in values.items()}
        try:
            self.accelerator.log(named, step=samples)
        except Exception as error:
            LOGGER.warning("the tracker %r is left out from %d samples on: %s", self.config.tracker, samples, error)
            self.tracking = False

    def close(self, error: BaseException | None = None) -> None:
        """Flush trackers. With an error, the other ranks hear of it and leave too.

        The process group stays, and with it all that refers to it: destroying it may wait for ever, see launch/cli.

        Raises:
            TryAgain: the error is that of a collective, and a rank is gone: which one.
        """
        failed = "gloo" in str(error) or isinstance(error, torch.distributed.DistBackendError)
        if self.watchdog and failed and (gone := self.watchdog.wait_for_verdict()):
            raise TryAgain(gone, mend="run the same command again; it goes on from the last checkpoint") from error
        if self.watchdog:
            self.watchdog.close(error)
        if torch.distributed.is_initialized():
            _KEPT.append(self)
        self._finish_tracking()


def free_port(host: str) -> int:
    """A port that nobody listens on there now."""
    with socket.socket() as free:
        free.bind((host, 0))
        return free.getsockname()[1]
