"""Latents of cubes and, where they are asked for, of mirrored cubes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data_shards.errors import InputError
from data_shards.reading.dataset import Dataset
from launch.stages.diffusion import Diffusion
from launch.tree import load
from ldm.checkpoints import trained
from ldm.checkpoints.trained import Autoencoder, cube_normaliser, describe_data
from ldm.generation.encode import encode_dataset
from ldm.models.config import VQGANConfig
from ldm.models.vqgan import VQGAN, initialised


@pytest.fixture(scope="module")
def autoencoder(packed: Path) -> Autoencoder:
    """As it is before training: its convolutions are as far from symmetric as ever."""
    data = describe_data(Dataset(packed).manifest)
    config = VQGANConfig(bands=4, compression=4, latent_channels=4, channels=16, layers=1, norm_groups=4)
    vqgan = initialised(lambda: VQGAN(config), 0).eval()
    fov_HW = torch.ones(32, 32, dtype=torch.bool)
    return Autoencoder(vqgan=vqgan, codebook=None, normaliser=cube_normaliser(data), fov_HW=fov_HW, data=data, digest="a" * 64)


def test_each_training_cube_has_a_second_latent_of_its_mirror_image(autoencoder: Autoencoder, dataset: Dataset, tmp_path: Path) -> None:
    encode_dataset(dataset, autoencoder, tmp_path / "plain")
    encode_dataset(dataset, autoencoder, tmp_path / "both", flip=True)
    plain, both = Dataset(tmp_path / "plain"), Dataset(tmp_path / "both")
    assert (both.count("train"), both.count("val"), both.count("test")) == (
        2 * plain.count("train"),
        plain.count("val"),
        plain.count("test"),
    )
    assert both.splits["train"].subjects == plain.splits["train"].subjects

    latents = {cube.meta.key: cube for cube in both.cubes("train")}
    cubes = {cube.meta.key: cube for cube in dataset.cubes("train")}
    for cube in plain.cubes("train"):
        key, mirrored = cube.meta.key, latents[f"{cube.meta.key}-m"]
        assert np.array_equal(latents[key].data_CHW, cube.data_CHW) and mirrored.meta.subject_id == cube.meta.subject_id
        stored_CHW, fov_HW = (torch.from_numpy(np.ascontiguousarray(a[..., ::-1])) for a in (cubes[key].data_CHW, cubes[key].fov_HW))
        with torch.no_grad():
            of_mirrored = autoencoder.vqgan.encode(autoencoder.normaliser(stored_CHW[None], fov_HW[None]))[0].numpy()
        np.testing.assert_allclose(mirrored.data_CHW, of_mirrored, atol=1e-5)
        assert np.abs(mirrored.data_CHW - cube.data_CHW[..., ::-1]).max() > 1e-2, "no encoder is equivariant"
    mean_C = np.mean([cube.data_CHW for cube in latents.values()], axis=(0, 2, 3))
    np.testing.assert_allclose(both.stats.mean_C, mean_C, atol=1e-5)


def test_without_mirrored_ones_a_folder_says_what_it_always_said_and_takes_no_others(
    autoencoder: Autoencoder, dataset: Dataset, tmp_path: Path
) -> None:
    asked = {"encode": {"dataset": dataset.digest, "autoencoder": "a" * 64}}
    for flip, said in ((False, asked), (True, {"encode": {**asked["encode"], "flip": True}})):
        out = tmp_path / str(flip)
        encode_dataset(dataset, autoencoder, out, flip=flip)
        assert Dataset(out).manifest.source == said == json.loads((out / "request.json").read_bytes())
        with pytest.raises(InputError, match="other latents stand here"):
            encode_dataset(dataset, autoencoder, out, flip=not flip)


def test_a_denoiser_is_not_trained_on_latents_that_lack_or_have_mirrored_ones_unasked(
    latents: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trained, "trained_digest", lambda _: "a" * 64)

    def check(*settings: str) -> None:
        config = load("demo", [f"run={tmp_path}", *settings])
        Diffusion().check_data(SimpleNamespace(folder=tmp_path, vqgan=tmp_path / "vqgan", latents=latents.path, config=config))

    check()
    with pytest.raises(InputError, match="without those of mirrored cubes") as refused:
        check("diffusion.flip=true")
    assert "diffusion.flip=false" in refused.value.expected and f"mv {latents.path}" in refused.value.mend
