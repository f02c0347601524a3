"""What lies in a phantom eye besides its vessels: nerve head, macula, pigment, choroid, nerve fibres.

Legend: H W pixels, G G the nodes of a grid in mm. Coordinates as in `vessels`: mm on the retina of a right eye, the
fovea at (0, 0), x towards the nose, y upwards.

Textures are drawn once on a grid in mm and read off at the pixels, so that every size shows the same eye.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from data_shards.phantom.vessels import Disc

GRID = 288
GRID_MM = 0.046  # the grid spans 13.2 mm around the fovea, more than any field of view here
FINE = 640
FINE_MM = GRID * GRID_MM / FINE


@dataclass(frozen=True, kw_only=True)
class Fundus:
    """One eye without its vessels.

    Attributes:
        disc: the nerve head; tilt_rad: its turn; outline: amplitudes of four harmonics of its margin.
        cup: cup to disc ratio; cup_x, cup_y: the cup's centre, in half widths of the disc.
        crescent: strength of the pigment crescent at the temporal margin.
        macular_mm: length over which macular pigment falls to 1/e. pit: strength of the foveal reflexes.
        choroid_GG: lumen of choroidal vessels, 0 to 1. pigment_GG, mottle_FF: melanin of the epithelium, mean 0.
        fibres_A: streaks of the nerve fibre layer over the angle around the disc.
    """

    disc: Disc
    tilt_rad: float
    outline: tuple[float, ...]
    cup: float
    cup_x: float
    cup_y: float
    crescent: float
    macular_mm: float
    pit: float
    choroid_GG: np.ndarray
    pigment_GG: np.ndarray
    mottle_FF: np.ndarray
    fibres_A: np.ndarray


def _standard(field: np.ndarray) -> np.ndarray:
    return ((field - field.mean()) / field.std()).astype(np.float32)


def noise(rng: np.random.Generator, nodes: int, sigma_nodes: float) -> np.ndarray:
    """Smooth Gaussian noise, mean 0, standard deviation 1, float32 (nodes, nodes); coarse noise is drawn coarsely and enlarged."""
    coarse = 4 if sigma_nodes >= 6 else 1
    drawn = gaussian_filter(
        rng.standard_normal((nodes // coarse, nodes // coarse), np.float32), sigma_nodes / coarse, mode="wrap", truncate=3
    )
    if coarse > 1:
        at = np.arange(nodes, dtype=np.float32) / coarse
        drawn = map_coordinates(drawn, np.meshgrid(at, at, indexing="ij"), order=1, mode="grid-wrap")
    return _standard(drawn)


def streaks(rng: np.random.Generator, angle_GG: np.ndarray, half_length: int, width_nodes: float) -> np.ndarray:
    """Line integral convolution (Cabral & Leedom 1993): noise smeared along a field of directions.

    Args:
        angle_GG: direction at each node, radians. half_length: nodes to walk either way. width_nodes: of the streaks.

    Returns: float32 (G, G), mean 0, standard deviation 1.
    """
    nodes = len(angle_GG)
    start = noise(rng, nodes, width_nodes)
    stride = 2.0  # below the width of a streak, so the nearest node is near enough
    step_row, step_column = (-stride * np.sin(angle_GG)).astype(np.float32).ravel(), (stride * np.cos(angle_GG)).astype(np.float32).ravel()
    rows, columns = (axis.ravel() for axis in np.meshgrid(*2 * [np.arange(nodes, dtype=np.float32)], indexing="ij"))
    total = start.ravel().copy()
    for sign in (1, -1):
        row, column, at = rows, columns, np.arange(nodes * nodes)
        for _ in range(round(half_length / stride)):
            row, column = row + sign * step_row[at], column + sign * step_column[at]
            at = np.rint(row).astype(np.intp).clip(0, nodes - 1) * nodes + np.rint(column).astype(np.intp).clip(0, nodes - 1)
            total += start.ravel()[at]
    total = total.reshape(nodes, nodes)
    return _standard(total)


def choroid(rng: np.random.Generator, disc: Disc) -> np.ndarray:
    """Lumen of the great choroidal vessels, 0 to 1, float32 (G, G).

    They run from the posterior pole to four vortex veins beyond the field; between macula and nerve head they are
    finer and less ordered. Bands of equal width, joined in places: smeared noise, sharpened and smeared once more.
    """
    y, x = _grid_mm()
    swirl = noise(rng, GRID, 22) * 0.45
    turn_rad = rng.uniform(-0.3, 0.3)
    reach_mm = rng.uniform(11, 14)
    along = np.zeros(x.shape, complex)
    for quadrant in range(4):
        at = reach_mm * np.exp(1j * (np.pi / 4 + quadrant * np.pi / 2 + turn_rad + rng.uniform(-0.2, 0.2)))
        apart = (x - 0.6 * disc.x_mm + 1j * y) - at
        along += rng.uniform(0.7, 1.3) * apart / np.abs(apart) ** 2
    angle = np.angle(along + 0.02 * np.exp(1j * rng.uniform(0, 2 * np.pi))) + swirl
    # Two layers that cross each other at a small angle: great vessels, and smaller ones before them.
    great, small = streaks(rng, angle, 30, 1.7), streaks(rng, angle + 0.5 * noise(rng, GRID, 16), 22, 0.9)
    fade = 1 + 0.35 * noise(rng, GRID, 14)
    lumen = 1 / (1 + np.exp(-2.0 * fade * (rng.uniform(0.7, 1.1) * great + 0.4 * small)))
    return gaussian_filter(lumen, 0.7).astype(np.float32)


def _grid_mm() -> tuple[np.ndarray, np.ndarray]:
    axis = (np.arange(GRID) - (GRID - 1) / 2) * GRID_MM
    return -axis[:, None] + 0 * axis, axis[None, :] + 0 * axis[:, None]


def make_fundus(rng: np.random.Generator, disc: Disc, age_years: float) -> Fundus:
    """Draw one eye. The younger, the brighter its reflexes."""
    young = float(np.clip((55 - age_years) / 30, 0, 1))
    return Fundus(
        disc=disc,
        tilt_rad=rng.normal(0, 0.15),
        outline=tuple(rng.normal(0, 0.012, 8)),
        cup=rng.uniform(0.2, 0.6),
        cup_x=rng.normal(-0.1, 0.05),
        cup_y=rng.normal(0, 0.05),
        crescent=max(0.0, rng.normal(0.1, 0.35)),
        macular_mm=rng.uniform(0.35, 0.55),
        pit=young * rng.uniform(0.3, 1.0),
        choroid_GG=choroid(rng, disc),
        pigment_GG=0.7 * noise(rng, GRID, 24) + 0.4 * noise(rng, GRID, 7),
        mottle_FF=noise(rng, FINE, 1.2),
        fibres_A=_standard(
            gaussian_filter(rng.standard_normal(720), 1.6, mode="wrap") + 1.2 * gaussian_filter(rng.standard_normal(720), 5, mode="wrap")
        ),
    )


def read_off(field: np.ndarray, spacing_mm: float, x_mm: np.ndarray, y_mm: np.ndarray) -> np.ndarray:
    """A texture at given places, float32, bilinear."""
    half = (len(field) - 1) / 2
    return map_coordinates(field, (half - y_mm / spacing_mm, half + x_mm / spacing_mm), order=1, mode="grid-wrap", output=np.float32)


def _edge(inside_mm: np.ndarray, width_mm: float) -> np.ndarray:
    """0 outside, 1 inside, smooth over about `width_mm`."""
    return (1 / (1 + np.exp(-4 / width_mm * np.clip(inside_mm, -8 * width_mm, 8 * width_mm)))).astype(np.float32)


def _streak(fundus: Fundus, angle: np.ndarray) -> np.ndarray:
    """Streaks of the nerve fibres that reach the disc at an angle."""
    return np.interp(angle % (2 * np.pi), np.linspace(0, 2 * np.pi, len(fundus.fibres_A)), fundus.fibres_A)


@dataclass(frozen=True, kw_only=True)
class NerveHead:
    """The disc at given places.

    Attributes:
        onh, cup: from 0 outside to 1 inside. capillaries: about 1.
        outside_mm: from the margin. angle: around the disc, radians.
    """

    onh: np.ndarray
    cup: np.ndarray
    capillaries: np.ndarray
    outside_mm: np.ndarray
    angle: np.ndarray


def nerve_head(fundus: Fundus, x_mm: np.ndarray, y_mm: np.ndarray) -> NerveHead:
    """The disc of an eye at given places."""
    disc = fundus.disc
    dx, dy = x_mm - disc.x_mm, y_mm - disc.y_mm
    cos, sin = np.cos(fundus.tilt_rad), np.sin(fundus.tilt_rad)
    u, v = (cos * dx + sin * dy) / disc.half_width_mm, (cos * dy - sin * dx) / disc.half_height_mm
    angle = np.arctan2(v, u)
    around = np.linspace(-np.pi, np.pi, 361)
    wave = sum(fundus.outline[2 * k] * np.cos((k + 2) * around) + fundus.outline[2 * k + 1] * np.sin((k + 2) * around) for k in range(4))
    ratio = np.hypot(u, v) / (1 + np.interp(angle, around, wave))
    mean_mm = (disc.half_width_mm + disc.half_height_mm) / 2
    streak = _streak(fundus, angle)
    cup_ratio = np.hypot(u - fundus.cup_x, 0.95 * (v - fundus.cup_y))
    cup = _edge((fundus.cup - cup_ratio) * mean_mm, 0.22)
    return NerveHead(
        onh=_edge((1 - ratio) * mean_mm, 0.07),
        cup=cup,
        capillaries=((1 - 0.35 * cup) * (1 + 0.15 * np.cos(angle) + 0.05 * streak)).clip(0.1).astype(np.float32),
        outside_mm=(ratio - 1) * mean_mm,
        angle=angle,
    )


def nerve_fibres(fundus: Fundus, head: NerveHead, x_mm: np.ndarray, y_mm: np.ndarray) -> np.ndarray:
    """Relative thickness of the nerve fibre layer: thickest above and below the disc, in arcs around the macula, with streaks."""
    disc = fundus.disc
    away_mm = np.maximum(head.outside_mm, 0)
    # Bundles bend towards the temporal raphe the farther they are from the disc (compare vessels.bundle_path_mm).
    bend = 0.17 * np.maximum(away_mm - 0.3, 0) ** 1.1
    origin = head.angle - np.sign(y_mm - disc.y_mm) * np.minimum(bend, 1.2)
    poles = np.exp(-((np.abs(origin) - 1.85) ** 2) / (2 * 0.42**2)) + 0.25
    streak = _streak(fundus, origin)
    return (poles * np.exp(-away_mm / 2.4) * (1 + 0.22 * streak)).clip(0).astype(np.float32)


def layers(fundus: Fundus, x_mm: np.ndarray, y_mm: np.ndarray) -> dict[str, np.ndarray]:
    """All of `spectra.Tissue` but the vessels, at given places."""
    head = nerve_head(fundus, x_mm, y_mm)
    eccentricity_mm = np.hypot(x_mm, y_mm)
    macular = np.exp(-eccentricity_mm / fundus.macular_mm)
    pigment = read_off(fundus.pigment_GG, GRID_MM, x_mm, y_mm)
    mottle = read_off(fundus.mottle_FF, FINE_MM, x_mm, y_mm)
    lumen = read_off(fundus.choroid_GG, GRID_MM, x_mm, y_mm)
    beside = np.exp(-((np.maximum(head.outside_mm, 0) / 0.13) ** 2)) * (0.5 - 0.5 * np.cos(head.angle))  # temporal margin
    rpe = 1 + 0.75 * np.exp(-((eccentricity_mm / 0.75) ** 2)) + 0.11 * pigment + 0.055 * mottle + fundus.crescent * beside
    # The macula lies on a thicker choroid of smaller vessels: less pattern there.
    order = 1 - 0.55 * np.exp(-((eccentricity_mm / 1.2) ** 2))
    pattern = order * (lumen - 0.5)
    ring = np.exp(-(((eccentricity_mm - 0.75) / 0.09) ** 2)) * 0.10
    return {
        "onh": head.onh,
        "cup": head.cup,
        "capillaries": head.capillaries,
        "macular": macular.astype(np.float32),
        "fovea": (fundus.pit * (np.exp(-((eccentricity_mm / 0.045) ** 2)) + ring)).astype(np.float32),
        "rpe": rpe.clip(0.3).astype(np.float32),
        "choroid_melanin": (1 - 1.35 * pattern + 0.16 * pigment + 0.25 * np.exp(-((eccentricity_mm / 1.4) ** 2)))
        .clip(0.1)
        .astype(np.float32),
        "choroid_blood": (1 + 0.6 * pattern).clip(0.1).astype(np.float32),
        "inner": (1 - 0.85 * np.exp(-((eccentricity_mm / 0.45) ** 2))).astype(np.float32),
        "fibre": nerve_fibres(fundus, head, x_mm, y_mm),
    }
