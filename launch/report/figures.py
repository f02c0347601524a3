"""Figures of the report, each a function from arrays to one image as a data URI.

Legend: B image, C band, H W pixels.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

SINGLE_BANDS_NM = (900, 815, 730, 640, 555, 465)
FALSE_COLOUR_NM = (640, 555, 465)
REAL, SYNTHETIC, INK, GRID = "#1f5fa8", "#c8501e", "#222222", "#dddddd"

plt.rcParams.update(
    {
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": INK,
        "axes.grid": True,
        "grid.color": GRID,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "figure.dpi": 110,
    }
)


def nearest_bands(wavelengths_nm: Sequence[float], wanted_nm: Sequence[float]) -> list[int]:
    """Index of the band nearest to each wanted wavelength, each band at most once."""
    found: list[int] = []
    for nm in wanted_nm:
        c = int(np.argmin(np.abs(np.asarray(wavelengths_nm) - nm)))
        if c not in found:
            found.append(c)
    return found


class Display:
    """Reflectance to grey or colour, with one scale a band for real and synthetic images alike, taken from real ones.

    A square root lifts the dark: the optic disc is several times as bright as the rest of the fundus.
    """

    def __init__(self, real_BCHW: np.ndarray) -> None:
        inside = np.moveaxis(real_BCHW, 1, 0).reshape(real_BCHW.shape[1], -1)
        # zeros outside the field of view would pull the lower end down
        self.low_C = np.array([np.percentile(band[band > 0.02 * band.max()], 0.5) if band.max() > 0 else 0.0 for band in inside])
        self.high_C = np.array([np.percentile(band, 99.3) for band in inside])

    def grey(self, x_HW: np.ndarray, c: int) -> np.ndarray:
        """One band as uint8."""
        scaled = (x_HW - self.low_C[c] * 0.8) / max(self.high_C[c] - self.low_C[c] * 0.8, 1e-9)
        return (np.sqrt(scaled.clip(0, 1)) * 255).astype(np.uint8)

    def colour(self, x_CHW: np.ndarray, bands: Sequence[int]) -> np.ndarray:
        """Three bands as RGB, uint8."""
        return np.stack([self.grey(x_CHW[c], c) for c in bands], axis=-1)


def data_uri(image: np.ndarray, *, scale: int = 1) -> str:
    """A uint8 image as a PNG data URI, enlarged by whole pixels."""
    picture = Image.fromarray(image)
    if scale > 1:
        picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    picture.save(buffer := io.BytesIO(), format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def figure_uri(figure: plt.Figure) -> str:
    """A matplotlib figure as an SVG data URI."""
    figure.savefig(buffer := io.BytesIO(), format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def montage(rows: Sequence[Sequence[np.ndarray]], *, gap: int = 3) -> np.ndarray:
    """Equal RGB or grey tiles in rows, on white."""
    rgb = [[tile if tile.ndim == 3 else np.repeat(tile[..., None], 3, axis=-1) for tile in row] for row in rows]
    H, W = rgb[0][0].shape[:2]
    sheet = np.full((len(rgb) * (H + gap) - gap, max(map(len, rgb)) * (W + gap) - gap, 3), 255, np.uint8)
    for r, row in enumerate(rgb):
        for k, tile in enumerate(row):
            sheet[r * (H + gap) : r * (H + gap) + H, k * (W + gap) : k * (W + gap) + W] = tile
    return sheet


def mean_spectra(wavelengths_nm: Sequence[float], sets: dict[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """Mean reflectance of each set against wavelength, with the deviation between images as a band."""
    order = np.argsort(wavelengths_nm)
    nm = np.asarray(wavelengths_nm)[order]
    figure, axis = plt.subplots(figsize=(6.2, 3.2))
    for (name, (mean_C, std_C)), colour in zip(sets.items(), (REAL, SYNTHETIC), strict=False):
        axis.plot(nm, mean_C[order], "o-", color=colour, markersize=3, label=name)
        axis.fill_between(nm, (mean_C - std_C)[order], (mean_C + std_C)[order], color=colour, alpha=0.15, linewidth=0)
    axis.set(xlabel="wavelength (nm)", ylabel="mean reflectance within the field of view")
    axis.legend()
    return figure_uri(figure)


def curves(rows: list[dict[str, Any]], names: dict[str, str], *, ylabel: str, log: bool = False) -> str | None:
    """Logged values against samples seen; None when none of them was logged."""
    present = {name: label for name, label in names.items() if any(row.get(name) is not None for row in rows)}
    if not present:
        return None
    figure, axis = plt.subplots(figsize=(4.6, 2.8))
    for name, label in present.items():
        points = [(row["samples"], row[name]) for row in rows if row.get(name) is not None]
        axis.plot(*zip(*points, strict=True), linewidth=1.2, label=label)
    axis.set(xlabel="samples seen", ylabel=ylabel)
    if log:
        axis.set_yscale("log")
    axis.legend(fontsize=8)
    return figure_uri(figure)


def spectrum(eigenvalues_D: Sequence[float]) -> str:
    """Variance of the latents along their principal directions."""
    figure, axis = plt.subplots(figsize=(4.6, 2.8))
    axis.bar(np.arange(1, len(eigenvalues_D) + 1), eigenvalues_D, color=REAL)
    axis.set(xlabel="principal direction of the latent channels", ylabel="variance (latent units²)")
    return figure_uri(figure)


def kl_by_band(wavelengths_nm: Sequence[float], value_C: Sequence[float], floor_C: Sequence[float] | None) -> str:
    """Histogram divergence of each band beside its real-against-real floor."""
    order = np.argsort(wavelengths_nm)
    figure, axis = plt.subplots(figsize=(6.2, 2.8))
    axis.bar(np.arange(len(order)), np.asarray(value_C)[order], color=SYNTHETIC, label="synthetic against real")
    if floor_C is not None:
        axis.step(np.arange(len(order)), np.asarray(floor_C)[order], where="mid", color=REAL, label="real against real (floor)")
    axis.set_xticks(np.arange(len(order)), [f"{wavelengths_nm[c]:g}" for c in order], rotation=60)
    axis.set(xlabel="wavelength (nm)", ylabel="KL divergence (nats)")
    axis.legend(fontsize=8)
    return figure_uri(figure)


def error_map(error_HW: np.ndarray, most: float) -> np.ndarray:
    """Absolute error as colours, uint8 RGB, 0 to `most`."""
    return (plt.get_cmap("inferno")((error_HW / max(most, 1e-12)).clip(0, 1))[..., :3] * 255).astype(np.uint8)
