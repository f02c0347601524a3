"""The camera of the phantom: light, blur, glare, noise, 12 bits.

Legend: C band, H W pixels.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from data_shards.phantom import spectra
from data_shards.phantom.persons import NOISE, PhantomConfig, View, stream
from data_shards.phantom.spectra import Person, Tissue

FIELD_SHARE = 0.97  # diameter of the field of view over the width of the image
CENTRAL_DISC_SHARE = 22 / 672  # radius of the small black disc over the width of the image


def field_of_view(config: PhantomConfig) -> np.ndarray:
    """Bool (H, W): a disc, without the central one where there is one."""
    axis = np.arange(config.size) - (config.size - 1) / 2
    away = np.hypot(axis[:, None], axis[None, :])
    fov_HW = away <= FIELD_SHARE * config.size / 2
    return fov_HW & (away > CENTRAL_DISC_SHARE * config.size) if config.central_disc else fov_HW


def light_HW(config: PhantomConfig, seen: View, nm: float) -> np.ndarray:
    """Uneven light, about 1: a slope, a bowl, and less towards the margin; the slope differs a little with wavelength."""
    axis = np.linspace(-1, 1, config.size, dtype=np.float32)
    y, x = axis[:, None], axis[None, :]
    tint = 1 + 0.35 * (nm - 640) / 250
    slope = seen.light[0] * tint * x + seen.light[1] * tint * y + seen.light[2] * x * y
    bowl = (
        seen.light[3] * (x**2 - y**2)
        + (seen.light[4] - 0.10 * config.uneven_light) * (x**2 + y**2)
        - 0.12 * config.uneven_light * (x**2 + y**2) ** 4
    )
    return (seen.gain * np.exp(slope + bowl)).astype(np.float32)


def camera(reflectance_HW: np.ndarray, nm: float, tissue: Tissue, seen: View, config: PhantomConfig) -> np.ndarray:
    """Light, blur and glare of one band; still reflectance, float32 (H, W).

    Blur: 8 µm of optics, and the blur circle of 3 mm pupil for the chromatic defocus left after focusing at 600 nm.
    """
    defocus = spectra.chromatic_defocus_dioptre(nm) - spectra.chromatic_defocus_dioptre(600) + seen.defocus_dioptre
    circle_mm = 3e-3 * abs(defocus) * 17  # pupil in m times dioptre is the angle; 17 mm is the eye's nodal distance
    sigma_mm = np.hypot(0.008, circle_mm / 4)
    lit = reflectance_HW * light_HW(config, seen, nm)
    sharp = gaussian_filter(lit, sigma_mm / tissue.mm_per_pixel, mode="nearest")
    if not config.glare:
        return sharp
    coarse = max(1, config.size // 96)
    veil = gaussian_filter(lit[::coarse, ::coarse], 1.2 / (tissue.mm_per_pixel * coarse), mode="constant")
    veil = np.repeat(np.repeat(veil, coarse, 0), coarse, 1)[: config.size, : config.size]
    veil = np.pad(veil, [(0, config.size - len(veil)), (0, config.size - veil.shape[1])], mode="edge")
    veil = gaussian_filter(veil, 0.6 * coarse) if coarse > 1 else veil
    return (1 - config.glare) * sharp + config.glare * veil


def expose(reflectance_HW: np.ndarray, rng: np.random.Generator, fov_HW: np.ndarray, config: PhantomConfig) -> np.ndarray:
    """Shot and read noise, then 12 bits, uint16 (H, W).

    The tunable laser is set in each band so that the middle of the fundus gives `electrons` at 672²; a pixel of a
    smaller image collects from more of the retina, and its noise falls accordingly.
    """
    scale = config.full_scale / 4095
    binned = (672 / config.size) ** 2
    counts = reflectance_HW / np.float32(scale)
    middle = max(float(np.median(counts[fov_HW])), 1.0)
    variance = np.maximum(counts, 0) * np.float32(middle / (config.electrons * binned)) + np.float32(config.read_noise_counts**2 / binned)
    noisy = counts + np.float32(config.noise) * np.sqrt(variance) * rng.standard_normal(counts.shape, np.float32)
    return np.clip(np.rint(noisy), 0, 4095).astype(np.uint16)


def render(tissue: Tissue, who: Person, seen: View, fov_HW: np.ndarray, noise_place: tuple[int, ...], config: PhantomConfig) -> np.ndarray:
    """All bands of one view, uint16 (C, H, W)."""
    bands = np.empty((len(config.wavelengths_nm), config.size, config.size), np.uint16)
    for c, nm in enumerate(config.wavelengths_nm):
        rng = stream(*noise_place, round(nm * 1000), NOISE)
        band = camera(spectra.reflectance_HW(nm, tissue, who), nm, tissue, seen, config)
        bands[c] = expose(np.where(fov_HW, band, 0), rng, fov_HW, config)
    return bands
