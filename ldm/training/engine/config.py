"""What a run asks of the engine, and the DeepSpeed configuration that follows from it. Pure: reads no environment but what it is given."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_shards.errors import InputError
from ldm.training.config import EngineConfig

BUCKET = 20_000_000  # elements that are exchanged at once
MODES = ("single", "ddp", "zero1", "zero2", "zero3")


def mode_of(config: EngineConfig, environ: Mapping[str, str]) -> str:
    """One of MODES, from the configuration and from what the launcher says of itself.

    Raises:
        InputError: the two contradict each other.
    """
    world = int(environ.get("WORLD_SIZE", "1"))
    launched = None
    if environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() in ("true", "1"):
        launched = f"zero{_launched_stage(environ)}"
    elif config.ds_config:
        launched = f"zero{_stage(_read(Path(config.ds_config)), config.ds_config)}"
    mode = config.mode if config.mode != "auto" else (launched or ("ddp" if world > 1 else "single"))
    if launched and mode != launched:
        raise InputError(
            f"engine.mode is {mode!r}, the launcher's or your DeepSpeed configuration says {launched!r}",
            where="engine.mode",
            expected="the same of both",
            mend=f"engine.mode={launched}, or another --config_file",
        )
    if mode == "ddp" and world == 1:
        mode = "single"  # there is nobody to exchange gradients with: a job for any number of nodes may start on one
    if mode == "single" and world > 1:
        raise InputError(f"{world} process(es): not {mode!r}", where="engine.mode", expected="auto", mend="engine.mode=auto")
    if mode[:4] != "zero" and config.offload != "none":
        raise InputError(f"offload {config.offload!r} in mode {mode!r}", where="engine.offload", expected="ZeRO", mend="engine.mode=zero2")
    return mode


def _launched_stage(environ: Mapping[str, str]) -> int:
    file = environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if file != "none":
        return _stage(_read(Path(file)), file)
    return int(environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))


def _stage(tree: dict[str, Any], where: object) -> int:
    stage = tree.get("zero_optimization", {}).get("stage")
    if stage not in (1, 2, 3):
        raise InputError(f"ZeRO stage {stage!r}", where=f"{where}: zero_optimization.stage", expected="1, 2 or 3")
    return stage


def deepspeed_config(config: EngineConfig, mode: str, *, batch: int, world: int, user: Path | None = None) -> dict[str, Any]:
    """The whole DeepSpeed configuration: ours, or the user's file with 'auto' filled in from ours.

    Args:
        batch: global batch in samples; micro batch = batch / (accumulation × world).
        user: a DeepSpeed JSON; what it states of batch, clipping, stage and precision must be what the run states.

    Raises:
        InputError: the file cannot be read, contradicts the run, or brings its own optimizer or schedule.
    """
    stage = int(mode[-1])
    offload: dict[str, Any] = {}
    if config.offload != "none":
        offload["offload_optimizer"] = {"device": "cpu"}
    if config.offload == "parameters":
        offload["offload_param"] = {"device": "cpu"}
    ours: dict[str, Any] = {
        "train_batch_size": batch,
        "train_micro_batch_size_per_gpu": batch // (config.accumulation * world),
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": config.clip,
        "zero_optimization": {"stage": stage, **offload},
        "bf16": {"enabled": config.precision == "bf16"},
        "fp16": {"enabled": config.precision == "fp16"},
    }
    # what has no say in the result, unless the user's file says otherwise
    quiet: dict[str, Any] = {"steps_per_print": 1 << 30, "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    # DeepSpeed's own buckets of 5e8 elements are larger than these networks, and lie in a rank's memory whole
    buckets: dict[str, Any] = {"reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET}
    if user is None:
        return {**ours, **quiet, "zero_optimization": {**buckets, **ours["zero_optimization"]}}
    tree = _read(user)
    for section in ("optimizer", "scheduler"):
        if section in tree:
            raise InputError(
                f"a DeepSpeed configuration with its own {section}",
                where=user,
                expected=f"none: the trainers' {section} is theirs, a function of the samples seen",
                mend=f"remove {section!r}; set vqgan.optimizer.… and diffusion.optimizer.…",
            )
    filled = _filled(tree, ours, user)
    return {**quiet, **filled, "zero_optimization": {**buckets, **filled["zero_optimization"]}}


def _filled(tree: dict[str, Any], ours: dict[str, Any], where: object, prefix: str = "") -> dict[str, Any]:
    """`tree` over `ours`: 'auto' and absent keys become ours, what both state has to agree."""
    merged = dict(tree)
    for key, mine in ours.items():
        theirs = tree.get(key, "auto")
        if isinstance(mine, dict):
            merged[key] = _filled({} if theirs == "auto" else theirs, mine, where, f"{prefix}{key}.")
        elif theirs == "auto":
            merged[key] = mine
        elif theirs != mine:
            raise InputError(
                f"{prefix}{key} is {theirs!r}, the run's is {mine!r}",
                where=where,
                expected="the same, or 'auto': global batch = micro batch × accumulation × world",
                mend=f'"{key}": "auto" in the file, or loop.batch, engine.accumulation, engine.clip, engine.precision to match',
            )
    if left := [f"{prefix}{key}" for key, value in merged.items() if value == "auto"]:
        raise InputError(f"no value for {left[0]} = 'auto'", where=where, expected="a value of your own", mend="state it, or remove it")
    return merged


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"a DeepSpeed configuration that cannot be read: {error}", where=path, expected="a JSON file") from error
    if not isinstance(tree, dict):
        raise InputError("a DeepSpeed configuration that is no JSON object", where=path, expected='{"zero_optimization": …}')
    return tree
