"""The figure of a sweep: each measure against images a second, lines by compression and latent channels, after the reference's."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes as Panel
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from data_shards import durable
from launch.sweep.results import Results, Row, comparable, front_of

COLOURS = ("#1f5fa8", "#c8501e", "#2f8f4e", "#7a4fa3", "#a88a1f")  # by latent channels
MARKERS = ("o", "s", "^", "D", "v")  # by compression
STYLES = ("-", "--", ":", "-.")  # by compression, too: colours alone are not for everybody
INK, FAINT = "#222222", "#dddddd"
STYLE = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "svg.hashsalt": "retinaforge",  # the same bytes of the same results
    "svg.fonttype": "none",
}


def write_figure(results: Results, folder: Path) -> None:
    """sweep.svg and sweep.png."""
    for suffix in ("svg", "png"):
        durable.write_bytes(folder / f"sweep.{suffix}", draw(results, suffix))


def draw(results: Results, suffix: str) -> bytes:
    """The panels, as SVG or PNG: one a measure, and the legend in what is left of two rows."""
    sets, measures = comparable(results.rows), list(results.titles)
    columns = len(measures) // 2 + 1
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(3.67 * columns, 6.8), layout="constrained")
        grid = figure.add_gridspec(2, columns)
        for number, key in enumerate(measures):
            panel = figure.add_subplot(grid[divmod(number, columns)])
            _measure(panel, key, [row for row in sets if row.value(key) is not None], results)
        _legend(figure.add_subplot(grid[1, len(measures) - columns :]), results, sets)
        out = io.BytesIO()
        figure.savefig(out, format=suffix, dpi=130, metadata={"Date": None} if suffix == "svg" else None)
        plt.close(figure)
    return out.getvalue()


def _measure(panel: Panel, key: str, sets: list[Row], results: Results) -> None:
    """One measure: points of sets, lines through the denoisers of one autoencoder and solver, the front of this measure in grey."""
    panel.set_title(results.titles[key], loc="left", fontweight="bold")
    panel.set_xlabel("images/s")
    if not sets:
        reasons = sorted({m.reason for row in results.rows if (m := row.measures.get(key)) and m.reason})
        panel.set_axis_off()
        words = f"not measured: {'; '.join(reasons) or 'no set'}"
        panel.text(0, 0.9, words, transform=panel.transAxes, va="top", wrap=True, in_layout=False)  # a long one would leave no room
        return
    _log(panel, "x", [rate for row in sets for rate in (row.pace.images_per_s, *row.pace.quartiles)])
    floor = results.floor(key)
    _log(panel, "y", [*(row.value(key) for row in sets), *([] if floor is None else [floor])])
    front = sorted(front_of(sets, [key]), key=lambda row: row.pace.images_per_s)
    panel.plot(
        [r.pace.images_per_s for r in front], [r.value(key) for r in front], color="#999999", lw=5, alpha=0.35, solid_capstyle="round"
    )
    axes = results.axes
    for f, D in itertools.product(axes.compression, axes.latent_channels):
        colour, marker, style = _look(results, f, D)
        for sampler in dict.fromkeys(row.sampler for row in sets):
            line = [row for row in sets if (row.cell.compression, row.cell.latent_channels, row.sampler) == (f, D, sampler)]
            line.sort(key=lambda row: row.cell.channels)
            panel.plot([r.pace.images_per_s for r in line], [r.value(key) for r in line], color=colour, ls=style, lw=0.9)
            for row in line:
                low, high = row.measures[key].bounds
                panel.vlines(row.pace.images_per_s, max(low, panel.get_ylim()[0]), high, color=colour, lw=0.8, alpha=0.3)
                size = 4 + 3 * axes.channels.index(row.cell.channels)
                on_front = row in front
                panel.errorbar(
                    row.pace.images_per_s,
                    row.value(key),
                    xerr=[[row.pace.images_per_s - row.pace.quartiles[0]], [row.pace.quartiles[1] - row.pace.images_per_s]],
                    color=colour,
                    marker=marker,
                    ms=size,
                    mfc=colour if on_front else "white",
                    elinewidth=0.6,
                )
                if row.name == results.recommended:
                    panel.plot(row.pace.images_per_s, row.value(key), marker="o", ms=size + 9, mfc="none", mec=INK, mew=1.2)
    if floor is not None:
        panel.axhline(floor, color=INK, lw=0.7, ls=(0, (1, 3)))


def _log(panel: Panel, name: str, values: list[float]) -> None:
    """Axis 'x' or 'y' about these values, logarithmic with plain numbers; linear where some are not above 0."""
    low, high, axis = min(values), max(values), getattr(panel, f"{name}axis")
    if low <= 0:
        return
    panel.set(**{f"{name}scale": "log", f"{name}lim": (low / 1.2, high * 1.2)})
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _look(results: Results, compression: int, latent_channels: int) -> tuple[str, str, str]:
    """(colour, marker, line style) of an autoencoder."""
    i, j = results.axes.compression.index(compression), results.axes.latent_channels.index(latent_channels)
    return COLOURS[j % len(COLOURS)], MARKERS[i % len(MARKERS)], STYLES[i % len(STYLES)]


def _legend(panel: Panel, results: Results, sets: list[Row]) -> None:
    """What the marks mean, on which device the sets were timed, and what is missing."""
    panel.set_axis_off()
    axes = results.axes
    handles = []
    for f, D in itertools.product(axes.compression, axes.latent_channels):
        colour, marker, style = _look(results, f, D)
        handles.append(Line2D([], [], color=colour, marker=marker, ls=style, mfc="white", label=f"f{f}, {D} latent channels"))
    handles += [
        Line2D([], [], color=INK, marker="o", ls="", label="filled: no set is faster and better (grey band)"),
        Line2D([], [], color=INK, marker="o", mfc="none", ms=12, ls="", label=f"recommended: {results.recommended or 'none'}"),
        Line2D([], [], color=INK, ls=(0, (1, 3)), label="real people in place of the set (median)"),
    ]
    panel.legend(handles=handles, loc="upper left", fontsize=8, handlelength=3)
    sizes = f"size of a mark: {', '.join(map(str, axes.channels))} base channels; bars: quartiles of shards; faint: intervals"
    device = sets[0].pace.device if sets else "no device"
    left_out = len(results.rows) - len(sets)
    lines = [sizes, f"timed on {device}"]
    if len(results.devices) > 1:
        lines.append(
            f"left out, as rates of other devices do not compare: sets timed on {', '.join(d for d in results.devices if d != device)}"
        )
    if left_out:
        lines.append(f"{left_out} of {len(results.rows)} sets are not shown: results.csv says why")
    panel.text(0, 0.0, "\n".join(lines), transform=panel.transAxes, va="bottom", fontsize=7.5, wrap=True, in_layout=False)
