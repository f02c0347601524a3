"""`train features`: a stage like the others, exact over resumes and ranks; its encoder is a feature space that says what it is worth."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from data_shards.errors import InputError
from data_shards.folder import write_cube
from data_shards.packing.pack import pack
from data_shards.reading.dataset import Dataset
from launch.cli.display import Terminal
from launch.run import Run
from launch.stages import STAGES
from launch.stages.evaluate import asked, encoder_digest
from launch.tree import load
from ldm.checkpoints.store import CheckpointStore
from ldm.checkpoints.trained import load_feature_encoder, trained_digest
from ldm.evaluation.features import EXTRACTORS, get_extractor
from ldm.training.clock import TIMINGS
from ldm.training.log import read_log
from tests.conftest import made_cube
from tests.ranks import shared
from tests.runs import NETWORKS

LOOP = {"samples": 64, "batch": 8, "log_every": 8, "checkpoint_every": 8, "validate_samples": 4, "background": False}


@pytest.fixture(scope="module")
def tiny(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("features") / "tiny.yaml"
    section = {**NETWORKS["features"], "loop": LOOP, "optimizer": {"lr": 1.0e-4, "decay": "constant"}, "engine": {"tracker": "none"}}
    path.write_text(yaml.safe_dump({"features": section, "data": {"dataset": str(packed)}}))
    return path


def train(tiny: Path, name: str, *overrides: object, ranks: int = 1, expect: int = 0) -> Path:
    """The run's folder, after `train features` in it."""
    folder = tiny.parent / name
    with tempfile.NamedTemporaryFile("r") as log:
        codes = shared().run(Path(log.name), ["train", "features", tiny, f"run={folder}", *overrides], ranks)
        said = log.read()
    assert codes == [expect] * ranks, said[-3000:]
    (tiny.parent / f"{name}.log").write_text(said)
    return folder


@pytest.fixture(scope="module")
def trained(tiny: Path) -> Path:
    return train(tiny, "whole")


def parts(folder: Path) -> dict[int, list[tuple[str, str]]]:
    return {c.samples: c.parts for c in CheckpointStore(folder / "features" / "checkpoints", comm=None).committed()}


def curve(folder: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if not k.startswith(TIMINGS)} for row in read_log(folder / "features" / "metrics.jsonl")]


def test_three_steps_and_five_after_a_resume_are_eight(trained: Path, tiny: Path) -> None:
    cut = train(tiny, "cut", "features.loop.samples=24")
    assert max(parts(cut)) == 24
    train(tiny, "cut")
    assert parts(cut)[64] == parts(trained)[64] and curve(cut)[-1] == curve(trained)[-1]


def test_two_ranks_train_as_one(trained: Path, tiny: Path) -> None:
    alone, together = curve(trained), curve(train(tiny, "two", ranks=2))
    assert len(alone) == len(together) == 8
    for one, two in zip(alone, together, strict=True):
        assert one == pytest.approx(two, rel=2e-4, abs=1e-6)


def test_the_encoder_learns_and_its_state_is_that_of_the_run(trained: Path) -> None:
    rows = curve(trained)
    assert rows[-1]["loss"] < rows[0]["loss"] and "val/invariance" in rows[-1]
    with pytest.raises(AssertionError, match="another configuration"):
        train(trained.parent / "tiny.yaml", "whole", "features.model.dimension=9")


def test_what_was_probed_stands_beside_it_and_a_rerun_does_nothing(trained: Path, tiny: Path, packed: Path) -> None:
    run = Run(load(str(tiny), [f"run={trained}"]))
    stage = STAGES["features"]
    assert stage.done(run) and (stage.progress(stage.target(run.config)).done, stage.standing(trained)) == (64, "64")
    probed = json.loads((trained / "features.json").read_text())
    assert probed["dataset"] == Dataset(packed).digest and probed["held_out"], "four people are held out, two images of each"
    assert {"learned", "seeded-conv-v1"} <= set(probed["spaces"]) and not {"torchscript"} & {*probed["spaces"], *probed["left_out"]}
    assert probed["spaces"]["learned"]["person"]["value"] is not None
    before = (trained / "features.json").stat().st_mtime_ns
    train(tiny, "whole")
    assert (trained / "features.json").stat().st_mtime_ns == before
    (trained / "features.json").unlink()
    assert not stage.done(run)
    train(tiny, "whole")
    assert json.loads((trained / "features.json").read_text()) == probed


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_network_of_ones_own_that_shall_judge_is_probed_as_the_others_are(
    trained: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(EXTRACTORS, "efficientnet-lite0")  # it would take most of the time
    run_folder = shutil.copytree(trained, tmp_path / "run")
    blind = f"torchscript:{tmp_path / 'blind.pt'}"
    words = [f"run={run_folder}", f"evaluate={{extractors: [learned, '{blind}']}}"]
    torch.jit.script(Blind()).save(blind.partition(":")[2])
    run, stage = Run(load(str(tiny), words)), STAGES["features"]
    assert not stage.done(run)
    said = stage.make(run, Terminal())
    probed = json.loads((run_folder / "features.json").read_text())["spaces"][blind]
    assert stage.done(run) and "does not tell people apart" in probed["refused"] and any(blind in line for line in said)
    asked = {"wavelengths_nm": (), "learned": run_folder / "features"}
    assert get_extractor(blind, run.open(run.dataset).stats, **asked).refused == probed["refused"]
    torch.jit.script(nn.Sequential(Blind(), nn.Identity())).save(blind.partition(":")[2])
    assert not stage.done(run), "another network stands there"


class Blind(nn.Module):
    """It sees a pixel of the field of view's rim alone, whosever it is."""

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        grain_B = (x_BCHW[:, 0, 16, 16] * 1.0e6).frac()
        return torch.stack([grain_B, (grain_B * 777.0).frac()], dim=1)


def test_a_training_that_has_not_ended_is_no_judge_yet(trained: Path, tiny: Path) -> None:
    assert encoder_digest(Run(load(str(tiny), [f"run={trained}"]))) == trained_digest(trained / "features")
    longer = Run(load(str(tiny), [f"run={trained}", "features.loop.samples=128"]))
    assert encoder_digest(longer) is None and "learned" not in asked(longer)
    assert "no learned feature space" in STAGES["evaluate"].cautions(longer)[0]


def test_the_learned_extractor_is_that_encoder_by_its_digest(trained: Path, packed: Path) -> None:
    dataset = Dataset(packed)
    how = {"wavelengths_nm": dataset.wavelengths_nm, "learned": trained / "features"}
    extractor = get_extractor("learned", dataset.stats, **how)
    encoder = load_feature_encoder(trained / "features")
    assert extractor.digest == encoder.digest and encoder.digest[:12] in extractor.name and extractor.dimension == 8
    stored_BCHW = torch.stack([torch.from_numpy(cube.data_CHW.astype("int32")) for cube in dataset.cubes("val")])
    found_BD = extractor(stored_BCHW.float() * dataset.scale + dataset.offset)
    torch.testing.assert_close(found_BD, encoder.net(encoder.normaliser(stored_BCHW)).double(), rtol=1e-4, atol=1e-4)
    probed = json.loads((trained / "features.json").read_text())
    assert extractor.refused == probed["spaces"]["learned"]["refused"]
    with pytest.raises(InputError, match="cubes of 4 bands at 500, 520, 540, 600 nm"):
        get_extractor("learned", dataset.stats, wavelengths_nm=(500.0, 520.0, 540.0, 600.0), learned=trained / "features")
    with pytest.raises(InputError, match="no trained features(.|\n)*retinaforge train features"):
        get_extractor("learned", dataset.stats, learned=trained / "nothing")


def test_weights_that_are_not_finite_are_no_encoder(trained: Path, tmp_path: Path, monkeypatch) -> None:
    folder = shutil.copytree(trained / "features", tmp_path / "features")
    monkeypatch.setattr("ldm.checkpoints.trained.load_strictly", lambda net, state, where: net.last.bias.data.fill_(float("nan")))
    with pytest.raises(InputError, match="not finite"):
        load_feature_encoder(folder)


def test_one_training_image_and_batches_too_small_are_refused_before_anything_is_trained(tiny: Path, tmp_path: Path) -> None:
    for i in range(3):
        write_cube(tmp_path / "loose", made_cube(i, subject=f"s{i}", split="val" if i else "train"))
    pack(tmp_path / "loose", tmp_path / "one")
    train(tiny, "one", f"data.dataset={tmp_path / 'one'}", expect=2)
    assert "1 image in the training split" in (tiny.parent / "one.log").read_text()
    train(tiny, "few", "features.loop.batch=2", expect=2)
    assert "how features vary" in (tiny.parent / "few.log").read_text()
    (tmp_path / "loose" / "c0000.json").write_text((tmp_path / "loose" / "c0000.json").read_text().replace('"train"', '"val"'))
    pack(tmp_path / "loose", tmp_path / "none")
    train(tiny, "none", f"data.dataset={tmp_path / 'none'}", expect=2)
    assert "'train' is empty" in (tiny.parent / "none.log").read_text()
