"""Trees obey Murray's law, arch around the fovea, and are drawn with the area they have."""

from __future__ import annotations

import numpy as np
import pytest

from data_shards.phantom.drawing import rasterise
from data_shards.phantom.vessels import FAZ_MM, Branch, Disc, bundle_path_mm, grow_trees, murray_angles

DISC = Disc(x_mm=4.5, y_mm=0.5, half_width_mm=0.88, half_height_mm=0.94)
SEEDS = range(4)


def grown(seed: int) -> dict[str, list[Branch]]:
    return grow_trees(np.random.Generator(np.random.PCG64(seed)), DISC)


@pytest.fixture(scope="module")
def eyes() -> list[dict[str, list[Branch]]]:
    return [grown(seed) for seed in SEEDS]


def branches(eyes: list[dict[str, list[Branch]]]):
    return [(tree, branch) for eye in eyes for tree in eye.values() for branch in tree]


def test_every_branch_point_obeys_murray(eyes) -> None:
    checked = 0
    for tree, branch in branches(eyes):
        assert len(branch.children) in (0, 2)
        if branch.children:
            daughters = sum(tree[child].radius_mm[0] ** 3 for child in branch.children)
            assert branch.radius_mm[-1] ** 3 == pytest.approx(daughters, rel=1e-9)
            checked += 1
    assert checked > 400


def test_trees_hang_together_and_taper(eyes) -> None:
    for tree, branch in branches(eyes):
        assert np.all(np.diff(branch.radius_mm) <= 0)
        for child in branch.children:
            assert np.array_equal(tree[child].points_mm[0], branch.points_mm[-1])
            assert tree[tree[child].parent] is branch
    for eye in eyes:
        for tree in eye.values():
            root = tree[0].points_mm[0]
            assert np.hypot((root[0] - DISC.x_mm) / DISC.half_width_mm, (root[1] - DISC.y_mm) / DISC.half_height_mm) < 1
            assert [number for number, branch in enumerate(tree) if branch.parent < 0] == [0]


def test_no_vessel_enters_the_foveal_avascular_zone(eyes) -> None:
    assert min(np.hypot(*branch.points_mm.T).min() for _, branch in branches(eyes)) > FAZ_MM


def test_arcades_pass_above_and_below_the_fovea(eyes) -> None:
    for eye in eyes:
        for kind, tree in eye.items():
            points = np.concatenate([b.points_mm for b in tree])
            radii = np.concatenate([b.radius_mm for b in tree])
            over_the_macula = (points[:, 0] > 0) & (points[:, 0] < 2.5) & (radii > 0.02)
            heights = points[over_the_macula, 1]
            assert ((heights > 1.2) & (heights < 4.8)).any(), kind
            assert ((heights < -1.2) & (heights > -4.8)).any(), kind


def test_calibres_are_those_of_real_eyes(eyes) -> None:
    """Half to one disc diameter from the margin (zone B): arterioles near 100 µm, venules near 140 µm, about 2 : 3."""
    widest = {kind: [] for kind in ("artery", "vein")}
    for eye in eyes:
        for kind, tree in eye.items():
            away = [np.hypot(b.points_mm[:, 0] - DISC.x_mm, b.points_mm[:, 1] - DISC.y_mm) / 0.91 for b in tree]
            widest[kind].append(max(2 * b.radius_mm[(d > 2) & (d < 3)].max(initial=0) for b, d in zip(tree, away, strict=True)))
    artery_mm, vein_mm = np.mean(widest["artery"]), np.mean(widest["vein"])
    assert 0.085 < artery_mm < 0.125
    assert 0.115 < vein_mm < 0.155
    assert 0.6 < artery_mm / vein_mm < 0.9


def test_the_same_seed_grows_the_same_trees_and_another_seed_others(eyes) -> None:
    again = grown(0)
    for kind, tree in eyes[0].items():
        assert len(tree) == len(again[kind])
        assert all(np.array_equal(a.points_mm, b.points_mm) for a, b in zip(tree, again[kind], strict=True))
    assert len(eyes[0]["artery"]) != len(eyes[1]["artery"]) or not np.array_equal(
        eyes[0]["artery"][1].points_mm, eyes[1]["artery"][1].points_mm
    )


def test_bundle_paths_are_those_of_jansonius() -> None:
    """φ0 = 120°: b = exp(−1.9 + 3.9 tanh(1/14)) = 0.1975, c = 1.9 + 1.4 tanh(−1/14) = 1.800; at r = 15°, φ = 134.8°."""
    path = bundle_path_mm(120.0, Disc(x_mm=0, y_mm=0, half_width_mm=0.9, half_height_mm=0.9)) / 0.29
    at_15 = path[np.argmin(abs(np.hypot(*path.T) - 15))]
    assert np.degrees(np.arctan2(at_15[1], at_15[0])) == pytest.approx(134.8, abs=0.1)
    assert np.degrees(np.arctan2(path[0][1], path[0][0])) == pytest.approx(120)


def test_angles_follow_from_least_work() -> None:
    equal = 0.5 ** (1 / 3)
    both = murray_angles(1.0, equal, equal)
    assert np.degrees(both) == pytest.approx([37.47, 37.47], abs=0.01)  # Murray 1926: 75° between equal daughters
    main, side = murray_angles(1.0, 0.95 ** (1 / 3), 0.05 ** (1 / 3))
    assert main < np.radians(10) < np.radians(60) < side


@pytest.mark.parametrize("diameter_px", [0.5, 1.0, 3.0, 8.4])
def test_a_vessel_covers_its_own_area(diameter_px: float) -> None:
    points = np.stack([np.arange(0, 2.05, 0.05), np.full(41, 1.0)], 1)
    vessel = Branch(points_mm=points, radius_mm=np.full(41, diameter_px * 0.02 / 2), parent=0, children=())
    drawn = rasterise([vessel], (np.array([[0.0, 50.0], [50.0, 0.0]]), np.array([0.3, 0.0])), 0.02, 101)
    across = drawn.covered[:, 30:70]
    assert across.sum(0).mean() == pytest.approx(diameter_px, rel=0.25)
    lumen_mm2 = (drawn.covered * drawn.path_mm)[:, 30:70].sum(0).mean() * 0.02
    assert lumen_mm2 == pytest.approx(np.pi * (diameter_px * 0.02 / 2) ** 2, rel=0.35)
    assert drawn.covered.max() <= 1
    assert drawn.reflex.sum() < drawn.covered.sum()
