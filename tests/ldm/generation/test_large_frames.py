"""Frames too large for one pass: latents, reconstructions and decoded cubes are those of the whole pass, but for rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from data_shards.reading.dataset import Dataset
from ldm.checkpoints.trained import Autoencoder
from ldm.evaluation.reconstruction import reconstruction
from ldm.generation.encode import encode_dataset
from ldm.models import striped
from ldm.models.config import CodebookConfig, VQGANConfig
from ldm.models.other_codebooks import codebook_from
from ldm.models.vqgan import VQGAN, initialised
from ldm.normalise import CubeNormaliser


@pytest.fixture
def autoencoder(dataset: Dataset) -> Autoencoder:
    config = VQGANConfig(bands=4, compression=4, latent_channels=4, channels=8, layers=1, norm_groups=4)
    return Autoencoder(
        vqgan=initialised(lambda: VQGAN(config), 0).eval(),
        codebook=codebook_from(CodebookConfig(codes=16), channels=4, seed=0),
        normaliser=CubeNormaliser(dataset.stats, scale=dataset.scale, offset=dataset.offset),
        fov_HW=torch.eye(32).bool(),
        data={"wavelengths_nm": list(dataset.wavelengths_nm)},
        digest="a" * 64,
    )


def test_latents_and_reconstructions_are_those_of_the_whole_pass_frame_by_frame(
    dataset: Dataset, autoencoder: Autoencoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode_dataset(dataset, autoencoder, tmp_path / "whole")
    whole = reconstruction(dataset, autoencoder)
    frames = []
    in_stripes = striped.encode_in_stripes
    monkeypatch.setattr(striped, "WHOLE_PIXELS", 32 * 32 - 1)
    monkeypatch.setattr(striped, "encode_in_stripes", lambda *words, **how: frames.append(len(words[1])) or in_stripes(*words, **how))
    encode_dataset(dataset, autoencoder, tmp_path / "stripes")
    assert frames == [1] * 40, "a batch of large frames was read at once"
    for split in ("train", "val"):
        for i in range(dataset.count(split)):
            a, b = (Dataset(tmp_path / name).cube(split, i) for name in ("whole", "stripes"))
            assert a.meta == b.meta and np.allclose(a.data_CHW, b.data_CHW, atol=1e-4)
    assert reconstruction(dataset, autoencoder).psnr_db == pytest.approx(whole.psnr_db, abs=0.05)


def test_frames_of_another_size_than_the_training_set_s_are_decoded_and_nothing_of_them_is_cut_off(autoencoder: Autoencoder) -> None:
    z_BDHW = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    as_trained = autoencoder.decode(z_BDHW, quantise=True)
    assert not as_trained[:, :, ~autoencoder.fov_HW].any() and as_trained[:, :, autoencoder.fov_HW].any()
    larger = autoencoder.decode(z_BDHW.repeat(1, 1, 2, 1), quantise=True)
    assert larger.shape == (1, 4, 64, 32) and larger.dtype == torch.uint16
    assert (larger.int() > 0).float().mean() > 0.5
