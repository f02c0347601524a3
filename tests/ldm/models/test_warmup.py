"""Warm-up of the codebook: latents pass as they are until its epoch, and the first k-means comes with it."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest

from data_shards.reading.dataset import Dataset
from launch import build
from launch.config import VQGANStage
from launch.tree import load
from ldm.training.engine import Engine


def stage() -> VQGANStage:
    small = load("demo").vqgan
    return replace(
        small,
        codebook=replace(small.codebook, codes=32, kmeans_vectors=512, warmup_epochs=2, kmeans="first"),
        loop=replace(small.loop, batch=4),
        engine=replace(small.engine, tracker="none"),
    )


def test_latents_pass_unquantised_until_the_codebook_starts(dataset: Dataset) -> None:
    trainer, stream, _ = build.vqgan_trainer(stage(), dataset, Engine(stage().engine))
    before = trainer.codebook.codes_KD.clone()
    batch = next(islice(stream.batches(0), 1))
    for epoch, commits in ((0, False), (1, False), (2, True)):
        found = trainer.start_epoch(epoch)
        assert ("kmeans/inertia" in found) == (epoch == 2)
        losses, terms = trainer.losses(batch, epoch * stream.count)
        parts = terms["loss/l1"] * trainer.config.l1 + terms["loss/gradient"] * trainer.config.gradient
        parts = parts + terms["loss/spectral_angle_rad"] * trainer.config.spectral_angle
        commitment = terms["loss/commitment"] * trainer.codebook.config.commitment * commits
        assert float(losses["vqgan"]) == pytest.approx(float(parts + commitment), rel=1e-5)
        moved = trainer.after_step(0, 4, skipped=False)
        assert ("codes/usage" in moved) == commits
        if not commits:
            assert (trainer.codebook.codes_KD == before).all(), "the codebook moved before its start"
    assert "kmeans/inertia" not in trainer.start_epoch(3), "'first' is once, at the end of the warm-up"
