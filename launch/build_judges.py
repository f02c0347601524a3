"""Configuration → the networks that judge images, the feature encoder and the segmenter, and what trains them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_shards.errors import InputError
from data_shards.reading.config import ReadConfig
from data_shards.reading.dataset import Dataset
from data_shards.reading.stream import CubeStream
from launch.build import check_bands, stream
from launch.config import CopiesStage, FeaturesStage, SegmenterStage
from launch.tree import to_tree
from ldm.checkpoints.trained import describe_data
from ldm.evaluation.sets import common_fov, evenly
from ldm.models.config import CopyEncoderConfig, FeatureEncoderConfig
from ldm.models.copy_encoder import CopyEncoder, begin_apart, seen
from ldm.models.feature_encoder import FeatureEncoder, begin_white
from ldm.models.segmenter import SegmenterNet, check_size
from ldm.models.vqgan import initialised
from ldm.normalise import CubeNormaliser, within
from ldm.training.copies import CopyTrainer
from ldm.training.copy_views import copy_of
from ldm.training.engine import Engine
from ldm.training.features import FeatureTrainer, ViewsTrainer
from ldm.training.segmenter import SegmenterTrainer

ENCODERS = {FeatureEncoderConfig: FeatureEncoder, CopyEncoderConfig: CopyEncoder}
VIEWS = 12  # of each photograph, by which the copy-detection head begins


def encoder_module(stage: FeaturesStage | CopiesStage, bands: int, name: str) -> FeatureEncoder | CopyEncoder:
    """A freshly initialised encoder for cubes of so many bands.

    Args:
        name: of the stage.

    Raises:
        InputError: the configuration states another number of bands.
    """
    check_bands(f"{name}.model", stage.model.bands, bands)
    model = replace(stage.model, bands=bands)
    return initialised(lambda: ENCODERS[type(model)](model), stage.loop.seed)


def features_trainer(
    stage: FeaturesStage, dataset: Dataset, engine: Engine, read: ReadConfig = ReadConfig()
) -> tuple[FeatureTrainer, CubeStream, dict[str, Any]]:
    """Trainer of the feature encoder, its stream, and the identity that its checkpoints carry.

    Raises:
        InputError: latents instead of cubes; a training split of fewer than two images.
    """

    def begin(encoder: FeatureEncoder, normaliser: CubeNormaliser, batches: Iterator[Counts], mean_C: Tensor) -> None:
        begin_white(encoder, (normaliser(counts_BCHW + normaliser.log_zero) for counts_BCHW, _ in batches))

    return _encoder_trainer("features", FeatureTrainer, begin, 2 * stage.model.dimension, stage, dataset, engine, read)


def copies_trainer(
    stage: CopiesStage, dataset: Dataset, engine: Engine, read: ReadConfig = ReadConfig()
) -> tuple[CopyTrainer, CubeStream, dict[str, Any]]:
    """As `features_trainer`, of the copy-detection head."""
    how = {"seed": stage.loop.seed, "config": stage.views}
    fov_HW = torch.from_numpy(common_fov(dataset, "train"))

    def begin(encoder: CopyEncoder, normaliser: CubeNormaliser, batches: Iterator[Counts], mean_C: Tensor) -> None:
        def views(counts_BCHW: Tensor, sample_B: np.ndarray) -> list[Tensor]:
            first = ({"view": 2 + number, "mean_C": mean_C, **how} for number in range(VIEWS))  # 0 and 1 are the training's own
            copies = (copy_of(counts_BCHW, sample_B, np.zeros_like(sample_B), **one) for one in first)
            return [seen(within(copy_BCHW, fov_HW), normaliser) for copy_BCHW in copies]

        begin_apart(encoder, (views(*counts) for counts in batches))

    return _encoder_trainer("copies", CopyTrainer, begin, stage.begin_samples, stage, dataset, engine, read)


Counts = tuple[Tensor, np.ndarray]
"""Cubes in stored counts above reflectance 0, within the field of view, and their numbers."""


def _encoder_trainer(
    name: str,
    kind: type[ViewsTrainer],
    begin: Callable[..., None],
    most: int,
    stage: FeaturesStage | CopiesStage,
    dataset: Dataset,
    engine: Engine,
    read: ReadConfig,
) -> tuple[Any, CubeStream, dict[str, Any]]:
    """Args:
    begin: sets the encoder's last layer, of its normaliser, some training images and the mean counts. most: how many of them.
    """
    dataset.expect("cube", mend="retinaforge data import")
    count = dataset.count("train")
    if count < 2:
        raise InputError("1 image in the training split", where=dataset.path, expected="2 or more: features are what images differ in")
    encoder = encoder_module(stage, dataset.shape[0], name).to(engine.device)
    normaliser = CubeNormaliser(dataset.stats, scale=dataset.scale, offset=dataset.offset).to(engine.device)
    first = CubeStream(dataset, "train", batch_size=min(8, stage.loop.batch), read=read, device=engine.device)
    fov_HW = torch.from_numpy(common_fov(dataset, "train"))
    mean_C = (torch.tensor(dataset.stats.mean_C) - dataset.offset) / dataset.scale - normaliser.log_zero
    some = ((within(batch.cubes_BCHW.float() - normaliser.log_zero, fov_HW), batch.sample_B) for batch in first.each(evenly(count, most)))
    begin(encoder, normaliser, some, mean_C)
    trainer = kind(
        engine,
        encoder,
        normaliser,
        mean_C=mean_C,
        fov_HW=fov_HW,
        views=stage.views,
        loss=stage.loss,
        optimizer=stage.optimizer,
        ema=stage.ema,
        total=stage.loop.samples,
        seed=stage.loop.seed,
    )
    identity = {"stage": name, "model": {"kind": encoder.config.kind, **to_tree(encoder.config)}, "seed": stage.loop.seed}
    identity |= {"views": to_tree(stage.views), "loss": to_tree(stage.loss), "data": describe_data(dataset.manifest)}
    return trainer, stream(dataset, stage.loop, engine, read, maps=False), identity


def segmenter_module(stage: SegmenterStage, bands: int) -> SegmenterNet:
    """A freshly initialised segmenter for cubes of so many bands.

    Raises:
        InputError: the configuration states another number of bands.
    """
    check_bands("segmenter.model", stage.model.bands, bands)
    return initialised(lambda: SegmenterNet(replace(stage.model, bands=bands)), stage.loop.seed)


def segmenter_trainer(
    stage: SegmenterStage, dataset: Dataset, engine: Engine, read: ReadConfig = ReadConfig()
) -> tuple[SegmenterTrainer, CubeStream, dict[str, Any]]:
    """Trainer, its stream, and the identity that its checkpoints carry."""
    dataset.expect("cube", mend="retinaforge data import")
    check_size(*(stage.crop or side for side in dataset.shape[1:]), where=dataset.path)
    net = segmenter_module(stage, dataset.shape[0])
    trainer = SegmenterTrainer(
        engine,
        net,
        CubeNormaliser(dataset.stats, scale=dataset.scale, offset=dataset.offset),
        optimizer=stage.optimizer,
        ema=stage.ema,
        total=stage.loop.samples,
        seed=stage.loop.seed,
    )
    identity = {"stage": "segmenter", "model": to_tree(net.config), "seed": stage.loop.seed, "crop": stage.crop}
    return (
        trainer,
        stream(dataset, stage.loop, engine, read, maps=True, crop=stage.crop),
        {**identity, "data": describe_data(dataset.manifest)},
    )
