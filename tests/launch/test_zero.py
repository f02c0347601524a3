"""ZeRO promises: every stage trains what one process trains, and a checkpoint of any stage and world is continued by any other."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from data_shards.errors import InputError
from launch.plan import activation_bytes, state_bytes
from ldm.comm import Alone
from ldm.training.checkpoint import CheckpointStore, Reader
from ldm.training.clock import TIMINGS
from ldm.training.engine.config import EngineConfig, deepspeed_config, mode_of
from ldm.training.loop import read_log

pytest.importorskip("deepspeed", reason="the extra 'deepspeed' is not installed: pip install -c constraints.txt -e '.[deepspeed]'")

ROOT = Path(__file__).parents[2]
ENGINE = {"tracker": "none", "accumulation": 2, "clip": 0.5}
# Adam moves a weight by the rate whatever the size of its gradient, so rounding in a gradient near 0 grows to the rate
OPTIMIZER = {"lr": 1.0e-5}
TINY = {
    "vqgan": {
        "model": {"compression": 4, "channels": 16, "layers": 1, "norm_groups": 4, "latent_channels": 4},
        "codebook": {"codes": 32, "kmeans_vectors": 1024, "dead_below": 0.1},
        "discriminator": {"channels": 8, "layers": 2},
        "loss": {"gan_start_samples": 8},
        "loop": {"samples": 32, "batch": 8, "log_every": 8, "checkpoint_every": 24},
        "optimizer": OPTIMIZER,
        "engine": ENGINE,
    },
    "diffusion": {
        "model": {"channels": 16, "layers": 1},
        "loop": {"samples": 32, "batch": 8, "log_every": 8, "checkpoint_every": 24},
        "optimizer": OPTIMIZER,
        "engine": ENGINE,
    },
}
# nothing is small enough to stay whole on every rank: the tiny networks are cut up as large ones are
STAGE3 = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}


@pytest.fixture(scope="module")
def place(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the configuration, a run of one process, and its latents for all others."""
    folder = tmp_path_factory.mktemp("zero")
    (folder / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "data": {"dataset": str(packed)}}))
    (folder / "stage3.json").write_text(json.dumps(STAGE3))
    train(folder, "one", "vqgan", "single")
    subprocess.run(
        [sys.executable, "-m", "launch", "encode", folder / "tiny.yaml", f"run={folder}/one-vqgan"], cwd=ROOT, check=True, timeout=120
    )
    train(folder, "one", "diffusion", "single")
    return folder


def train(folder: Path, name: str, stage: str, mode: str, ranks: int = 1, *overrides: str, expect: int = 0) -> str:
    """Train, by torchrun where there are several ranks or a stage of ZeRO; what was said."""
    run = folder / f"{name}-{stage}"
    run.mkdir(exist_ok=True)
    if stage == "diffusion" and not (run / "latents").exists():
        (run / "latents").symlink_to(folder / "one-vqgan" / "latents")
    launcher = [sys.executable] if ranks == 1 else [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    setting = f"{stage}.engine.ds_config={folder}/stage3.json" if mode == "zero3" else f"{stage}.engine.mode={mode}"
    words = [*launcher, "-m", "launch", "train", stage, folder / "tiny.yaml", f"run={run}", setting, *overrides]
    done = subprocess.run(
        words, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == expect, done.stderr[-3000:]
    return done.stderr


def verb(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """A verb in one process."""
    command = [sys.executable, "-m", "launch", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False)


def curves(folder: Path, stage: str, *names: str) -> list[list[dict[str, float]]]:
    found = [read_log(folder / f"{name}-{stage}" / stage / "metrics.jsonl") for name in names]
    assert all(len(rows) == len(found[0]) > 2 for rows in found)
    return [[{k: v for k, v in row.items() if not k.startswith(TIMINGS)} for row in rows] for rows in found]


def far(a: float, b: float, tolerance: float) -> bool:
    return not math.isclose(a, b, rel_tol=tolerance, abs_tol=1e-9)


def final(folder: Path, name: str, stage: str) -> Reader:
    return Reader(CheckpointStore(folder / f"{name}-{stage}" / stage / "checkpoints", Alone()).newest(progress_exists=True))


@pytest.mark.parametrize("stage", ["vqgan", "diffusion"])
@pytest.mark.parametrize("mode", ["ddp", "zero1", "zero2", "zero3"])
def test_two_ranks_train_what_one_process_trains(place: Path, stage: str, mode: str) -> None:
    """Losses, gradient norms, adaptive weights and final weights within 1e-6, with accumulation 2 and clipping at work."""
    train(place, mode, stage, mode, 2)
    one, two = curves(place, stage, "one", mode)
    assert max(row[f"grad_norm/{'vqgan' if stage == 'vqgan' else 'denoiser'}"] for row in one) > ENGINE["clip"], "nothing was clipped"
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        assert not [(a["samples"], k, a[k], b[k]) for k in a if far(a[k], b[k], 1e-6)]
    mine, theirs = final(place, "one", stage), final(place, mode, stage)
    assert mine.places.keys() == theirs.places.keys()
    # each network as one vector: a bias before a group norm has no gradient but rounding, and Adam moves it by the rate all the same
    for part in ("vqgan.model.", "discriminator.model.", "codebook.") if stage == "vqgan" else ("denoiser.model.", "ema."):
        a, b = (torch.cat([v.flatten().double() for _, v in sorted(read.under(part).items())]) for read in (mine, theirs))
        assert torch.linalg.vector_norm(a - b) <= 1e-6 * torch.linalg.vector_norm(a), part


@pytest.mark.parametrize("stage", ["vqgan", "diffusion"])
def test_a_run_goes_on_under_other_stages_and_worlds(place: Path, stage: str) -> None:
    """From stage to stage and world to world: one curve, the one of one process."""
    steps = {"vqgan": [("zero2", 2), ("zero3", 1), ("zero1", 4), ("ddp", 2)], "diffusion": [("zero3", 2), ("single", 1), ("zero2", 2)]}[
        stage
    ]
    length = f"{stage}.loop.samples={{}}"
    train(place, "straight", stage, "single", 1, length.format(16 * len(steps)))
    for i, (mode, ranks) in enumerate(steps):
        train(place, "elastic", stage, mode, ranks, length.format(16 * (i + 1)))
    straight, elastic = curves(place, stage, "straight", "elastic")
    for a, b in zip(straight, elastic, strict=True):
        assert not [(a["samples"], k, a[k], b[k]) for k in a if not k.startswith("lr/") and far(a[k], b[k], 1e-5)]


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
    assert tree["zero_optimization"] == {"stage": 3, "overlap_comm": False} and tree["bf16"] == {"enabled": True} and tree["comms"] == 1
    assert tree["gradient_clipping"] == 0.5


def test_no_json_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        mode_of(EngineConfig(ds_config=str(tmp_path / "ds.json")), {})


def test_plain_diffusers_loads_what_is_exported_from_any_stage(place: Path, tmp_path: Path) -> None:
    """VQModel, UNet2DModel and scheduler of a ZeRO-3 checkpoint give what our own networks give, bit for bit."""
    from diffusers import FlowMatchHeunDiscreteScheduler, UNet2DModel, VQModel

    from ldm.trained import load_autoencoder, load_denoiser

    for stage in ("vqgan", "diffusion"):
        train(place, "exported", stage, "zero3", 2, f"{stage}.loop.samples=16")
        done = verb("ckpt", "export", place / f"exported-{stage}", tmp_path / stage)
        assert done.returncode == 0, done.stderr
    x, z = torch.randn(2, 4, 32, 32), torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        ours = load_autoencoder(place / "exported-vqgan" / "vqgan")
        theirs = VQModel.from_pretrained(tmp_path / "vqgan" / "vqgan" / "vqvae").eval()
        h = ours.vqgan.encode(x)
        assert torch.equal(theirs.encode(x).latents, h)
        torch.testing.assert_close(theirs.decode(h).sample, ours.vqgan.decode(ours.codebook(h)[0]))
        net = UNet2DModel.from_pretrained(tmp_path / "diffusion" / "diffusion" / "unet").eval()
        denoiser = load_denoiser(place / "exported-diffusion" / "diffusion").net
        assert torch.equal(net(z, torch.tensor([3.0, 700.0])).sample, denoiser(z, torch.tensor([3.0, 700.0])))
    FlowMatchHeunDiscreteScheduler.from_pretrained(tmp_path / "diffusion" / "diffusion" / "scheduler")
    told = json.loads((tmp_path / "diffusion" / "diffusion" / "denoiser.json").read_text())
    assert len(told["mean_D"]) == len(told["std_D"]) == 4
    again = verb("ckpt", "export", place / "exported-vqgan", tmp_path / "vqgan")
    assert again.returncode == 2 and "the place is taken" in again.stderr


def test_checkpoints_are_listed_verified_and_pruned(place: Path) -> None:
    train(
        place, "listed", "diffusion", "zero2", 2, "diffusion.loop.samples=32", "diffusion.loop.checkpoint_every=8", "diffusion.loop.keep=4"
    )
    run = place / "listed-diffusion"
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


def test_a_dry_run_says_what_it_would_take(place: Path) -> None:
    words = ["train", "vqgan", place / "tiny.yaml", "vqgan.engine.mode=zero3", "vqgan.engine.precision=bf16", "--dry-run"]
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
