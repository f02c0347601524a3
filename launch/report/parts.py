"""The parts of a report, each from what a run left in its folder, as the template takes them.

Legend: B N image, C band, H W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from data_shards.manifest import NAME
from data_shards.packing.splits import held_out_split
from data_shards.reading.dataset import Dataset
from launch.report import figures as fig
from launch.report.likeness import Likeness, map_of
from launch.report.samples import REGIONS, Shelf, region_spectra, viewer
from launch.run import Run, read_result
from ldm.evaluation.sets import common_fov
from ldm.training.log import read_log

if TYPE_CHECKING:
    from ldm.authenticity.audit import AuditResult
    from ldm.authenticity.audit_result import ClosestPair
    from ldm.evaluation.evaluation_result import EvaluationResult

SHOWN = 8  # images of each set
AVERAGED = 96  # images whose spectra are averaged
PAIRS = 4  # closest pairs
VESSELS_NM = 555.0  # where vessels stand out most


class Report:
    """What the parts of a report share: the sets, their display, and the images that can be opened."""

    def __init__(self, run: Run) -> None:
        self.run, self.real = run, run.open(run.dataset)
        self.held_out = held_out_split(self.real)
        self.synthetic = run.images() if (run.synthetic / NAME).exists() else None
        self.wavelengths = list(self.real.wavelengths_nm)
        self.rgb = (fig.nearest_bands(self.wavelengths, fig.FALSE_COLOUR_NM) * 3)[:3]
        self.fov_HW = common_fov(self.real, self.held_out)
        self.images = self.reflectance(self.real, self.held_out, spread(self.real.count(self.held_out), SHOWN))
        self.display = fig.Display(self.images)
        self.shelf = Shelf(self.real.shape, 3 * SHOWN)
        self.charts: dict[str, fig.Chart] = {}
        self.absent: dict[str, str] = {}

    def reflectance(self, dataset: Dataset, split: str, indices: list[int]) -> np.ndarray:
        """Images of a set as float32 reflectance."""
        cubes = [cube.data_CHW.astype(np.float32) for cube in dataset.cubes(split, indices)]
        return np.stack(cubes) * self.real.scale + self.real.offset


def script_json(tree: Any) -> str:
    """JSON that may stand within a script element: no name in a set's files ends it."""
    return json.dumps(tree, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def spread(count: int, wanted: int) -> list[int]:
    """Up to `wanted` places, evenly over `count`: neighbours are often visits of one eye."""
    return sorted(set(np.linspace(0, count - 1, min(wanted, count)).astype(int).tolist()))


def enlarge(height: int) -> int:
    """Whole-pixel enlargement that makes small images visible."""
    return max(1, round(190 / height))


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A picture that opens an image.

    Attributes:
        image: number of the image in the viewer.
        source: data URI of its false-colour picture.
        title, note: what it is, and what is said beneath.
    """

    image: int
    source: str
    title: str
    note: str = ""


def tiles(of: Report, numbers: list[int], notes: list[str] | None = None) -> list[Tile]:
    """A row of pictures of images on the shelf."""
    found = []
    for place, number in enumerate(numbers):
        image = of.shelf.images[number]
        source = fig.data_uri(of.display.colour(image.reflectance_Chw, of.rgb))
        found.append(Tile(image=number, source=source, title=image.title, note=notes[place] if notes else ""))
    return found


def image_part(of: Report, near: Likeness | str) -> dict[str, Any]:
    real, synthetic, singles = of.real, of.synthetic, fig.nearest_bands(of.wavelengths, fig.SINGLE_BANDS_NM)

    def band_rows(images: np.ndarray) -> str:
        rows = [[of.display.grey(x[c], c) for c in singles] for x in images[:2]]
        return fig.data_uri(fig.montage(rows), scale=enlarge(images.shape[2]))

    part: dict[str, Any] = {
        "dataset": {"digest": real.digest[:12], "shape": " × ".join(map(str, real.shape)), "splits": real.manifest.splits},
        "held_out": of.held_out,
        "rgb_nm": [of.wavelengths[c] for c in of.rgb],
        "single_nm": [of.wavelengths[c] for c in singles],
        "band_rows": {"real": band_rows(of.images)},
        "rows": {},
        "synthetic_count": 0,
        "likeness": near,
        "usual": np.quantile(near.distances.real_M, (0.5, 0.95)).tolist() if isinstance(near, Likeness) else [],
    }
    shown = of.shelf.put(real, of.held_out, spread(real.count(of.held_out), SHOWN), f"real ({of.held_out})")
    part["rows"]["real"] = tiles(of, shown)
    if synthetic is not None:
        count = part["synthetic_count"] = synthetic.count("synthetic")
        if isinstance(near, Likeness):
            worst = near.worst(SHOWN)
            numbers = of.shelf.put(synthetic, "synthetic", [i for i, _ in worst], "synthetic")
            part["rows"]["worst"] = tiles(of, numbers, [f"{distance:.3g}" for _, distance in worst])
        even = spread(count, SHOWN)
        part["rows"]["even"] = tiles(of, of.shelf.put(synthetic, "synthetic", even, "synthetic"))
        part["band_rows"]["synthetic"] = band_rows(of.reflectance(synthetic, "synthetic", even[:2]))
    return part


def spectra_part(of: Report) -> dict[str, Any]:
    """Mean spectra of both sets by structure, and all that the viewer needs."""
    real_name = f"real ({of.held_out})"
    sides = {real_name: (of.real, of.held_out)} | ({"synthetic": (of.synthetic, "synthetic")} if of.synthetic is not None else {})
    sets: dict[str, dict[str, fig.MeanSpectrum]] = {}
    for name, (dataset, split) in sides.items():
        spectra = region_spectra(dataset, split, spread(dataset.count(split), AVERAGED), of.fov_HW)
        sets[name] = {region: (f"n={len(x)}", x.mean(0), x.std(0)) for region, x in spectra.items()}
    if judged := judged_alike(of):
        sets = {name: {REGIONS["fov"]: spectra[REGIONS["fov"]]} for name, spectra in sets.items()}
        for region, distance in judged.spectra.items():
            of_region = ((real_name, distance.real_C, distance.pixels_real), ("synthetic", distance.synthetic_C, distance.pixels_synthetic))
            for name, mean_C, pixels in of_region if region != "fov" else ():
                if mean_C:
                    sets[name][REGIONS[region]] = f"{pixels:,} pixels", np.array(mean_C), None
    real_means, regions, lacking = sets[real_name], {}, {}
    for region in dict.fromkeys(name for spectra in sets.values() for name in spectra):
        having = {name: spectra[region] for name, spectra in sets.items() if region in spectra}
        key = f"spectra-{len(regions)}"
        colours = [fig.REAL if name == real_name else fig.SYNTHETIC for name in having]
        of.charts[key] = fig.mean_spectra(of.wavelengths, having, colours)
        regions[region] = key
        if without := [name for name in sets if name not in having]:
            lacking[region] = " and ".join(without)
    seen = viewer(of.shelf, of.wavelengths, of.rgb, of.display, of.fov_HW, {name: mean_C for name, (_, mean_C, _) in real_means.items()})
    return {
        "regions": regions,
        "lacking": lacking,
        "labelled": len(real_means) > 1,
        "predicted": len(sets.get("synthetic", {})) > 1,
        "drawn_by": judged.labelled_by if judged else None,
        "viewer": script_json(seen),
        "shrunk_by": of.shelf.by,
        "largest_step": max(seen["step"]),
        "bands": [f"{nm:g}" for nm in sorted(of.wavelengths)],
    }


def judged_alike(of: Report) -> EvaluationResult | None:
    """The evaluation of this set, where one segmenter drew the structures of both sides.

    Between true maps and predicted ones a segmenter's faults would look like the set's.
    """
    from ldm.evaluation.evaluation_result import EvaluationResult

    result = read_result(of.run.folder / "evaluate.json", EvaluationResult)
    of_these = result and of.synthetic and (result.synthetic.digest, result.reference.split) == (of.synthetic.digest, of.held_out)
    return result if of_these and result.labelled_by else None


def map_part(of: Report, near: Likeness | str) -> dict[str, Any]:
    """The plane of features; empty with a reason where there is none."""
    drawn = map_of(near, of.display, of.rgb, of.shelf) if isinstance(near, Likeness) else near
    if isinstance(drawn, str):
        of.absent["map"] = drawn
        return {}
    of.charts["map"] = drawn.chart
    return {"thumbs": script_json(drawn.thumbs), "map_points": drawn.points, "map_features": near.features}


def reconstruction_part(of: Report) -> dict[str, Any]:
    from ldm.checkpoints.trained import load_autoencoder
    from ldm.evaluation.reconstruction import ReconstructionResult
    from ldm.evaluation.tables import rows_of_reconstruction

    figures = read_result(of.run.folder / "reconstruction.json", ReconstructionResult)
    autoencoder, real, display = load_autoencoder(of.run.vqgan), of.real, of.display
    cubes = list(real.cubes(of.held_out, spread(real.count(of.held_out), 6)))
    truth = np.stack([c.data_CHW.astype(np.float32) for c in cubes]) * real.scale + real.offset
    fov_BHW = np.stack([c.fov_HW if c.fov_HW is not None else np.ones(c.data_CHW.shape[1:], bool) for c in cubes])
    rebuilt = autoencoder.reconstruct(torch.from_numpy(np.stack([c.data_CHW for c in cubes])), torch.from_numpy(fov_BHW))[0].numpy()
    error = np.abs(truth - rebuilt).mean(1) * fov_BHW
    most = float(np.percentile(error, 99))
    rows = [[display.colour(x, of.rgb) for x in images] for images in (truth, rebuilt)] + [[fig.error_map(e, most) for e in error]]
    return {
        "rebuilt": fig.data_uri(fig.montage(rows), scale=enlarge(truth.shape[2])),
        "error_most": most,
        "rebuilt_figures": figures,
        "rebuilt_rows": rows_of_reconstruction(figures),
    }


def training_part(of: Report) -> dict[str, Any]:
    from ldm.evaluation.health import Health

    run = of.run
    vqgan, diffusion = read_log(run.vqgan / "metrics.jsonl"), read_log(run.diffusion / "metrics.jsonl")
    health = read_result(run.folder / "health.json", Health)
    reconstruction = {
        "loss/l1": "L1 (band deviations)",
        "val/l1": "L1, held-out people",
        "loss/spectral_angle_rad": "spectral angle (rad)",
    }
    logits = {"gan/logit_real": "mean logit, real", "gan/logit_fake": "mean logit, reconstructed"}
    denoising = {"loss/denoise": "mean squared error", "val/loss": "the same, held-out people"}
    angles = {f"val/angle_rad/{name}": title for name, title in REGIONS.items()}
    divergences = {f"val/js_nats/{name}": title for name, title in REGIONS.items()}
    drawn = {
        "VQ-GAN: reconstruction": fig.curves(vqgan, reconstruction, ylabel="loss", log=True),
        "VQ-GAN: angle of mean spectra, held-out people": fig.curves(vqgan, angles, ylabel="spectral angle (rad)", log=True),
        "VQ-GAN: histograms of bands, held-out people": fig.curves(vqgan, divergences, ylabel="JS divergence (nats)", log=True),
        "VQ-GAN: codebook over the epoch so far": fig.curves(vqgan, {"codes/usage": "share of codes used"}, ylabel="share"),
        "VQ-GAN: discriminator": fig.curves(vqgan, logits, ylabel="logit"),
        "Diffusion: denoising loss": fig.curves(diffusion, denoising, ylabel="loss (unit-variance latents)", log=True),
        "Diffusion: angle of mean spectra, held-out people": fig.curves(diffusion, angles, ylabel="spectral angle (rad)", log=True),
        "Latent spectrum": fig.spectrum(health.spectrum_D) if health else None,
    }
    plots = {f"training-{number}": title for number, (title, chart) in enumerate(drawn.items()) if chart}
    of.charts |= {key: drawn[title] for key, title in plots.items()}
    spent = [(name, time_spent(rows)) for name, rows in (("VQ-GAN", vqgan), ("diffusion", diffusion)) if rows]
    return {"plots": plots, "health": health, "spent": spent}


PHASES = ("data", "forward", "backward", "step", "validate", "checkpoint")


def time_spent(rows: list[dict[str, float]]) -> dict[str, float]:
    """Samples a second over a whole log, and the share of its time in each phase: `data` is what a step waits for cubes."""
    seconds, before, shares = 0.0, 0.0, dict.fromkeys(PHASES, 0.0)
    for row in rows:
        wall = (row["samples"] - before) / row["samples_per_s"]
        seconds, before = seconds + wall, row["samples"]
        shares = {phase: share + wall * row.get(f"time/{phase}", 0.0) for phase, share in shares.items()}
    return {"samples_per_s": before / seconds, **{phase: share / seconds for phase, share in shares.items()}}


def metric_part(of: Report) -> dict[str, Any] | None:
    """None: of an earlier version."""
    from ldm.evaluation.evaluation_result import EvaluationResult
    from ldm.evaluation.tables import excess_bounds, rows_of_evaluation

    result = read_result(of.run.folder / "evaluate.json", EvaluationResult)
    if result is None:
        return None
    spectral = result.spectral
    by_region = {REGIONS[name]: (r.kl_C, r.floor_kl_C) for name, r in spectral.regions.items() if r.kl_C}
    if by_region:
        of.charts["kl"] = fig.kl_by_band(spectral.wavelengths_nm, by_region)
    return {"evaluation": result, "metric_rows": rows_of_evaluation(result), "excess_bounds": excess_bounds, "kl": bool(by_region)}


def audit_part(of: Report) -> dict[str, Any] | None:
    """None: of an earlier version."""
    from ldm.authenticity.audit import AuditResult
    from ldm.authenticity.flagged import flagged_path
    from ldm.authenticity.membership import MembershipResult, rows_of_membership
    from ldm.authenticity.tables import rows_of_audit

    path = of.run.folder / "audit.json"
    result = read_result(path, AuditResult)
    if result is None:
        return None
    attacked = read_result(of.run.folder / "membership.json", MembershipResult)
    for name, space in result.descriptors.items():
        of.charts[f"near-{name}"] = fig.distances(space.histogram, space.copies.threshold)
    searched = max(result.descriptors, key=lambda name: result.descriptors[name].flagged.images)  # of equal ones the first
    return {
        "audit": result,
        "audit_rows": rows_of_audit(result),
        "attack": attacked,
        "attack_rows": rows_of_membership(attacked) if attacked else [],
        "pairs_of": searched,
        "pairs": shown_pairs(of, result, result.descriptors[searched].closest[:PAIRS]),
        "green_nm": of.wavelengths[fig.nearest_bands(of.wavelengths, [VESSELS_NM])[0]],
        "flagged_table": flagged_path(path).name if any(space.flagged.images for space in result.descriptors.values()) else None,
    }


@dataclass(frozen=True, kw_only=True)
class ShownPair:
    """A synthetic image and the training image nearest to it.

    Attributes:
        picture: data URI: both, and their difference, in false colour and in a band.
        chart: key of the chart of their mean spectra.
    """

    pair: ClosestPair
    picture: str
    chart: str


def shown_pairs(of: Report, result: AuditResult, pairs: Sequence[ClosestPair]) -> list[ShownPair]:
    """With differences on one scale."""
    c, both = fig.nearest_bands(of.wavelengths, [VESSELS_NM])[0], []
    for pair in pairs:
        made_CHW = of.reflectance(of.synthetic, result.synthetic.split, [pair.synthetic_index])[0]
        kept_CHW = of.reflectance(of.real, result.train.split, [pair.train_index])[0]
        both.append((made_CHW, kept_CHW[..., ::-1] if pair.mirrored else kept_CHW))
    apart = [np.abs(made_CHW - kept_CHW) * of.fov_HW for made_CHW, kept_CHW in both]
    most, most_c = (float(np.percentile([x[bands].mean(0) for x in apart], 99.5)) for bands in (slice(None), slice(c, c + 1)))
    shown = []
    for number, (pair, images, apart_CHW) in enumerate(zip(pairs, both, apart, strict=True)):
        in_colour = [*(of.display.colour(x, of.rgb) for x in images), fig.error_map(apart_CHW.mean(0), most)]
        in_band = [*(of.display.grey(x[c], c) for x in images), fig.error_map(apart_CHW[c], most_c)]
        spectra = {name: ("this image", x[:, of.fov_HW].mean(1), None) for name, x in zip(("synthetic", "training"), images, strict=True)}
        of.charts[f"pair-{number}"] = fig.mean_spectra(of.wavelengths, spectra, [fig.SYNTHETIC, fig.REAL])
        picture = fig.data_uri(fig.montage([in_colour, in_band]), scale=enlarge(images[0].shape[1]))
        shown.append(ShownPair(pair=pair, picture=picture, chart=f"pair-{number}"))
    return shown
