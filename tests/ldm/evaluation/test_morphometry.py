"""Morphometry on vessels drawn with known width, forks and crossings."""

import numpy as np
import pytest
from skimage.draw import disk, line

from data_shards.cube import LABELS
from ldm.evaluation.vessels import MORPHOMETRY, branch_points, morphometry, morphometry_figures, skeleton_and_calibre, thin_vessels

SIZE = 96
FOV = np.ones((SIZE, SIZE), bool)
DENSITY, CALIBRE, BRANCHES, RATIO = range(len(MORPHOMETRY))


def drawn(*vessels):
    """A label map: (label, width, from, to) each."""
    labels_HW = np.zeros((SIZE, SIZE), np.uint8)
    for name, width, start, end in vessels:
        for row, column in zip(*line(*start, *end), strict=True):
            labels_HW[disk((row, column), width / 2 + 0.01, shape=labels_HW.shape)] = LABELS[name]
    return labels_HW


def bar(width, name="artery"):
    labels_HW = np.zeros((SIZE, SIZE), np.uint8)
    labels_HW[20 : 20 + width, 10:86] = LABELS[name]
    return labels_HW


@pytest.mark.parametrize("width", [1, 2, 3, 4, 7, 8])
def test_a_straight_vessel_has_its_own_width(width):
    labels = bar(width)
    skeleton, calibre = skeleton_and_calibre(labels > 0)
    middle = calibre[2 * width : -2 * width]  # the ends are round
    assert len(calibre) == skeleton.sum() and np.all(middle == width)
    assert morphometry(labels, FOV)[DENSITY] == width * 76 / SIZE**2


@pytest.mark.parametrize("angle", range(0, 180, 15))
def test_slanting_vessels_are_as_wide_and_do_not_fork(angle):
    by = np.round(38 * np.array([np.sin(np.deg2rad(angle)), np.cos(np.deg2rad(angle))])).astype(int)
    labels = drawn(("vein", 5, (48 - by[0], 48 - by[1]), (48 + by[0], 48 + by[1])))
    figures = morphometry(labels, FOV)
    assert figures[CALIBRE] == pytest.approx(5, abs=0.8) and figures[BRANCHES] == 0


def test_forks_count_once_and_crossings_do_not():
    trunk, fork = ("artery", 4, (48, 8), (48, 48)), [("artery", 3, (48, 48), (end, 88)) for end in (20, 76)]
    skeleton, _ = skeleton_and_calibre(drawn(trunk, *fork) > 0)
    assert branch_points(skeleton) == 1
    assert morphometry(drawn(trunk, *fork), FOV)[BRANCHES] == pytest.approx(100 / skeleton.sum())
    crossing = drawn(("vein", 4, (10, 48), (86, 48)), ("artery", 3, (48, 10), (48, 86)))
    assert morphometry(crossing, FOV)[BRANCHES] == 0


def test_ratio_and_what_is_absent():
    both = bar(4) + bar(6, "vein")[::-1]
    assert morphometry(both, FOV)[RATIO] == pytest.approx(4 / 6, abs=0.03)
    alone, none = morphometry(bar(4), FOV), morphometry(np.zeros_like(both), FOV)
    assert np.isnan(alone[RATIO]) and np.isfinite(alone[:RATIO]).all()
    assert none[DENSITY] == 0 and np.isnan(none[CALIBRE:]).all()  # no vessel at all is a density, and no width
    assert np.isnan(morphometry(both, np.zeros_like(FOV))).all()
    disc = np.full_like(both, LABELS["onh"])
    np.testing.assert_array_equal(morphometry(disc, FOV), none)
    assert np.isfinite(morphometry(np.full_like(both, LABELS["vein"]), FOV)[:RATIO]).all()  # a map that is all vessel


def test_only_the_field_of_view_counts():
    fov = FOV.copy()
    fov[:, 48:] = False
    assert morphometry(bar(4), fov)[DENSITY] == 4 * 38 / fov.sum()


def test_thin_vessels_are_told_from_wide_ones():
    labels = bar(3) + bar(6, "vein")[::-1]
    thin = thin_vessels(labels, FOV, at_most_px=3)
    assert thin[20:23, 14:82].all() and not thin[labels == LABELS["vein"]][60:400].any() and not thin[labels == 0].any()
    assert not thin_vessels(np.zeros_like(labels), FOV, at_most_px=3).any()


def people(n, mean, spread=0.05, seed=0, images=3):
    rng = np.random.default_rng(seed)
    values = np.repeat(rng.normal(mean, spread, n), images)[:, None] + rng.normal(0, 0.01, (n * images, len(MORPHOMETRY)))
    return values, [f"{seed}-{i // images}" for i in range(n * images)]


def test_a_shift_is_beyond_the_floor_and_an_honest_set_is_not():
    (real, of_real), (honest, of_honest), (wide, of_wide), (floor, of_floor) = (
        people(20, mean, seed=seed) for seed, mean in enumerate((1.0, 1.0, 1.3, 1.0))
    )
    of = {"real": of_real, "floor": of_floor}
    far = morphometry_figures({"real": real, "synthetic": wide, "floor": floor}, {**of, "synthetic": of_wide}, 0)
    near = morphometry_figures({"real": real, "synthetic": honest, "floor": floor}, {**of, "synthetic": of_honest}, 0)
    for name, column in zip(MORPHOMETRY, range(len(MORPHOMETRY)), strict=True):
        figure = far[name]
        assert figure.difference == pytest.approx(wide[:, column].mean() - real[:, column].mean())
        assert figure.difference_interval[0] <= figure.difference <= figure.difference_interval[1]
        assert figure.difference_interval[0] > 0.2 and figure.excess_interval[0] > 0.1
        assert near[name].difference_interval[0] < 0 < near[name].difference_interval[1]
        assert near[name].excess_interval[0] < 0 < near[name].excess_interval[1]
        assert (figure.images_real, figure.units_real) == (60, 20)
    assert far == morphometry_figures({"real": real, "synthetic": wide, "floor": floor}, {**of, "synthetic": of_wide}, 0)


def test_the_interval_is_by_person():
    real, of_real = people(10, 1.0)
    by_person = morphometry_figures({"real": real, "synthetic": real + 1}, {"real": of_real, "synthetic": of_real}, 0)
    each = [str(i) for i in range(len(real))]
    by_image = morphometry_figures({"real": real, "synthetic": real + 1}, {"real": each, "synthetic": each}, 0)
    width = {key: np.ptp(figures["calibre, px"].difference_interval) for key, figures in (("person", by_person), ("image", by_image))}
    assert width["person"] > 1.4 * width["image"]
    assert by_person["calibre, px"].floor is None and by_person["calibre, px"].excess is None


def test_what_a_set_lacks_has_a_reason_and_no_number():
    real, of_real = people(5, 1.0)
    without = real.copy()
    without[:, RATIO] = np.nan
    without[1:, BRANCHES] = np.nan
    figures = morphometry_figures({"real": real, "synthetic": without}, {"real": of_real, "synthetic": of_real}, 0)
    ratio, branches = figures[MORPHOMETRY[RATIO]], figures[MORPHOMETRY[BRANCHES]]
    assert ratio.reason == "no image of the synthetic set has it" and ratio.difference is ratio.synthetic is None and ratio.real
    assert branches.reason is None and branches.images_synthetic == 1 and branches.difference is not None
