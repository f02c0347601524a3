"""ZeRO promises: every stage trains what one process trains, and a checkpoint of any stage and world is continued by any other."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from data_shards.durable import sha256_of
from data_shards.errors import InputError
from launch.plan import activation_bytes, state_bytes
from ldm.checkpoints.export import fresh
from ldm.checkpoints.store import Reader
from ldm.training.config import EngineConfig
from ldm.training.engine.config import deepspeed_config, mode_of
from tests.runs import MONITOR, Place

pytest.importorskip("deepspeed", reason="the extra 'deepspeed' is not installed: pip install -c constraints.txt -e '.[deepspeed]'")

ROOT = Path(__file__).parents[2]
ALL = os.environ.get("FAULTS") == "all"
WORLDS = [(f"zero{stage}", world) for stage in (1, 2, 3) for world in (1, 2, 4)]
SOME = {"vqgan": [("zero2", 2), ("zero3", 1), ("zero1", 4), ("zero3", 2)], "diffusion": [("zero3", 2), ("zero1", 1), ("zero2", 4)]}

SETTINGS = [
    ("vqgan", "zero3", "offload=parameters", 1e-6),
    ("vqgan", "ddp", "precision=fp16", 2e-2),
    ("diffusion", "zero1", "offload=optimizer", 1e-6),
    ("diffusion", "zero2", "precision=bf16", 2e-2),
]


def verb(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """A verb in one process."""
    command = [sys.executable, "-m", "launch", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False)


def differences(a: dict[str, float], b: dict[str, float], tolerance: float) -> list[tuple[str, float, float]]:
    """What differs between two rows of a log, by more than the relative tolerance; where several values are absent, nothing does.

    Of the monitor's figures, by more than 1 %: they are distances of what is nearly alike, and of counts in bins.
    """
    assert a.keys() == b.keys()
    allowed = {name: 0.01 if name.startswith(MONITOR) else tolerance for name in a}
    return [(k, a[k], b[k]) for k in a if not (a[k] == b[k] or (a[k] and b[k] and math.isclose(a[k], b[k], rel_tol=allowed[k])))]


def far(place: Place, name: str, other: str, stage: str, part: str) -> float:
    """Distance of two runs' weights, each network as one vector, relative to its length.

    As one vector, for a bias before a group norm has no gradient but rounding, and Adam moves it by the rate all the same.
    """
    mine, theirs = (Reader(place.store(run, stage).newest(progress_exists=True)) for run in (name, other))
    assert mine.shapes.keys() == theirs.shapes.keys()
    a, b = (torch.cat([v.flatten().double() for _, v in sorted(read.under(part).items())]) for read in (mine, theirs))
    return float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(a))


@pytest.mark.parametrize("stage", ["vqgan", "diffusion"])
@pytest.mark.parametrize("mode", ["ddp", "zero1", "zero2", "zero3"])
def test_two_ranks_train_what_one_process_trains(place: Place, stage: str, mode: str) -> None:
    """Losses, gradient norms, adaptive weights and final weights within 1e-6, with accumulation 2 and clipping at work."""
    place.once("one", stage, "ddp", 1, f"{stage}.loop.samples=32")
    place.train(f"two-{mode}", stage, mode, 2, f"{stage}.loop.samples=32", expect=True)
    one, two = place.curve("one", stage), place.curve(f"two-{mode}", stage)
    assert max(row[f"grad_norm/{'vqgan' if stage == 'vqgan' else 'denoiser'}"] for row in one) > 0.5, "nothing was clipped"
    assert stage == "diffusion" or one[-1]["gan/adaptive_weight"] > 0
    assert not [found for a, b in zip(one, two, strict=True) for found in differences(a, b, 1e-6)]
    for part in ("vqgan.model.", "discriminator.model.", "codebook.") if stage == "vqgan" else ("denoiser.model.", "ema."):
        assert far(place, "one", f"two-{mode}", stage, part) <= 1e-6, part


@pytest.mark.parametrize("mode", ["auto", "ddp", "zero2"])
def test_a_launched_world_of_one_trains_what_one_process_trains(place: Place, mode: str) -> None:
    """RANK=0 and WORLD_SIZE=1, as torchrun with one process, `submit --local` and a job that starts on one node say it."""
    place.once("alone", "vqgan", "ddp", 1, "vqgan.loop.samples=16")
    run, launched = place.run(f"launched-{mode}", "vqgan"), {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    words = ["train", "vqgan", place.folder / "tiny.yaml", f"run={run}", "vqgan.loop.samples=16", f"vqgan.engine.mode={mode}"]
    assert place.ranks.run(run.with_suffix(".log"), words, 1, **launched) == [0], place.said(f"launched-{mode}", "vqgan")[-3000:]
    alone, one = place.curve("alone", "vqgan"), place.curve(f"launched-{mode}", "vqgan")
    assert mode == "zero2" or alone == one
    assert not [found for a, b in zip(alone, one, strict=True) for found in differences(a, b, 1e-6)]


@pytest.mark.parametrize("stage", SOME if ALL else ["vqgan"])
def test_a_run_goes_on_under_other_stages_and_worlds(place: Place, stage: str) -> None:
    """From each stage and world to each other: the next losses are those of one process, and the epoch goes on sample by sample."""
    shared = [f"{stage}.loop.checkpoint_every=16", f"{stage}.loop.samples="]
    place.once("straight", stage, "ddp", 1, shared[0], shared[1] + "48")
    known, worlds = place.ids("straight", stage), WORLDS if ALL else SOME[stage]
    pairs = [(a, b) for a in worlds for b in worlds if a != b] if ALL else list(pairwise([*worlds, worlds[0]]))
    for (mode, world), (other_mode, other_world) in pairs:
        begun, name = f"begun-{mode}-{world}", f"elastic-{mode}-{world}-{other_mode}-{other_world}"
        place.once(begun, stage, mode, world, shared[0], shared[1] + "16")
        shutil.copytree(place.run(begun, stage), place.run(name, stage), symlinks=True)
        place.train(name, stage, other_mode, other_world, shared[0], shared[1] + "48", expect=True)
        found = [d for a, b in zip(place.curve("straight", stage), place.curve(name, stage), strict=True) for d in differences(a, b, 1e-5)]
        assert not found, (name, found)
        assert place.ids(name, stage) == known, name


@pytest.mark.parametrize(("stage", "mode", "setting", "tolerance"), SETTINGS if ALL else SETTINGS[:2])
def test_other_precisions_and_offload_train_and_resume(place: Place, stage: str, mode: str, setting: str, tolerance: float) -> None:
    """Near the fp32 curve, and a resume changes nothing: the loss scale goes on too."""
    place.once("one", stage, "ddp", 1, f"{stage}.loop.samples=32")
    name, words = f"{mode}-{setting}", [f"{stage}.engine.{setting}", f"{stage}.loop.samples="]
    place.train(name, stage, mode, 2, words[0], words[1] + "32", expect=True)
    for a, b in zip(place.curve("one", stage), place.curve(name, stage), strict=True):
        assert math.isclose(a["loss"], b["loss"], rel_tol=tolerance)
    for samples in ("16", "32"):
        place.train(f"{name}-again", stage, mode, 2, words[0], words[1] + samples, expect=True)
    assert place.curve(f"{name}-again", stage) == place.curve(name, stage)
    assert place.parts(f"{name}-again", stage)[0] == place.parts(name, stage)[0]


def test_a_launcher_and_a_configuration_that_contradict_each_other_are_refused() -> None:
    launched = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3", "WORLD_SIZE": "2"}
    assert mode_of(EngineConfig(), launched) == "zero3"
    assert mode_of(EngineConfig(mode="zero1"), {}) == "zero1"
    with pytest.raises(InputError, match="'zero2', the launcher's or your DeepSpeed configuration says 'zero3'"):
        mode_of(EngineConfig(mode="zero2"), launched)
    with pytest.raises(InputError, match="'ddp', the launcher's"):
        mode_of(EngineConfig(mode="ddp"), launched)
    with pytest.raises(InputError, match=r"2 process\(es\): not 'single'"):
        mode_of(EngineConfig(mode="single"), {"WORLD_SIZE": "2"})


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"train_batch_size": 16}, "train_batch_size is 16, the run's is 8"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps is 4, the run's is 2"),
        ({"gradient_clipping": 3.0}, "gradient_clipping is 3.0"),
        ({"bf16": {"enabled": True}}, "bf16.enabled is True, the run's is False"),
        ({"optimizer": {"type": "Adam"}}, "its own optimizer"),
        ({"zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"}}, "no value for zero_optimization.reduce_bucket_size"),
    ],
)
def test_a_ds_config_that_contradicts_the_run_is_refused(tmp_path: Path, tree: dict, message: str) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}, **tree}))
    config = EngineConfig(ds_config=str(path), accumulation=2)
    with pytest.raises(InputError, match=message):
        deepspeed_config(config, mode_of(config, {}), batch=8, world=2, user=path)


def test_auto_is_filled_in_and_what_is_the_users_own_stays(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(
        json.dumps({"train_batch_size": "auto", "zero_optimization": {"stage": 3, "overlap_comm": False}, "bf16": "auto", "comms": 1})
    )
    config = EngineConfig(ds_config=str(path), accumulation=2, precision="bf16", clip=0.5)
    tree = deepspeed_config(config, "zero3", batch=32, world=4, user=path)
    assert (tree["train_batch_size"], tree["train_micro_batch_size_per_gpu"], tree["gradient_accumulation_steps"]) == (32, 4, 2)
    assert {k: v for k, v in tree["zero_optimization"].items() if "bucket" not in k} == {"stage": 3, "overlap_comm": False}
    assert tree["bf16"] == {"enabled": True} and tree["comms"] == 1
    assert tree["gradient_clipping"] == 0.5


def test_no_json_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        mode_of(EngineConfig(ds_config=str(tmp_path / "ds.json")), {})


def test_plain_diffusers_loads_what_is_exported_from_any_stage(place: Place, tmp_path: Path) -> None:
    """VQModel, UNet2DModel and scheduler of a ZeRO-3 checkpoint give what our own networks give, bit for bit."""
    from diffusers import FlowMatchHeunDiscreteScheduler, UNet2DModel, VQModel

    from ldm.checkpoints.trained import load_autoencoder, load_denoiser

    for stage in ("vqgan", "diffusion"):
        place.train("exported", stage, "zero3", 2, f"{stage}.loop.samples=16", expect=True)
        done = verb("ckpt", "export", place.run("exported", stage), tmp_path / stage)
        assert done.returncode == 0, done.stderr
    x, z = torch.randn(2, 4, 32, 32), torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        ours = load_autoencoder(place.run("exported", "vqgan") / "vqgan")
        theirs = VQModel.from_pretrained(tmp_path / "vqgan" / "vqgan" / "vqvae").eval()
        h = ours.vqgan.encode(x)
        assert torch.equal(theirs.encode(x).latents, h)
        torch.testing.assert_close(theirs.decode(h).sample, ours.vqgan.decode(ours.codebook(h)[0]))
        net = UNet2DModel.from_pretrained(tmp_path / "diffusion" / "diffusion" / "unet").eval()
        denoiser = load_denoiser(place.run("exported", "diffusion") / "diffusion").net
        assert torch.equal(net(z, torch.tensor([3.0, 700.0])).sample, denoiser(z, torch.tensor([3.0, 700.0])))
    FlowMatchHeunDiscreteScheduler.from_pretrained(tmp_path / "diffusion" / "diffusion" / "scheduler")
    told = json.loads((tmp_path / "diffusion" / "diffusion" / "denoiser.json").read_text())
    assert len(told["mean_D"]) == len(told["std_D"]) == 4
    decoded = theirs.decode(h).sample.detach()
    by_recipe = counts_by_recipe(tmp_path / "vqgan" / "vqgan", decoded)
    torch.testing.assert_close(by_recipe.int(), ours.decode(h, quantise=True).int(), rtol=0, atol=1)
    clipped = counts_by_recipe(tmp_path / "vqgan" / "vqgan", 40 * decoded).int()
    torch.testing.assert_close(clipped, ours.normaliser.stored(40 * decoded).int() * ours.fov_HW, rtol=0, atol=1)
    assert (clipped == clipped.max()).sum() > 100, "nothing was clipped"
    listed = json.loads(verb("ckpt", "ls", place.run("exported", "diffusion"), "--json").stdout)
    (best,) = [row for row in listed if row["best"] is not None]
    losses = {row["samples"]: row["val/loss"] for row in place.curve("exported", "diffusion")}
    assert (best["samples"], best["best"]) == min(losses.items(), key=lambda item: item[1])
    done = verb("ckpt", "export", place.run("exported", "diffusion"), tmp_path / "best", "--best")
    told = json.loads((tmp_path / "best" / "diffusion" / "denoiser.json").read_text())
    assert done.returncode == 0 and told["checkpoint"] == sha256_of(Path(best["folder"]) / "COMMIT.json")
    again = verb("ckpt", "export", place.run("exported", "vqgan"), tmp_path / "vqgan")
    assert again.returncode == 2 and "the place is taken" in again.stderr


def counts_by_recipe(folder: Path, x_BCHW: torch.Tensor) -> torch.Tensor:
    """As the JSON beside the weights says."""
    told = json.loads((folder / "vqgan.json").read_text())
    mean_C11, std_C11 = (torch.tensor(told["data"]["stats"][name]).view(-1, 1, 1) for name in ("log_mean_C", "log_std_C"))
    y_BCHW = x_BCHW * std_C11 + mean_C11
    counts = told["data"]["stats"].get("log_zero", 0) + y_BCHW.sign() * 16 * (torch.exp(y_BCHW.abs()) - 1)
    fov_HW = load_file(folder / "vqgan.safetensors")["fov_HW"]
    return (counts.round().clamp(0, told["counts_max"]) * fov_HW).to(torch.uint16)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_what_is_exported_may_be_read_by_whom_the_umask_lets_read(tmp_path: Path, umask: int, mode: int) -> None:
    """safetensors writes by way of a file of mode 0600."""
    former = os.umask(umask)
    try:
        with fresh(tmp_path / "out") as stage:
            (stage / "unet").mkdir()
            save_file({"w": torch.ones(2)}, stage / "unet" / "model.safetensors")
            (stage / "config.json").write_text("{}")
    finally:
        os.umask(former)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) == 2 and {path.stat().st_mode & 0o777 for path in files} == {mode}


def test_checkpoints_are_listed_verified_and_pruned(place: Place) -> None:
    words = ["diffusion.loop.samples=32", "diffusion.loop.keep=4", "diffusion.loop.validate_samples=0"]
    place.train("listed", "diffusion", "zero2", 2, *words, expect=True)
    run = place.run("listed", "diffusion")
    rows = json.loads(verb("ckpt", "ls", run, "--json").stdout)
    assert [(row["samples"], row["ranks"], row["committed"]) for row in rows] == [(s, 2, True) for s in (32, 24, 16, 8)]
    assert "4 checkpoints verified" in verb("ckpt", "verify", run).stdout
    part = Path(rows[0]["folder"]) / "rank-00001.safetensors"
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    found = verb("ckpt", "verify", run)
    assert found.returncode == 4 and f"{part}: sha256 differs" in found.stderr
    verb("ckpt", "prune", run, "--keep", "1")
    left = json.loads(verb("ckpt", "ls", run, "--json").stdout)
    assert [row["samples"] for row in left] == [32, 24], "the newest that verifies has to stay"
    assert verb("ckpt", "ls", run / "latents").returncode == 2


def test_a_dry_run_says_what_it_would_take(place: Place) -> None:
    words = ["train", "vqgan", place.folder / "tiny.yaml", "vqgan.engine.mode=zero3", "vqgan.engine.precision=bf16", "--dry-run"]
    said = verb(*words, WORLD_SIZE="4", RANK="0").stdout
    assert "batch 8 = micro batch 1 × accumulation 2 × world 4" in said
    assert '"stage": 3' in said and '"train_micro_batch_size_per_gpu": 1' in said
    refused = verb(*words, WORLD_SIZE="3", RANK="0")
    assert refused.returncode == 2 and "a multiple of 2 × 3 ranks" in refused.stderr
    # Rajbhandari et al. 2020, section 3.1: 16 bytes a parameter, of which 12 are the optimizer's
    assert sum(state_bytes(7_500_000_000, "zero1", 1, "bf16", "none")) == 120_000_000_000
    assert sum(state_bytes(7_500_000_000, "zero3", 64, "bf16", "none")) == 1_875_000_000


def test_what_autograd_keeps_is_counted() -> None:
    with torch.device("meta"):
        net = torch.nn.Sequential(torch.nn.Linear(100, 50, bias=False), torch.nn.Sigmoid())
    # the input (10×100) and the weight's product after the sigmoid (10×50); the weight itself is kept too
    assert activation_bytes(lambda: net(torch.empty(10, 100, device="meta"))) == 4 * (10 * 100 + 10 * 50)
