"""How far the mean spectra of two sets lie apart, within the field of view and within each labelled region.

Histograms by band (ldm/evaluation/spectral.py) do not see how bands go together; the mean spectrum of a structure is what oximetry
and other spectroscopy read. Its angle is blind to brightness, its information divergence weighs each band by its share.

Legend: C band, H W pixels, U resampling unit (a patient, or an independent synthetic image), R region, S resample.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ldm.evaluation.intervals import LEAST_PEOPLE, about, resampled_means
from ldm.evaluation.regions import REGIONS, RegionSums, lacking_labels
from ldm.spectra import spectral_angle_rad, spectral_information_divergence


class MeanSpectra(RegionSums):
    """Sums of values, stored ones or reflectance, and numbers of pixels by unit, region and band.

    Args:
        bands: C.
        scale, offset: reflectance = scale * value + offset, of the set to be summed. Whole numbers as stored sum without rounding, so
            any split of the work gives the same.
    """

    def __init__(self, bands: int, *, scale: float = 1.0, offset: float = 0.0) -> None:
        self.scale, self.offset = scale, offset
        super().__init__({"sums_URC": np.zeros((len(REGIONS), bands)), "pixels_UR": np.zeros(len(REGIONS), np.int64)})

    def of_pixels(self, values_CN: np.ndarray) -> dict[str, np.ndarray | int]:
        return {"sums_URC": values_CN.sum(1, dtype=np.float64), "pixels_UR": values_CN.shape[1]}

    def of_region(self, region: str) -> tuple[np.ndarray, np.ndarray]:
        """Sums of reflectance (U, C) and pixels (U,) of a region, by unit in their order, without the units that have none of it."""
        sums_UC, pixels_U = self.by_unit("sums_URC", region), self.by_unit("pixels_UR", region)
        there_U = pixels_U > 0
        return (self.scale * sums_UC + self.offset * pixels_U[:, None])[there_U], pixels_U[there_U]


@dataclass(frozen=True, kw_only=True)
class MeanSpectrumDistance:
    """How far the mean spectrum of a synthetic set lies from that of real images in one region.

    Attributes:
        angle_rad, sid: spectral angle in radians, and information divergence in nats, of the mean spectra; None without figures.
        angle_interval, sid_interval: 95 %, from resampling the units of both sides; None with fewer than 4 on one.
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

    The interval resamples units (patients), not pixels; with fewer than LEAST_PEOPLE of them on a side there is none.

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
        enough = min(len(sums[name][1]) for name in ("real", other)) >= LEAST_PEOPLE
        real_SC, other_SC = (resampled_means(*sums[name], rng, resamples if enough else 0) for name in ("real", other))
        for figure, interval, between in (
            ("angle_rad", "angle_interval", spectral_angle_rad),
            ("sid", "sid_interval", spectral_information_divergence),
        ):
            value, resampled_S = float(between(found["real_C"], found[f"{other}_C"])), between(real_SC, other_SC)
            found |= {prefix + figure: value, prefix + interval: about(value, resampled_S[np.isfinite(resampled_S)], least=0.0)}
    return MeanSpectrumDistance(**found)


def _missing(sets: dict[str, MeanSpectra], sums: dict[str, tuple[np.ndarray, np.ndarray]], found: dict, region: str) -> str | None:
    """Why two sets cannot be compared in a region."""
    if reason := lacking_labels(sets, region):
        return reason
    if empty := [name for name in ("real", "synthetic") if not len(sums[name][1])]:
        return f"no pixel of this region in the {' and the '.join(empty)} set"
    if dark := [name for name in ("real", "synthetic") if max(found[f"{name}_C"]) <= 0]:
        return f"no reflectance above 0 in the {' and the '.join(dark)} set"
    return None
