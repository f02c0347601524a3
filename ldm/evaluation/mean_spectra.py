"""How far the mean spectra of two sets lie apart, within the field of view and within each labelled region.

Histograms by band (ldm/evaluation/spectral.py) do not see how bands go together; the mean spectrum of a structure is what oximetry
and other spectroscopy read. Its angle is blind to brightness, its information divergence weighs each band by its share.

Legend: C band, H W pixels, U resampling unit (a patient, or an independent synthetic image), R region, S resample.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_shards.cube import LABELS
from ldm.evaluation.spectral import spread_about
from ldm.spectra import REGIONS, spectral_angle_rad, spectral_information_divergence


class MeanSpectra:
    """Sums of values and numbers of pixels by unit, region and band; filled cube by cube, or by what was summed of other cubes.

    Args:
        bands: C.
        scale, offset: reflectance = scale * value + offset, of the set to be summed. Whole numbers as stored sum without rounding, so
            any split of the work gives the same.
    """

    def __init__(self, bands: int, *, scale: float = 1.0, offset: float = 0.0) -> None:
        self.bands, self.scale, self.offset = bands, scale, offset
        self._sums: dict[int, np.ndarray] = {}
        self._pixels: dict[int, np.ndarray] = {}
        self.labelled = False

    def add(self, data_CHW: np.ndarray, *, unit: int, fov_HW: np.ndarray, labels_HW: np.ndarray | None = None) -> None:
        """Sum one cube, stored values or reflectance, under `unit`; labels outside the field of view do not count."""
        masks = [fov_HW]
        if labels_HW is not None:
            self.labelled = True
            masks += [fov_HW & (labels_HW == LABELS[name]) for name in REGIONS[1:]]
        sums_RC, pixels_R = self._of(unit)
        for r, mask_HW in enumerate(masks):
            inside_CN = data_CHW[:, mask_HW]
            sums_RC[r] += inside_CN.sum(1, dtype=np.float64)
            pixels_R[r] += inside_CN.shape[1]

    def arrays(self) -> dict[str, np.ndarray]:
        """What `merge` adds to others: units, their sums and pixels in the whole field of view and, of a labelled set, in each region."""
        regions = len(REGIONS) if self.labelled else 1
        sums = [sums_RC[:regions] for sums_RC in self._sums.values()]
        pixels = [pixels_R[:regions] for pixels_R in self._pixels.values()]
        return {
            "unit_U": np.array(list(self._sums), np.int64),
            "sums_URC": np.array(sums, np.float64).reshape(-1, regions, self.bands),
            "pixels_UR": np.array(pixels, np.int64).reshape(-1, regions),
        }

    def merge(self, unit_U: np.ndarray, sums_URC: np.ndarray, pixels_UR: np.ndarray) -> None:
        """Add what was summed of other cubes of the set."""
        self.labelled |= sums_URC.shape[1] > 1
        for unit, other_RC, other_R in zip(unit_U.tolist(), sums_URC, pixels_UR, strict=True):
            sums_RC, pixels_R = self._of(unit)
            sums_RC[: len(other_RC)] += other_RC
            pixels_R[: len(other_R)] += other_R

    def of_region(self, region: str) -> tuple[np.ndarray, np.ndarray]:
        """Sums of reflectance (U, C) and pixels (U,) of a region, by unit in their order, without the units that have none of it."""
        units, r = sorted(self._sums), REGIONS.index(region)
        pixels_U = np.array([self._pixels[unit][r] for unit in units], np.int64)
        sums_UC = np.array([self._sums[unit][r] for unit in units]).reshape(-1, self.bands)
        there_U = pixels_U > 0
        return (self.scale * sums_UC + self.offset * pixels_U[:, None])[there_U], pixels_U[there_U]

    def _of(self, unit: int) -> tuple[np.ndarray, np.ndarray]:
        return (
            self._sums.setdefault(unit, np.zeros((len(REGIONS), self.bands))),
            self._pixels.setdefault(unit, np.zeros(len(REGIONS), np.int64)),
        )


@dataclass(frozen=True, kw_only=True)
class MeanSpectrumDistance:
    """How far the mean spectrum of a synthetic set lies from that of real images in one region.

    Attributes:
        angle_rad, sid: spectral angle in radians, and information divergence in nats, of the mean spectra; None without figures.
        angle_interval, sid_interval: 95 %, from resampling the units of both sides.
        floor_…: other real images in place of the synthetic ones; None without any, or where they lack the region.
        real_C, synthetic_C, floor_C: mean reflectance of each band, each pixel alike.
        pixels_…, units_…: what was summed in each set.
        reason: why there are no figures.
    """

    angle_rad: float | None = None
    angle_interval: tuple[float, float] | None = None
    floor_angle_rad: float | None = None
    floor_angle_interval: tuple[float, float] | None = None
    sid: float | None = None
    sid_interval: tuple[float, float] | None = None
    floor_sid: float | None = None
    floor_sid_interval: tuple[float, float] | None = None
    real_C: tuple[float, ...] | None = None
    synthetic_C: tuple[float, ...] | None = None
    floor_C: tuple[float, ...] | None = None
    pixels_real: int = 0
    pixels_synthetic: int = 0
    pixels_floor: int = 0
    units_real: int = 0
    units_synthetic: int = 0
    units_floor: int = 0
    reason: str | None = None


def distances(sets: dict[str, MeanSpectra], region: str, seed: int, *, resamples: int = 200) -> MeanSpectrumDistance:
    """Figures and floors of one region.

    The interval resamples units (patients), not pixels; a side of one unit stays fixed.

    Args:
        sets: 'real', 'synthetic' and, where there is one, 'floor'.
    """
    sums = {name: spectra.of_region(region) for name, spectra in sets.items()}
    found: dict[str, object] = {}
    for name, (sums_UC, pixels_U) in sums.items():
        found |= {f"pixels_{name}": int(pixels_U.sum()), f"units_{name}": len(pixels_U)}
        if len(pixels_U):
            found[f"{name}_C"] = tuple(map(float, sums_UC.sum(0) / pixels_U.sum()))
    if reason := _missing(sets, sums, found, region):
        return MeanSpectrumDistance(**found, reason=reason)
    for prefix, other in (("", "synthetic"), ("floor_", "floor")):
        if max(found.get(f"{other}_C", (0.0,))) <= 0:
            continue  # no floor, or one without this region
        rng = np.random.default_rng(np.random.SeedSequence((seed, 8)))
        real_SC, other_SC = (_resampled(*sums[name], rng, resamples) for name in ("real", other))
        for figure, interval, between in (
            ("angle_rad", "angle_interval", spectral_angle_rad),
            ("sid", "sid_interval", spectral_information_divergence),
        ):
            value, resampled_S = float(between(found["real_C"], found[f"{other}_C"])), between(real_SC, other_SC)
            found |= {prefix + figure: value, prefix + interval: spread_about(value, resampled_S[np.isfinite(resampled_S)])}
    return MeanSpectrumDistance(**found)


def _missing(sets: dict[str, MeanSpectra], sums: dict[str, tuple[np.ndarray, np.ndarray]], found: dict, region: str) -> str | None:
    """Why two sets cannot be compared in a region."""
    if region != "fov" and not sets["synthetic"].labelled:
        return "the synthetic set has no labels" if sets["real"].labelled else "neither set has labels"
    if empty := [name for name in ("real", "synthetic") if not len(sums[name][1])]:
        return f"no pixel of this region in the {' and the '.join(empty)} set"
    if dark := [name for name in ("real", "synthetic") if max(found[f"{name}_C"]) <= 0]:
        return f"no reflectance above 0 in the {' and the '.join(dark)} set"
    return None


def _resampled(sums_UC: np.ndarray, pixels_U: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """Mean spectra (S, C) of resampled units."""
    n = len(pixels_U)
    drawn_SU = rng.multinomial(n, np.full(n, 1 / n), size=resamples)
    return drawn_SU @ sums_UC / (drawn_SU @ pixels_U)[:, None]
