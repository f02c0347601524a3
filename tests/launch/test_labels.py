"""The stage: it learns, resumes bit for bit, is left out where nothing is labelled, and what it labels is in the set."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from monai.networks.nets.basic_unet import BasicUNet
from safetensors.torch import load_file

from data_shards.cube import LABELS, Cube
from data_shards.errors import InputError
from data_shards.folder import read_folder
from data_shards.packing.pack import write_dataset
from data_shards.phantom.eyes import Phantoms
from data_shards.phantom.persons import PhantomConfig
from data_shards.reading.dataset import Dataset
from launch.run import Run
from launch.stages import STAGES
from launch.tree import from_tree
from ldm.checkpoints.segmenter import load_segmenter
from ldm.checkpoints.store import CheckpointStore
from ldm.comm import Alone
from ldm.training.log import read_log
from tests.commands import invoke
from tests.conftest import made_cube

LOOP = {"samples": 480, "batch": 4, "log_every": 16, "checkpoint_every": 240, "validate_samples": 2}
LEARNS = {"model": {"channels": 8}, "optimizer": {"lr": 8.0e-3, "decay": "cosine"}, "loop": LOOP, "ema": {"halflife_samples": 40}}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve eyes at 48², four bands, two of the six people held out."""
    out = tmp_path_factory.mktemp("phantoms")
    config = PhantomConfig(size=48, wavelengths_nm=(555.0, 610.0, 730.0, 845.0))
    units = Phantoms(config, out / "loose", subjects=6, visits=1)
    units.complete()
    cubes = list(read_folder(out / "loose"))
    held_out = {cube.meta.subject_id for cube in cubes[-4:]}
    splits = {
        "train": [cube for cube in cubes if cube.meta.subject_id not in held_out],
        "val": [cube for cube in cubes if cube.meta.subject_id in held_out],
    }
    write_dataset(out / "set", splits, source={})
    return out / "set"


def configured(folder: Path, dataset: Path, **segmenter: object) -> Path:
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump({"run": str(folder), "data": {"dataset": str(dataset)}, "segmenter": {**LEARNS, **segmenter}}))
    return path


def test_it_learns_and_says_how_well(phantoms: Path, tmp_path: Path) -> None:
    said = invoke("train", "segmenter", configured(tmp_path / "run", phantoms))
    rows = read_log(tmp_path / "run" / "segmenter" / "metrics.jsonl")
    assert rows[-1]["loss/segment"] < 0.7 * rows[0]["loss/segment"]
    result = STAGES["segmenter"].result(Run(from_tree(yaml.safe_load((tmp_path / "run.yaml").read_text()))))
    cubes = list(Dataset(phantoms).cubes("val"))
    for name, structure in result.structures.items():  # to call all of the field a vein, of which a share s is one, gives 2 s / (1 + s)
        share = np.mean([(cube.labels_HW == LABELS[name])[cube.fov_HW].mean() for cube in cubes])
        assert structure.dice > 2 * (2 * share / (1 + share)), (name, structure, share)
    assert result.onh.dice > 0.6 and result.people == 2 and f"vein {result.vein.dice:.3f}" in said
    segmenter = load_segmenter(tmp_path / "run" / "segmenter")
    assert segmenter.digest == result.segmenter
    cube = torch.from_numpy(np.stack([cube.data_CHW for cube in cubes]))
    together = segmenter(cube)
    assert together[2:].equal(segmenter(cube[2:])), "what stands beside an image does not touch its labels"
    fov = torch.from_numpy(cubes[0].fov_HW)
    assert not segmenter(cube, fov)[:, ~fov].any()

    invoke("ckpt", "export", tmp_path / "run", tmp_path / "out")
    about = json.loads((tmp_path / "out" / "segmenter" / "segmenter.json").read_text())
    plain = BasicUNet(spatial_dims=2, in_channels=4, out_channels=4, features=about["features"]).eval()
    plain.load_state_dict(load_file(tmp_path / "out" / "segmenter" / "segmenter.safetensors"))
    assert plain(segmenter.normaliser(cube[:1])).argmax(1).equal(together[:1].long()), "MONAI's own network finds the same"


def test_a_resumed_training_is_that_of_an_undisturbed_one(phantoms: Path, tmp_path: Path) -> None:
    loop = {**LOOP, "samples": 48, "checkpoint_every": 16}
    optimizer = {"lr": 1.0e-3, "decay_samples": 48, "decay": "cosine"}
    small = {"model": {"channels": 2}, "optimizer": optimizer}
    invoke("train", "segmenter", configured(tmp_path / "whole", phantoms, **small, loop=loop))
    for samples in (16, 48):
        invoke("train", "segmenter", configured(tmp_path / "twice", phantoms, **small, loop={**loop, "samples": samples}))
    stores = (CheckpointStore(tmp_path / name / "segmenter" / "checkpoints", Alone()) for name in ("whole", "twice"))
    whole, twice = (store.newest(progress_exists=True) for store in stores)
    assert whole.parts == twice.parts and whole.samples == 48


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unlabelled") / "set"
    cubes: list[Cube] = [replace(made_cube(i), labels_HW=None) for i in range(8)]
    write_dataset(out, {"train": cubes[:6], "val": cubes[6:]}, source={})
    return out


def test_without_label_maps_it_is_left_out_and_asked_for_it_is_refused(unlabelled: Path, phantoms: Path, tmp_path: Path) -> None:
    stage = STAGES["segmenter"]
    run = Run(from_tree({"run": str(tmp_path / "run"), "data": {"dataset": str(unlabelled)}}))
    assert stage.left_out(run) == "the training images have no label maps"
    assert stage.left_out(Run(from_tree({"run": str(tmp_path / "run"), "data": {"dataset": str(phantoms)}}))) is None
    assert stage.left_out(Run(from_tree({"run": str(tmp_path / "other")}))) is None, "phantoms will have label maps"
    with pytest.raises(InputError, match="the training images have no label maps"):
        invoke("train", "segmenter", configured(tmp_path / "run", unlabelled))
    assert not (tmp_path / "run" / "segmenter" / "checkpoints").exists()


def test_a_pipeline_says_what_it_leaves_out(unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"preset": str(configured(tmp_path / "run", unlabelled))}))
    text = invoke("submit", "--dry-run", "--", "pipeline", "p.yaml")
    assert "# ---- vqgan" in text and "# ---- segmenter" not in text
    assert "# segmenter is left out: the training images have no label maps" in text
