"""What an image must be before it is published: finite, inside the sensor's range, with a mean spectrum that training images have.

Legend: N image, C band, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from data_shards.errors import InputError

if TYPE_CHECKING:
    from ldm.checkpoints.trained import Autoencoder

FORMAT = "retinaforge-envelope-2"
AT_A_BOUND = 0.5  # share of an image's values that may be the least or the greatest one that can be stored, or more if training images have
STORED_MAX = 65535


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """How the mean spectra of training images lie about their mean.

    Attributes:
        dataset: digest of the training set.
        images, people: of the training split, measured.
        mean_C, std_C: of the images' mean reflectance within the field of view, by band.
        at_a_bound: greatest share, of all images, of values that are the least or the greatest one that can be stored.
        deviations: of each image, the greatest distance of its spectrum, over bands, from the mean of the others, in their standard
            deviations; in rising order. None of fewer than three images.
    """

    format: str = FORMAT
    dataset: str
    images: int
    people: int
    mean_C: tuple[float, ...]
    std_C: tuple[float, ...]
    at_a_bound: float
    deviations: tuple[float, ...]

    def bound(self, rate: float) -> float | None:
        """The deviation that a further image of the training set's kind exceeds with probability `rate` at most, by exchangeability:
        the ⌈(n + 1)(1 - rate)⌉-th of the n deviations (Vovk et al. 2005). None where n images bear no bound at that rate."""
        rank = math.ceil((len(self.deviations) + 1) * (1 - rate))
        return self.deviations[rank - 1] if rank <= len(self.deviations) else None

    def deviation(self, spectrum_C: np.ndarray) -> float:
        """Of a further image."""
        return float(np.max(np.abs(spectrum_C - np.array(self.mean_C)) / np.array(self.std_C)))


def at_a_bound(stored_CN: np.ndarray) -> float:
    """Share of values that are the least or the greatest one that can be stored."""
    return float(((stored_CN == 0) | (stored_CN == STORED_MAX)).mean())


def envelope_of(spectra_NC: np.ndarray, bound_N: np.ndarray, *, dataset: str, people: int) -> Envelope:
    """The envelope of these images, by their mean spectra and the shares of their values `at_a_bound`."""
    n = len(spectra_NC)
    mean_C, var_C = spectra_NC.mean(0), spectra_NC.var(0, ddof=min(1, n - 1))
    floor_C = np.maximum(1e-9 * np.abs(mean_C), 1e-12)  # of a band that never changes
    deviations: list[float] = []
    if n >= 3:
        about_NC = spectra_NC - mean_C
        others_var_NC = ((n - 1) * var_C - about_NC**2 * n / (n - 1)) / (n - 2)
        deviation_NC = np.abs(about_NC) * n / (n - 1) / np.maximum(np.sqrt(others_var_NC.clip(0)), floor_C)
        deviations = np.sort(deviation_NC.max(1)).tolist()
    return Envelope(
        dataset=dataset,
        images=n,
        people=people,
        mean_C=tuple(mean_C.tolist()),
        std_C=tuple(np.maximum(np.sqrt(var_C), floor_C).tolist()),
        at_a_bound=float(bound_N.max()),
        deviations=tuple(deviations),
    )


class Copies(Protocol):
    """What knows copies of training images."""

    @property
    def bounds(self) -> dict[str, object]:
        """What decides, for a set's request."""
        ...

    def refuses(self, stored_CHW: np.ndarray) -> bool:
        """Whether an image, by its stored counts, is a copy."""
        ...


@dataclass(frozen=True, kw_only=True)
class Gate:
    """
    Attributes:
        rate: share of honest images that may be refused for their spectrum.
        envelope: of the training images; None to look at no spectrum.
        most: greatest deviation from it that passes; None where so few training images bear no bound, or none is looked at.
        at_a_bound: greatest share of values that may be the least or the greatest one that can be stored.
        scale, offset: of stored values.
        fov_HW: what an image shows.
        copies: what refuses copies of training images; None: nothing looks for them.
    """

    rate: float
    envelope: Envelope | None
    most: float | None
    at_a_bound: float
    scale: float
    offset: float
    fov_HW: np.ndarray
    copies: Copies | None = None

    @classmethod
    def of(cls, envelope: Envelope | None, rate: float, autoencoder: Autoencoder, copies: Copies | None = None) -> Gate:
        """For images of this autoencoder.

        Raises:
            InputError: a rate above 0, and no envelope of the autoencoder's training set.
        """
        data = autoencoder.data
        place = {"scale": data["scale"], "offset": data["offset"], "fov_HW": autoencoder.fov_HW.cpu().numpy(), "copies": copies}
        if not rate:
            return cls(rate=rate, envelope=None, most=None, at_a_bound=AT_A_BOUND, **place)
        if envelope is None or envelope.dataset != data["digest"]:
            found = "no envelope of the training images' spectra" if envelope is None else f"spectra of dataset {envelope.dataset[:12]}"
            raise InputError(
                found,
                expected=f"those of {data['digest'][:12]}, which the autoencoder was trained on",
                mend="retinaforge sample PRESET data.dataset=THAT_SET, which measures them where no envelope.json is; or sample.gate=0",
            )
        return cls(rate=rate, envelope=envelope, most=envelope.bound(rate), at_a_bound=max(AT_A_BOUND, envelope.at_a_bound), **place)

    @property
    def bounds(self) -> dict[str, object]:
        """What decides, for a set's request."""
        of_spectra = {"rate": self.rate, "most": self.most, "at_a_bound": self.at_a_bound}
        return of_spectra | ({"copies": self.copies.bounds} if self.copies else {})

    def refuses(self, latent_DHW: np.ndarray, stored_CHW: np.ndarray) -> str | None:
        """Why an image is not published: 'not finite', 'range', 'spectrum' or 'copy'; None where nothing is wrong with it."""
        if not np.isfinite(latent_DHW).all():
            return "not finite"
        inside_CN = stored_CHW[:, self.fov_HW]
        if at_a_bound(inside_CN) > self.at_a_bound:
            return "range"
        if self.envelope and self.most is not None:
            deviation = self.envelope.deviation(inside_CN.mean(1) * self.scale + self.offset)
            if deviation > self.most:
                return "spectrum"
        return "copy" if self.copies and self.copies.refuses(stored_CHW) else None


def refused_too_often(image: int, causes: Sequence[str]) -> InputError:
    """Of an image of which no attempt has passed."""
    counts = ", ".join(f"{causes.count(cause)} for {cause!r}" for cause in dict.fromkeys(causes))
    mend = "train the model further; what its latents look like stands in health.json"
    if "spectrum" in causes:
        mend += ". Or begin another set that refuses fewer honest images, sample.gate=0.001, or looks at no spectrum, sample.gate=0"
    if "copy" in causes:
        mend += ". A model that gives copies was trained too long, or on too few people; another set with sample.copies=0 looks for none"
    if "range" in causes:
        mend += ". With sample.gate above 0 as many values may lie at a bound as do in any training image"
    return InputError(
        f"image {image}: all of {len(causes)} attempts were refused ({counts})", expected="a model most of whose images pass", mend=mend
    )
