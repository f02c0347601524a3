"""Peak memory of a rank by ZeRO stage, two ranks, beside what `train … --dry-run` estimates.

Each stage trains the same U-Net for some steps in processes of its own. Two figures a stage: tensors that are held between two steps
(weights, optimizer, average), and the peak of what the training adds to the resident memory of a process that has everything imported,
on a GPU the peak of torch's allocator. The other side is data-parallel training (DDP); `ratio` is its figure over the stage's. Equal means:
the same loss after the last step, to 1e-5 relative.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from rounds import arguments, finish, resident_mib
from train_step import cubes_of, ours

from data_shards.reading.dataset import Dataset
from launch import build
from launch.plan import state_bytes
from launch.tree import load

MODES, WORLD, MIB = ("ddp", "zero1", "zero2", "zero3"), 2, 1 << 20


def held_mib() -> float:
    """All tensors that are alive, each storage once."""
    gc.collect()
    tensors = [found for found in gc.get_objects() if issubclass(type(found), torch.Tensor)]
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values()) / MIB


def rank(mode: str, latents: Path, channels: int) -> None:
    """In a rank: train, and print what it took as JSON."""
    import deepspeed  # noqa: F401 - what is imported is not counted

    stage = load("retina-224").diffusion
    stage = replace(
        stage,
        model=replace(stage.model, channels=channels, layers=2),
        optimizer=replace(stage.optimizer, warmup_samples=0, decay="constant"),
        loop=replace(stage.loop, batch=2 * WORLD),
        engine=replace(stage.engine, mode=mode, precision="fp32"),
    )
    before = resident_mib("VmRSS")
    train = ours(stage, Dataset(latents), 4)
    loss = train()
    cuda = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() / MIB if cuda else resident_mib("VmHWM") - before
    parameters = sum(p.numel() for p in build.denoiser_module(stage, Dataset(latents).manifest).parameters())
    if int(os.environ["RANK"]) == 0:
        print("RESULT " + json.dumps({"peak": peak, "held": held_mib(), "loss": loss, "parameters": parameters}), flush=True)
    os._exit(0)  # see launch/cli: a process group is not destroyed


def measured(mode: str, latents: Path, channels: int) -> dict[str, float]:
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(WORLD), __file__, "--rank", mode, latents, channels]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False, timeout=1800)
    assert "RESULT " in done.stdout, done.stderr[-3000:]
    return json.loads(done.stdout.split("RESULT ")[1].splitlines()[0])


def main() -> None:
    args = arguments(__doc__)
    channels, size = (64, 8) if args.quick else (128, 28)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        latents = Path(place) / "latents"
        cubes_of(latents, (8, size, size), "float32")
        found = {mode: measured(mode, latents, channels) for mode in MODES}
    for mode in MODES:
        here, plain = found[mode], found["ddp"]
        states = sum(state_bytes(int(here["parameters"]), mode, WORLD, "fp32", "none")) / MIB
        close = abs(here["loss"] - plain["loss"]) <= 1e-5 * abs(plain["loss"])
        for what in ("held", "peak"):
            shared = {"ours": here[what], "other": plain[what], "unit": "MiB", "ratio": plain[what] / here[what], "equal": close}
            rows.append({"case": f"{what}_memory_{mode}", **shared})
        said = f"{mode:6} held {here['held']:7.0f} MiB   peak {here['peak']:7.0f} MiB"
        print(f"{said}   estimated, with gradients, without the average {states:7.0f} MiB   equal {close}", flush=True)
    finish("zero_memory", rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        rank(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
    main()
