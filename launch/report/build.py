"""Collect what a run left in its folder and write report.html. Parts that a run has not reached are left out by name.

Legend: B image, C band, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch

import launch
from data_shards import durable
from data_shards.errors import without_credentials
from data_shards.manifest import NAME
from data_shards.packing.splits import held_out_split
from data_shards.reading.dataset import Dataset
from launch.config import to_public_yaml
from launch.headline import HEADLINE, caution, known
from launch.report import figures as fig
from launch.run import Run, figures, read_result
from ldm.training.log import read_log

SHOWN = 8  # images of each set
PAIRS = 4  # closest pairs


def build_report(run: Run) -> Path:
    """Write runs/NAME/report.html: one file, no links outside it."""
    real = run.open(run.dataset)
    held_out = held_out_split(real)
    reflect = Reflectance(real)
    images = reflect(real, held_out, spread(real.count(held_out), SHOWN))
    display = fig.Display(images)
    parts: dict[str, Any] = {"reached": [], "outdated": []}
    parts |= data_part(real, held_out, images, display)
    for name, needs, make in (
        ("samples", run.synthetic / NAME, lambda: sample_part(run, real, held_out, display)),
        ("reconstruction", run.folder / "reconstruction.json", lambda: reconstruction_part(run, real, held_out, display)),
        ("training", run.vqgan / "metrics.jsonl", lambda: training_part(run)),
        ("metrics", run.folder / "evaluate.json", lambda: metric_part(run)),
        ("audit", run.folder / "audit.json", lambda: audit_part(run, real, display)),
    ):
        if needs.exists():
            part = make()
            if part is None:
                parts["outdated"].append(needs.name)
            else:
                parts |= part
                parts["reached"].append(name)
    template = jinja2.Template(
        resources.files("launch.report").joinpath("report.html").read_text(), autoescape=True, undefined=jinja2.StrictUndefined
    )
    frozen = run.folder / "run.yaml"
    html = template.render(
        run=run.folder.name,
        config=without_credentials(frozen.read_text()) if frozen.exists() else to_public_yaml(run.config),
        version=launch.__version__,
        cards=cards(figures(run)),
        **parts,
    )
    path = run.folder / "report.html"
    durable.write_bytes(path, html.encode())
    return path


class Reflectance:
    """Images of a dataset as float32 reflectance."""

    def __init__(self, real: Dataset) -> None:
        self.scale, self.offset = real.scale, real.offset

    def __call__(self, dataset: Dataset, split: str, indices: list[int]) -> np.ndarray:
        return np.stack([cube.data_CHW.astype(np.float32) for cube in dataset.cubes(split, indices)]) * self.scale + self.offset


def spread(count: int, wanted: int) -> list[int]:
    """Up to `wanted` places, evenly over `count`: neighbours are often visits of one eye."""
    return sorted(set(np.linspace(0, count - 1, min(wanted, count)).astype(int).tolist()))


def enlarge(height: int) -> int:
    """Whole-pixel enlargement that makes small images visible."""
    return max(1, round(190 / height))


@dataclass(frozen=True, kw_only=True)
class Card:
    """A figure that stands first: its value in words (None: left out), what is said beneath, and how it is shown."""

    title: str
    value: str | None
    words: str
    verdict: str
    style: str


def cards(figures: Mapping[str, Any]) -> list[Card]:
    """The figures that stand first; only one that is better than wanted has the colour of good ones."""
    found, figures = [], known(figures)
    for figure in HEADLINE:
        value, said = figures.get(figure.key), caution(figures, figure.key)
        if value is not None:
            style = {True: "reached", False: "missed", None: "plain"}[figure.reached(value)]
            verdict = "; ".join(part for part in (figure.verdict(value), said) if part)
            found.append(Card(title=figure.title, value=figure.form.format(value), words=figure.meaning, verdict=verdict, style=style))
        elif said:
            found.append(Card(title=figure.title, value=None, words=figure.meaning, verdict=f"left out: {said}", style="missed"))
    return found


def data_part(real: Dataset, held_out: str, images: np.ndarray, display: fig.Display) -> dict[str, Any]:
    wavelengths = list(real.wavelengths_nm)
    rgb, singles = fig.nearest_bands(wavelengths, fig.FALSE_COLOUR_NM), fig.nearest_bands(wavelengths, fig.SINGLE_BANDS_NM)
    rgb = (rgb * 3)[:3]
    return {
        "dataset": {
            "digest": real.digest[:12],
            "shape": " × ".join(map(str, real.shape)),
            "splits": real.manifest.splits,
            "held_out": held_out,
        },
        "wavelengths": wavelengths,
        "rgb_nm": [wavelengths[c] for c in rgb],
        "single_nm": [wavelengths[c] for c in singles],
        "real_colour": fig.data_uri(fig.montage([[display.colour(x, rgb) for x in images]]), scale=enlarge(images.shape[2])),
        "real_bands": fig.data_uri(
            fig.montage([[display.grey(x[c], c) for c in singles] for x in images[:2]]), scale=enlarge(images.shape[2])
        ),
    }


def sample_part(run: Run, real: Dataset, held_out: str, display: fig.Display) -> dict[str, Any]:
    synthetic, wavelengths = run.images(), list(real.wavelengths_nm)
    rgb, singles = fig.nearest_bands(wavelengths, fig.FALSE_COLOUR_NM), fig.nearest_bands(wavelengths, fig.SINGLE_BANDS_NM)
    rgb = (rgb * 3)[:3]
    images = Reflectance(real)(synthetic, "synthetic", spread(synthetic.count("synthetic"), 2 * SHOWN))
    scale = enlarge(images.shape[2])
    rows = [images[a : a + SHOWN] for a in range(0, len(images), SHOWN)]
    return {
        "synthetic_count": synthetic.count("synthetic"),
        "synthetic_colour": fig.data_uri(fig.montage([[display.colour(x, rgb) for x in row] for row in rows]), scale=scale),
        "synthetic_bands": fig.data_uri(fig.montage([[display.grey(x[c], c) for c in singles] for x in images[:2]]), scale=scale),
        "spectra": fig.mean_spectra(
            wavelengths,
            {
                f"real ({held_out})": image_spectra(real, held_out),
                "synthetic": image_spectra(synthetic, "synthetic", like=(real, held_out)),
            },
        ),
    }


def image_spectra(
    dataset: Dataset, split: str, *, like: tuple[Dataset, str] | None = None, most: int = 96
) -> tuple[np.ndarray, np.ndarray]:
    """Mean over images, and deviation between them, of each image's mean spectrum within the field of view."""
    from ldm.evaluation.sets import common_fov

    fov_HW = common_fov(*(like or (dataset, split)))
    cubes = dataset.cubes(split, spread(dataset.count(split), most))
    means_BC = np.stack([cube.data_CHW[:, fov_HW].mean(1) * dataset.scale + dataset.offset for cube in cubes])
    return means_BC.mean(0), means_BC.std(0)


def reconstruction_part(run: Run, real: Dataset, held_out: str, display: fig.Display) -> dict[str, Any]:
    from ldm.checkpoints.trained import load_autoencoder
    from ldm.evaluation.reconstruction import ReconstructionResult

    autoencoder = load_autoencoder(run.vqgan)
    wavelengths = list(real.wavelengths_nm)
    rgb = (fig.nearest_bands(wavelengths, fig.FALSE_COLOUR_NM) * 3)[:3]
    cubes = [real.cube(held_out, i) for i in spread(real.count(held_out), 6)]
    truth = np.stack([c.data_CHW.astype(np.float32) for c in cubes]) * real.scale + real.offset
    fov_BHW = np.stack([c.fov_HW if c.fov_HW is not None else np.ones(c.data_CHW.shape[1:], bool) for c in cubes])
    rebuilt = autoencoder.reconstruct(torch.from_numpy(np.stack([c.data_CHW for c in cubes])), torch.from_numpy(fov_BHW))[0].numpy()
    error = np.abs(truth - rebuilt).mean(1) * fov_BHW
    most = float(np.percentile(error, 99))
    rows = [[display.colour(x, rgb) for x in truth], [display.colour(x, rgb) for x in rebuilt], [fig.error_map(e, most) for e in error]]
    return {
        "rebuilt": fig.data_uri(fig.montage(rows), scale=enlarge(truth.shape[2])),
        "error_most": most,
        "rebuilt_figures": read_result(run.folder / "reconstruction.json", ReconstructionResult),
    }


def training_part(run: Run) -> dict[str, Any]:
    from ldm.evaluation.health import Health

    vqgan, diffusion = read_log(run.vqgan / "metrics.jsonl"), read_log(run.diffusion / "metrics.jsonl")
    health = read_result(run.folder / "health.json", Health)
    plots = [
        (
            "VQ-GAN: reconstruction",
            fig.curves(
                vqgan,
                {
                    "loss/l1": "L1 (band deviations)",
                    "val/l1": "L1, held-out subjects",
                    "loss/spectral_angle_rad": "spectral angle (rad)",
                },
                ylabel="loss",
                log=True,
            ),
        ),
        ("VQ-GAN: codebook over the epoch so far", fig.curves(vqgan, {"codes/usage": "share of codes used"}, ylabel="share")),
        (
            "VQ-GAN: discriminator",
            fig.curves(vqgan, {"gan/logit_real": "mean logit, real", "gan/logit_fake": "mean logit, reconstructed"}, ylabel="logit"),
        ),
        (
            "Diffusion: denoising loss",
            fig.curves(
                diffusion,
                {"loss/denoise": "mean squared error", "val/loss": "the same, held-out subjects"},
                ylabel="loss (unit-variance latents)",
                log=True,
            ),
        ),
        ("Latent spectrum", fig.spectrum(health.spectrum_D) if health else None),
    ]
    spent = [(name, time_spent(rows)) for name, rows in (("VQ-GAN", vqgan), ("diffusion", diffusion)) if rows]
    return {"plots": [(title, uri) for title, uri in plots if uri], "health": health, "spent": spent}


PHASES = ("data", "forward", "backward", "step", "validate", "checkpoint")


def time_spent(rows: list[dict[str, float]]) -> dict[str, float]:
    """Samples a second over a whole log, and the share of its time in each phase: `data` is what a step waits for cubes."""
    seconds, before, shares = 0.0, 0.0, dict.fromkeys(PHASES, 0.0)
    for row in rows:
        wall = (row["samples"] - before) / row["samples_per_s"]
        seconds, before = seconds + wall, row["samples"]
        shares = {phase: share + wall * row.get(f"time/{phase}", 0.0) for phase, share in shares.items()}
    return {"samples_per_s": before / seconds, **{phase: share / seconds for phase, share in shares.items()}}


def metric_part(run: Run) -> dict[str, Any] | None:
    """None: of an earlier version."""
    from ldm.evaluation.evaluate import EvaluationResult
    from ldm.evaluation.tables import rows_of_evaluation

    result = read_result(run.folder / "evaluate.json", EvaluationResult)
    if result is None:
        return None
    spectral, fov = result.spectral, result.spectral.fov
    return {
        "evaluation": result,
        "metric_rows": rows_of_evaluation(result),
        "kl_plot": fig.kl_by_band(spectral.wavelengths_nm, fov.kl_C, fov.floor_kl_C) if fov.kl_C else None,
    }


def audit_part(run: Run, real: Dataset, display: fig.Display) -> dict[str, Any] | None:
    """None: of an earlier version."""
    from ldm.evaluation.audit import AuditResult
    from ldm.evaluation.tables import rows_of_audit

    result = read_result(run.folder / "audit.json", AuditResult)
    if result is None:
        return None
    synthetic, reflect = run.images(), Reflectance(real)
    rgb = (fig.nearest_bands(list(real.wavelengths_nm), fig.FALSE_COLOUR_NM) * 3)[:3]
    pairs = []
    for pair in result.descriptors["pooled"].closest[:PAIRS]:
        made = reflect(synthetic, result.synthetic.split, [pair.synthetic_index])[0]
        kept = reflect(real, result.train.split, [pair.train_index])[0]
        kept = kept[..., ::-1] if pair.mirrored else kept
        tiles = fig.montage([[display.colour(made, rgb), display.colour(kept, rgb)]])
        pairs.append((pair, fig.data_uri(tiles, scale=enlarge(made.shape[1]))))
    return {"audit": result, "audit_rows": rows_of_audit(result), "pairs": pairs}
