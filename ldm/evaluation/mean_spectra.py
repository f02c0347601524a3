"""How far the mean spectra of two sets lie apart, within the field of view and within each labelled structure.

Legend: C band, H W pixels, U resampling unit (a patient, or an independent synthetic image), R region.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from data_shards.cube import LABELS
from ldm.evaluation.spectral import REGIONS, spread_about

LEAST_SHARE = 1e-6  # of a spectrum's sum: the logarithm of a band that is 0 or below has no value
RESAMPLES = 200


def spectral_angle_rad(a_C: np.ndarray, b_C: np.ndarray) -> np.ndarray:
    """Angle between two spectra (..., C), in radians: of their shape alone, whatever their brightness (Kruse et al. 1993).

    By the chord between unit vectors, for the arccosine of a product near 1 loses half of the digits.
    """
    a_C, b_C = (x_C / np.linalg.norm(x_C, axis=-1, keepdims=True) for x_C in (np.asarray(a_C, np.float64), np.asarray(b_C, np.float64)))
    return 2 * np.arctan2(np.linalg.norm(a_C - b_C, axis=-1), np.linalg.norm(a_C + b_C, axis=-1))


def spectral_information_divergence(a_C: np.ndarray, b_C: np.ndarray) -> np.ndarray:
    """KL(p ‖ q) + KL(q ‖ p) of two spectra (..., C) as distributions over bands, in nats (Chang 2000, Eq. 8 to 10)."""
    p_C, q_C = (_shares(np.asarray(x_C, np.float64)) for x_C in (a_C, b_C))
    return ((p_C - q_C) * np.log(p_C / q_C)).sum(-1)


def _shares(x_C: np.ndarray) -> np.ndarray:
    positive_C = np.maximum(x_C, LEAST_SHARE * np.abs(x_C).sum(-1, keepdims=True))
    return positive_C / positive_C.sum(-1, keepdims=True)


class MeanSpectra:
    """Sums of stored values by unit, region and band; integers, so that merged in any order they are the same.

    Args:
        bands: C.
        scale, offset: reflectance = scale * stored + offset.
    """

    def __init__(self, bands: int, *, scale: float, offset: float) -> None:
        self.bands, self.scale, self.offset = bands, scale, offset
        self._sums: dict[int, np.ndarray] = {}
        self.labelled = False

    def add(self, data_CHW: np.ndarray, *, unit: int, fov_HW: np.ndarray, labels_HW: np.ndarray | None = None) -> None:
        """Add one cube (uint16) under `unit`; labels outside the field of view do not count."""
        masks = [fov_HW]
        if labels_HW is not None:
            self.labelled = True
            masks += [fov_HW & (labels_HW == LABELS[name]) for name in REGIONS[1:]]
        sums_RC1 = self._of(unit)
        for r, mask_HW in enumerate(masks):
            sums_RC1[r, :-1] += data_CHW[:, mask_HW].sum(1, dtype=np.int64)
            sums_RC1[r, -1] += int(mask_HW.sum())

    def arrays(self) -> dict[str, np.ndarray]:
        """What `merge` adds to others: the units, and their sums in each region, of which the last column counts pixels."""
        sums = np.array(list(self._sums.values()), np.int64).reshape(-1, len(REGIONS), self.bands + 1)
        return {"unit_U": np.array(list(self._sums), np.int64), "sums_URC1": sums, "labelled": np.array(self.labelled)}

    def merge(self, unit_U: np.ndarray, sums_URC1: np.ndarray, labelled: np.ndarray) -> None:
        """Add what was summed of other cubes of the set."""
        self.labelled |= bool(labelled)
        for unit, sums_RC1 in zip(unit_U.tolist(), sums_URC1, strict=True):
            self._of(unit)[:] += sums_RC1

    def sums_UC1(self, region: str) -> np.ndarray:
        """Sums and pixels of a region, by unit in their order, without the units that have none of it."""
        sums_UC1 = np.array([self._sums[unit][REGIONS.index(region)] for unit in sorted(self._sums)], np.int64).reshape(-1, self.bands + 1)
        return sums_UC1[sums_UC1[:, -1] > 0]

    def mean_C(self, sums_C1: np.ndarray) -> np.ndarray:
        """Mean reflectance of each band, of sums and pixels."""
        return sums_C1[:-1] / sums_C1[-1] * self.scale + self.offset

    def _of(self, unit: int) -> np.ndarray:
        return self._sums.setdefault(unit, np.zeros((len(REGIONS), self.bands + 1), np.int64))


@dataclass(frozen=True, kw_only=True)
class MeanSpectrumDistance:
    """Mean spectrum of the synthetic set against that of real images in one region; `floor_…`: other real images in its place.

    Attributes:
        real_C, synthetic_C, floor_C: mean reflectance of each band; None, as all that follows, where a set has no pixel there.
        angle_rad, sid: spectral angle in radians, spectral information divergence in nats.
        …_interval: 95 %, from resampling units.
        angle_excess_interval, sid_excess_interval: 99 %, of figure - floor, the reference resampled alike in both.
        reason: why there are no figures.
    """

    real_C: tuple[float, ...] | None = None
    synthetic_C: tuple[float, ...] | None = None
    floor_C: tuple[float, ...] | None = None
    angle_rad: float | None = None
    angle_interval: tuple[float, float] | None = None
    floor_angle_rad: float | None = None
    floor_angle_interval: tuple[float, float] | None = None
    angle_excess_interval: tuple[float, float] | None = None
    sid: float | None = None
    sid_interval: tuple[float, float] | None = None
    floor_sid: float | None = None
    floor_sid_interval: tuple[float, float] | None = None
    sid_excess_interval: tuple[float, float] | None = None
    reason: str | None = None


MEASURES = {"angle_rad": spectral_angle_rad, "sid": spectral_information_divergence}


def distances(sets: Mapping[str, MeanSpectra], region: str, *, seed: int) -> MeanSpectrumDistance:
    """Figure and floor of one region.

    Args:
        sets: 'real', 'synthetic' and, where there is one, 'floor'.
    """
    sums = {name: of_set.sums_UC1(region) for name, of_set in sets.items()}
    if empty := [name for name in ("real", "synthetic") if not len(sums[name])]:
        if region != "fov" and not sets["synthetic"].labelled:
            return MeanSpectrumDistance(reason="the synthetic set has no labels" if sets["real"].labelled else "neither set has labels")
        return MeanSpectrumDistance(reason=f"no pixel of this region in the {' and the '.join(empty)} set")
    sums = {name: sums_UC1 for name, sums_UC1 in sums.items() if len(sums_UC1)}
    means = {name: sets[name].mean_C(sums_UC1.sum(0)) for name, sums_UC1 in sums.items()}
    rng = np.random.default_rng(np.random.SeedSequence((seed, 13)))
    resampled = [{name: sets[name].mean_C(_resampled(sums_UC1, rng)) for name, sums_UC1 in sums.items()} for _ in range(RESAMPLES)]
    fields: dict[str, object] = {f"{name}_C": tuple(map(float, mean_C)) for name, mean_C in means.items()}
    for key, measure in MEASURES.items():
        short, spread, value = key.removesuffix("_rad"), {}, {}
        for name in ("synthetic", "floor"):
            if name in means:
                value[name] = float(measure(means["real"], means[name]))
                spread[name] = np.array([measure(drawn["real"], drawn[name]) for drawn in resampled])
        fields |= {key: value["synthetic"], f"{short}_interval": spread_about(value["synthetic"], spread["synthetic"])}
        if "floor" in value:
            excess, excess_R = value["synthetic"] - value["floor"], spread["synthetic"] - spread["floor"]
            low, high = excess + np.quantile(excess_R - excess_R.mean(), (0.005, 0.995))
            fields |= {f"floor_{key}": value["floor"], f"floor_{short}_interval": spread_about(value["floor"], spread["floor"])}
            fields[f"{short}_excess_interval"] = (float(low), float(high))
    return MeanSpectrumDistance(**fields)


def _resampled(sums_UC1: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sums of units drawn with replacement, as many as there are."""
    U = len(sums_UC1)
    return rng.multinomial(U, np.full(U, 1 / U)) @ sums_UC1
