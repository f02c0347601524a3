"""The shape of vessels: how many there are, how wide, how often they branch, and arteries beside veins.

Legend: N image, M measure, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.ndimage
from skimage.morphology import skeletonize

from data_shards.cube import LABELS

MORPHOMETRY = ("vessel density", "vessel calibre, px", "branch points on 100 px of vessel", "artery/vein calibre")
EIGHT = np.ones((3, 3), int)  # neighbours along edges and corners
RESAMPLES = 200


def morphometry(labels_HW: np.ndarray, fov_HW: np.ndarray) -> np.ndarray:
    """The measures of MORPHOMETRY of one image (M,); NaN where it has nothing to take one from.

    Density is the share of the field of view that is artery or vein. Calibre is twice the distance from the centre line to the vessel's
    edge, mean over the centre line. Branch points are where three or more lines of it meet. The ratio of arterial to venous calibre (AVR:
    Hubbard et al. 1999, there of the six largest of each) is over all vessels here.
    """
    kinds = {name: fov_HW & (labels_HW == LABELS[name]) for name in ("artery", "vein")}
    vessel_HW = kinds["artery"] | kinds["vein"]
    if not fov_HW.any() or not vessel_HW.any():
        return np.full(len(MORPHOMETRY), np.nan)
    line_HW = skeletonize(vessel_HW)
    calibre = {name: _calibre_px(mask_HW) for name, mask_HW in kinds.items()}
    return np.array(
        [
            vessel_HW.sum() / fov_HW.sum(),
            _calibre_px(vessel_HW),
            100 * _branch_points(line_HW) / line_HW.sum(),
            calibre["artery"] / calibre["vein"],
        ]
    )


def _calibre_px(mask_HW: np.ndarray) -> float:
    """Mean width along the centre line; an edge lies half a pixel beyond the last one within."""
    if not mask_HW.any():
        return np.nan
    to_edge_HW = scipy.ndimage.distance_transform_edt(np.pad(mask_HW, 1))[1:-1, 1:-1]
    return float(2 * to_edge_HW[skeletonize(mask_HW)].mean() - 1)


def _branch_points(line_HW: np.ndarray) -> int:
    """Meetings of lines; pixels of a meeting that touch one another are one."""
    neighbours_HW = scipy.ndimage.convolve(line_HW.astype(int), EIGHT, mode="constant") - line_HW
    return scipy.ndimage.label(line_HW & (neighbours_HW > 2), EIGHT)[1]


@dataclass(frozen=True, kw_only=True)
class MorphometryFigure:
    """One measure of all images that have it.

    Attributes:
        real, synthetic, floor: means over images; None of a set in which no image has it.
        real_interval, synthetic_interval: 95 %, from resampling people, or synthetic images.
        difference: synthetic - real.
        difference_interval: 99 %.
        floor_difference: floor - real, what other real people differ by.
        reason: why there are no figures.
    """

    real: float | None = None
    real_interval: tuple[float, float] | None = None
    synthetic: float | None = None
    synthetic_interval: tuple[float, float] | None = None
    floor: float | None = None
    difference: float | None = None
    difference_interval: tuple[float, float] | None = None
    floor_difference: float | None = None
    reason: str | None = None


def morphometry_figures(values: Mapping[str, np.ndarray], units: Mapping[str, Sequence[str]], *, seed: int) -> dict[str, MorphometryFigure]:
    """Every measure of MORPHOMETRY.

    Args:
        values: (N, M) of 'real', 'synthetic' and, where there is one, 'floor'.
        units: person of each image.
    """
    return {
        name: _figure({of: values_NM[:, m] for of, values_NM in values.items()}, units, seed=(seed, 14, m))
        for m, name in enumerate(MORPHOMETRY)
    }


def _figure(values: Mapping[str, np.ndarray], units: Mapping[str, Sequence[str]], *, seed: tuple[int, ...]) -> MorphometryFigure:
    there = {name: np.isfinite(values_N) for name, values_N in values.items()}
    if empty := [name for name in ("real", "synthetic") if not there[name].any()]:
        return MorphometryFigure(reason=f"no labelled vessel to take it from in the {' and the '.join(empty)} set")
    rng, mean, spread = np.random.default_rng(np.random.SeedSequence(seed)), {}, {}
    for name, there_N in there.items():
        if there_N.any():
            people, person_N = np.unique(np.asarray(units[name])[there_N], return_inverse=True)
            sum_U, count_U = np.bincount(person_N, values[name][there_N]), np.bincount(person_N)
            mean[name] = float(sum_U.sum() / count_U.sum())
            if len(people) > 1:
                drawn_RU = rng.multinomial(len(people), np.full(len(people), 1 / len(people)), RESAMPLES)
                spread[name] = drawn_RU @ sum_U / (drawn_RU @ count_U)
    interval = {name: tuple(map(float, np.quantile(spread_R, (0.025, 0.975)))) for name, spread_R in spread.items()}
    both = "real" in spread and "synthetic" in spread
    apart = tuple(map(float, np.quantile(spread["synthetic"] - spread["real"], (0.005, 0.995)))) if both else None
    return MorphometryFigure(
        real=mean["real"],
        real_interval=interval.get("real"),
        synthetic=mean["synthetic"],
        synthetic_interval=interval.get("synthetic"),
        floor=mean.get("floor"),
        difference=mean["synthetic"] - mean["real"],
        difference_interval=apart,
        floor_difference=mean["floor"] - mean["real"] if "floor" in mean else None,
    )
