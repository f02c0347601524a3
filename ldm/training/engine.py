"""The engine: the one place where accelerate enters, and where ranks, devices, precision and gradients are handled.

Trainers hand over plain modules and get wrapped ones back; they never ask which rank they are. The engine is also the
communicator (rank, world, all_reduce_sum_, broadcast, barrier) that the loop and k-means are given.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs, LoggerType, TorchDynamoPlugin
from torch import Tensor, nn

from data_shards import durable
from data_shards.errors import InputError, RetinaforgeError, nearest

TRACKERS = tuple(name for name in LoggerType.list() if name != "all")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Attributes:
    mode: 'auto' takes what the launcher started: 'single' for one process, 'ddp' for several.
    precision: 'fp32', or 'bf16' autocast.
    accumulation: micro batches an optimizer step.
    clip: largest gradient norm of each model; 0 turns clipping off.
    timeout_minutes: a collective that takes longer ends the run with an error instead of hanging.
    tracker: Accelerate's log_with ('tensorboard', 'wandb', 'mlflow', …) or 'none'.
    """

    mode: Literal["auto", "single", "ddp"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    accumulation: int = 1
    clip: float = 1.0
    timeout_minutes: float = 10.0
    tracker: str = "tensorboard"

    def __post_init__(self) -> None:
        if not (self.accumulation >= 1 and self.clip >= 0 and self.timeout_minutes > 0):
            raise InputError(
                f"accumulation {self.accumulation}, clip {self.clip}, timeout_minutes {self.timeout_minutes}",
                where="engine",
                expected="accumulation ≥ 1, clip ≥ 0, timeout_minutes > 0",
            )
        if self.tracker not in ("none", *TRACKERS):
            raise InputError(
                f"unknown tracker {self.tracker!r}", where="engine.tracker", expected=nearest(self.tracker, ("none", *TRACKERS))
            )


@dataclass
class Part:
    """One trained network: the plain module, what the engine wraps it in, its optimizer."""

    module: nn.Module
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer


class Engine:
    """Owns the process group and the trained parts.

    Raises:
        InputError: the world or the wrapping that came up is not the one the launcher and the configuration asked for.
    """

    def __init__(self, config: EngineConfig, *, run_folder: Path | None = None) -> None:
        self.config = config
        asked = int(os.environ.get("WORLD_SIZE", "1"))
        on_cpu = not torch.cuda.is_available()
        backend = InitProcessGroupKwargs(backend="gloo" if on_cpu else "nccl", timeout=timedelta(minutes=config.timeout_minutes))
        tracked = config.tracker != "none" and run_folder is not None
        self.accelerator = Accelerator(
            cpu=on_cpu,
            mixed_precision="bf16" if config.precision == "bf16" else "no",
            kwargs_handlers=[backend] if asked > 1 else [],
            dynamo_plugin=TorchDynamoPlugin(),
            log_with=config.tracker if tracked else None,
            project_dir=run_folder if tracked else None,
        )
        if tracked and not self.accelerator.log_with:  # accelerate leaves out in silence what it cannot import
            raise InputError(
                f"tracker {config.tracker!r} is not installed here",
                where="engine.tracker",
                expected=f"the Python package {config.tracker}",
                mend=f"pip install -c constraints.txt {config.tracker}   (or engine.tracker=none)",
            )
        if tracked:
            with durable.explained(run_folder):
                run_folder.mkdir(parents=True, exist_ok=True)
                self.accelerator.init_trackers(config.tracker)
        self.rank, self.world, self.device = self.accelerator.process_index, self.accelerator.num_processes, self.accelerator.device
        self.parts: dict[str, Part] = {}
        self._check(asked)

    def _check(self, asked: int) -> None:
        """Accelerate falls back to one process in silence; a run that trains copies of itself is worse than none."""
        several = self.accelerator.distributed_type is not DistributedType.NO
        if self.world != asked or several != (asked > 1):
            raise InputError(
                f"{self.world} process(es) came up as {self.accelerator.distributed_type}",
                where="WORLD_SIZE",
                expected=f"{asked}, as the launcher set",
                mend="accelerate launch --config_file launch/accelerate/cpu-2ranks.yaml -m launch …",
            )
        mode = "ddp" if several else "single"
        if self.config.mode not in ("auto", mode):
            raise InputError(
                f"{asked} process(es): mode {mode!r}", where="engine.mode", expected=repr(self.config.mode), mend="engine.mode=auto"
            )

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def add(self, name: str, module: nn.Module, *, lr: float, betas: tuple[float, float], weight_decay: float) -> nn.Module:
        """Take a network in: moved, wrapped, given AdamW. Returns the wrapped module, to be called in `losses`."""
        optimizer = torch.optim.AdamW(module.to(self.device).parameters(), lr=lr, betas=betas, weight_decay=weight_decay)
        wrapped, optimizer = self.accelerator.prepare(module, optimizer)
        self.parts[name] = Part(module, wrapped, optimizer)
        return wrapped

    @contextlib.contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        """Around forward and backward of one micro batch: autocast, and gradients are exchanged at the last one only."""
        with contextlib.ExitStack() as stack:
            if not last:
                for part in self.parts.values():
                    stack.enter_context(self.accelerator.no_sync(part.wrapped))
            stack.enter_context(self.accelerator.autocast())
            yield

    def backward(self, loss: Tensor) -> None:
        """Gradients of one micro batch's share of the loss."""
        self.accelerator.backward(loss / self.config.accumulation)

    def gradient_norms(self) -> dict[str, Tensor]:
        """Norm of each part's gradient, before clipping; clips in place."""
        limit = self.config.clip or float("inf")
        return {name: nn.utils.clip_grad_norm_(part.module.parameters(), limit) for name, part in self.parts.items()}

    def step(self, lrs: dict[str, float]) -> None:
        """One optimizer step for each part that has a learning rate now, with that rate; gradients are cleared."""
        for name, part in self.parts.items():
            if name in lrs:
                for group in part.optimizer.param_groups:
                    group["lr"] = lrs[name]
                part.optimizer.step()
        self.clear()

    def clear(self) -> None:
        """Drop all gradients."""
        for part in self.parts.values():
            part.optimizer.zero_grad(set_to_none=True)

    # --- communicator -------------------------------------------------------------------------------------------

    def all_reduce_sum_(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        if self.world > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def any_rank(self, flag: bool) -> bool:
        """True on all ranks when it is on one: how ranks agree to stop or to skip a step."""
        return bool(self.all_reduce_sum_(torch.tensor(float(flag), device=self.device)) > 0)

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

    def tensors(self) -> dict[str, Tensor]:
        """Weights and optimizer state of every part, by name."""
        state: dict[str, Tensor] = {}
        for name, part in self.parts.items():
            state |= {f"{name}.model.{k}": v for k, v in part.module.state_dict().items()}
            for i, slots in part.optimizer.state_dict()["state"].items():
                state |= {f"{name}.optimizer.{i}.{slot}": torch.as_tensor(v) for slot, v in slots.items()}
        return state

    def load_tensors(self, state: dict[str, Tensor]) -> None:
        """The inverse of `tensors`.

        Raises:
            InputError: names or shapes that do not fit the models as configured.
        """
        for name, part in self.parts.items():
            load_strictly(
                part.module, {k.removeprefix(f"{name}.model."): v for k, v in state.items() if k.startswith(f"{name}.model.")}, name
            )
            slots: dict[int, dict[str, Tensor]] = {}
            for key, value in state.items():
                if key.startswith(f"{name}.optimizer."):
                    _, _, i, slot = key.rsplit(".", 3)
                    slots.setdefault(int(i), {})[slot] = value
            plain = part.optimizer.state_dict()
            part.optimizer.load_state_dict({"state": slots, "param_groups": plain["param_groups"]})

    def log(self, values: dict[str, float], samples: int) -> None:
        """To the tracker, on rank 0."""
        if self.accelerator.log_with:
            self.accelerator.log(values, step=samples)

    def close(self) -> None:
        """Flush trackers and leave the process group."""
        self.accelerator.end_training()


def load_strictly(module: nn.Module, state: dict[str, Tensor], where: object) -> None:
    """load_state_dict(strict) with an error for people.

    Raises:
        InputError: missing, unknown or differently shaped weights.
    """
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(
            f"weights do not fit the model: {str(error).splitlines()[-1].strip()}",
            where=where,
            expected="the configuration that the checkpoint was trained with",
            mend="see run.yaml beside the checkpoint",
        ) from error
