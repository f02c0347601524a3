"""What an image must be before it is published: finite, inside the sensor's range, with a mean spectrum that training images have.

Legend: N image, C band, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_shards.errors import InputError

FORMAT = "retinaforge-envelope-1"
AT_A_BOUND = 0.5  # share of an image's values that may be the least or the greatest one that can be stored
STORED_MAX = 65535


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """How the mean spectra of training images lie about their mean.

    Attributes:
        dataset: digest of the training set.
        images, people: of the training split, measured.
        mean_C, std_C: of the images' mean reflectance within the field of view, by band.
        deviations: of each image, the greatest distance of its spectrum, over bands, from the mean of the others, in their standard
            deviations; in rising order.
    """

    format: str = FORMAT
    dataset: str
    images: int
    people: int
    mean_C: tuple[float, ...]
    std_C: tuple[float, ...]
    deviations: tuple[float, ...]

    def bound(self, rate: float) -> float | None:
        """The deviation that a further image of the training set's kind exceeds with probability `rate` at most, by exchangeability:
        the ⌈(n + 1)(1 - rate)⌉-th of the n deviations (Vovk et al. 2005). None where n images bear no bound at that rate."""
        rank = math.ceil((len(self.deviations) + 1) * (1 - rate))
        return self.deviations[rank - 1] if rank <= len(self.deviations) else None

    def deviation(self, spectrum_C: np.ndarray) -> float:
        """Of a further image."""
        return float(np.max(np.abs(spectrum_C - np.array(self.mean_C)) / np.array(self.std_C)))


def envelope_of(spectra_NC: np.ndarray, *, dataset: str, people: int) -> Envelope:
    """The envelope of these mean spectra.

    Raises:
        InputError: fewer than three images, which have no deviation when one is left out.
    """
    n = len(spectra_NC)
    if n < 3:
        raise InputError(
            f"{n} training images", expected="at least 3, for an envelope of their spectra", mend="sample.gate=0, which does without"
        )
    mean_C, var_C = spectra_NC.mean(0), spectra_NC.var(0, ddof=1)
    about_NC = spectra_NC - mean_C
    others_var_NC = ((n - 1) * var_C - about_NC**2 * n / (n - 1)) / (n - 2)
    floor_C = np.maximum(1e-9 * np.abs(mean_C), 1e-12)  # of a band that never changes
    deviation_NC = np.abs(about_NC) * n / (n - 1) / np.maximum(np.sqrt(others_var_NC.clip(0)), floor_C)
    return Envelope(
        dataset=dataset,
        images=n,
        people=people,
        mean_C=tuple(mean_C.tolist()),
        std_C=tuple(np.maximum(np.sqrt(var_C), floor_C).tolist()),
        deviations=tuple(np.sort(deviation_NC.max(1)).tolist()),
    )


@dataclass(frozen=True, kw_only=True)
class Gate:
    """
    Attributes:
        envelope: None to look at no spectrum.
        most: greatest deviation from it that passes.
        scale, offset: of stored values.
        fov_HW: what an image shows.
    """

    envelope: Envelope | None
    most: float
    scale: float
    offset: float
    fov_HW: np.ndarray

    def refuses(self, latent_DHW: np.ndarray, stored_CHW: np.ndarray) -> str | None:
        """Why an image is not published: 'not finite', 'range' or 'spectrum'; None where nothing is wrong with it."""
        if not np.isfinite(latent_DHW).all():
            return "not finite"
        inside_CN = stored_CHW[:, self.fov_HW]
        if ((inside_CN == 0) | (inside_CN == STORED_MAX)).mean() > AT_A_BOUND:
            return "range"
        if self.envelope and self.envelope.deviation(inside_CN.mean(1) * self.scale + self.offset) > self.most:
            return "spectrum"
        return None


def refused_too_often(image: int, causes: Sequence[str]) -> InputError:
    """Of an image of which no attempt has passed."""
    counts = ", ".join(f"{causes.count(cause)} for {cause!r}" for cause in dict.fromkeys(causes))
    return InputError(
        f"image {image}: all of {len(causes)} attempts were refused ({counts})",
        expected="a model most of whose images pass",
        mend="look at its samples (retinaforge sample PRESET sample.gate=0 sample.count=16 run=…, in a copy of the run), train it further, "
        "or state another share of honest images that may be refused: sample.gate=0.001, and 0 for none",
    )
