"""Whom the phantom shows, and how each visit saw them: the config, the random streams, the person, the view."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from data_shards.cube import BANDS_16_NM
from data_shards.errors import InputError
from data_shards.phantom import spectra
from data_shards.phantom.spectra import Person

SMALLEST, LARGEST = 16, 8192
SUBJECT, EYE, TEXTURE, VESSELS, VISIT, NOISE, BIOMARKER = range(7)  # the last number of every stream's place


@dataclass(frozen=True, kw_only=True)
class PhantomConfig:
    """What the phantom is made of.

    Attributes:
        size: H = W, in pixels. wavelengths_nm: any list within 440 to 910 nm. seed: of everything.
        field_degrees: diameter of the field of view, as a visual angle (31.5°: FDA K200254).
        central_disc: a small black disc in the middle of the image, of 22 pixels radius at 672.
        biomarker_share: share of subjects with the biomarker; biomarker_strength: mean extra scattering of their inner
            retina at 500 nm (natural logarithm, one pass), falling with the fourth power of the wavelength.
        full_scale: reflectance of the largest count, 4095.
        electrons: mean signal of a pixel of a 672² image in mid fundus; larger pixels collect more. Shot noise.
        read_noise_counts: standard deviation, at 672²; noise: factor on both kinds of noise, 0 for none.
        uneven_light: strength of the uneven light, 0 for none. glare: share of stray light.
    """

    size: int = 96
    wavelengths_nm: tuple[float, ...] = tuple(float(nm) for nm in BANDS_16_NM)
    seed: int = 0
    field_degrees: float = 31.5
    central_disc: bool = False
    biomarker_share: float = 0.3
    biomarker_strength: float = 0.06
    full_scale: float = 0.30
    electrons: float = 4000.0
    read_noise_counts: float = 1.0
    noise: float = 1.0
    uneven_light: float = 1.0
    glare: float = 0.08

    def __post_init__(self) -> None:
        object.__setattr__(self, "wavelengths_nm", spectra.check_wavelengths(self.wavelengths_nm))
        if not SMALLEST <= self.size <= LARGEST:
            raise InputError(f"size {self.size}", where="--size", expected=f"{SMALLEST} to {LARGEST} pixels", mend="--size 96")
        if self.seed < 0:
            raise InputError(f"seed {self.seed}", where="--seed", expected="0 or above", mend="--seed 0")
        if not 5 <= self.field_degrees <= 36:
            raise InputError(
                f"a field of {self.field_degrees:g} degrees",
                where="--field-degrees",
                expected="5 to 36, as far as the phantom's vessels grow",
            )
        if not 0 <= self.biomarker_share <= 1:
            raise InputError(f"a share of {self.biomarker_share:g}", where="--biomarker-share", expected="0 to 1")
        for name in ("biomarker_strength", "noise", "uneven_light", "read_noise_counts"):
            if not 0 <= getattr(self, name) < np.inf:
                raise InputError(f"{name} {getattr(self, name)}", where=f"--{name.replace('_', '-')}", expected="0 or above")
        if not (0 < self.full_scale <= 10 and self.electrons > 0 and 0 <= self.glare < 1):
            raise InputError("full_scale, electrons or glare out of range", expected="0 < full_scale <= 10, electrons > 0, 0 <= glare < 1")

    def record(self) -> dict[str, Any]:
        """All settings as JSON types."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**values, "wavelengths_nm": list(self.wavelengths_nm)}


def stream(*place: int) -> np.random.Generator:
    """The generator of one place: a function of (seed, …), of no history."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(place)))


def person(config: PhantomConfig, subject: int) -> Person:
    """The subject's blood, pigments and age. Saturations: arteries 95 to 98 %, veins 58 to 72 %."""
    rng = stream(config.seed, subject, SUBJECT)
    flagged = stream(config.seed, subject, BIOMARKER)
    marked, strength = flagged.random() < config.biomarker_share, config.biomarker_strength * flagged.uniform(0.6, 1.4)
    return Person(
        age_years=rng.uniform(25, 75),
        artery_saturation=rng.uniform(0.95, 0.98),
        vein_saturation=rng.uniform(0.58, 0.72),
        choroid_saturation=rng.uniform(0.90, 0.95),
        haemoglobin_g_per_l=rng.uniform(125, 160),
        macular_peak=rng.uniform(0.25, 0.65),
        rpe_melanin_um=rng.uniform(2.6, 4.2),
        choroid_melanin_um=float(np.exp(rng.uniform(np.log(4.0), np.log(10.0)))),
        choroid_blood_um=rng.uniform(110, 190),
        biomarker=float(strength) if marked else 0.0,
    )


@dataclass(frozen=True, kw_only=True)
class View:
    """How one visit saw the eye: turn and shift of the retina, light, focus."""

    turn_rad: float
    shift_mm: tuple[float, float]
    light: tuple[float, ...]
    gain: float
    defocus_dioptre: float


def view(config: PhantomConfig, subject: int, side: int, visit: int) -> View:
    """The view of one visit; shift within about a degree, turn within about two."""
    rng = stream(config.seed, subject, side, visit, VISIT)
    return View(
        turn_rad=float(np.radians(rng.normal(0, 1.2))),
        shift_mm=tuple(rng.normal(0, 0.12, 2).tolist()),
        light=tuple((config.uneven_light * rng.normal(0, (0.06, 0.06, 0.025, 0.025, 0.025))).tolist()),
        gain=float(1 + config.uneven_light * rng.normal(0, 0.03)),
        defocus_dioptre=float(rng.normal(0, 0.12)),
    )
