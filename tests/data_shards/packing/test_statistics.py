"""Logarithmic statistics against the formula written out here, pixel by pixel in Python's floats."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from data_shards import durable, manifest
from data_shards.cube import Cube, CubeMeta
from data_shards.packing.pack import pack
from data_shards.packing.statistics import BandAccumulator


def cube_of(data_CHW: np.ndarray, scale: float, offset: float, **maps: np.ndarray) -> Cube:
    nm = tuple(465.0 + 90 * c for c in range(len(data_CHW)))
    return Cube(data_CHW=data_CHW, meta=CubeMeta(key="a", subject_id="p", wavelengths_nm=nm, scale=scale, offset=offset), **maps)


def by_hand(values: list[int], zero: float) -> tuple[float, float]:
    """Mean and deviation of sign(n) ln(1 + |n| / 16) with n counted from reflectance 0."""
    logs = [math.copysign(math.log(1 + abs(v - zero) / 16), v - zero) for v in values]
    return statistics.fmean(logs), statistics.pstdev(logs)


@pytest.mark.parametrize(
    ("scale", "offset", "zero"),
    [(1 / 4095, 0.0, 0.0), (1e-4, -32768e-4, 32768.0), (0.5 / 65535, 0.2, -0.2 * 65535 / 0.5), (1.2 / 65535, -0.1, 0.1 * 65535 / 1.2)],
    ids=["counts", "int16", "range above 0", "range below 0"],
)
def test_the_logarithm_is_that_of_the_counts_above_reflectance_0(scale: float, offset: float, zero: float) -> None:
    around = max(int(zero), 0)
    data_CHW = (around + np.random.default_rng(0).integers(-min(around, 300), 3000, (3, 8, 9))).astype(np.uint16)
    fov_HW = np.ones((8, 9), bool)
    fov_HW[:2] = False
    bands = BandAccumulator()
    bands.add(cube_of(data_CHW, scale, offset, fov_HW=fov_HW))
    stats = bands.stats("train", scale, offset)
    for c in range(3):
        mean, std = by_hand(data_CHW[c, 2:].ravel().tolist(), zero)
        assert stats.log_mean_C[c] == pytest.approx(mean, rel=1e-9)
        assert stats.log_std_C[c] == pytest.approx(std, rel=1e-9)
    assert stats.log_zero == pytest.approx(zero, rel=1e-12)


def test_int16_and_uint16_of_the_same_reflectances_have_the_same_logarithms() -> None:
    values_CHW = np.random.default_rng(1).integers(0, 9000, (2, 6, 7)).astype(np.uint16)
    plain, shifted = BandAccumulator(), BandAccumulator()
    plain.add(cube_of(values_CHW, 1e-4, 0.0))
    shifted.add(cube_of(values_CHW + np.uint16(32768), 1e-4, -32768e-4))
    a, b = plain.stats("train", 1e-4, 0.0), shifted.stats("train", 1e-4, -32768e-4)
    np.testing.assert_allclose(a.log_mean_C, b.log_mean_C, rtol=1e-6)
    np.testing.assert_allclose(a.log_std_C, b.log_std_C, rtol=1e-6)


def test_black_cubes_have_logarithmic_statistics_and_latents_none() -> None:
    black, latent = BandAccumulator(), BandAccumulator()
    black.add(cube_of(np.zeros((2, 4, 4), np.uint16), 1.0, 0.0))
    latent.add(cube_of(np.ones((2, 4, 4), np.float32), 1.0, 0.0))
    assert black.stats("train", 1.0, 0.0).log_mean_C == (0.0, 0.0)
    assert latent.stats("train", 1.0, 0.0).log_mean_C == ()


def test_a_manifest_of_before_is_read_and_written_as_it_was(cube_folder: Path, tmp_path: Path) -> None:
    """Statistics of an older set have no log_zero: they mean the stored counts, and nothing is added to them."""
    pack(cube_folder, tmp_path / "set")
    path = tmp_path / "set" / manifest.NAME
    old = json.loads(path.read_bytes())
    assert "log_zero" not in old["stats"], "offset 0: exactly as before"
    old["offset"] = -8.0
    fields = {k: v for k, v in old.items() if k not in ("sha256", "digest")}
    fields["digest"] = replace(manifest.read_manifest(tmp_path / "set"), offset=-8.0).digest
    path.write_bytes(durable.readable_json(manifest._checked(fields)))
    stats = manifest.read_manifest(tmp_path / "set").stats
    assert stats.log_zero == 0.0
    assert stats.fields() == {name: value for name, value in asdict(stats).items() if name != "log_zero"}
