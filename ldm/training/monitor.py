"""What a validation says of colours: how far spectra drift, by structure, before a sample is ever drawn.

Images are summed where they are, each on its own, so that any number of ranks and any batch come to the same; the figures are those of
the evaluation (ldm/spectra.py), of all judged images together.

Legend: B batch, C band, D latent channel, H W pixels, h w latent pixels, S side (the original, what is compared), R region, K bin.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from data_shards.cube import LABELS
from data_shards.manifest import BandStats
from ldm.checkpoints.trained import Autoencoder
from ldm.spectra import REGIONS, band_edges, js_nats, kl_nats, posterior, spectral_angle_rad, spectral_information_divergence

OUTSIDE = len(REGIONS)
"""The class of what lies outside the field of view."""


class SpectralMonitor:
    """Sums of reflectance, and counts of it in bins, of images and of what stands for them.

    Args:
        stats: of the training split, in reflectance: the bins follow from them, as those of the evaluation do.
    """

    def __init__(self, stats: BandStats, device: torch.device | str = "cpu") -> None:
        edges_CE = torch.from_numpy(band_edges(stats)).float().to(device)
        self.bins = edges_CE.shape[1] + 1
        self.low_C11 = edges_CE[:, 0, None, None]
        width_C11 = (edges_CE[:, -1:, None] - self.low_C11) / (self.bins - 2)  # the bins of a band are all as wide
        self.width_C11 = width_C11.clamp(min=torch.finfo(torch.float32).tiny)  # of a band of one value its edges may round to one

    @torch.no_grad()
    def sums(self, original_BCHW: Tensor, other_BCHW: Tensor, fov_BHW: Tensor | None, labels_BHW: Tensor | None) -> dict[str, Tensor]:
        """Of each image: pixels_R, spectrum_SRC and counts_SRCK, B of each. A region that an image has none of has sums of 0.

        Args:
            original_BCHW, other_BCHW: reflectance.
            labels_BHW: a class without a name counts for the field of view alone.
        """
        # every pixel is of one class: none that has a name, one of those of REGIONS, or outside the field of view
        class_BHW = torch.zeros_like(original_BCHW[:, 0], dtype=torch.int64)
        if labels_BHW is not None:
            for r, name in enumerate(REGIONS[1:], start=1):
                class_BHW[labels_BHW == LABELS[name]] = r
        if fov_BHW is not None:
            class_BHW[~fov_BHW] = OUTSIDE
        found = []
        for b, class_HW in enumerate(class_BHW):  # image by image: what is counted of hundreds of bands is many times as large
            sides = [self._of_image(x_BCHW[b], class_HW) for x_BCHW in (original_BCHW, other_BCHW)]
            spectrum_SRC, counts_SRCK = (torch.stack(of_sides) for of_sides in zip(*sides, strict=True))
            pixels_R = _by_region(torch.bincount(class_HW.flatten(), minlength=OUTSIDE + 1)[:OUTSIDE])
            found.append({"pixels_R": pixels_R, "spectrum_SRC": spectrum_SRC, "counts_SRCK": counts_SRCK})
        return {name: torch.stack([of_image[name] for of_image in found]) for name in found[0]}

    def _of_image(self, x_CHW: Tensor, class_HW: Tensor) -> tuple[Tensor, Tensor]:
        """Sums (R, C) and counts (R, C, K) of one image; NaN counts as 0, and its sum is NaN."""
        C = len(x_CHW)
        spectrum = [(x_CHW * (class_HW == r)).sum((1, 2), dtype=torch.float64) for r in range(OUTSIDE)]
        bin_CHW = ((x_CHW.nan_to_num() - self.low_C11) / self.width_C11).floor().clamp(-1, self.bins - 2).long() + 1
        row_CHW = class_HW * C + torch.arange(C, device=x_CHW.device)[:, None, None]
        counts = torch.bincount((row_CHW * self.bins + bin_CHW).flatten(), minlength=(OUTSIDE + 1) * C * self.bins)
        return _by_region(torch.stack(spectrum)), _by_region(counts.view(OUTSIDE + 1, C, self.bins)[:OUTSIDE])


def _by_region(of_class: Tensor) -> Tensor:
    """Of the whole field of view, in the place of what has no name; then of each structure."""
    return torch.cat([of_class.sum(0, keepdim=True), of_class[1:]])


class DecodedMonitor:
    """The same of latents: what the denoiser takes some of them to be, decoded, beside the latents themselves, decoded.

    So the figures are of the denoiser alone; what the autoencoder changes is in both. There is the field of view alone: what a denoiser
    makes of much noise need not have its vessels where those of the original were.

    Args:
        sample_N: the samples of the split that are decoded. The others' sums are 0.
        quantise: as for sampled latents (sample.quantise).
    """

    def __init__(self, autoencoder: Autoencoder, sample_N: np.ndarray, *, quantise: bool) -> None:
        self.autoencoder, self.sample_N, self.quantise = autoencoder, sample_N, quantise
        self.spectra = SpectralMonitor(BandStats(**autoencoder.data["stats"]), autoencoder.fov_HW.device)

    def sums(self, h_BDhw: Tensor, other_BDhw: Tensor, sample_B: np.ndarray) -> dict[str, Tensor]:
        """As SpectralMonitor.sums; of latents as the autoencoder has them."""
        shape = {"pixels_R": (R := len(REGIONS),), "spectrum_SRC": (2, R, C := len(self.spectra.low_C11))}
        shape["counts_SRCK"] = 2, R, C, self.spectra.bins
        found = {name: torch.zeros(len(h_BDhw), *of, dtype=torch.float64, device=h_BDhw.device) for name, of in shape.items()}
        for b in np.flatnonzero(np.isin(sample_B, self.sample_N)):  # one by one: a decoder takes much more memory than the denoiser
            shown = [self._reflectance(x_BDhw[b, None]) for x_BDhw in (h_BDhw, other_BDhw)]
            of_image = self.spectra.sums(*shown, self.autoencoder.fov_HW[None], None)
            for name, sums in found.items():
                sums[b] = of_image[name][0]
        return found

    def _reflectance(self, h_1Dhw: Tensor) -> Tensor:
        stored_1CHW = self.autoencoder.decode(h_1Dhw, quantise=self.quantise)
        return stored_1CHW.float() * self.autoencoder.normaliser.scale + self.autoencoder.normaliser.offset


def figures(pixels_R: np.ndarray, spectrum_SRC: np.ndarray, counts_SRCK: np.ndarray) -> dict[str, float]:
    """'angle_rad/vein' and so on, of each region that any image has: how far its mean spectra lie apart, and, as a mean over bands, its
    histograms: KL(original ‖ other) and JS."""
    found = {}
    for r in np.flatnonzero(pixels_R):
        original_C, other_C = spectrum_SRC[:, r] / pixels_R[r]
        p_CK, q_CK = posterior(counts_SRCK[:, r])
        values = {
            "angle_rad": spectral_angle_rad(original_C, other_C),
            "sid_nats": spectral_information_divergence(original_C, other_C),
            "kl_nats": kl_nats(p_CK, q_CK).mean(),
            "js_nats": js_nats(p_CK, q_CK).mean(),
        }
        found |= {f"{name}/{REGIONS[r]}": float(value) for name, value in values.items()}
    return found
