"""How well held-out subjects are reconstructed, against the simplest predictor there is.

Legend: B batch, C band, H W pixels, K code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_shards.reading.batch import Batch
from data_shards.reading.dataset import Dataset
from ldm.checkpoints.trained import Autoencoder
from ldm.evaluation.measurements import Arrays, ImageMeasurements, Piece, beside, written
from ldm.evaluation.sets import Part
from ldm.models import striped
from ldm.models.codebook import usage_and_perplexity
from ldm.training.losses import spectral_angle_rad

FORMAT = "retinaforge-reconstruction-1"
MEAN_OF = 4096  # training images at least, as far as there are so many: whole shards, evenly spaced


@dataclass(frozen=True, kw_only=True)
class ReconstructionResult:
    """reconstruction.json.

    Attributes:
        splits, cubes: what was reconstructed: every split of people held out, or the training split where there is none.
        psnr_db, mean_image_psnr_db: PSNR within the field of view, of the reconstructions and of the training mean image.
        psnr_gain_db: their difference, which does not depend on the peak.
        peak_reflectance: of both: the range of reflectance over the training split.
        spectral_angle_rad: mean over cubes.
        codes_used, codes_perplexity: share and perplexity of the codes over the training split.
    """

    splits: tuple[str, ...]
    cubes: int
    psnr_db: float
    mean_image_psnr_db: float
    psnr_gain_db: float
    peak_reflectance: float
    spectral_angle_rad: float
    codes_used: float
    codes_perplexity: float


class TrainingImages(ImageMeasurements):
    """The mean of training images, and the codes of all, in units."""

    def __init__(self, dataset: Dataset, autoencoder: Autoencoder, out: Path | None, *, batch: int) -> None:
        self.autoencoder, self.batch = autoencoder, batch
        super().__init__([Part(dataset=dataset, split="train", sample_N=np.arange(dataset.count("train")))], out)
        sizes = [len(piece.sample_N) for piece in self.pieces.values()]
        few = min(len(sizes), -(-MEAN_OF * len(sizes) // sum(sizes)))
        self.averaged = [self.names[k * len(sizes) // few] for k in range(few)]

    def measured(self, piece: Piece) -> Arrays:
        counts_K = np.zeros(self.autoencoder.codebook.config.codes, np.int64)
        sum_CHW = np.zeros(piece.dataset.shape, np.uint64)
        for batch in piece.batches(self.batch):
            counts_K += np.bincount(reconstructed(self.autoencoder, batch)[1].flatten().numpy(), minlength=len(counts_K))
            if piece.name in self.averaged:
                sum_CHW += batch.cubes_BCHW.numpy().sum(0, dtype=np.uint64)
        averaged = {"sum_CHW": sum_CHW} if piece.name in self.averaged else {}
        return {"codes_K": counts_K, **averaged}

    def mean_CHW(self) -> Tensor:
        """Mean stored values, pixel by pixel, float64."""
        total_CHW = sum(self.arrays(name)["sum_CHW"] for name in self.averaged)
        return torch.from_numpy(total_CHW / sum(len(self.pieces[name].sample_N) for name in self.averaged))

    def codes_K(self) -> Tensor:
        """How often each code is the nearest."""
        return torch.from_numpy(np.sum([self.arrays(name)["codes_K"] for name in self.names], axis=0)).double()


class Reconstruction(ImageMeasurements):
    """How well every held-out split is reconstructed, in units; `training` are units too, and come first.

    Args:
        path: file for the result, beside which the units lie; None: they are kept in memory.
    """

    def __init__(self, dataset: Dataset, autoencoder: Autoencoder, path: Path | None = None, *, batch: int = 16) -> None:
        self.dataset, self.autoencoder, self.path = dataset, autoencoder, path
        self.batch = batch = striped.at_once(batch, *dataset.shape[1:])
        device = autoencoder.normaliser.mean_C11.device.type  # whichever of several: they share the units
        out = beside(
            path, {"format": FORMAT, "dataset": dataset.digest, "autoencoder": autoencoder.digest, "batch": batch, "device": device}
        )
        self.training = TrainingImages(dataset, autoencoder, out and out / "training", batch=batch)
        self.splits = [name for name, info in dataset.splits.items() if info.count and name != "train"] or ["train"]
        super().__init__([Part(dataset=dataset, split=s, sample_N=np.arange(dataset.count(s))) for s in self.splits], out)

    @cached_property
    def mean_CHW(self) -> Tensor:
        """Mean reflectance of training images, float64."""
        return self.training.mean_CHW() * self.dataset.scale + self.dataset.offset

    def measured(self, piece: Piece) -> Arrays:
        error = baseline = angle = pixels = 0.0
        for batch in piece.batches(self.batch):
            truth = batch.cubes_BCHW.double() * self.dataset.scale + self.dataset.offset
            rec = reconstructed(self.autoencoder, batch)[0].double()
            within_BHW = batch.fov_BHW if batch.fov_BHW is not None else torch.ones(truth.shape[0], *truth.shape[2:], dtype=torch.bool)
            within = within_BHW[:, None].double()
            error += float(((rec - truth).square() * within).sum())
            baseline += float(((self.mean_CHW - truth).square() * within).sum())
            pixels += float(within.sum()) * truth.shape[1]
            angle += float(spectral_angle_rad(rec, truth, within_BHW)) * len(truth)
        return {name: np.array(v) for name, v in (("error", error), ("baseline", baseline), ("angle", angle), ("pixels", pixels))}

    def result(self) -> ReconstructionResult:
        """The figures, of units that are all there."""
        units = [self.arrays(name) for name in self.names]
        error, baseline, angle, pixels = (float(np.sum([unit[key] for unit in units])) for key in ("error", "baseline", "angle", "pixels"))
        stats, cubes = self.dataset.stats, sum(len(piece.sample_N) for piece in self.pieces.values())
        peak = max(stats.max_C) - min(stats.min_C)
        psnr, mean_psnr = (10 * math.log10(peak**2 / max(e / pixels, 1e-30)) for e in (error, baseline))
        usage, perplexity = usage_and_perplexity(self.training.codes_K())
        return ReconstructionResult(
            splits=tuple(self.splits),
            cubes=cubes,
            psnr_db=psnr,
            mean_image_psnr_db=mean_psnr,
            psnr_gain_db=psnr - mean_psnr,
            peak_reflectance=peak,
            spectral_angle_rad=angle / cubes,
            codes_used=usage,
            codes_perplexity=perplexity,
        )

    def finish(self) -> ReconstructionResult:
        return written(self.path, self.result(), self.out)


def reconstruction(dataset: Dataset, autoencoder: Autoencoder) -> ReconstructionResult:
    """How well held-out people are reconstructed, by this process alone."""
    units = Reconstruction(dataset, autoencoder)
    units.training.complete()
    return units.complete()


def reconstructed(autoencoder: Autoencoder, batch: Batch) -> tuple[Tensor, Tensor]:
    """Reflectance and code indices of a batch, on the CPU."""
    device = autoencoder.normaliser.mean_C11.device
    fov_BHW = None if batch.fov_BHW is None else batch.fov_BHW.to(device)
    rec_BCHW, index_BHW = autoencoder.reconstruct(batch.cubes_BCHW.to(device), fov_BHW)
    return rec_BCHW.cpu(), index_BHW.cpu()
