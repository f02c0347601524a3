"""Vessels on a raster: share of each pixel covered, path through the blood, central light reflex.

Legend: N points along a vessel, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_shards.phantom.vessels import STEP_MM, Branch

REFLEX_SHARE = 0.28  # width of the central light reflex over that of the vessel
VEIN_REFLEX = 0.45  # strength of that of veins over that of arteries


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """A tree on a raster, float32 (H, W): share covered, longest path through the lumen in mm, share of the light reflex."""

    covered: np.ndarray
    path_mm: np.ndarray
    reflex: np.ndarray


def rasterise(tree: list[Branch], to_pixels: tuple[np.ndarray, np.ndarray], mm_per_pixel: float, size: int) -> Footprint:
    """Draw a tree with soft edges.

    Args:
        to_pixels: (2, 2) matrix and (2,) offset that take (x, y) in mm to (row, column), pixel centres at whole numbers.
        mm_per_pixel: sampling. size: H = W.
    """
    matrix, offset = to_pixels
    points, radii = [], []
    for branch in tree:
        if len(branch.points_mm) < 2 or branch.parent < 0:  # the central vessel comes up through the nerve, unseen
            continue
        pixel_N2 = branch.points_mm @ matrix.T + offset
        fine = np.linspace(0, len(pixel_N2) - 1, max(2, int(np.ceil((len(pixel_N2) - 1) * STEP_MM / mm_per_pixel / 0.4)) + 1))
        at = np.arange(len(pixel_N2))
        points.append(np.stack([np.interp(fine, at, pixel_N2[:, k]) for k in (0, 1)], 1))
        radii.append(np.interp(fine, at, branch.radius_mm) / mm_per_pixel)
    drawn = {name: np.zeros((size, size), np.float32) for name in ("covered", "path", "reflex")}
    points_N2, radius_N = np.concatenate(points), np.concatenate(radii)
    reach_N = np.ceil(radius_N + 0.5).astype(int)
    for reach in np.unique(reach_N):
        near = reach_N == reach
        _stamp(drawn, points_N2[near], radius_N[near], int(reach), size)
    return Footprint(covered=drawn["covered"], path_mm=drawn["path"] * np.float32(mm_per_pixel), reflex=drawn["reflex"])


def _stamp(drawn: dict[str, np.ndarray], points_N2: np.ndarray, radius_N: np.ndarray, reach: int, size: int) -> None:
    """Draw discs of nearly one radius; where they overlap, the larger value stays."""
    whole_N2 = np.rint(points_N2).astype(int)
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            row_N, column_N = whole_N2[:, 0] + dy, whole_N2[:, 1] + dx
            distance_N = np.hypot(row_N - points_N2[:, 0], column_N - points_N2[:, 1])
            hit = (distance_N < radius_N + 0.5) & (row_N >= 0) & (row_N < size) & (column_N >= 0) & (column_N < size)
            if not hit.any():
                continue
            at, d, r = (row_N[hit], column_N[hit]), distance_N[hit], radius_N[hit]
            core = REFLEX_SHARE * r
            for name, value in (
                ("covered", np.minimum(np.minimum(r - d + 0.5, 2 * r), 1)),
                ("path", chord_px(r, d)),
                ("reflex", np.clip(np.minimum(core - d + 0.5, 2 * core), 0, 1)),
            ):
                np.maximum.at(drawn[name], at, value.astype(np.float32))


def chord_px(radius: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Mean path through a round lumen over the covered part of a pixel, at a distance from the centre line, all in pixels.

    Inside it is the chord. In the pixels of the rim, and in vessels thinner than a pixel, the chord at the pixel's
    centre says little: there the mean over the part covered, which is π r / 2 for thin vessels and 1.3 √r for wide ones.
    """
    return np.maximum(2 * np.sqrt(np.maximum(radius**2 - distance**2, 0)), np.minimum(np.pi / 2 * radius, 1.3 * np.sqrt(radius)))
