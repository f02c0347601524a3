"""What a camera writes outside the field of view is of no eye: no feature, no pair and no training sees it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data_shards.packing.pack import write_dataset
from data_shards.reading.dataset import Dataset
from launch.build_judges import features_trainer
from launch.config import FeaturesStage
from ldm.evaluation.embedding import computed_features
from ldm.evaluation.evaluate import evaluate
from ldm.evaluation.evaluation_result import EvaluateConfig
from ldm.evaluation.features import get_extractor
from ldm.evaluation.probes import features_of
from ldm.evaluation.sets import Part, common_fov
from ldm.models.config import FeatureEncoderConfig
from ldm.training.engine import Engine, EngineConfig
from tests.conftest import made_cube

SIZE, SEEDED = 40, "seeded-conv-v1"


def packed(folder: Path, *, dark_counts: float, **images: int) -> Dataset:
    """People of every split; outside their field of view stands a noisy pedestal."""
    rng, first, splits = np.random.default_rng(0), 0, {}
    for split, count in images.items():
        cubes = []
        for i in range(first, first + count):
            cube = made_cube(i, size=SIZE, subject=f"s{i}")
            outside = np.round(rng.normal(dark_counts, dark_counts / 4, cube.data_CHW.shape)).clip(0).astype(np.uint16)
            cubes.append(replace(cube, data_CHW=np.where(cube.fov_HW, cube.data_CHW, outside)))
        splits[split], first = cubes, first + count
    write_dataset(folder, splits, source={})
    return Dataset(folder)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[Dataset]:
    """Without dark counts, and with them."""
    folder = tmp_path_factory.mktemp("pedestal")
    return [packed(folder / str(dark), dark_counts=dark, train=8, val=6, test=6) for dark in (0.0, 60.0)]


def test_dark_counts_of_the_camera_are_no_difference_to_a_set_without_them(sets: list[Dataset], tmp_path: Path) -> None:
    cubes = [replace(made_cube(100 + i, size=SIZE), fov_HW=None) for i in range(8)]
    write_dataset(tmp_path / "synthetic", {"synthetic": cubes}, source={})
    without, with_them = (evaluate(real, Dataset(tmp_path / "synthetic"), EvaluateConfig(pairs=6)) for real in sets)
    assert with_them.spaces == without.spaces and with_them.spaces[SEEDED].frechet.value > 0
    assert with_them.ms_ssim == without.ms_ssim and with_them.ms_ssim.difference > 0


def test_probes_and_the_map_of_a_report_see_the_field_of_view_alone(sets: list[Dataset]) -> None:
    images, by_probe, by_map = [("val", i) for i in range(6)], [], []
    for real in sets:
        extractor, part = get_extractor(SEEDED, real.stats), Part.of(real, "val")
        by_probe.append(features_of({SEEDED: extractor}, real, images, "cpu", iter)[SEEDED])
        by_map.append(computed_features(part, extractor, fov_HW=common_fov(real, "train"), device="cpu"))
    for found_ND in (*by_probe, *by_map):
        np.testing.assert_array_equal(found_ND, by_probe[0])


def test_an_encoder_learns_of_the_field_of_view_alone(sets: list[Dataset]) -> None:
    stage = FeaturesStage(model=FeatureEncoderConfig(channels=8, levels=2, layers=1, dimension=4, norm_groups=4))
    losses, heads = [], []
    for real in sets:
        trainer, train, _ = features_trainer(stage, real, Engine(EngineConfig(tracker="none")))
        losses.append(trainer.losses(train.read(np.arange(4)), 0)[0]["encoder"])
        heads.append(trainer.module.last.weight.detach())
    torch.testing.assert_close(*heads, rtol=0, atol=0)
    torch.testing.assert_close(*losses, rtol=0, atol=0)
