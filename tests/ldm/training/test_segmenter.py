"""The segmenter's trainer promises: only labelled pixels within the field of view count, and how an image is turned is its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from data_shards.cube import LABELS
from data_shards.reading.batch import Batch
from data_shards.reading.dataset import Dataset
from data_shards.reading.stream import CubeStream
from launch.build_judges import segmenter_trainer
from launch.config import SegmenterStage
from ldm.models.config import SegmenterConfig
from ldm.training.config import EngineConfig, LoopConfig
from ldm.training.engine import Engine
from ldm.training.segmenter import UNKNOWN, SegmenterTrainer, gains, known_classes, turned

STAGE = SegmenterStage(model=SegmenterConfig(channels=2), loop=LoopConfig(samples=32, batch=4))


@pytest.fixture
def trainer(dataset: Dataset) -> SegmenterTrainer:
    return segmenter_trainer(STAGE, dataset, Engine(EngineConfig(tracker="none")))[0]


@pytest.fixture
def batch(dataset: Dataset) -> Batch:
    return next(CubeStream(dataset, "train", batch_size=4, maps=True).batches())


def loss(trainer: SegmenterTrainer, batch: Batch) -> float:
    return float(trainer.losses(batch, 0)[1]["loss/segment"])


def test_pixels_that_nobody_labelled_change_nothing(trainer: SegmenterTrainer, batch: Batch) -> None:
    """Outside the field of view, of a class that is none of ours, and all of an image without a map."""
    classes_BHW = known_classes(batch)
    assert (classes_BHW == UNKNOWN).equal(~batch.fov_BHW)
    outside = replace(batch, labels_BHW=torch.where(batch.fov_BHW, batch.labels_BHW, LABELS["vein"]))
    assert loss(trainer, outside) == loss(trainer, batch)

    uncertain_BHW = batch.labels_BHW.clone()
    uncertain_BHW[:, 10:14, 10:14] = 7
    assert (known_classes(replace(batch, labels_BHW=uncertain_BHW))[:, 10:14, 10:14] == UNKNOWN).all()

    unlabelled = replace(batch, labelled_B=np.array([True, True, True, False]))
    another_BHW = batch.labels_BHW.clone()
    another_BHW[3] = LABELS["artery"]
    assert loss(trainer, unlabelled) == loss(trainer, replace(unlabelled, labels_BHW=another_BHW)) != loss(trainer, batch)


def test_a_batch_without_labels_gives_no_loss_and_no_gradient(trainer: SegmenterTrainer, batch: Batch) -> None:
    of_none = trainer.losses(replace(batch, labels_BHW=None, labelled_B=None), 0)[0]["segmenter"]
    of_none.backward()
    assert of_none.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in trainer.module.parameters())


def test_a_stream_says_which_samples_have_labels(dataset: Dataset) -> None:
    assert dataset.labelled("train")
    assert next(CubeStream(dataset, "train", batch_size=2, maps=True).once()).labelled_B.tolist() == [True, True]
    assert next(CubeStream(dataset, "train", batch_size=2).once()).labelled_B is None


def test_how_an_image_is_turned_depends_on_seed_sample_and_epoch_alone(batch: Batch) -> None:
    cubes_BCHW, bands = batch.cubes_BCHW.float(), batch.cubes_BCHW.shape[1]
    backwards = replace(batch, sample_B=batch.sample_B[::-1], epoch_B=batch.epoch_B[::-1], position_B=batch.position_B[::-1] + 99)
    assert turned(cubes_BCHW, 0, batch).equal(turned(cubes_BCHW.flip(0), 0, backwards).flip(0))
    assert (gains(0, batch, bands) == gains(0, backwards, bands)[::-1]).all()
    later = replace(batch, epoch_B=batch.epoch_B + 1)
    assert (gains(0, batch, bands) != gains(0, later, bands)).all() and (gains(0, batch, bands) != gains(1, batch, bands)).all()
    assert abs(np.log(gains(0, batch, bands))).max() <= 0.1


def test_all_eight_ways_to_turn_a_square_are_met_and_maps_turn_with_cubes(batch: Batch) -> None:
    many = replace(batch, sample_B=np.arange(64), epoch_B=np.zeros(64, int))
    image_BHW = torch.arange(9).reshape(1, 3, 3).expand(64, -1, -1)
    ways = turned(image_BHW, 0, many)
    assert len({tuple(way.flatten().tolist()) for way in ways}) == 8
    assert turned(image_BHW[:, None].expand(-1, 2, -1, -1), 0, many)[:, 1].equal(ways)
    oblong_BHW = torch.arange(6).reshape(1, 2, 3).expand(64, -1, -1)
    assert turned(oblong_BHW, 0, many).shape == (64, 2, 3)
