"""Figures of the report: pictures as PNG data URIs, and charts as plotly.js reads them, {"data": traces, "layout": …}.

A chart states what it shows; how it looks in light and in dark, and how wide it is, report.js decides.

Legend: B image, C band, H W pixels.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from ldm.authenticity.audit_result import Histogram

SINGLE_BANDS_NM = (900, 815, 730, 640, 555, 465)
FALSE_COLOUR_NM = (640, 555, 465)
REAL, SYNTHETIC = "#3b82c4", "#d9632a"  # both stand out on white and on black
REGION_COLOURS = (SYNTHETIC, "#c03a3a", "#8a63d2", "#b59a1f")
Chart = dict[str, Any]
MeanSpectrum = tuple[str, np.ndarray, np.ndarray | None]
"""How many images or pixels it is of, mean reflectance (C,), and its standard deviation between images (C,), where that is known."""


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


def montage(rows: Sequence[Sequence[np.ndarray]], *, gap: int = 3) -> np.ndarray:
    """Equal RGB or grey tiles in rows, on white."""
    rgb = [[tile if tile.ndim == 3 else np.repeat(tile[..., None], 3, axis=-1) for tile in row] for row in rows]
    H, W = rgb[0][0].shape[:2]
    sheet = np.full((len(rgb) * (H + gap) - gap, max(map(len, rgb)) * (W + gap) - gap, 3), 255, np.uint8)
    for r, row in enumerate(rgb):
        for k, tile in enumerate(row):
            sheet[r * (H + gap) : r * (H + gap) + H, k * (W + gap) : k * (W + gap) + W] = tile
    return sheet


def chart(traces: list[dict[str, Any]], x: str, y: str, **layout: Any) -> Chart:
    """Traces with the titles of both axes."""
    axes = {"xaxis": {"title": {"text": x}, **layout.pop("xaxis", {})}, "yaxis": {"title": {"text": y}, **layout.pop("yaxis", {})}}
    return {"data": traces, "layout": {**axes, **layout}}


def finite(values: Iterable[float | None]) -> list[float | None]:
    """JSON knows no NaN; a gap is drawn where None stands."""
    return [None if value is None or not math.isfinite(value) else float(value) for value in values]


def mean_spectra(wavelengths_nm: Sequence[float], sets: Mapping[str, MeanSpectrum], colours: Sequence[str]) -> Chart:
    """Mean reflectance of each set against wavelength, with the deviation between images, where it is known, as a band."""
    order = np.argsort(wavelengths_nm)
    nm, traces = [float(wavelengths_nm[c]) for c in order], []
    for (name, (of_what, mean_C, std_C)), colour in zip(sets.items(), colours, strict=True):
        if std_C is not None:
            low, high = finite((mean_C - std_C)[order]), finite((mean_C + std_C)[order])
            shade = {"fill": "toself", "fillcolor": colour + "26", "line": {"width": 0}, "mode": "lines"}
            traces.append(
                {"x": nm + nm[::-1], "y": high + low[::-1], **shade, "hoverinfo": "skip", "showlegend": False, "legendgroup": name}
            )
        deviation = {} if std_C is None else {"customdata": finite(std_C[order])}
        traces.append(
            {
                "x": nm,
                "y": finite(mean_C[order]),
                **deviation,
                "name": f"{name}, {of_what}",
                "legendgroup": name,
                "mode": "lines+markers",
                "line": {"color": colour, "width": 2},
                "marker": {"size": 5},
                "hovertemplate": "%{y:.4f}" + (" ± %{customdata:.4f}" if deviation else ""),
            }
        )
    return chart(traces, "wavelength (nm)", "mean reflectance", hovermode="x unified")


def curves(rows: list[dict[str, Any]], names: dict[str, str], *, ylabel: str, log: bool = False) -> Chart | None:
    """Logged values against samples seen; None when none of them was logged."""
    traces = []
    for name, label in names.items():
        points = [(row["samples"], row[name]) for row in rows if row.get(name) is not None]
        if points:
            x, y = zip(*points, strict=True)
            traces.append({"x": list(x), "y": finite(y), "name": label, "mode": "lines+markers" if len(x) < 12 else "lines"})
    layout = {"yaxis": {"type": "log"} if log else {}, "hovermode": "x unified"}
    return chart(traces, "samples seen", ylabel, **layout) if traces else None


def spectrum(eigenvalues_D: Sequence[float]) -> Chart:
    """Variance of the latents along their principal directions."""
    bars = {"type": "bar", "x": list(range(1, len(eigenvalues_D) + 1)), "y": finite(eigenvalues_D), "marker": {"color": REAL}}
    return chart([bars], "principal direction of the latent channels", "variance (latent units²)")


def kl_by_band(wavelengths_nm: Sequence[float], regions: dict[str, tuple[Sequence[float], Sequence[float] | None]]) -> Chart:
    """Histogram divergence of each band as bars, its real-against-real floor as lines; all but the first region wait behind the legend.

    Args:
        regions: name → nats of each band, of the synthetic set and of the floor.
    """
    order, traces = np.argsort(wavelengths_nm), []
    nm = [f"{wavelengths_nm[c]:g}" for c in order]
    for number, (region, sides) in enumerate(regions.items()):
        stroke = {"symbol": "line-ew-open", "size": 18, "color": REAL, "line": {"width": 3}}
        looks = {"type": "bar", "marker": {"color": REGION_COLOURS[number]}}, {"mode": "markers", "marker": stroke}
        for name, values_C, look in zip((region, f"{region}, floor"), sides, looks, strict=True):
            if values_C is not None:
                shown = {"visible": True if number == 0 else "legendonly", "legendgroup": region, "hovertemplate": "%{y:.4g} nats"}
                traces.append({"x": nm, "y": finite(np.asarray(values_C)[order]), "name": name, **look, **shown})
    return chart(traces, "wavelength (nm)", "KL divergence (nats)", hovermode="x unified", xaxis={"type": "category"})


def distances(of: Histogram, threshold: float | None) -> Chart:
    """Shares of nearest distances of synthetic images, of people held out, and of training people to one another; the threshold."""
    edges = np.asarray(of.edges)
    kinds = (("synthetic", of.synthetic, SYNTHETIC), ("people held out", of.held_out, REAL), ("training people", of.training, "#8d99a6"))
    traces = [
        {
            "x": finite((edges[:-1] + edges[1:]) / 2),
            "y": finite(np.asarray(counts) / sum(counts)),
            "name": name,
            "mode": "lines",
            "line": {"color": colour, "width": 2, "shape": "hvh"},
            "hovertemplate": "%{y:.1%}",
        }
        for name, counts, colour in kinds
        if sum(counts)
    ]
    line = {"type": "line", "xref": "x", "yref": "paper", "y0": 0, "y1": 1, "line": {"dash": "dot", "width": 1.5, "color": "#888888"}}
    shapes = [] if threshold is None else [{**line, "x0": threshold, "x1": threshold}]
    return chart(traces, "distance to the nearest training image", "share of images", hovermode="x unified", shapes=shapes)


def error_map(error_HW: np.ndarray, most: float) -> np.ndarray:
    """Absolute error as colours, uint8 RGB, 0 to `most`."""
    return (matplotlib.colormaps["inferno"]((error_HW / max(most, 1e-12)).clip(0, 1))[..., :3] * 255).astype(np.uint8)
