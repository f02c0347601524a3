"""`train copies`: a stage like the others, exact over resumes and ranks; the audit finds by its head what pixels do not show."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import ndimage
from typer.testing import CliRunner

from data_shards.errors import InputError
from data_shards.packing.pack import write_dataset
from data_shards.reading.dataset import Dataset
from launch.cli import app
from launch.run import Run
from launch.stages import STAGES
from launch.stages.audit import wanted
from launch.tree import load
from ldm.authenticity.audit import AuditConfig, audit
from ldm.checkpoints.store import CheckpointStore
from ldm.checkpoints.trained import trained_digest
from ldm.training.clock import TIMINGS
from ldm.training.log import read_log
from tests.conftest import made_cube
from tests.ranks import shared
from tests.runs import NETWORKS

LOOP = {"samples": 64, "batch": 8, "log_every": 8, "checkpoint_every": 8, "validate_samples": 4, "background": False}
TURNED = {f"turned{i}": i for i in (1, 4, 9, 14)}
"""Planted copy → the training image it is of."""


@pytest.fixture(scope="module")
def tiny(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("copies") / "tiny.yaml"
    section = {**NETWORKS["copies"], "loop": LOOP, "optimizer": {"lr": 1.0e-4, "decay": "constant"}, "engine": {"tracker": "none"}}
    path.write_text(yaml.safe_dump({"copies": section, "data": {"dataset": str(packed)}}))
    return path


def train(tiny: Path, name: str, *overrides: object, ranks: int = 1) -> Path:
    """The run's folder, after `train copies` in it."""
    folder = tiny.parent / name
    with tempfile.NamedTemporaryFile("r") as log:
        codes = shared().run(Path(log.name), ["train", "copies", tiny, f"run={folder}", *overrides], ranks)
        said = log.read()
    assert codes == [0] * ranks, said[-3000:]
    return folder


@pytest.fixture(scope="module")
def trained(tiny: Path) -> Path:
    return train(tiny, "whole")


def parts(folder: Path) -> dict[int, list[tuple[str, str]]]:
    return {c.samples: c.parts for c in CheckpointStore(folder / "copies" / "checkpoints", comm=None).committed()}


def curve(folder: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if not k.startswith(TIMINGS)} for row in read_log(folder / "copies" / "metrics.jsonl")]


def test_three_steps_and_five_after_a_resume_are_eight(trained: Path, tiny: Path) -> None:
    cut = train(tiny, "cut", "copies.loop.samples=24")
    assert max(parts(cut)) == 24
    train(tiny, "cut")
    assert parts(cut)[64] == parts(trained)[64] and curve(cut)[-1] == curve(trained)[-1]


def test_two_ranks_train_as_one(trained: Path, tiny: Path) -> None:
    alone, together = curve(trained), curve(train(tiny, "two", ranks=2))
    assert len(alone) == len(together) == 8 and "val/distance" in alone[-1]
    for one, two in zip(alone, together, strict=True):
        assert one == pytest.approx(two, rel=2e-4, abs=1e-6)


def test_the_audit_of_a_run_searches_its_space_once_it_is_trained(trained: Path, tiny: Path) -> None:
    run = Run(load(str(tiny), [f"run={trained}"]))
    assert STAGES["copies"].done(run) and wanted(run) == ("pooled", "contrast", "copies")
    assert wanted(Run(load(str(tiny), [f"run={trained}", "copies.loop.samples=128"]))) == ("pooled", "contrast")
    assert wanted(Run(load(str(tiny), [f"run={trained.parent / 'nothing'}"]))) == ("pooled", "contrast")
    assert "copies" in STAGES["audit"].waits_for(run.config)


def turned(i: int, degrees: float) -> np.ndarray:
    """Training image i about its middle, as stored counts."""
    cube = made_cube(i, split="train")
    return ndimage.rotate(cube.data_CHW.astype(float), degrees, (1, 2), reshape=False, order=1).round().clip(0, 4095).astype(np.uint16)


def test_a_turned_copy_that_down_sampled_pixels_miss_is_found(tiny: Path, tmp_path: Path) -> None:
    cubes = {"train": [made_cube(i) for i in range(32)], "val": [made_cube(i + 100, subject=f"v{i:02d}") for i in range(60)]}
    write_dataset(tmp_path / "real", cubes, source={})
    copies = [replace(made_cube(i), data_CHW=turned(i, 70.0 + 40 * i)) for i in TURNED.values()]
    named = zip([f"new{i:02d}" for i in range(12)] + list(TURNED), [made_cube(i + 900) for i in range(12)] + copies, strict=True)
    planted = [replace(cube, meta=replace(cube.meta, key=key, subject_id="synthetic"), fov_HW=None, labels_HW=None) for key, cube in named]
    write_dataset(tmp_path / "planted", {"synthetic": planted}, source={})
    words = ["copies.loop.validate_samples=0", "copies.model={channels: 16, levels: 3, dimension: 16, side: 0}"]
    head = train(tiny, "larger", f"data.dataset={tmp_path / 'real'}", *words) / "copies"
    sets = Dataset(tmp_path / "real"), Dataset(tmp_path / "planted")
    found = audit(*sets, AuditConfig(spaces=("pooled", "copies")), copies=head).descriptors
    assert trained_digest(head)[:12] in found["copies"].space
    nearest = {name: {pair.synthetic_key: pair.train_index for pair in of.closest} for name, of in found.items()}
    print(nearest)
    assert {key: nearest["copies"].get(key) for key in TURNED} == TURNED
    assert not {key for key, i in TURNED.items() if nearest["pooled"].get(key) == i}


def test_a_folder_of_another_stage_is_refused_and_so_is_none(trained: Path, packed: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "made", {"synthetic": [replace(made_cube(900), fov_HW=None)]}, source={})
    sets = Dataset(packed), Dataset(tmp_path / "made")
    with pytest.raises(InputError, match="without an encoder(.|\n)*retinaforge train copies"):
        audit(*sets, AuditConfig(spaces=("copies",)))
    with pytest.raises(InputError, match="stage 'copies'(.|\n)*one of stage 'features'"):
        audit(*sets, AuditConfig(spaces=("learned",)), learned=trained / "copies")
    words = ["--real", packed, "--synthetic", tmp_path / "made", "--copies", trained / "copies", "--out", tmp_path / "audit.json"]
    shown = CliRunner().invoke(app, ["audit", *map(str, words)])
    assert shown.exit_code == 0, shown.output
    spaces = json.loads((tmp_path / "audit.json").read_text())["descriptors"]
    assert list(spaces) == ["pooled", "contrast", "copies"] and spaces["copies"]["space"].startswith("copies ")
