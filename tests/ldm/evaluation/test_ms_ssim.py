"""MS-SSIM against an implementation of our own of the published definition; pairs, windows and intervals."""

import numpy as np
import pytest
import pytorch_msssim
import scipy.ndimage
import torch
from scipy.signal import convolve2d

from data_shards.manifest import BandStats
from ldm.evaluation import ms_ssim

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, §3.2


def gaussian(window, sigma):
    side = np.arange(window) - window // 2
    weights = np.exp(-(side**2) / (2 * sigma**2))
    return weights / weights.sum()


def wang(a_HW, b_HW, range_, window=11, sigma=1.5):
    """Wang et al. 2003, Eq. 7, in float64 with full two-dimensional windows."""
    kernel = np.outer(gaussian(window, sigma), gaussian(window, sigma))
    c1, c2 = (0.01 * range_) ** 2, (0.03 * range_) ** 2
    product = 1.0
    for level, weight in enumerate(WEIGHTS):
        mu_a, mu_b, aa, bb, ab = (convolve2d(x, kernel, mode="valid") for x in (a_HW, b_HW, a_HW**2, b_HW**2, a_HW * b_HW))
        contrast = (2 * (ab - mu_a * mu_b) + c2) / (aa - mu_a**2 + bb - mu_b**2 + c2)
        light = (2 * mu_a * mu_b + c1) / (mu_a**2 + mu_b**2 + c1)
        last = level == len(WEIGHTS) - 1
        # a negative factor has no real power; like the public implementations, it counts as 0
        product *= max((light * contrast if last else contrast).mean(), 0) ** weight
        a_HW, b_HW = (x.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2).mean((1, 3)) for x in (a_HW, b_HW)) if not last else (a_HW, b_HW)
    return product


def images(n, bands, side, seed=0):
    rng = np.random.default_rng(seed)
    x = scipy.ndimage.gaussian_filter(rng.random((n, bands, side, side)), (0, 0, 3, 3))
    return (x - x.min()) / (x.max() - x.min())


@pytest.mark.parametrize("side", [192, 96])
def test_equals_the_published_definition(side):
    window = ms_ssim.window_for(side, side)
    a, b = images(2, 3, side), images(2, 3, side, seed=1)
    b[1] = 0.7 * a[1] + 0.3 * b[1]
    found = ms_ssim.ms_ssim_of_pairs(torch.from_numpy(a), torch.from_numpy(b), range_=1.0, window=window, by_band=True)
    expected = [[wang(a[p, c], b[p, c], 1.0, window) for c in range(3)] for p in range(2)]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(("bands", "height", "width"), [(3, 161, 200), (18, 163, 165)])  # odd sides, more bands than go at once
def test_equals_pytorch_msssim_also_band_by_band(bands, height, width):
    rng = np.random.default_rng(0)
    a, b = (torch.from_numpy(scipy.ndimage.gaussian_filter(rng.random((2, bands, height, width)), (0, 0, 1, 1))).float() for _ in range(2))
    found = ms_ssim.ms_ssim_of_pairs(a, b, range_=1.0, window=11, by_band=True)
    assert found.shape == (2, bands)
    np.testing.assert_allclose(ms_ssim.ms_ssim_of_pairs(a, b, range_=1.0, window=11), found.mean(1), rtol=1e-12)

    def library(x, y, **how):
        return pytorch_msssim.ms_ssim(x, y, data_range=1.0, size_average=False, **how).numpy()

    exact = torch.from_numpy(gaussian(11, 1.5)).float()
    np.testing.assert_allclose(found.mean(1), library(a, b, win=exact.expand(bands, 1, 1, 11)), rtol=1e-5, atol=1e-6)
    # its own window, worked out in float32, sums to 3e-8 less than 1: that moves the means, and so the variances, by more
    np.testing.assert_allclose(found.mean(1), library(a, b), atol=1e-5)
    for c in (0, bands - 1):
        alone = library(a[:, c : c + 1], b[:, c : c + 1], win=exact.expand(1, 1, 1, 11))
        np.testing.assert_allclose(found[:, c], alone, rtol=1e-5, atol=1e-6)


def test_one_on_itself_and_the_range_matters():
    a, b = torch.from_numpy(images(1, 2, 96)), torch.from_numpy(images(1, 2, 96, seed=1))
    assert ms_ssim.ms_ssim_of_pairs(a, a, range_=1.0, window=5)[0] == pytest.approx(1, abs=1e-6)
    right, wrong = (ms_ssim.ms_ssim_of_pairs(a, b, range_=r, window=5)[0] for r in (1.0, 255.0))
    assert right < 0.9 and wrong > 0.999  # the trap of the library's default


def test_window_rule():
    sides = {672: 11, 161: 11, 160: 9, 129: 9, 128: 7, 97: 7, 96: 5, 65: 5, 64: 3, 33: 3, 32: None, 8: None}
    assert {side: ms_ssim.window_for(side, 700) for side in sides} == sides
    assert ms_ssim.window_for(700, 96) == 5


def test_one_range_for_all_bands():
    s = BandStats(split="train", mean_C=(0.3, 0.5), std_C=(0.1, 0.1), min_C=(0.1, -0.05), max_C=(0.4, 0.9), values=1)
    assert ms_ssim.data_range(s) == pytest.approx(0.95)


@pytest.mark.parametrize("units", [list("aabbccdd") * 20, list("abcdefgh"), list("aaaaaaab"), ["a"] * 5000 + ["b"]])
def test_pairs_are_of_different_people_and_never_twice(units):
    pairs = ms_ssim.draw_pairs(units, 25)
    assert len(pairs) == len({tuple(p) for p in pairs}) <= 25
    assert all(units[i] != units[j] and i < j for i, j in pairs)
    np.testing.assert_array_equal(pairs, ms_ssim.draw_pairs(units, 25))


def test_every_pair_is_as_likely():
    first = [tuple(ms_ssim.draw_pairs(list("aaab"), 1, seed=seed)[0]) for seed in range(300)]
    counts = [first.count(pair) for pair in ((0, 3), (1, 3), (2, 3))]
    assert sum(counts) == 300 and min(counts) > 70
    assert len({tuple(ms_ssim.draw_pairs(list("aabc"), 1, seed=seed)[0]) for seed in range(100)}) == 5


def test_number_of_pairs():
    assert len(ms_ssim.draw_pairs(list("aab"), 25)) == 2  # all there are
    assert len(ms_ssim.draw_pairs(["a"] * 9, 25)) == 0
    assert len(ms_ssim.draw_pairs([str(i) for i in range(9)], 25)) == 25
    assert not np.array_equal(
        ms_ssim.draw_pairs([str(i) for i in range(99)], 9), ms_ssim.draw_pairs([str(i) for i in range(99)], 9, seed=1)
    )


def test_interval_by_unit_and_difference():
    rng = np.random.default_rng(0)
    names = [f"p{i}" for i in range(10)]
    effect = dict(zip(names, rng.normal(0, 0.1, 10), strict=True))
    pairs = [(names[i], names[j]) for i in range(10) for j in range(i)]
    values = np.array([0.5 + effect[a] + effect[b] for a, b in pairs])
    mine = ms_ssim.pair_mean(values[:, None], pairs)
    assert mine.interval[0] < values.mean() < mine.interval[1]
    by_pair = 2 * 1.96 * values.std() / np.sqrt(len(values))
    assert mine.interval[1] - mine.interval[0] > 1.5 * by_pair  # shared people make pairs dependent
    size, (low, high) = ms_ssim.difference(ms_ssim.pair_mean(values[:, None] + 0.3, pairs), mine)
    assert size == pytest.approx(0.3) and low < high


def of_honest_pairs(rng, people, images, pairs):
    """Of images whose pairs are alike by both images, both people, and what these have in common."""
    names = [f"{person:04d}" for person in np.arange(people).repeat(images)]
    person = rng.normal(size=people)
    image = person.repeat(images) + 0.5 * rng.normal(size=people * images)
    drawn = ms_ssim.draw_pairs(names, pairs)
    a, b = drawn[:, 0] // images, drawn[:, 1] // images
    values = 0.5 + 0.05 * (image[drawn].sum(1) + person[a] * person[b]) + 0.02 * rng.normal(size=len(drawn))
    return ms_ssim.pair_mean(values[:, None], [(names[i], names[j]) for i, j in drawn])


def test_an_honest_set_is_hardly_ever_more_or_less_varied_than_real():
    rng, misses = np.random.default_rng(6), {0.95: 0, 0.99: 0}
    for _ in range(150):
        real, synthetic = of_honest_pairs(rng, 6, 2, 60), of_honest_pairs(rng, 24, 1, 100)
        for level in misses:
            low, high = ms_ssim.difference(synthetic, real, level=level)[1]
            misses[level] += not low <= 0 <= high
    assert misses[0.95] / 150 < 0.12 and misses[0.99] / 150 < 0.05


def test_two_sets_of_as_many_people_are_no_copies_of_each_other():
    """The same draws for both would leave nothing of their difference."""
    a, b = (of_honest_pairs(np.random.default_rng(seed), 6, 1, 100) for seed in (0, 1))
    low, high = ms_ssim.difference(a, b)[1]
    assert high - low > 1.2 * (a.interval[1] - a.interval[0]) / 2


def test_fewer_than_four_people_on_a_side_bear_no_interval():
    rng = np.random.default_rng(0)
    few, enough = of_honest_pairs(rng, 3, 4, 100), of_honest_pairs(rng, 8, 1, 100)
    assert few.mean is not None and few.interval is None and ms_ssim.difference(enough, few)[1] is None
    figures = ms_ssim.ms_ssim_figures(few, enough, enough, range_=1.0, window=3)
    assert figures.difference > 0 and figures.difference_interval is figures.apart_interval is figures.bands[0].difference_interval is None
    one_pair = ms_ssim.pair_mean(np.array([[0.5]]), [("a", "b")])
    assert one_pair.mean == 0.5 and one_pair.interval is None
