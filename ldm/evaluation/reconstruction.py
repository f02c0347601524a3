"""How well held-out subjects are reconstructed, against the simplest predictor there is.

Legend: B batch, N image, C band, H W pixels, K code, U person.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from data_shards.reading.batch import Batch
from data_shards.reading.dataset import Dataset
from ldm.checkpoints.trained import Autoencoder
from ldm.evaluation import ms_ssim
from ldm.evaluation.intervals import ratio_by_person
from ldm.evaluation.measurements import Arrays, ImageMeasurements, Piece, beside, written
from ldm.evaluation.sets import Part, held_out_parts
from ldm.evaluation.vessels import thin_vessels
from ldm.models import striped
from ldm.models.codebook import usage_and_perplexity
from ldm.training.losses import spectral_angle_rad

FORMAT = "retinaforge-reconstruction-2"
MEAN_OF = 4096  # training images at least, as far as there are so many: whole shards, evenly spaced
SSIM_WINDOW = 11  # with a Gaussian of 1.5 px (Wang et al. 2004, §III-C)
VESSEL_NM = 555.0  # green, where blood absorbs and the fundus still reflects: thin vessels stand out most
VESSEL_WITHIN_NM = 30.0
THIN_PX = 3.0
RING_PX = (3.0, 6.0)
WORDS = (0, 10)  # of the resamples


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
        people: who was reconstructed.
        ssim: mean over images of `ssim`, its range peak_reflectance; 1 for equal images. ssim_reason: why there is none.
        thin_vessel_contrast: `contrast` of thin vessels in the reconstructions over that in the originals, both means over the images
            that have them (thin_vessel_images): 1 where they are as plain, 0 where they are gone.
        thin_vessel_nm: the band it is of. thin_vessel_reason: why there is none.
        …_interval: 95 %, from resampling people; None of one person.
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
    people: int | None = None
    ssim: float | None = None
    ssim_interval: tuple[float, float] | None = None
    ssim_reason: str | None = None
    thin_vessel_contrast: float | None = None
    thin_vessel_contrast_interval: tuple[float, float] | None = None
    thin_vessel_images: int = 0
    thin_vessel_nm: float | None = None
    thin_vessel_reason: str | None = None


class TrainingImages(ImageMeasurements):
    """The mean of training images, and the codes of all, in units."""

    def __init__(self, dataset: Dataset, autoencoder: Autoencoder, out: Path | None, *, batch: int) -> None:
        self.autoencoder, self.batch = autoencoder, batch
        super().__init__([Part.of(dataset, "train")], out)
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
        self.parts = held_out_parts(dataset)
        super().__init__(self.parts, out)

    @cached_property
    def mean_CHW(self) -> Tensor:
        """Mean reflectance of training images, float64."""
        return self.training.mean_CHW() * self.dataset.scale + self.dataset.offset

    def measured(self, piece: Piece) -> Arrays:
        error = baseline = angle = pixels = 0.0
        ssims, contrasts = [], []
        for batch in piece.batches(self.batch):
            truth = batch.cubes_BCHW.double() * self.dataset.scale + self.dataset.offset
            rec = reconstructed(self.autoencoder, batch)[0].double()
            within_BHW = batch.fov_BHW if batch.fov_BHW is not None else torch.ones(truth.shape[0], *truth.shape[2:], dtype=torch.bool)
            within = within_BHW[:, None].double()
            error += float(((rec - truth).square() * within).sum())
            baseline += float(((self.mean_CHW - truth).square() * within).sum())
            pixels += float(within.sum()) * truth.shape[1]
            angle += float(spectral_angle_rad(rec, truth, within_BHW)) * len(truth)
            ssims += [ssim(*images, range_=self.peak) for images in zip(rec, truth, within_BHW, strict=True)]
            contrasts += self._contrasts(batch, rec, truth, within_BHW)
        sums = {name: np.array(v) for name, v in (("error", error), ("baseline", baseline), ("angle", angle), ("pixels", pixels))}
        return {**sums, "ssim_N": np.array(ssims), "contrast_N2": np.array(contrasts).reshape(-1, 2)}

    @property
    def peak(self) -> float:
        """The range of reflectance over the training split."""
        return max(self.dataset.stats.max_C) - min(self.dataset.stats.min_C)

    @cached_property
    def vessel_band(self) -> int | None:
        """The band nearest to VESSEL_NM; None where none is near."""
        away_C = np.abs(np.asarray(self.dataset.wavelengths_nm) - VESSEL_NM)
        return int(away_C.argmin()) if away_C.min() <= VESSEL_WITHIN_NM else None

    def _contrasts(self, batch: Batch, rec_BCHW: Tensor, truth_BCHW: Tensor, within_BHW: Tensor) -> list[tuple[float, float]]:
        """Contrast of thin vessels of each image, in the reconstruction and in the original."""
        if self.vessel_band is None or batch.labels_BHW is None:
            return [(math.nan, math.nan)] * len(truth_BCHW)
        maps = zip(batch.labels_BHW.numpy(), within_BHW.numpy(), strict=True)
        areas = [vessels_and_rings(labels_HW, fov_HW) for labels_HW, fov_HW in maps]
        sides = [x_BCHW[:, self.vessel_band].numpy() for x_BCHW in (rec_BCHW, truth_BCHW)]
        return [tuple(contrast(x_BHW[b], *area) for x_BHW in sides) for b, area in enumerate(areas)]

    def result(self) -> ReconstructionResult:
        """The figures, of units that are all there."""
        units = [self.arrays(name) for name in self.names]
        error, baseline, angle, pixels = (float(np.sum([unit[key] for unit in units])) for key in ("error", "baseline", "angle", "pixels"))
        cubes, peak = sum(len(piece.sample_N) for piece in self.pieces.values()), self.peak
        psnr, mean_psnr = (10 * math.log10(peak**2 / max(e / pixels, 1e-30)) for e in (error, baseline))
        usage, perplexity = usage_and_perplexity(self.training.codes_K())
        return ReconstructionResult(
            splits=tuple(part.split for part in self.parts),
            cubes=cubes,
            psnr_db=psnr,
            mean_image_psnr_db=mean_psnr,
            psnr_gain_db=psnr - mean_psnr,
            peak_reflectance=peak,
            spectral_angle_rad=angle / cubes,
            codes_used=usage,
            codes_perplexity=perplexity,
            **self._by_person(),
        )

    def _by_person(self) -> dict[str, Any]:
        """SSIM and thin vessels, with their intervals."""
        people = [person for part in self.parts for person in part.units()]
        ssim_N, contrast_N2 = (np.concatenate([self.of(part, key) for part in self.parts]) for key in ("ssim_N", "contrast_N2"))
        band, found = self.vessel_band, {"people": len(set(people))}
        if np.isfinite(ssim_N).any():
            found["ssim"], found["ssim_interval"] = ratio_by_person(ssim_N, np.ones_like(ssim_N), people, WORDS)
        else:
            found["ssim_reason"] = f"no window of {SSIM_WINDOW} pixels lies within the field of view"
        has_N = np.isfinite(contrast_N2).all(1)
        nm = None if band is None else self.dataset.wavelengths_nm[band]
        if nm is None:
            found["thin_vessel_reason"] = f"no band within {VESSEL_WITHIN_NM:g} nm of {VESSEL_NM:g} nm"
        elif not has_N.any():
            found["thin_vessel_reason"] = f"no image has labelled vessels of at most {THIN_PX:g} pixels"
        elif contrast_N2[has_N, 1].mean() <= 0:
            found["thin_vessel_reason"] = f"thin vessels are not darker than what surrounds them at {nm:g} nm"
        else:
            ratio, interval = ratio_by_person(*contrast_N2.T, people, WORDS)
            found |= {"thin_vessel_contrast": ratio, "thin_vessel_contrast_interval": interval, "thin_vessel_nm": nm}
        return {**found, "thin_vessel_images": int(has_N.sum())}

    def finish(self) -> ReconstructionResult:
        return written(self.path, self.result(), self.out)


def reconstruction(dataset: Dataset, autoencoder: Autoencoder) -> ReconstructionResult:
    """How well held-out people are reconstructed, by this process alone."""
    units = Reconstruction(dataset, autoencoder)
    units.training.complete()
    return units.complete()


def ssim(a_CHW: Tensor, b_CHW: Tensor, fov_HW: Tensor, *, range_: float) -> float:
    """SSIM (Wang et al. 2004), the mean over bands and over the windows that lie within the field of view; NaN where none does.

    With a field of view without border the same as scikit-image's structural_similarity with gaussian_weights, sigma 1.5,
    use_sample_covariance False and this data_range.
    """
    if min(fov_HW.shape) < SSIM_WINDOW:
        return math.nan
    inside_HW = F.max_pool2d((~fov_HW)[None].double(), SSIM_WINDOW, stride=1)[0] == 0
    if not inside_HW.any():
        return math.nan
    light_CHW, contrast_CHW = (x[0] for x in ms_ssim.ssim_maps(a_CHW[None], b_CHW[None], range_=range_, window=SSIM_WINDOW))
    return float((light_CHW * contrast_CHW)[:, inside_HW].mean())


def vessels_and_rings(labels_HW: np.ndarray, fov_HW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two masks: vessels at most THIN_PX wide, and the background RING_PX from them, no nearer to any labelled structure."""
    thin_HW = thin_vessels(labels_HW, fov_HW, at_most_px=THIN_PX)
    if not thin_HW.any():
        return thin_HW, thin_HW
    near, far = RING_PX
    of_thin_HW, of_any_HW = (ndimage.distance_transform_edt(~mask_HW) for mask_HW in (thin_HW, labels_HW > 0))
    return thin_HW, fov_HW & (of_any_HW >= near) & (of_thin_HW <= far)


def contrast(x_HW: np.ndarray, vessel_HW: np.ndarray, ring_HW: np.ndarray) -> float:
    """(ring - vessel) / ring of mean reflectance (Weber): above 0 where vessels are darker. NaN where there is no vessel or no ring."""
    if not (vessel_HW.any() and ring_HW.any()) or x_HW[ring_HW].mean() <= 0:
        return math.nan
    ring = x_HW[ring_HW].mean()
    return float((ring - x_HW[vessel_HW].mean()) / ring)


def reconstructed(autoencoder: Autoencoder, batch: Batch) -> tuple[Tensor, Tensor]:
    """Reflectance and code indices of a batch, on the CPU."""
    device = autoencoder.normaliser.mean_C11.device
    fov_BHW = None if batch.fov_BHW is None else batch.fov_BHW.to(device)
    rec_BCHW, index_BHW = autoencoder.reconstruct(batch.cubes_BCHW.to(device), fov_BHW)
    return rec_BCHW.cpu(), index_BHW.cpu()
