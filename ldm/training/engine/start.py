"""How ranks come up: what accelerate and DeepSpeed look for in the environment, and whether they made of it what was asked for."""

from __future__ import annotations

import importlib
import importlib.util
import os
import socket
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs, TorchDynamoPlugin

from data_shards.errors import InputError
from ldm.training.config import EngineConfig
from ldm.training.engine.config import deepspeed_config

PLACEMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""What launchers call a process's place among the others."""


def started(config: EngineConfig, mode: str, *, world: int, batch: int, run_folder: Path | None) -> Accelerator:
    """The process group of so many ranks, in one of MODES.

    Args:
        batch: global batch in samples.
        run_folder: where the tracker writes; None for no tracker.

    Raises:
        InputError: a package is missing, this device lacks the precision, or what came up is not what was asked for.
    """
    on_cpu, zero = not torch.cuda.is_available(), None
    if mode.startswith("zero"):
        _ready_for_deepspeed(config, mode, world, on_cpu)
        user = config.ds_config or os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
        tree = deepspeed_config(config, mode, batch=batch, world=world, user=None if user == "none" else Path(user))
        zero = DeepSpeedPlugin(hf_ds_config=tree)
    elif world == 1:
        for name in PLACEMENT:  # of a launched world of one, accelerate would make a process group, and DDP
            os.environ.pop(name, None)
    group = InitProcessGroupKwargs(backend="gloo" if on_cpu else "nccl", timeout=timedelta(minutes=config.timeout_minutes))
    # After its first step DDP would lay gradients out anew, in the order of their arrival. Of more than two ranks' numbers the place in
    # a bucket decides in which order they are added up, so the first step after a resume would round otherwise than one in between.
    ddp = DistributedDataParallelKwargs(find_unused_parameters=world > 2)
    tracked = config.tracker != "none" and run_folder is not None
    accelerator = Accelerator(
        cpu=on_cpu and zero is None,  # with DeepSpeed, accelerate would take it for a request to do without
        mixed_precision="no" if zero is None else {"fp32": "no"}.get(config.precision, config.precision),
        gradient_accumulation_steps=1 if zero is None else config.accumulation,
        deepspeed_plugin=zero,
        kwargs_handlers=[group, ddp] if world > 1 or zero else [],
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
    check(accelerator, mode, world)
    return accelerator


def check(accelerator: Accelerator, mode: str, world: int) -> None:
    """Accelerate falls back to one process, or to DDP, in silence; a run that trains copies of itself is worse than none.

    Raises:
        InputError: it did.
    """
    came = accelerator.distributed_type
    zero, several = came is DistributedType.DEEPSPEED, came not in (DistributedType.NO, DistributedType.DEEPSPEED)
    if accelerator.num_processes != world or zero != mode.startswith("zero") or (not zero and several != (world > 1)):
        raise InputError(
            f"{accelerator.num_processes} process(es) came up as {came}",
            where="WORLD_SIZE",
            expected=f"{world} in mode {mode!r}, as the launcher and the configuration say",
            mend="accelerate launch --config_file launch/accelerate/cpu-2ranks.yaml -m launch …",
        )


def _ready_for_deepspeed(config: EngineConfig, mode: str, world: int, on_cpu: bool) -> None:
    """What DeepSpeed and accelerate look for in the environment."""
    for package in ("deepspeed", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"engine.mode {mode!r} without the Python package {package}",
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
    if not {"fp32": lambda: True, "bf16": here.is_bf16_supported, "fp16": here.is_fp16_supported}[config.precision]():
        raise InputError(
            f"precision {config.precision!r} in mode {mode!r}",
            where="engine.precision",
            expected=f"what DeepSpeed can on this device ({here.device_name()})",
            mend="engine.precision=bf16, or fp32",
        )
    if world == 1:  # DeepSpeed has no world of one without a process group
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            free_port = str(probe.getsockname()[1])
        alone = {**dict(zip(PLACEMENT, "0101", strict=True)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port}
        for name, value in alone.items():
            os.environ.setdefault(name, value)  # what a launcher says counts: torchrun's agent listens at the port that it names
