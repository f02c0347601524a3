"""The optics of the phantom: published absorption spectra, and the light that comes back from a stack of layers.

Legend: H W pixels. Lengths in mm unless the name says otherwise; absorption in 1/cm, natural logarithm.

The stack follows Delori & Pflibsen, Applied Optics 28(6), 1989: ocular media, inner retina with its vessels, macular
pigment, photoreceptors and pigment epithelium, choroid (blood and melanin) and sclera; light passes each layer twice.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import resources

import numpy as np
from scipy.ndimage import gaussian_filter

from data_shards.errors import InputError

RANGE_NM = (440.0, 910.0)
CHOROID_CM = 0.03
CHOROID_PER_CM = 3.0  # backscattering of the choroid
BLOOD_BACKSCATTER_PER_CM = 0.3
BLOOD_LOSS_PER_CM = 3.0  # scattered out of the beam, at any wavelength: oxygenated vessels stay faintly visible
HB_MOLAR_MASS_G = 64500.0  # g/mol, the value that goes with Prahl's compilation


@functools.cache
def table(name: str) -> dict[str, np.ndarray]:
    """Columns of `constants/NAME.csv`, float64; what a source leaves empty is 0. The sources head each file."""
    text = resources.files("data_shards").joinpath("constants", f"{name}.csv").read_text(encoding="utf-8")
    header, *rows = [line.split(",") for line in text.splitlines() if not line.startswith("#")]
    values = np.array([[float(cell or 0) for cell in row] for row in rows])
    values.setflags(write=False)
    return dict(zip(header, values.T, strict=True))


def check_wavelengths(wavelengths_nm: tuple[float, ...]) -> tuple[float, ...]:
    """The band list as floats.

    Raises:
        InputError: no band, or a band outside the range of the constants (440 to 910 nm).
    """
    bands = tuple(float(nm) for nm in wavelengths_nm)
    low, high = RANGE_NM
    if not bands:
        raise InputError("an empty band list", where="--bands", expected="wavelengths in nm, as 640,555,465")
    outside = [nm for nm in bands if not low <= nm <= high]  # NaN is outside too
    if outside:
        raise InputError(
            f"bands outside the absorption tables: {', '.join(f'{nm:g}' for nm in outside)} nm",
            where="--bands",
            expected=f"{low:g} to {high:g} nm",
            mend=f"leave these out, or extend data_shards/constants/*.csv below {low:g} and above {high:g} nm",
        )
    return bands


def _at(name: str, column: str, nm: float) -> float:
    columns = table(name)
    return float(np.interp(nm, columns["wavelength_nm"], columns[column]))


def blood_per_cm(nm: float, saturation: float, haemoglobin_g_per_l: float = 150.0) -> float:
    """Absorption of whole blood, 1/cm: 2.303 e (g/L) / 64500, e mixed by oxygen saturation (Prahl)."""
    oxygenated, reduced = _at("hemoglobin", "HbO2_cm-1_per_M", nm), _at("hemoglobin", "Hb_cm-1_per_M", nm)
    return 2.303 * (saturation * oxygenated + (1 - saturation) * reduced) * haemoglobin_g_per_l / HB_MOLAR_MASS_G


def melanin_per_cm(nm: float) -> float:
    """Absorption of retinal and choroidal melanin, 1/cm (Jean & Schulmeister 2017)."""
    return _at("retinal_pigments", "melanin_mua_per_cm", nm)


def macular_density(nm: float, peak: float) -> float:
    """Optical density (log10, one pass) of macular pigment whose density at 458 nm is `peak` (Bone et al. 1992)."""
    return peak * _at("retinal_pigments", "macular_OD", nm) / 0.35211


def media_density(nm: float, age_years: float) -> float:
    """Optical density (log10, one pass) of lens and media (van de Kraats & van Norren 2007), without their neutral offset.

    That model is linear in the square of the age, so two of its ages give all the others. The neutral loss of 0.111 is
    left out: a camera calibrated on a white target in air keeps it in the calibration.
    """
    young, old = _at("retinal_pigments", "media_OD_age30", nm), _at("retinal_pigments", "media_OD_age65", nm)
    return young + (old - young) * (age_years**2 - 30.0**2) / (65.0**2 - 30.0**2) - 0.111


def chromatic_defocus_dioptre(nm: float) -> float:
    """Longitudinal chromatic aberration of the eye relative to 589 nm: the chromatic eye, Thibos et al. 1992."""
    return 1.68524 - 633.46 / (nm - 214.102)


@dataclass(frozen=True, kw_only=True)
class Person:
    """What the spectrum of one subject depends on.

    Attributes:
        age_years; artery_saturation, vein_saturation, choroid_saturation: 0 to 1; haemoglobin_g_per_l.
        macular_peak: density of macular pigment in the foveola at 458 nm, log10.
        rpe_melanin_um, choroid_melanin_um: thickness of solid melanin that would absorb as much, µm.
        choroid_blood_um: thickness of blood in the choroid, µm.
        biomarker: extra scattering of the inner retina at 500 nm, natural logarithm, one pass; 0 for the healthy.
    """

    age_years: float
    artery_saturation: float
    vein_saturation: float
    choroid_saturation: float
    haemoglobin_g_per_l: float
    macular_peak: float
    rpe_melanin_um: float
    choroid_melanin_um: float
    choroid_blood_um: float
    biomarker: float


@dataclass(frozen=True, kw_only=True)
class Tissue:
    """Where what lies, for each pixel; all float32 (H, W).

    Attributes:
        artery, vein: share of the pixel covered; artery_mm, vein_mm: mean path through the blood of the covered part.
        reflex: share covered by the central light reflex of vessels.
        onh, cup: share covered by the optic nerve head and by its cup; capillaries: their relative density in it.
        macular: macular pigment relative to the foveola. fovea: specular reflex of the foveal pit, 0 to 1.
        rpe, choroid_melanin, choroid_blood: relative to the subject's mean. fibre, inner: relative thickness of the
            nerve fibres and of all the inner retina.
        mm_per_pixel: sampling on the retina.
    """

    artery: np.ndarray
    vein: np.ndarray
    artery_mm: np.ndarray
    vein_mm: np.ndarray
    reflex: np.ndarray
    onh: np.ndarray
    cup: np.ndarray
    capillaries: np.ndarray
    macular: np.ndarray
    fovea: np.ndarray
    rpe: np.ndarray
    choroid_melanin: np.ndarray
    choroid_blood: np.ndarray
    fibre: np.ndarray
    inner: np.ndarray
    mm_per_pixel: float


def backscatter(absorption_per_cm: np.ndarray | float, scatter_per_cm: float, thickness_cm: np.ndarray | float) -> np.ndarray | float:
    """Light returned by single backscattering from an absorbing layer: s / 2(a + s) · (1 − exp(−2 (a + s) d))."""
    loss_per_cm = absorption_per_cm + scatter_per_cm
    return scatter_per_cm / (2 * loss_per_cm) * -np.expm1(-2 * loss_per_cm * thickness_cm)


def _vessels(nm: float, tissue: Tissue, person: Person) -> tuple[np.ndarray, np.ndarray]:
    """One pass through retinal vessels, and what the blood column itself sends back; both (H, W)."""
    passed, returned = np.float32(1), np.float32(0)
    for covered, path_mm, saturation in (
        (tissue.artery, tissue.artery_mm, person.artery_saturation),
        (tissue.vein, tissue.vein_mm, person.vein_saturation),
    ):
        absorption = blood_per_cm(nm, saturation, person.haemoglobin_g_per_l)
        passed = passed * (1 - covered + covered * np.exp(-(absorption + BLOOD_LOSS_PER_CM) / 10 * path_mm))
        returned = returned + covered * backscatter(absorption, BLOOD_BACKSCATTER_PER_CM, path_mm / 10)
    return passed, returned


def _choroid(nm: float, tissue: Tissue, person: Person) -> np.ndarray:
    """Light that choroid and sclera send back through the pigment epithelium, (H, W).

    The upper half of the choroid is an even felt of small vessels; the great ones lie below it, before the sclera, and
    are seen where light gets that far and is not scattered too widely on its way back: from about 670 nm.
    """
    melanin, blood = melanin_per_cm(nm), blood_per_cm(nm, person.choroid_saturation, person.haemoglobin_g_per_l)
    half_cm = CHOROID_CM / 2
    upper = (melanin * person.choroid_melanin_um + blood * person.choroid_blood_um) * 0.5e-4
    lower = (melanin * person.choroid_melanin_um * tissue.choroid_melanin + blood * person.choroid_blood_um * tissue.choroid_blood) * 0.5e-4
    through = np.exp(-2 * (upper + CHOROID_PER_CM * half_cm))
    felt = backscatter(upper / half_cm, CHOROID_PER_CM, half_cm)
    great = through * backscatter(lower / half_cm, CHOROID_PER_CM, half_cm)
    sclera = through * 0.26 * min(1.0, 700 / nm) * np.exp(-2 * (lower + CHOROID_PER_CM * half_cm))
    blur_mm = 0.18 * (600 / nm) ** 5
    below = gaussian_filter(great + sclera, blur_mm / tissue.mm_per_pixel, mode="nearest", truncate=3)
    epithelium = np.exp(-2e-4 * melanin * person.rpe_melanin_um * tissue.rpe)
    return epithelium * (felt + below)


def reflectance_HW(nm: float, tissue: Tissue, person: Person) -> np.ndarray:
    """Beer–Lambert reflectance of the fundus at one wavelength, float32 (H, W), before the camera.

    Light that turns back in the choroid or the sclera has spread sideways by then: it enters through the blurred image
    of the vessels and leaves through the sharp one. That is why vessels fade where tissue is clear, above 600 nm.
    """
    passed, blood = _vessels(nm, tissue, person)
    deep = _choroid(nm, tissue, person)
    # A random walk between absorptions: the less is absorbed, the farther light spreads.
    spread_mm = 0.04 + 0.20 * np.clip((nm - 600) / 200, 0, 1)
    passed_in = gaussian_filter(passed, spread_mm / tissue.mm_per_pixel, mode="nearest")
    receptors = 0.030 * np.exp(-1.6e-4 * melanin_per_cm(nm) * person.rpe_melanin_um * tissue.rpe)  # they lie among the melanin
    pigment = 10 ** (-2 * macular_density(nm, person.macular_peak) * tissue.macular)
    # Optic nerve head: white scattering tissue, weaker in the near infrared, with capillary blood mostly in its rim.
    capillaries = np.exp(-2 * blood_per_cm(nm, 0.85, person.haemoglobin_g_per_l) * 0.0028 * tissue.capillaries)
    nerve = 0.31 / (1 + (nm / 1050) ** 4) * (0.8 + 0.14 * tissue.cup) * capillaries * passed
    background = pigment * passed * (receptors * passed + deep * passed_in)
    clear = np.exp(np.float32(-2 * person.biomarker * (500 / nm) ** 4))  # Rayleigh: More & Vince 2015
    inner = (500 / nm) ** 2 * (0.004 * tissue.inner + 0.006 * tissue.fibre)  # in front of the vessels
    mirror = 0.02 * tissue.fovea + 0.006 * (550 / nm) ** 2 * tissue.reflex
    retina = (1 - tissue.onh) * background + tissue.onh * nerve
    media = 10 ** (-2 * media_density(nm, person.age_years))
    return (media * (clear * (retina + inner) + blood + mirror)).astype(np.float32)
