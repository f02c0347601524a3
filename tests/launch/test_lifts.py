"""What may lift the samples, off by default: two ranks train as one with all of it on, a stop changes nothing, each does what it says."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from data_shards.errors import InputError
from data_shards.manifest import read_manifest
from data_shards.packing.pack import write_dataset
from data_shards.reading.dataset import Dataset
from launch.stages import STAGES
from launch.tree import load
from ldm.checkpoints.store import CheckpointStore
from ldm.checkpoints.trained import load_autoencoder, load_denoiser, trained_digest
from ldm.comm import Alone
from ldm.evaluation.evaluate import Evaluation
from ldm.evaluation.evaluation_result import EvaluateConfig
from ldm.generation.images import latents_of
from ldm.models.config import SamplerConfig
from ldm.training.log import read_log
from tests.commands import invoke
from tests.ranks import shared
from tests.runs import LOOP, NETWORKS

SMALL = {**LOOP, "samples": 32, "checkpoint_every": 16}
ALL = {
    "features": {**NETWORKS["features"], "loop": {**SMALL, "samples": 16}},
    "vqgan": {
        **NETWORKS["vqgan"],
        "loss": {"gan_start_samples": 8, "perceptual": 0.5, "equivariance": 0.5, "r1": 1.0},
        "ema": {"halflife_samples": 16},
        "optimizer": {"lr": 1.0e-5},
        "loop": SMALL,
    },
    "diffusion": {
        **NETWORKS["diffusion"],
        "objective": {"times": "uniform"},
        "alignment": 0.5,
        "flip": True,
        "optimizer": {"lr": 1.0e-5},
        "loop": SMALL,
        "sampler": {"steps": 2},
    },
    "sample": {"count": 4, "shard": 2, "batch": 2, "gate": 0.0, "labels": False},
}


def configured(folder: Path, packed: Path) -> Path:
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump({**ALL, "run": str(folder), "data": {"dataset": str(packed)}}))
    return path


@pytest.fixture(scope="module")
def whole(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all of it on; its YAML lies beside it."""
    config = configured(tmp_path_factory.mktemp("lifts") / "whole", packed)
    for words in (["train", "features"], ["train", "vqgan"], ["encode"], ["train", "diffusion"]):
        invoke(*words, config)
    return config.with_suffix("")


def beside(whole: Path, folder: Path, *names: str) -> Path:
    """A run of the same configuration that has these of the other's folders."""
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).symlink_to(whole / name)
    return folder


@pytest.mark.parametrize(("stage", "of_whole"), [("vqgan", ["features"]), ("diffusion", ["features", "vqgan", "latents"])])
def test_two_ranks_train_as_one_and_a_run_that_was_stopped_as_one_that_was_not(
    whole: Path, packed: Path, tmp_path: Path, stage: str, of_whole: list[str]
) -> None:
    config = whole.with_suffix(".yaml")
    two, stopped = (beside(whole, tmp_path / name, *of_whole) for name in ("two", "stopped"))
    said = shared().run(tmp_path / "log", ["train", stage, config, f"run={two}"], 2)
    assert said == [0, 0], (tmp_path / "log").read_text()[-3000:]
    invoke("train", stage, config, f"run={stopped}", f"{stage}.loop.samples=16", f"{stage}.optimizer.decay_samples=32")
    invoke("train", stage, config, f"run={stopped}", f"{stage}.optimizer.decay_samples=32")
    one, ours = (read_log(folder / stage / "metrics.jsonl") for folder in (whole, two))
    added = {"vqgan": {"loss/perceptual", "loss/r1"}, "diffusion": {"loss/alignment"}}[stage]
    assert added <= one[-1].keys()
    for a, b in zip(one, ours, strict=True):
        for name in ("loss", *added & a.keys()):
            assert math.isclose(a[name], b[name], rel_tol=2e-5), (a["samples"], name, a[name], b[name])
    again = CheckpointStore(stopped / stage / "checkpoints", Alone()).newest(progress_exists=True)
    assert again.parts == CheckpointStore(whole / stage / "checkpoints", Alone()).newest(progress_exists=True).parts


def test_the_averaged_autoencoder_is_the_one_that_is_used(whole: Path) -> None:
    checkpoint = CheckpointStore(whole / "vqgan" / "checkpoints", Alone()).newest(progress_exists=True)
    stored = {name: value for path in checkpoint.folder.glob("*.safetensors") for name, value in load_file(path).items()}
    loaded = load_autoencoder(whole / "vqgan").vqgan.state_dict()
    assert all(value.equal(stored[f"ema.{name}"].reshape(value.shape)) for name, value in loaded.items())
    last = [stored[f"vqgan.model.{name}"].reshape(value.shape) for name, value in loaded.items()]
    assert not all(value.equal(of_last) for value, of_last in zip(loaded.values(), last, strict=True))


def test_the_head_of_an_aligned_denoiser_is_not_loaded(whole: Path) -> None:
    assert load_denoiser(whole / "diffusion").net.head is None


def test_what_is_off_is_not_named_so_that_older_checkpoints_go_on(whole: Path, packed: Path, tmp_path: Path) -> None:
    config = whole.with_suffix(".yaml")
    off = [f"vqgan.loss.{name}=0" for name in ("perceptual", "equivariance", "r1")]
    plain = [f"run={tmp_path}/off", *off, "vqgan.ema.halflife_samples=0", "vqgan.loop.samples=8"]
    invoke("train", "vqgan", config, *plain)
    identity = CheckpointStore(tmp_path / "off" / "vqgan" / "checkpoints", Alone()).newest(progress_exists=True).state["identity"]
    assert not {"perceptual", "equivariance", "r1"} & identity["loss"].keys() and not {"ema", "features"} & identity.keys()


def test_an_encoder_that_is_wanted_and_missing_is_named_before_anything_is_written(whole: Path, tmp_path: Path) -> None:
    for stage in ("vqgan", "diffusion"):
        run = beside(whole, tmp_path / stage, *(["latents"] if stage == "diffusion" else []))
        with pytest.raises(InputError, match="no trained features"):
            invoke("train", stage, whole.with_suffix(".yaml"), f"run={run}")
        assert not (run / stage).exists()


def test_a_guide_leads_away_from_itself_and_is_part_of_what_a_set_is(whole: Path, tmp_path: Path) -> None:
    config = whole.with_suffix(".yaml")
    worse = beside(whole, tmp_path / "worse", "features", "vqgan", "latents")
    invoke("train", "diffusion", config, f"run={worse}", "diffusion.loop.samples=8", "diffusion.loop.seed=1")
    made = {}
    for name, words in {"plain": [], "led": [f"sample.guide={worse}/diffusion"]}.items():
        run = beside(whole, tmp_path / name, "features", "vqgan", "latents", "diffusion")
        invoke("sample", config, f"run={run}", *words)
        made[name] = read_manifest(run / "synthetic").source["sample"]
    assert made["plain"]["guide"] is None and made["led"]["guidance"] == 2.0
    assert made["led"]["guide"] != made["led"]["denoiser"]
    with pytest.raises(InputError, match="guide"):
        invoke("sample", config, f"run={tmp_path}/led", "sample.count=6")


def test_the_encoder_that_a_loss_looked_at_does_not_judge_what_came_of_it(whole: Path, packed: Path, tmp_path: Path) -> None:
    """Whoever evaluates the set: the run's own stage, which asks the checkpoints, and the command with any two sets."""
    run = beside(whole, tmp_path / "run", "features", "vqgan", "latents", "diffusion")
    invoke("sample", whole.with_suffix(".yaml"), f"run={run}")
    digest = trained_digest(whole / "features")
    assert load_autoencoder(whole / "vqgan").taught_by == load_denoiser(whole / "diffusion").taught_by == digest
    assert read_manifest(run / "synthetic").source["taught_by"] == [digest]
    config = EvaluateConfig(extractors=("learned", "seeded-conv-v1"), pairs=4)
    judged = Evaluation(Dataset(packed), Dataset(run / "synthetic"), config, learned=whole / "features")
    assert "learned" not in judged.judges and "the generator was trained on it" in judged.spaces["learned"].refused
    write_dataset(tmp_path / "others", {"synthetic": Dataset(run / "synthetic").cubes("synthetic")}, source={})  # says nothing of it
    others = Dataset(tmp_path / "others")
    for teachers, refused in (([digest], True), (["0" * 64], False)):
        by_learned = Evaluation(Dataset(packed), others, config, learned=whole / "features", taught_by=teachers).spaces["learned"]
        assert ("trained on it" in (by_learned.refused or "")) == refused


def test_what_a_guide_does_is_linear_in_both_denoisers(whole: Path) -> None:
    denoiser = load_denoiser(whole / "diffusion")
    how = {"seed": 0, "sampler": SamplerConfig(name="flow-euler", steps=1, sigma_min=0.5)}
    worse = replace(denoiser, net=lambda z, t: 0.5 * denoiser.net(z, t))
    plain, half = (latents_of(of, np.arange(2), **how) for of in (denoiser, worse))
    led = latents_of(denoiser, np.arange(2), **how, guide=worse, guidance=3.0)
    torch.testing.assert_close(led, half + 3 * (plain - half), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("words", ["vqgan.loss.equivariance=1.5", "vqgan.loss.r1=-1", "diffusion.alignment=-1", "sample.guidance=0.5"])
def test_settings_out_of_range_are_refused(whole: Path, words: str) -> None:
    with pytest.raises(InputError, match=words.split(".")[-1].split("=")[0] + "|share"):
        invoke("run", whole.with_suffix(".yaml"), words, "--dry-run")


def test_features_come_before_what_may_need_them() -> None:
    names = list(STAGES)
    assert names.index("features") < names.index("vqgan") < names.index("diffusion")


def test_a_pipeline_has_them_wait_for_the_features_they_need(whole: Path) -> None:
    wanted, plain = (load(str(whole.with_suffix(".yaml")), words) for words in ([], ["vqgan.loss.perceptual=0", "diffusion.alignment=0"]))
    for stage in ("vqgan", "diffusion"):
        assert "features" in STAGES[stage].waits_for(wanted) and "features" not in STAGES[stage].waits_for(plain)
