"""Mean spectra against direct numpy, and their behaviour at the borders."""

import numpy as np
import pytest

from ldm.evaluation.mean_spectra import MeanSpectra, distances
from ldm.spectra import LEAST_SHARE, REGIONS, shares, spectral_angle_rad, spectral_information_divergence

SCALE, OFFSET, BANDS = 1 / 4095, -0.01, 4
LABELS = np.repeat(np.arange(4, dtype=np.uint8), 4)[:, None].repeat(12, axis=1)  # (16, 12): bands of each class
FOV = np.ones((16, 12), bool)


def cube(seed=0, tilt=0.0, only=None):
    """Stored values; `tilt` brightens later bands, where `only` is a label, there alone."""
    rng = np.random.default_rng(seed)
    factor = 1 + tilt * np.arange(BANDS)[:, None, None] * (np.ones_like(LABELS) if only is None else only == LABELS)
    reflectance = rng.normal(0.3, 0.03, (BANDS, 16, 12)) * factor
    return ((reflectance - OFFSET) / SCALE).round().astype(np.uint16)


def spectra(cubes, units=None, labels=LABELS):
    found = MeanSpectra(BANDS, scale=SCALE, offset=OFFSET)
    for unit, data in enumerate(cubes):
        found.add(data, unit=unit if units is None else units[unit], fov_HW=FOV, labels_HW=labels)
    return found


def test_angle_and_divergence_equal_their_definitions():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 5, 9)) + 0.1
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    np.testing.assert_allclose(spectral_angle_rad(a, b), np.arccos(cosine), rtol=1e-9)
    p, q = a / a.sum(-1, keepdims=True), b / b.sum(-1, keepdims=True)
    expected = (p * np.log(p / q)).sum(-1) + (q * np.log(q / p)).sum(-1)
    np.testing.assert_allclose(spectral_information_divergence(a, b), expected, rtol=1e-9)
    np.testing.assert_allclose(spectral_angle_rad(a, 3 * a), 0, atol=1e-15)  # blind to brightness
    np.testing.assert_allclose(spectral_information_divergence(a, 3 * a), 0, atol=1e-15)
    assert spectral_angle_rad([1, 0], [1, 1e-9]) == pytest.approx(1e-9)  # arccos would give 0
    assert spectral_angle_rad([1, 0], [-1, 0]) == pytest.approx(np.pi)


def test_bands_at_0_count_as_a_tiny_share_and_darkness_has_no_figure():
    assert np.isfinite(spectral_information_divergence([1, 0, -0.1], [1, 1, 1]))
    np.testing.assert_allclose(shares([1, 0, -0.1])[1:], LEAST_SHARE, rtol=1e-5)
    assert np.isnan(spectral_information_divergence([0, 0], [1, 1])) and np.isnan(spectral_angle_rad([0, 0], [1, 1]))


def test_mean_spectra_equal_numpy():
    cubes = [cube(0), cube(1, 0.1)]
    found = distances({"real": spectra(cubes), "synthetic": spectra([cube(2)])}, "vein", 0)
    expected = np.mean([data[:, LABELS == 2] * SCALE + OFFSET for data in cubes], axis=(0, 2))
    np.testing.assert_allclose(found.real_C, expected, rtol=1e-12)
    assert found.angle_rad == pytest.approx(float(spectral_angle_rad(expected, np.array(found.synthetic_C))))
    assert (found.pixels_real, found.units_real, found.units_synthetic) == (96, 2, 1)


@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_any_split_of_the_work_gives_the_same(kind):
    cubes, units = [cube(seed).astype(kind) for seed in range(5)], [0, 1, 0, 2, 1]
    whole, merged = spectra(cubes, units), spectra([])
    for part in ([4, 0], [2], [], [1, 3]):
        merged.merge(**spectra([cubes[i] for i in part], [units[i] for i in part]).arrays())
    for region in REGIONS:
        for a, b in zip(whole.of_region(region), merged.of_region(region), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9)


def test_damage_to_veins_alone_is_seen_in_veins_alone():
    real, floor = (spectra([cube(seed) for seed in range(first, first + 6)]) for first in (0, 10))
    damaged = spectra([cube(seed, tilt=0.1, only=2) for seed in range(20, 26)])
    vein, disc = (distances({"real": real, "synthetic": damaged, "floor": floor}, region, 0) for region in ("vein", "onh"))
    for figure in ("angle", "sid"):
        value = "angle_rad" if figure == "angle" else "sid"
        assert getattr(vein, f"{figure}_interval")[0] > getattr(vein, f"floor_{figure}_interval")[1]
        assert getattr(disc, f"{figure}_interval")[0] < getattr(disc, f"floor_{figure}_interval")[1]
        low, high = getattr(vein, f"{figure}_interval")
        assert low <= getattr(vein, value) <= high
    assert vein == distances({"real": real, "synthetic": damaged, "floor": floor}, "vein", 0)


def test_a_structure_that_is_absent_has_a_reason_and_no_number():
    real, bare = spectra([cube()]), spectra([cube(1)], labels=None)
    without = spectra([cube(1)], labels=np.zeros_like(LABELS))
    dark = MeanSpectra(BANDS)
    dark.add(np.zeros((BANDS, 16, 12), np.uint16), unit=0, fov_HW=FOV, labels_HW=LABELS)
    for synthetic, reason in (
        (bare, "the synthetic set has no labels"),
        (without, "no pixel of this region in the synthetic set"),
        (dark, "no reflectance above 0 in the synthetic set"),
    ):
        found = distances({"real": real, "synthetic": synthetic}, "artery", 0)
        assert found.reason == reason and found.angle_rad is found.sid is found.angle_interval is None
    found = distances({"real": real, "synthetic": real, "floor": without}, "artery", 0)
    assert found.angle_rad == 0 and found.floor_angle_rad is None and found.reason is None
