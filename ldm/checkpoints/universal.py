"""Trained networks as DeepSpeed universal checkpoints, to carry a run on in plain DeepSpeed.

Resuming here never needs them: our own checkpoints are already independent of ZeRO stage and world.

What is written is what the engines of DeepSpeed 0.19.8 read with {"checkpoint": {"load_universal": true}} (its runtime/engine.py,
runtime/base_optimizer.py and runtime/zero/stage3.py), one folder a network:

    latest_universal                             the tag, which names the folder below
    TAG/mp_rank_00_model_states.pt               counts and client state, for ZeRO 1 and 2
    TAG/zero_pp_rank_0_mp_rank_00_model_states.pt      the same for ZeRO 3, which looks for it under this name
    TAG/zero/optimizer_state.pt                  hyperparameters; for ZeRO 3 the step count
    TAG/zero/PARAMETER/{fp32,exp_avg,exp_avg_sq,step}.pt      whole tensors, cut by whoever loads them

DeepSpeed loads pickles, so pickles they are: of tensors, numbers, lists and dicts alone (torch.load takes them with
weights_only=True). Nothing here reads one.

The loading optimizer has to have one parameter group, as those here have: ZeRO 1 and 2 load nothing into a second one, in silence, and
under ZeRO 3 several groups, or several sub-groups (`sub_group_size`), share one step count, which torch's AdamW then moves once each.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from data_shards import durable
from data_shards.errors import InputError
from ldm.checkpoints.commit import COMMIT, Checkpoint
from ldm.checkpoints.export import fresh
from ldm.checkpoints.store import CheckpointStore, Reader
from ldm.schedules import OptimizerConfig, learning_rate

DEEPSPEED = "0.19.8"
STATES = {"fp32": "model", "exp_avg": "optimizer.exp_avg", "exp_avg_sq": "optimizer.exp_avg_sq"}  # their name for it, ours


def write_universal(stores: Mapping[str, CheckpointStore], out: Path) -> list[Path]:
    """Write OUT/TRAINING/NETWORK from the newest checkpoint of each training that verifies; returns these folders.

    Raises:
        InputError: `out` exists or cannot be written, or a training has no checkpoint. UnsafeResume: checkpoints, but none that
        verifies. TryAgain: disk full.
    """
    written = []
    with durable.explained(out), fresh(out) as stage:
        for training, store in stores.items():
            checkpoint = store.newest(progress_exists=False)
            if checkpoint is None:
                raise InputError("no checkpoint was committed", where=store.folder, expected="one", mend="retinaforge train …")
            read = Reader(checkpoint)
            for network in sorted(name.removesuffix(".optimizer.step") for name in read.shapes if name.endswith(".optimizer.step")):
                _write_network(stage / training / network, network, checkpoint, read)
                written.append(out / training / network)
    return written


def _write_network(folder: Path, network: str, checkpoint: Checkpoint, read: Reader) -> None:
    """One network, a parameter at a time: a model may be larger than the memory left beside it."""
    tag = checkpoint.folder.name
    of_slot = f"{network}.{STATES['exp_avg']}."
    names = [name.removeprefix(of_slot) for name in read.shapes if name.startswith(of_slot)]
    step = read(f"{network}.optimizer.step", shape=())
    for name in names:
        for theirs, ours in STATES.items():
            _save({"param": read(f"{network}.{ours}.{name}")}, folder / tag / "zero" / name / f"{theirs}.pt")
        _save(step, folder / tag / "zero" / name / "step.pt")
    group = _hyperparameters(checkpoint)
    optimizer = {
        "ds_version": DEEPSPEED,
        "param_groups": [group],  # read by ZeRO 1 and 2, what follows by ZeRO 3
        "optimizer_state_dict": {"state": {0: {"step": step}}, "param_groups": [group]},
    }
    _save(optimizer, folder / tag / "zero" / "optimizer_state.pt")
    model = _model_states(network, names, checkpoint, read, int(step))
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"):
        _save(model, folder / tag / name)
    (folder / "latest_universal").write_text(tag)


def _model_states(network: str, names: list[str], checkpoint: Checkpoint, read: Reader, steps: int) -> dict[str, Any]:
    """What DeepSpeed keeps beside the weights. `retinaforge` comes back from load_checkpoint, within the client state."""
    identity = checkpoint.state["identity"]
    config = identity[{"discriminator": "discriminator", "code_map": "codebook"}.get(network, "model")]
    digest = durable.sha256_of(checkpoint.folder / COMMIT)
    prefix = f"{network}.model."
    buffers = sorted({name.removeprefix(prefix) for name in read.shapes if name.startswith(prefix)} - set(names))
    return {
        "module": {name: read(prefix + name) for name in buffers},  # for completeness: load_universal restores no buffer
        "buffer_names": buffers,
        "param_shapes": [{name: torch.Size(read.shapes[prefix + name]) for name in names}],
        "universal_checkpoint_info": {"universal_checkpoint_version": 0.4},
        "optimizer": None,
        "lr_scheduler": {"last_batch_iteration": steps - 1},  # all that DeepSpeed's own schedules hold
        "global_steps": steps,
        "global_samples": checkpoint.samples,
        "skipped_steps": 0,
        "dp_world_size": 1,
        "mp_world_size": 1,
        "ds_version": DEEPSPEED,
        "retinaforge": {"network": network, "config": config, "samples": checkpoint.samples, "checkpoint": digest},
    }


def _hyperparameters(checkpoint: Checkpoint) -> dict[str, Any]:
    """AdamW's, as the next step here would have them: they replace those that the loading optimizer was made with."""
    trained_with = checkpoint.state["record"].get("config", {}).get(checkpoint.state["identity"]["stage"])
    if trained_with is None:  # not trained by the command line: the loading optimizer keeps its own
        return {"params": [0]}
    optimizer = OptimizerConfig(**trained_with["optimizer"])
    rate = learning_rate(checkpoint.samples, trained_with["loop"]["samples"], optimizer)
    return {"params": [0], "lr": rate, "betas": (optimizer.beta1, optimizer.beta2), "weight_decay": optimizer.weight_decay}


def _save(value: Any, path: Path) -> None:
    """torch.save by way of the memory: its own writer reports a full disk as a RuntimeError without a number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    torch.save(value, content)
    path.write_bytes(content.getbuffer())
