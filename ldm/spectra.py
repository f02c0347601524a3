"""Spectra and histograms of bands, and how far two of them lie apart: what the evaluation and the monitor of a training both ask.

Legend: C band, E inner edge, K bin.
"""

from __future__ import annotations

import numpy as np

from data_shards.cube import LABELS
from data_shards.manifest import BandStats

REGIONS = ("fov", *(name for name in LABELS if name != "background"))
"""The whole field of view, then each class of the label map."""

LEAST_SHARE = 1e-6
"""Of the brightest band: a band below it counts as so much, for a logarithm takes no 0, and noise may be below 0."""


def band_edges(stats: BandStats, bins: int = 64) -> np.ndarray:
    """Inner edges (C, E), E = bins - 1: evenly from mean - 4 std to mean + 4 std, cut to the range seen in training.

    The two outer bins are open, so a value that no real image has still counts.
    """
    mean_C, std_C, min_C, max_C = (np.asarray(v, np.float64) for v in (stats.mean_C, stats.std_C, stats.min_C, stats.max_C))
    low_C, high_C = np.maximum(mean_C - 4 * std_C, min_C), np.minimum(mean_C + 4 * std_C, max_C)
    return np.linspace(low_C, np.maximum(high_C, low_C + 1e-6), bins - 1, axis=1)


def posterior(counts_CK: np.ndarray) -> np.ndarray:
    """Mean bin probabilities under the Jeffreys prior, which adds 1/2 to every bin: no bin is ever impossible."""
    smooth_CK = counts_CK + 0.5
    return smooth_CK / smooth_CK.sum(-1, keepdims=True)


def kl_nats(p_CK: np.ndarray, q_CK: np.ndarray) -> np.ndarray:
    """Kullback–Leibler divergence of each band, Σ p ln(p/q), in nats."""
    return (p_CK * np.log(p_CK / q_CK)).sum(-1)


def js_nats(p_CK: np.ndarray, q_CK: np.ndarray) -> np.ndarray:
    """Jensen–Shannon divergence of each band in nats, at most ln 2 (Lin 1991): KL's symmetric companion, bounded where KL explodes."""
    middle_CK = (p_CK + q_CK) / 2
    return (kl_nats(p_CK, middle_CK) + kl_nats(q_CK, middle_CK)) / 2


def spectral_angle_rad(a_C: np.ndarray, b_C: np.ndarray) -> np.ndarray:
    """Angle of two spectra in radians (SAM: Kruse et al. 1993), over the last axis; NaN where one is 0 in all bands.

    arccos(a·b / |a||b|), as 2 atan2(|â - b̂|, |â + b̂|): near 0 the cosine differs from 1 by less than its rounding.
    """
    a_C, b_C = (np.asarray(x, np.float64) for x in (a_C, b_C))
    with np.errstate(invalid="ignore", divide="ignore"):
        a_C, b_C = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (a_C, b_C))
    return 2 * np.arctan2(np.linalg.norm(a_C - b_C, axis=-1), np.linalg.norm(a_C + b_C, axis=-1))


def spectral_information_divergence(a_C: np.ndarray, b_C: np.ndarray) -> np.ndarray:
    """D(p ‖ q) + D(q ‖ p) of the bands' shares p = a / Σ a and q = b / Σ b, in nats (SID: Chang 2000, Eq. 8–10), over the last axis.

    Bands below LEAST_SHARE of the brightest count as that. NaN where no band of a spectrum is above 0.
    """
    p_C, q_C = shares(a_C), shares(b_C)
    return ((p_C - q_C) * np.log(p_C / q_C)).sum(-1)


def shares(spectrum_C: np.ndarray) -> np.ndarray:
    """Share of each band in a spectrum's sum, all above 0."""
    spectrum_C = np.asarray(spectrum_C, np.float64)
    brightest = spectrum_C.max(-1, keepdims=True)
    positive_C = np.maximum(spectrum_C, LEAST_SHARE * np.where(brightest > 0, brightest, np.nan))
    return positive_C / positive_C.sum(-1, keepdims=True)
