"""The gate before diffusion: what is dead is counted, what is not wanted is said, and memory does not grow with the set."""

from __future__ import annotations

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch

from data_shards.cube import Cube, CubeMeta
from data_shards.packing.pack import write_dataset
from data_shards.reading.dataset import Dataset
from ldm.evaluation import health
from ldm.evaluation.health import Health, Moments, check, health_of


def judged(z_ND: np.ndarray) -> Health:
    moments = Moments(z_ND.mean(0))
    moments.add(z_ND)
    return health_of(moments, torch.ones(32), latents="", samples=len(z_ND))


def spread_out(rng: np.random.Generator, dimensions: int, live: int) -> np.ndarray:
    """Vectors of which so many directions vary, turned so that every channel has about the same deviation."""
    turn_DD = np.linalg.qr(rng.normal(size=(dimensions, dimensions)))[0]
    return np.pad(rng.normal(size=(4000, live)), ((0, 0), (0, dimensions - live))) @ turn_DD


@pytest.mark.parametrize("dimensions", [8, 256])
def test_a_latent_of_which_half_is_dead_does_not_pass_though_every_channel_varies(dimensions: int) -> None:
    rng = np.random.default_rng(0)
    half, whole = (judged(spread_out(rng, dimensions, live)) for live in (dimensions // 2, dimensions))
    assert half.live_directions == dimensions // 2 and whole.live_directions == dimensions
    assert f"{dimensions // 2} of the {dimensions} directions of the latents are dead" in " ".join(half.warnings)
    assert f"try vqgan.model.latent_channels={dimensions // 2}" in " ".join(half.warnings)
    assert whole.warnings == ()


def test_two_effective_dimensions_of_eight_are_not_called_fit() -> None:
    z_ND = np.random.default_rng(0).normal(size=(4000, 8)) * np.array([10, 3, *[0.9] * 6])
    found = judged(z_ND)
    assert found.live_directions == 8 and len(found.warnings) == 1 and "effective dimensions (wanted: 4)" in found.warnings[0]


def test_moments_are_those_of_scipy_whoever_summed_which_part() -> None:
    rng = np.random.default_rng(0)
    z_ND = np.concatenate([rng.normal(50, 2, (3000, 2)), rng.standard_t(6, (3000, 2))], 1)
    parts = [Moments(z_ND[:9].mean(0)) for _ in range(3)]
    for part, some_ND in zip(parts, np.array_split(z_ND, 3), strict=True):
        for few_ND in np.array_split(some_ND, 7):
            part.add(few_ND)
    whole = parts[1]
    whole.merge(parts[0])
    whole.merge(parts[2])
    assert whole.mean_D == pytest.approx(z_ND.mean(0)) and whole.std_D == pytest.approx(z_ND.std(0))
    assert whole.covariance_DD == pytest.approx(np.cov(z_ND.T, bias=True))
    assert whole.excess_kurtosis_D == pytest.approx(scipy.stats.kurtosis(z_ND), abs=1e-6)


@pytest.fixture
def latents(tmp_path) -> Dataset:
    """96 latents of 8 × 32 × 32: 3 MiB, 6 in float64."""
    rng = np.random.default_rng(0)
    meta = [CubeMeta(key=f"z{i:03d}", wavelengths_nm=tuple(map(float, range(8))), scale=1.0, subject_id=f"s{i}") for i in range(96)]
    cubes = (Cube(data_CHW=rng.normal(i, 1, size=(8, 32, 32)).astype(np.float32), meta=m) for i, m in enumerate(meta))
    write_dataset(tmp_path / "latents", {"train": cubes}, source={})
    return Dataset(tmp_path / "latents")


class Codes:
    """A codebook of one code for each sign of the first channel."""

    config, codes_KD = SimpleNamespace(codes=2), torch.zeros(2, 8)

    def __call__(self, h_BDHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return h_BDHW, (h_BDHW[:, 0] > 0).long()


def test_memory_is_that_of_a_batch_not_of_the_set(latents: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    held = {}
    for samples in (16, 96):
        tracemalloc.start()
        check(latents, SimpleNamespace(codebook=Codes()), samples=samples)
        held[samples] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert held[96] < 1.3 * held[16]


def test_the_images_looked_at_are_spread_over_the_split(latents: Dataset) -> None:
    """Means rise by one from image to image, to 95: the first ones alone would have a mean of 2.5."""
    found = check(latents, SimpleNamespace(codebook=Codes()), samples=6)
    assert found.samples == 6 and found.mean_D == pytest.approx([47.5] * 8, abs=8) and found.codes_usage > 0
    assert found.wanted.codes_usage == health.USAGE_LEAST
