"""The constants are those of the sources, and the layers obey Beer and Lambert."""

from __future__ import annotations

import numpy as np
import pytest

from data_shards.cube import BANDS_16_NM
from data_shards.errors import InputError
from data_shards.phantom import spectra


def haemoglobins(nm: float) -> tuple[float, float]:
    return spectra.blood_per_cm(nm, 1.0), spectra.blood_per_cm(nm, 0.0)


@pytest.mark.parametrize(("low_nm", "high_nm"), [(500, 506), (542, 550), (568, 574), (582, 590), (794, 806)])
def test_oxygenated_and_reduced_blood_cross_at_the_isosbestic_points(low_nm: float, high_nm: float) -> None:
    oxygenated, reduced = np.array([haemoglobins(nm) for nm in np.arange(low_nm, high_nm + 0.1, 0.5)]).T
    assert np.ptp(np.sign(oxygenated - reduced)) > 0  # the difference changes its sign within the interval


@pytest.mark.parametrize(
    ("nm", "saturation", "expected"), [(640, 1.0, 442.0), (640, 0.0, 4345.2), (900, 1.0, 1198.0), (440, 0.5, 257930.0)]
)
def test_absorption_of_blood_is_that_of_prahls_table(nm: float, saturation: float, expected: float) -> None:
    assert spectra.blood_per_cm(nm, saturation, 150.0) == pytest.approx(2.303 * expected * 150 / 64500, rel=1e-9)


def test_red_light_tells_arteries_from_veins_and_green_does_not() -> None:
    artery_red, vein_red = (spectra.blood_per_cm(640, saturation) for saturation in (0.97, 0.65))
    artery_green, vein_green = (spectra.blood_per_cm(585, saturation) for saturation in (0.97, 0.65))
    assert vein_red > 3 * artery_red
    assert vein_green == pytest.approx(artery_green, rel=0.05)


def test_the_tables_name_their_sources_and_cover_their_range() -> None:
    for name in ("hemoglobin", "retinal_pigments"):
        nm = spectra.table(name)["wavelength_nm"]
        assert (nm[0], nm[-1]) == spectra.RANGE_NM
        assert np.all(np.diff(nm) == 2)
    assert spectra.macular_density(458, 0.5) == pytest.approx(0.5)
    assert spectra.macular_density(850, 0.5) == 0
    assert spectra.melanin_per_cm(550) == pytest.approx(3.85e14 * 550**-4.2, rel=1e-4)


def test_the_lens_yellows_with_age() -> None:
    columns = spectra.table("retinal_pigments")
    at_500 = columns["wavelength_nm"] == 500
    assert spectra.media_density(500, 65) == pytest.approx(columns["media_OD_age65"][at_500][0] - 0.111)
    assert spectra.media_density(465, 80) > spectra.media_density(465, 65) > spectra.media_density(465, 25) > 0
    assert spectra.media_density(900, 75) < 0.05


def test_backscattering_has_the_right_limits() -> None:
    assert spectra.backscatter(1.0, 2.0, 1e-6) == pytest.approx(2.0e-6, rel=1e-3)  # thin: scattering times thickness
    assert spectra.backscatter(3.0, 1.0, 10.0) == pytest.approx(1 / 8)  # thick: s / 2(a + s)
    assert spectra.chromatic_defocus_dioptre(589) == pytest.approx(0, abs=0.01)


def uniform_tissue(**changed: float) -> spectra.Tissue:
    values = {
        "artery": 0,
        "vein": 0,
        "artery_mm": 0,
        "vein_mm": 0,
        "reflex": 0,
        "onh": 0,
        "cup": 0,
        "capillaries": 1,
        "macular": 0,
        "fovea": 0,
    }
    values |= {"rpe": 1, "choroid_melanin": 1, "choroid_blood": 1, "fibre": 0, "inner": 1, **changed}
    return spectra.Tissue(mm_per_pixel=0.05, **{name: np.full((4, 4), value, np.float32) for name, value in values.items()})


def healthy(**changed: float) -> spectra.Person:
    values = {"age_years": 40, "artery_saturation": 0.97, "vein_saturation": 0.65, "choroid_saturation": 0.92, "haemoglobin_g_per_l": 145}
    values |= {"macular_peak": 0.4, "rpe_melanin_um": 3.4, "choroid_melanin_um": 6.0, "choroid_blood_um": 150, "biomarker": 0.0, **changed}
    return spectra.Person(**values)


def at(nm: float, tissue: spectra.Tissue, person: spectra.Person) -> float:
    return float(spectra.reflectance_HW(nm, tissue, person).mean())


def test_the_fundus_reflects_as_measured() -> None:
    """Delori & Pflibsen 1989, Fig. 3 (nasal fundus), by eye: below 2 % in the green, rising steeply to the red, above 10 % beyond."""
    green, red, infrared = (at(nm, uniform_tissue(), healthy()) for nm in (555, 640, 815))
    assert 0.005 < green < 0.025
    assert 0.04 < red < 0.12
    assert 0.08 < infrared < 0.22


def test_each_pigment_darkens_where_it_absorbs() -> None:
    plain = uniform_tissue()
    for nm, changed in (
        (465, {"macular": 1}),
        (640, {"choroid_melanin": 2}),
        (730, {"rpe": 2}),
        (555, {"vein": 1, "vein_mm": 0.1}),
        (555, {"artery": 1, "artery_mm": 0.1}),
    ):
        assert at(nm, uniform_tissue(**changed), healthy()) < 0.97 * at(nm, plain, healthy()), changed
    assert at(815, uniform_tissue(macular=1), healthy()) == pytest.approx(at(815, plain, healthy()))


def test_the_biomarker_takes_more_blue_than_red() -> None:
    changes = [at(nm, uniform_tissue(), healthy(biomarker=0.06)) / at(nm, uniform_tissue(), healthy()) for nm in (465, 555, 640, 900)]
    assert changes == sorted(changes)
    assert changes[0] < 0.9
    assert changes[-1] > 0.985


def test_bands_outside_the_tables_are_refused_by_name() -> None:
    assert spectra.check_wavelengths(BANDS_16_NM) == tuple(map(float, BANDS_16_NM))
    for bad in ((640, 1000), (300,), (float("nan"),)):
        with pytest.raises(InputError, match="440 to 910"):
            spectra.check_wavelengths(bad)
    with pytest.raises(InputError, match="empty"):
        spectra.check_wavelengths(())
