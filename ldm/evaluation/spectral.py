"""How far the histograms of each band of two sets lie apart, within the field of view and within each labelled region.

Edges come from the real training set's statistics alone, so that every set, run and machine counts into the same bins.

Legend: C band, H W pixels, E inner edge, K bin, U resampling unit (a patient, or an independent synthetic image), R region; resample.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ldm.evaluation.intervals import LEAST_PEOPLE, about
from ldm.evaluation.regions import REGIONS, RegionSums, lacking_labels
from ldm.spectra import js_nats, kl_nats, posterior


class BandHistograms(RegionSums):
    """Counts of stored values (uint16) by unit, region, band and bin.

    Args:
        edges_CE: inner edges in reflectance units.
        scale, offset: reflectance = scale * stored + offset, of the set to be counted.
    """

    def __init__(self, edges_CE: np.ndarray, *, scale: float, offset: float) -> None:
        reflectance_V = np.arange(65536) * scale + offset
        self.bins = edges_CE.shape[1] + 1
        # stored values are 16 bits, so the bin of every possible one is looked up instead of searched for
        self._bin_CV = np.stack([np.searchsorted(edges_E, reflectance_V, side="right") for edges_E in edges_CE]).astype(
            np.uint8 if self.bins <= 256 else np.uint16
        )
        super().__init__({"counts_URCK": np.zeros((len(REGIONS), len(edges_CE), self.bins), np.int64)})

    def of_pixels(self, values_CN: np.ndarray) -> dict[str, np.ndarray]:
        counts_CK = [np.bincount(bin_V[values_N], minlength=self.bins) for bin_V, values_N in zip(self._bin_CV, values_CN, strict=True)]
        return {"counts_URCK": np.stack(counts_CK)}

    def counts_UCK(self, region: str) -> np.ndarray:
        """Counts of a region, by unit in their order, without the units that have none of it."""
        counts_UCK = self.by_unit("counts_URCK", region)
        return counts_UCK[counts_UCK.sum((1, 2)) > 0]


@dataclass(frozen=True, kw_only=True)
class SpectralDistance:
    """How far two sets lie apart in one region.

    Attributes:
        kl_C, js_C: KL(real ‖ other) and JS of each band, in nats; None, as all that follows, where a set has no pixel in the region.
        kl_mean, js_mean: over bands.
        kl_interval, js_interval: of the means, 95 %, from resampling units; None with fewer than 4 on a side.
        pixels_real, pixels_other, units_real, units_other: what was counted in each set.
        reason: why there are no figures.
    """

    kl_C: tuple[float, ...] | None = None
    js_C: tuple[float, ...] | None = None
    kl_mean: float | None = None
    kl_interval: tuple[float, float] | None = None
    js_mean: float | None = None
    js_interval: tuple[float, float] | None = None
    pixels_real: int = 0
    pixels_other: int = 0
    units_real: int = 0
    units_other: int = 0
    reason: str | None = None


def spectral_distance(real_UCK: np.ndarray, other_UCK: np.ndarray, *, seed: int = 0, resamples: int = 200) -> SpectralDistance:
    """Divergences between two sets of per-unit histograms.

    The interval resamples units (patients), not pixels: pixels of one eye are far from independent.
    """
    sides = {"real": real_UCK, "other": other_UCK}
    sizes = {f"pixels_{name}": int(u_UCK[:, 0].sum()) if len(u_UCK) else 0 for name, u_UCK in sides.items()}
    sizes |= {f"units_{name}": len(u_UCK) for name, u_UCK in sides.items()}
    if empty := [name for name, u_UCK in sides.items() if not len(u_UCK)]:
        return SpectralDistance(**sizes, reason=f"no pixel of this region in the {' and the '.join(empty)} set")
    p_CK, q_CK = posterior(real_UCK.sum(0)), posterior(other_UCK.sum(0))
    rng = np.random.default_rng(np.random.SeedSequence((seed, 4)))
    resamples = resamples if min(map(len, sides.values())) >= LEAST_PEOPLE else 0
    kl_R, js_R = np.empty(resamples), np.empty(resamples)
    for r in range(resamples):
        p, q = (posterior(resampled(u_UCK, rng)) for u_UCK in sides.values())
        kl_R[r], js_R[r] = kl_nats(p, q).mean(), js_nats(p, q).mean()
    kl_C, js_C = kl_nats(p_CK, q_CK), js_nats(p_CK, q_CK)
    return SpectralDistance(
        kl_C=tuple(map(float, kl_C)),
        js_C=tuple(map(float, js_C)),
        kl_mean=float(kl_C.mean()),
        kl_interval=about(float(kl_C.mean()), kl_R, least=0.0),
        js_mean=float(js_C.mean()),
        js_interval=about(float(js_C.mean()), js_R, least=0.0),
        **sizes,
    )


def resampled(counts_UCK: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Counts (C, K) of units drawn with replacement, as many as there are."""
    U = len(counts_UCK)
    return np.tensordot(rng.multinomial(U, np.full(U, 1 / U)), counts_UCK, axes=1)


@dataclass(frozen=True, kw_only=True)
class RegionDistance(SpectralDistance):
    """Synthetic against real images in one region; `floor_…`: other real images in place of the synthetic ones, None without any.

    Attributes:
        kl_excess, js_excess: what the set differs by from the floor.
        kl_excess_interval, js_excess_interval: 99 %, from resampling units, those of the reference alike in both; None with fewer than 4 of
            them in a set.
    """

    floor_kl_C: tuple[float, ...] | None = None
    floor_js_C: tuple[float, ...] | None = None
    floor_kl_mean: float | None = None
    floor_kl_interval: tuple[float, float] | None = None
    floor_js_mean: float | None = None
    floor_js_interval: tuple[float, float] | None = None
    kl_excess: float | None = None
    kl_excess_interval: tuple[float, float] | None = None
    js_excess: float | None = None
    js_excess_interval: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class SpectralFigures:
    """Histogram divergences of an evaluation.

    Attributes:
        wavelengths_nm: of the bands, in the order of kl_C and js_C.
        bins: of each band's histogram, the two open ones included.
        fov_pixels: in the field of view of all images.
        fov, artery, vein, onh: the regions.
    """

    wavelengths_nm: tuple[float, ...]
    bins: int
    fov_pixels: int
    fov: RegionDistance
    artery: RegionDistance
    vein: RegionDistance
    onh: RegionDistance

    @property
    def regions(self) -> dict[str, RegionDistance]:
        """All of them, by name."""
        return {"fov": self.fov, "artery": self.artery, "vein": self.vein, "onh": self.onh}


def region_distance(histograms: dict[str, BandHistograms], region: str, *, seed: int) -> RegionDistance:
    """Figure and floor of one region.

    Args:
        histograms: of 'real', 'synthetic' and, where there is one, 'floor'.
    """
    counts = {name: of_set.counts_UCK(region) for name, of_set in histograms.items()}
    distance, floor = spectral_distance(counts["real"], counts["synthetic"], seed=seed), SpectralDistance()
    if reason := lacking_labels(histograms, region):
        distance = replace(distance, reason=reason)
    if "floor" in counts:
        floor = spectral_distance(counts["real"], counts["floor"], seed=seed)
    excess = {}
    if distance.kl_mean is not None and floor.kl_mean is not None:
        excess = _excess(counts, (distance.kl_mean - floor.kl_mean, distance.js_mean - floor.js_mean), seed)
    return RegionDistance(
        **vars(distance),
        floor_kl_C=floor.kl_C,
        floor_js_C=floor.js_C,
        floor_kl_mean=floor.kl_mean,
        floor_kl_interval=floor.kl_interval,
        floor_js_mean=floor.js_mean,
        floor_js_interval=floor.js_interval,
        **excess,
    )


def _excess(counts: dict[str, np.ndarray], values: tuple[float, float], seed: int, resamples: int = 200) -> dict[str, object]:
    """By how much KL and JS of the synthetic set exceed the floor's, and the spread of that."""
    resamples = resamples if min(map(len, counts.values())) >= LEAST_PEOPLE else 0
    rng, found_R2 = np.random.default_rng(np.random.SeedSequence((seed, 12))), np.empty((resamples, 2))
    for r in range(resamples):
        p_CK, q_CK, f_CK = (posterior(resampled(counts[name], rng)) for name in ("real", "synthetic", "floor"))
        found_R2[r] = [(d(p_CK, q_CK) - d(p_CK, f_CK)).mean() for d in (kl_nats, js_nats)]
    fields: dict[str, object] = {}
    for name, value, found_R in zip(("kl", "js"), values, found_R2.T, strict=True):
        fields |= {f"{name}_excess": value, f"{name}_excess_interval": about(value, found_R, level=0.99)}
    return fields
