"""The yardsticks beside a run's set: people held out of training, one number of images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from data_shards.packing.pack import write_dataset
from data_shards.reading.dataset import Dataset
from launch.headline import HEADLINE
from launch.run import Run, record
from launch.stages import STAGES
from launch.stages.evaluate import FrechetOverBaseline, HeldOut, out_of_reach
from launch.tree import load
from ldm.evaluation.evaluate import Evaluation
from ldm.evaluation.evaluation_result import EvaluateConfig
from ldm.evaluation.frechet import frechet_distance
from ldm.evaluation.sets import Part, evenly
from ldm.evaluation.whitening import whitening
from tests.conftest import made_cube

SPACE = "seeded-conv-v1"


def synthetic(folder: Path, first: int, count: int) -> Dataset:
    cubes = (replace(cube, meta=replace(cube.meta, subject_id="synthetic")) for cube in map(made_cube, range(first, first + count)))
    write_dataset(folder, {"synthetic": cubes}, source={})
    return Dataset(folder)


def test_the_ratio_is_measured_against_all_people_held_out_and_never_against_the_training_split(packed: Path, tmp_path: Path) -> None:
    real = Dataset(packed)
    sets = {"samples": synthetic(tmp_path / "a", 500, 12), "gaussian_latents": synthetic(tmp_path / "b", 700, 8)}
    judged = HeldOut.of(real, *sets.values())
    measured = Evaluation(real, sets["samples"], EvaluateConfig(pairs=4), also=judged.parts)
    measured.complete()
    found = judged.frechet(measured, SPACE)
    assert (found.images, found.people, found.n, found.reason) == (8, 4, 8, None)

    def features(dataset: Dataset, split: str, sample_N: np.ndarray) -> np.ndarray:
        return measured.whitening(SPACE, judged.train)(measured.features(Part(dataset=dataset, split=split, sample_N=sample_N), SPACE))

    held_out_ND = np.concatenate([features(real, split, np.arange(4)) for split in ("val", "test")])
    baseline = frechet_distance(held_out_ND, features(sets["gaussian_latents"], "synthetic", np.arange(8)))
    samples = frechet_distance(held_out_ND, features(sets["samples"], "synthetic", evenly(12, 8)))
    assert found.ratio == pytest.approx(samples / baseline)


def test_the_floor_of_the_ratio_is_half_of_the_training_people_in_features_that_the_other_half_whitens(
    packed: Path, tmp_path: Path
) -> None:
    real, sets = Dataset(packed), (synthetic(tmp_path / "a", 500, 12), synthetic(tmp_path / "b", 700, 8))
    judged = HeldOut.of(real, *sets)
    assert not set(judged.floor.units()) & set(judged.whitens_floor.units())
    measured = Evaluation(real, sets[0], EvaluateConfig(pairs=4), also=judged.parts)
    measured.complete()
    found = judged.frechet(measured, SPACE)
    white = whitening(measured.features(judged.whitens_floor, SPACE))
    held_out_ND = white(np.concatenate([measured.features(part, SPACE) for part in judged.held_out]))
    floor, baseline = (
        frechet_distance(held_out_ND, white(measured.features(part, SPACE))) for part in (judged.floor, judged.gaussian_latents)
    )
    assert found.n == found.n_floor == 8 and found.ratio_floor == pytest.approx(floor / baseline)


@pytest.mark.parametrize(("ratio_floor", "n_floor", "left_out"), [(0.2, 8, False), (0.63, 8, True), (0.63, 4, False)])
def test_a_ratio_that_training_images_themselves_do_not_reach_is_left_out(ratio_floor: float, n_floor: int, left_out: bool) -> None:
    """Fewer training images than samples come to more, and show nothing."""
    found = out_of_reach(FrechetOverBaseline(ratio_floor=ratio_floor, images=8, people=4, n=8, n_floor=n_floor))
    assert (found is not None) == left_out and (not left_out or "training images come to 0.63" in found)


class Means(nn.Module):
    """A network of one's own, of so much weight."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return torch.cat([x_BCHW.mean((2, 3)), self.weight * x_BCHW.std((2, 3))], dim=1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_result_by_a_network_that_was_replaced_since_is_made_anew(packed: Path, tmp_path: Path) -> None:
    file = tmp_path / "net.pt"
    torch.jit.script(Means(1.0)).save(str(file))
    names = ["seeded-conv-v1", f"torchscript:{file}"]
    run = Run(load("demo", [f"run={tmp_path / 'run'}", f"data.dataset={packed}", f"evaluate={{pairs: 4, extractors: {names}}}"]))
    made = synthetic(run.synthetic, 500, 8)
    config = EvaluateConfig(extractors=tuple(names), pairs=4)
    Evaluation(run.open(run.dataset), made, config, run.folder / "evaluate.json").complete()
    record(run, **{figure.key: 1.0 for figure in HEADLINE})
    stage = STAGES["evaluate"]
    assert stage.done(run)
    torch.jit.script(Means(2.0)).save(str(file))
    assert not stage.done(run)
    file.unlink()
    assert stage.done(run), "what it said stands, and nothing could be made anew"
