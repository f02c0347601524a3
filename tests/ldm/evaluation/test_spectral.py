"""Histogram divergences against direct numpy, and their behaviour at the borders."""

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from data_shards.manifest import BandStats
from ldm.evaluation import spectral
from ldm.spectra import REGIONS, band_edges

SCALE, OFFSET = 1 / 4095, -0.01
STATS = BandStats(split="train", mean_C=(0.3, 0.5), std_C=(0.05, 0.2), min_C=(0.02, 0.0), max_C=(0.9, 1.0), values=1)


def cube(seed=0, bright=0.0):
    rng = np.random.default_rng(seed)
    reflectance = rng.normal((0.3 + bright, 0.5), (0.05, 0.2), (20, 24, 2)).clip(0, 1).transpose(2, 0, 1)
    return ((reflectance - OFFSET) / SCALE).round().astype(np.uint16)


def histograms(cubes, units, fov=None, labels=None):
    found = spectral.BandHistograms(band_edges(STATS), scale=SCALE, offset=OFFSET)
    for data, unit in zip(cubes, units, strict=True):
        found.add(data, unit=unit, fov_HW=np.ones((20, 24), bool) if fov is None else fov, labels_HW=labels)
    return found


def test_edges_come_from_the_training_statistics():
    edges = band_edges(STATS, bins=8)
    assert edges.shape == (2, 7)
    np.testing.assert_allclose(edges[0, [0, -1]], (0.1, 0.5))  # mean ± 4 std
    np.testing.assert_allclose(edges[1, [0, -1]], (0.0, 1.0))  # cut to what was seen


def test_counts_equal_numpy_histograms():
    fov = np.random.default_rng(5).random((20, 24)) > 0.3
    found = histograms([cube(0), cube(1)], ["a", "a"], fov=fov)
    for c, edges in enumerate(band_edges(STATS)):
        values = np.concatenate([x[c][fov] for x in (cube(0), cube(1))]) * SCALE + OFFSET
        expected, _ = np.histogram(values, np.r_[-np.inf, edges, np.inf])
        np.testing.assert_array_equal(found.counts_UCK("fov")[0, c], expected)


def test_divergences_equal_scipy():
    real, other = histograms([cube(0)], ["a"]).counts_UCK("fov"), histograms([cube(1, 0.03)], ["b"]).counts_UCK("fov")
    found = spectral.spectral_distance(real, other)
    for c in range(2):
        p, q = real[0, c] + 0.5, other[0, c] + 0.5  # Jeffreys
        assert found.kl_C[c] == pytest.approx(entropy(p, q))
        assert found.js_C[c] == pytest.approx(jensenshannon(p, q) ** 2)
    assert found.kl_mean == pytest.approx(np.mean(found.kl_C))


def test_zero_on_itself_and_js_is_symmetric_and_bounded():
    a = np.zeros((1, 1, 8), np.int64)
    b = a.copy()
    a[0, 0, 0] = b[0, 0, 7] = 10**6
    assert spectral.spectral_distance(a, a).kl_mean == 0
    ab, ba = spectral.spectral_distance(a, b), spectral.spectral_distance(b, a)
    assert ab.js_mean == pytest.approx(ba.js_mean) and ab.js_mean <= np.log(2)
    assert np.isfinite(ab.kl_mean) and ab.kl_mean > 5  # disjoint sets: large, and finite through the prior


def test_an_empty_region_has_a_reason_and_no_number():
    real = histograms([cube()], ["a"], labels=np.zeros((20, 24), np.uint8))
    found = spectral.spectral_distance(real.counts_UCK("artery"), real.counts_UCK("fov"))
    assert found.kl_mean is None and found.js_C is None and found.kl_interval is None
    assert found.reason == "no pixel of this region in the real set"
    assert found.pixels_real == 0 and found.pixels_other == 480


def test_regions_are_cut_by_labels_and_field_of_view():
    labels, fov = np.zeros((20, 24), np.uint8), np.ones((20, 24), bool)
    labels[:4], labels[4:6], labels[10:12, :5], fov[:2] = 1, 2, 3, False
    found = histograms([cube()], ["a"], fov=fov, labels=labels)
    assert [int(found.counts_UCK(r)[:, 0].sum()) for r in REGIONS] == [18 * 24, 2 * 24, 2 * 24, 10]


def test_interval_is_by_patient_not_by_pixel():
    bright = np.linspace(-0.05, 0.05, 8)
    other = histograms([cube(99 + i) for i in range(4)], "wxyz").counts_UCK("fov")
    few = spectral.spectral_distance(histograms([cube(i, b) for i, b in enumerate(bright)], "abcdefgh").counts_UCK("fov"), other)
    one = spectral.spectral_distance(histograms([cube(i, b) for i, b in enumerate(bright)], ["a"] * 8).counts_UCK("fov"), other)
    assert few.kl_mean == pytest.approx(one.kl_mean)
    assert few.kl_interval[0] < few.kl_mean < few.kl_interval[1]
    assert one.kl_interval is None  # one person cannot be resampled
    assert few == spectral.spectral_distance(histograms([cube(i, b) for i, b in enumerate(bright)], "abcdefgh").counts_UCK("fov"), other)


def test_counts_of_several_processes_add_up_to_those_of_one():
    whole = histograms([cube(0), cube(1), cube(2)], [0, 1, 0])
    merged = histograms([], [])
    for shard in (histograms([cube(2)], [0]), histograms([cube(0), cube(1)], [0, 1])):
        merged.merge(**shard.arrays())
    for region in REGIONS:
        np.testing.assert_array_equal(merged.counts_UCK(region), whole.counts_UCK(region))
