"""What a file says of its own values is applied, whatever the format; or the import stops, and the option that it names works."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import tifffile

from data_shards import folder
from data_shards.cube import Cube, reflectance
from data_shards.errors import CorruptData, InputError, UnsafeResume
from data_shards.formats import ReadOptions
from data_shards.importing import importer
from data_shards.importing.config import ImportConfig
from data_shards.importing.geometry import Geometry
from data_shards.packing.pack import pack

C, H, W = 4, 12, 16
NM = (465.0, 555.0, 640.0, 730.0)
GAP = np.s_[:, :, :4]  # the quarter that was not measured


def counts(dtype: str = "int16", nodata: float = -9999) -> np.ndarray:
    """(C, H, W) counts of 1000 to 4000, no-data in a quarter."""
    data_CHW = np.random.default_rng(0).integers(1000, 4000, (C, H, W)).astype(dtype)
    data_CHW[GAP] = nodata
    return data_CHW


def envi(path: Path, data_CHW: np.ndarray, extra: str = "", *, leave_out: tuple[str, ...] = (), encoding: str = "utf-8") -> Path:
    """NAME.hdr and NAME, bsq."""
    codes = {"uint8": 1, "int16": 2, "int32": 3, "float32": 4, "float64": 5, "uint16": 12}
    fields = {
        "samples": data_CHW.shape[2],
        "lines": data_CHW.shape[1],
        "bands": len(data_CHW),
        "data type": codes[data_CHW.dtype.name],
        "interleave": "bsq",
        "byte order": 0,
        "wavelength": "{465, 555, 640, 730}",
        "wavelength units": "nm",
    }
    lines = [f"{name} = {value}" for name, value in fields.items() if name not in leave_out]
    path.with_suffix("").write_bytes(data_CHW.tobytes())
    path.write_bytes(("ENVI\n" + "\n".join(lines) + "\n" + extra).encode(encoding))
    return path


def tiff(path: Path, data_CHW: np.ndarray, *, scale: list[str] | None = None, offset: list[str] | None = None, nodata: str = "") -> Path:
    """As GDAL writes it."""
    items = [(name, i, value) for name, values in (("scale", scale), ("offset", offset)) for i, value in enumerate(values or ())]
    xml = "".join(f'<Item name="{name.upper()}" sample="{i}" role="{name}">{value}</Item>' for name, i, value in items)
    tags = [(42112, 2, 0, f"<GDALMetadata>{xml}</GDALMetadata>", True)] if items else []
    tags += [(42113, 2, 0, nodata, True)] if nodata else []
    tifffile.imwrite(
        path, data_CHW, photometric="minisblack", planarconfig="separate" if len(data_CHW) > 1 else None, metadata=None, extratags=tags
    )
    return path


def hdf5(path: Path, data_CHW: np.ndarray, *, wavelengths: bool = True, fillvalue: float | None = None, **attributes: object) -> Path:
    with h5py.File(path, "w") as file:
        image = file.create_dataset("scan/cube", data=data_CHW, fillvalue=fillvalue)
        image.attrs.update(attributes)
        if wavelengths:
            file["scan/wavelength"] = NM
    return path


def imported(path: Path, **options: object) -> Cube:
    """The cube that an import of one file makes."""
    out = path.parent / f"out{len(list(path.parent.iterdir()))}"
    importer.import_cubes(ImportConfig(source=path, **{"wavelengths_nm": NM, **options}), out)
    return folder.read_cube(out, path.stem)


def refused(path: Path, **options: object) -> str:
    """The message of an import that stops with exit code 2, and leaves nothing."""
    before = sorted(path.parent.iterdir())
    with pytest.raises(InputError) as caught:
        importer.import_cubes(ImportConfig(source=path, **{"wavelengths_nm": NM, **options}), path.parent / "out")
    assert caught.value.exit_code == 2
    assert sorted(path.parent.iterdir()) == before
    assert not re.search(r"copy (it|the file)", str(caught.value))
    return str(caught.value)


def is_right(cube: Cube, scale: float = 1e-4, offset: float = 0.0, data_CHW: np.ndarray | None = None) -> None:
    """Reflectances of the measured pixels are right, the others lie outside the field of view and hold reflectance 0."""
    true_CHW = (counts() if data_CHW is None else data_CHW).astype(np.float64) * scale + offset
    found_CHW = reflectance(cube.data_CHW, cube.meta)
    np.testing.assert_allclose(found_CHW[:, :, 4:], true_CHW[:, :, 4:], atol=max(cube.meta.scale, 1e-6))
    assert cube.fov_HW is not None and not cube.fov_HW[:, :4].any() and cube.fov_HW[:, 4:].all()
    np.testing.assert_allclose(found_CHW[GAP], 0, atol=cube.meta.scale)


FILES: dict[str, Callable[[Path], Path]] = {
    "ENVI": lambda p: envi(p / "a.hdr", counts(), "data ignore value = -9999\nreflectance scale factor = 10000\n"),
    "ENVI as GDAL writes it": lambda p: envi(
        p / "a.hdr", counts(), "Data Ignore Value = -9.99900000000000e+03\ndata gain values = {1e-4,\n 1e-4, 1e-4, 0.0001}\n"
    ),
    "GeoTIFF": lambda p: tiff(p / "a.tif", counts(), scale=["0.0001"] * C, offset=["0"] * C, nodata="-9999"),
    "GeoTIFF, uint16 up to the top": lambda p: tiff(p / "a.tif", counts("uint16", 65535), scale=["1e-4"] * C, nodata="65535"),
    "observatory": lambda p: hdf5(p / "a.h5", counts(), Scale_Factor=10000.0, Data_Ignore_Value=-9999.0),
    "observatory, text": lambda p: hdf5(p / "a.h5", counts(), SCALE_FACTOR="10000", NoData_Value=np.array([-9999])),
    "CF": lambda p: hdf5(p / "a.nc", counts(), scale_factor=np.float32(1e-4), add_offset=0.0, _FillValue=np.int16(-9999), units="1"),
    "CF, missing_value": lambda p: hdf5(p / "a.nc", counts(), scale_factor=np.array([1e-4]), missing_value=np.int16([-9999, -1])),
    "CF, valid_range": lambda p: hdf5(p / "a.nc", counts(), scale_factor=1e-4, valid_range=np.int16([0, 10000])),
    "CF, unpacked valid_range": lambda p: hdf5(p / "a.nc", counts(), scale_factor=1e-4, valid_range=[0.0, 0.5]),
    "CF, per cent": lambda p: hdf5(p / "a.nc", counts(), scale_factor=1e-2, _FillValue=np.int16(-9999), units="%"),
    "HDF5's own fill value": lambda p: hdf5(p / "a.h5", counts(), fillvalue=-9999, scale_factor=1e-4),
}


@pytest.mark.parametrize("file", FILES)
def test_scale_and_no_data_are_heard_in_every_format(file: str, tmp_path: Path) -> None:
    cube = imported(FILES[file](tmp_path))
    is_right(cube)
    assert cube.meta.notes["no_data"]["pixels"] == 4 * H
    assert cube.meta.notes["declared"], "what the file said is kept"


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [("float32", -9999), ("float32", np.nan), ("float64", 1e20), ("float32", 1e20), ("float32", -3.4028234663852886e38)],
)
@pytest.mark.parametrize("kind", ["ENVI", "TIFF", "HDF5"])
def test_no_data_of_floats_leaves_the_field_of_view(kind: str, dtype: str, nodata: float, tmp_path: Path) -> None:
    data_CHW = (counts() * 1e-4).astype(dtype)
    data_CHW[GAP] = nodata
    text = f"{nodata:.6g}"
    path = {
        "ENVI": lambda: envi(tmp_path / "a.hdr", data_CHW, f"data ignore value = {text}\n"),
        "TIFF": lambda: tiff(tmp_path / "a.tif", data_CHW, nodata=text),
        "HDF5": lambda: hdf5(tmp_path / "a.h5", data_CHW, _FillValue=np.dtype(dtype).type(nodata)),
    }[kind]()
    is_right(imported(path))


def test_no_data_stays_out_of_statistics(tmp_path: Path) -> None:
    cube = imported(FILES["ENVI"](tmp_path))
    (out,) = (path.parent for path in tmp_path.glob("out*/a.npy"))
    stats = pack(out, tmp_path / "set", splits={"train": 1}).stats
    np.testing.assert_allclose(stats.mean_C, counts()[:, :, 4:].reshape(C, -1).mean(1) * 1e-4, rtol=1e-6)
    assert stats.values == cube.fov_HW.sum()
    assert stats.log_zero == pytest.approx(32768)


def test_scale_and_offset_of_a_file_are_both_taken(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", counts("uint16", 0), scale=["2.75e-05"] * C, offset=["-0.2"] * C, nodata="0")
    is_right(imported(path), 2.75e-5, -0.2)
    path = hdf5(tmp_path / "b.nc", counts(), scale_factor=1e-4, add_offset=0.25, _FillValue=np.int16(-9999))
    is_right(imported(path), 1e-4, 0.25)
    path = envi(tmp_path / "c.hdr", counts(), "data ignore value = -9999\ndata gain values = {1e-4, 1e-4, 1e-4, 1e-4}\n" + OFFSETS)
    is_right(imported(path), 1e-4, 0.05)


OFFSETS = "data offset values = {0.05, 0.05, 0.05, 0.05}\n"


@pytest.mark.parametrize("kind", ["ENVI", "TIFF", "HDF5"])
def test_scales_that_differ_by_band_are_refused_and_applied_to_a_stated_range(kind: str, tmp_path: Path) -> None:
    scales = [1e-4, 2e-4, 1e-4, 1e-4]
    path = {
        "ENVI": lambda: envi(
            tmp_path / "a.hdr", counts(), f"data ignore value = -9999\ndata gain values = {{{scales}}}\n".replace("[", "").replace("]", "")
        ),
        "TIFF": lambda: tiff(tmp_path / "a.tif", counts(), scale=[str(s) for s in scales], nodata="-9999"),
        "HDF5": lambda: hdf5(tmp_path / "a.h5", counts(), scale_factor=np.array(scales), _FillValue=-9999),
    }[kind]()
    said = refused(path)
    assert "differ by band (scale 0.0001 … 0.0002)" in said and "--float-range LO:HI" in said and "--full-scale N" in said
    cube = imported(path, float_range=(0.0, 1.0))
    is_right(cube, data_CHW=counts() * np.array([1, 2, 1, 1]).reshape(C, 1, 1))
    is_right(imported(path, full_scale=10000.0))


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"scale_factor": 10000.0}, "scale_factor = 10000.0, and how it turns values into reflectance is not clear"),
        ({"Reflectance_Scaling": 10000.0}, "Reflectance_Scaling = 10000.0"),
        ({"Scale_Factor": 10000.0, "add_offset": 0.5}, "which comes first"),
        ({"add_offset": -1000.0}, "without a scale"),
        ({"add_offset": -1000.0, "scale_factor": 1.0}, "without a scale"),
        ({"scale_factor": -1e-4}, "the scale above 0"),
        ({"scale_factor": 0.0}, "the scale above 0"),
        ({"scale_factor": 1e-4, "Gain": 1e-3}, "another scale of 0.001"),
        ({"scale_factor": [1e-4, 1e-4]}, "2 values for 4 bands"),
        ({"scale_factor": "about one"}, "a number, or one for each band"),
        ({"units": "W m-2 sr-1 nm-1"}, "values in W m-2 sr-1 nm-1"),
    ],
)
def test_a_scale_that_is_not_clear_stops_the_import_until_it_is_stated(attributes: dict, said: str, tmp_path: Path) -> None:
    path = hdf5(tmp_path / "a.h5", counts(), _FillValue=-9999, **attributes)
    message = refused(path)
    assert said in message and "--full-scale N" in message
    is_right(imported(path, full_scale=10000.0, offset=0.0))


@pytest.mark.parametrize("attributes", [{"_FillValue": "none"}, {"Special_NoData": -9999}, {"valid_range": [1, 2, 3]}])
def test_no_data_that_is_not_clear_stops_the_import_until_it_is_stated(attributes: dict, tmp_path: Path) -> None:
    path = hdf5(tmp_path / "a.h5", counts(), scale_factor=1e-4, **attributes)
    assert "--nodata VALUE" in refused(path)
    is_right(imported(path, nodata="-9999"))
    assert imported(path, nodata="none").fov_HW is None


def test_what_stands_above_or_beside_the_image_is_not_dropped_either(tmp_path: Path) -> None:
    path = hdf5(tmp_path / "a.h5", counts(), _FillValue=-9999)
    with h5py.File(path, "a") as file:
        file["scan"].attrs["Scale_Factor"] = 10000.0
    assert "attribute Scale_Factor of group /scan" in refused(path)
    is_right(imported(path, full_scale=10000.0))
    scipy.io.savemat(tmp_path / "b.mat", {"cube": counts().transpose(1, 2, 0), "scale_factor": 10000.0, "nodata": -9999.0})
    assert "scale_factor beside the image" in refused(tmp_path / "b.mat")
    assert "nodata beside the image" in refused(tmp_path / "b.mat", full_scale=10000.0)
    is_right(imported(tmp_path / "b.mat", full_scale=10000.0, nodata="-9999"))


def test_no_data_in_some_bands_only_is_refused_with_counts(tmp_path: Path) -> None:
    data_CHW = counts()
    data_CHW[2, 5, 8:11] = -9999
    path = envi(tmp_path / "a.hdr", data_CHW, "data ignore value = -9999\nreflectance scale factor = 10000\n")
    said = refused(path)
    assert "3 of 192 pixels lack some bands and not all" in said and "band 3: 51" in said and "--nodata-any" in said
    cube = imported(path, nodata_any=True)
    assert cube.fov_HW.sum() == 192 - 48 - 3 and not cube.fov_HW[5, 8:11].any()
    data_CHW[1] = -9999
    path = envi(tmp_path / "b.hdr", data_CHW[[0, 1, 3, 3]], "data ignore value = -9999\nreflectance scale factor = 10000\n")
    assert "--bad-bands 2 to leave out" in refused(path)
    cube = imported(path, bad_bands="2")
    assert cube.meta.wavelengths_nm == (465, 640, 730) and cube.fov_HW.sum() == 144


def test_an_image_without_a_measured_pixel_is_refused(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", np.full((C, H, W), -9999, np.int16), scale=["1e-4"] * C, nodata="-9999")
    assert "no pixel that was measured" in refused(path)


def test_a_no_data_value_that_the_dtype_cannot_hold(tmp_path: Path) -> None:
    """-9999 in uint16 takes no pixel, unless its bits are there: 55537."""
    data_CHW = counts("uint16", 1000)
    cube = imported(tiff(tmp_path / "a.tif", data_CHW, scale=["1e-4"] * C, nodata="-9999"))
    assert cube.fov_HW is None and np.array_equal(cube.data_CHW, data_CHW)
    data_CHW[GAP] = 55537
    path = tiff(tmp_path / "b.tif", data_CHW, scale=["1e-4"] * C, nodata="-9999")
    assert "48 pixels hold 55537, the same bits" in refused(path)
    is_right(imported(path, nodata="55537"))
    assert imported(tiff(tmp_path / "c.tif", (data_CHW >> 8).astype(np.uint8), nodata="nan")).fov_HW is None


def test_resizing_mixes_no_value_from_pixels_that_were_not_measured(tmp_path: Path) -> None:
    data_CHW = np.full((C, H, W), 2000, np.int16)
    data_CHW[:, :, :5] = -9999
    path = envi(tmp_path / "a.hdr", data_CHW, "data ignore value = -9999\nreflectance scale factor = 10000\n")
    cube = imported(path, geometry=Geometry(resize="6x8"))
    assert cube.fov_HW.sum(1).tolist() == [5] * 6, "columns 4 and 5 make one that is half measured"
    np.testing.assert_allclose(reflectance(cube.data_CHW, cube.meta)[:, cube.fov_HW], 0.2, atol=1e-6)
    cube = imported(path, geometry=Geometry(crop="fov", pad_square=True, resize="24x24"))
    np.testing.assert_allclose(reflectance(cube.data_CHW, cube.meta)[:, cube.fov_HW], 0.2, atol=1e-6)


def test_resizing_spreads_no_nan(tmp_path: Path) -> None:
    data_CHW = np.full((C, H, W), 0.25, np.float32)
    data_CHW[:, :, :5] = np.nan
    for size, most in (("6x8", 5), ("24x32", 22)):
        np.save(tmp_path / "a.npy", data_CHW)
        cube = imported(tmp_path / "a.npy", nodata="nan", geometry=Geometry(resize=size))
        assert most - 2 <= cube.fov_HW.sum(1).min() <= most
        np.testing.assert_allclose(reflectance(cube.data_CHW, cube.meta)[:, cube.fov_HW], 0.25, atol=1e-5)


def test_a_mask_and_no_data_make_one_field_of_view(tmp_path: Path) -> None:
    from PIL import Image

    path = FILES["ENVI"](tmp_path)
    (tmp_path / "fov").mkdir()
    mask_HW = np.zeros((H, W), np.uint8)
    mask_HW[2:] = 255
    Image.fromarray(mask_HW).save(tmp_path / "fov" / "a.png")
    assert imported(path, fov=str(tmp_path / "fov")).fov_HW.sum() == (H - 2) * (W - 4)
    mask_HW[:, 4:] = 0
    Image.fromarray(mask_HW).save(tmp_path / "fov" / "a.png")
    assert "no pixel of the field of view was measured" in refused(path, fov=str(tmp_path / "fov"))


def test_nan_is_refused_with_an_option_that_puts_it_outside_the_field_of_view(tmp_path: Path) -> None:
    data_CHW = (counts() * 1e-4).astype(np.float32)
    data_CHW[GAP] = np.nan
    np.save(tmp_path / "a.npy", data_CHW)
    assert "--nodata nan" in refused(tmp_path / "a.npy")
    is_right(imported(tmp_path / "a.npy", nodata="nan"))
    data_CHW[:, 0, 0] = -9999
    np.save(tmp_path / "a.npy", data_CHW)
    assert imported(tmp_path / "a.npy", nodata="-9999, nan").fov_HW.sum() == 144


@pytest.mark.parametrize(
    "extra", ["reflectance scale factor = 1\n", "data gain values = {1, 1, 1, 1,}\ndata offset values = {0, 0, 0, 0}\n", ""]
)
def test_a_scale_of_1_says_nothing(extra: str, tmp_path: Path) -> None:
    cube = imported(envi(tmp_path / "a.hdr", counts("uint16", 7), extra))
    assert (cube.meta.scale, cube.meta.offset) == (1 / 65535, 0.0)
    assert imported(tmp_path / "a.hdr", full_scale=1.0).meta.scale == 1.0


def test_bad_bands_of_a_header_are_left_out_and_kept_when_that_is_stated(tmp_path: Path) -> None:
    extra = "reflectance scale factor = 10000\ndata ignore value = -9999\n"
    path = envi(tmp_path / "a.hdr", counts(), extra + "bbl = {1, 0, 1.0,\n 1}\n")
    cube = imported(path, wavelengths_nm=None)
    assert cube.meta.wavelengths_nm == (465, 640, 730)
    assert cube.meta.notes["bands_left_out"] == {"bands_from_1": [2], "by": "bbl"}
    np.testing.assert_allclose(reflectance(cube.data_CHW, cube.meta)[:, :, 4:], counts()[[0, 2, 3], :, 4:] * 1e-4, atol=1e-6)
    assert imported(path, wavelengths_nm=NM[:3]).meta.wavelengths_nm == NM[:3]
    is_right(imported(path, bad_bands="none"))
    for bbl in ("{1, 1, 0}", "{1, 1, good, 1}", "{0, 0, 0, 0}"):
        path = envi(tmp_path / "b.hdr", counts(), extra + f"bbl = {bbl}\n")
        assert "--bad-bands" in refused(path)
        is_right(imported(path, bad_bands="none"))
    assert "band 9 of 4" in refused(path, bad_bands="9")


@pytest.mark.parametrize(
    ("unit", "encoding"),
    [("Micrometers", "utf-8"), ("um", "utf-8"), ("µm", "utf-8"), ("µm", "latin-1"), ("\u03bcm", "utf-8"), ("Microns", "utf-8-sig")],
)
def test_micrometres_of_a_header_in_any_spelling(unit: str, encoding: str, tmp_path: Path) -> None:
    extra = f"wavelength = {{0.465, 0.555, 0.64, 0.73}}\nwavelength units = {unit}\ndescription = {{ µ = 3 }}\n"
    path = envi(tmp_path / "a.hdr", counts(), extra, leave_out=("wavelength", "wavelength units"), encoding=encoding)
    assert imported(path, wavelengths_nm=None).meta.wavelengths_nm == NM


@pytest.mark.parametrize("unit", ["wavelength units = Nanometers\n", "", "wavelength units = Unknown\n", "wavelength units = Index\n"])
def test_wavelengths_below_100_nm_are_refused_with_those_to_paste(unit: str, tmp_path: Path) -> None:
    extra = "wavelength = {0.465, 0.555, 0.64, 0.73}\n" + unit
    path = envi(tmp_path / "a.hdr", counts(), extra, leave_out=("wavelength", "wavelength units"))
    assert "--wavelengths 465,555,640,730" in refused(path, wavelengths_nm=None)
    assert imported(path).meta.wavelengths_nm == NM, "the advice works"


def test_micrometres_that_are_nanometres_are_refused(tmp_path: Path) -> None:
    path = envi(tmp_path / "a.hdr", counts(), "wavelength units = Micrometers\n", leave_out=("wavelength units",))
    assert "these look like nm" in refused(path, wavelengths_nm=None)


def test_loose_cubes_with_wavelengths_below_100_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 4, 4), np.uint16))
    meta = {"key": "a", "subject_id": "p", "wavelengths_nm": [0.465, 0.555], "scale": 1e-4}
    (tmp_path / "a.json").write_text(json.dumps(meta))
    with pytest.raises(InputError, match=r"a.json[\s\S]*465,555"):
        folder.read_cube(tmp_path, "a")


def test_band_centres_beside_the_image_are_found_or_named(tmp_path: Path) -> None:
    path = hdf5(tmp_path / "a.h5", counts(), wavelengths=False, Scale_Factor=10000.0, Data_Ignore_Value=-9999)
    with h5py.File(path, "a") as file:
        file["meta/Wavelength"] = np.array(NM) / 1000
        file["meta/Wavelength"].attrs["Units"] = "Micrometers"
        file["meta/fwhm"] = np.full(C, 5.0)
        file["meta/grid"] = 400.0 + 10 * np.arange(C)
    assert imported(path, wavelengths_nm=None).meta.wavelengths_nm == NM
    cube = imported(path, wavelengths_nm=None, read=ReadOptions(centres="/meta/grid"))
    assert cube.meta.wavelengths_nm == (400, 410, 420, 430)
    said = refused(path, wavelengths_nm=None, read=ReadOptions(centres="absent"))
    assert "meta/Wavelength (4 values)" in said and "meta/grid (4 values)" in said
    with h5py.File(path, "a") as file:
        file["other/wavelength"] = np.array(NM) + 1
    said = refused(path, wavelengths_nm=None)
    assert "meta/Wavelength (4 values), other/wavelength (4 values): --wavelengths hdf5:NAME" in said
    with h5py.File(path, "a") as file:
        del file["meta/Wavelength"].attrs["Units"], file["other"]
    assert "--wavelengths 465,555,640,730" in refused(path, wavelengths_nm=None)


@pytest.mark.parametrize("version", ["v5", "v7.3"])
def test_band_centres_of_a_matlab_variable(version: str, tmp_path: Path) -> None:
    path, data_HWC = tmp_path / "a.mat", counts("uint16", 0).transpose(1, 2, 0)
    if version == "v5":
        scipy.io.savemat(path, {"cube": data_HWC, "wavelengths": np.array(NM)[:, None], "grid": np.array(NM)[None] + 1})
    else:
        with h5py.File(path, "w", userblock_size=512) as file:
            file["cube"], file["wavelengths"], file["grid"] = data_HWC.T, np.array(NM)[None], np.array(NM)[:, None] + 1
        with open(path, "r+b") as file:
            file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    assert imported(path, wavelengths_nm=None).meta.wavelengths_nm == NM
    assert imported(path, wavelengths_nm=None, read=ReadOptions(centres="grid")).meta.wavelengths_nm == tuple(nm + 1 for nm in NM)


def test_lists_of_good_bands_and_centres_in_attributes(tmp_path: Path) -> None:
    path = hdf5(
        tmp_path / "a.nc", counts(), wavelengths=False, scale_factor=1e-4, _FillValue=np.int16(-9999), wavelengths_um=np.array(NM) / 1000
    )
    with h5py.File(path, "a") as file:
        file["bands/good_wavelengths"] = np.array([1, 1, 0, 1], np.uint8)
    cube = imported(path, wavelengths_nm=None)
    assert cube.meta.wavelengths_nm == (465, 555, 730)
    assert cube.meta.notes["bands_left_out"]["bands_from_1"] == [3]
    cube = imported(path, wavelengths_nm=None, bad_bands="none", read=ReadOptions(centres="scan/cube@wavelengths_um"))
    assert cube.meta.wavelengths_nm == NM


def test_single_band_files_named_below_100_nm_are_refused(tmp_path: Path) -> None:
    for name in ("050nm", "060nm"):
        tifffile.imwrite(tmp_path / f"a_{name}.tif", np.ones((4, 5), np.uint16))
    with pytest.raises(InputError, match="name the files by their wavelength"):
        importer.import_cubes(ImportConfig(source=tmp_path, per_band=True), tmp_path / "out")


def test_text_of_matlab_and_neighbours_in_an_unknown_packing_are_left_alone(tmp_path: Path) -> None:
    path = hdf5(tmp_path / "a.h5", counts(), scale_factor=1e-4, _FillValue=np.int16(-9999))
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk((C,))
    plan.set_filter(32999, h5py.h5z.FLAG_OPTIONAL)
    with h5py.File(path, "a") as file:
        file["scan/scale_kind"] = np.frombuffer(b"sqrt", np.uint8).astype(np.uint16)
        file["scan/scale_kind"].attrs["MATLAB_class"] = np.bytes_("char")
        space = h5py.h5s.create_simple((C,))
        h5py.h5d.create(file["scan"].id, b"lamp", h5py.h5t.NATIVE_UINT16, space, plan).write_direct_chunk((0,), bytes(2 * C), 0)
    is_right(imported(path, wavelengths_nm=None))


def test_centres_that_fit_another_axis_name_the_axes(tmp_path: Path) -> None:
    path = hdf5(tmp_path / "a.h5", counts().transpose(1, 2, 0), Scale_Factor=10000.0, Data_Ignore_Value=-9999)
    assert "4 band centres in scan/wavelength" in (said := refused(path, wavelengths_nm=None)) and "--axes HWC" in said
    is_right(imported(path, wavelengths_nm=None, read=ReadOptions(axes="HWC")))


def test_centres_of_gdal_s_items(tmp_path: Path) -> None:
    xml = "".join(f'<Item name="CENTRAL_WAVELENGTH_UM" sample="{i}" domain="IMAGERY">{nm / 1000}</Item>' for i, nm in enumerate(NM))
    tags = [(42112, 2, 0, f"<GDALMetadata>{xml}</GDALMetadata>", True)]
    tifffile.imwrite(tmp_path / "a.tif", counts(), photometric="minisblack", planarconfig="separate", metadata=None, extratags=tags)
    assert imported(tmp_path / "a.tif", wavelengths_nm=None).meta.wavelengths_nm == NM


def test_single_band_files_speak_for_their_band(tmp_path: Path) -> None:
    eye = tmp_path / "eye"
    eye.mkdir()
    for nm, band_HW in zip(NM, counts(), strict=True):
        tiff(eye / f"b{nm:.0f}nm.tif", band_HW[None], scale=["1e-4"], nodata="-9999")
    is_right(imported(eye, per_band=True, wavelengths_nm=None))
    tiff(eye / "b555nm.tif", counts()[1:2], scale=["1e-4"], nodata="-1")
    assert "-9999 in the first band, -1 in band 2" in refused(eye, per_band=True, wavelengths_nm=None)


def test_imagej_s_calibration_is_not_dropped(tmp_path: Path) -> None:
    meta = {"axes": "CYX", "cf": 0, "c0": -32768.0, "c1": 1.0, "vunit": "Gray Value"}
    tifffile.imwrite(tmp_path / "a.tif", counts("uint16", 0), imagej=True, photometric="minisblack", metadata=meta)
    said = refused(tmp_path / "a.tif")
    assert "offset -32768" in said or "Gray Value" in said


# Headers and files that are whole, but not to the reader's liking


def test_a_header_without_byte_order_is_little_endian(tmp_path: Path) -> None:
    path = envi(tmp_path / "a.hdr", counts(), "data ignore value = -9999\nreflectance scale factor = 10000\n", leave_out=("byte order",))
    cube = imported(path)
    is_right(cube)
    assert "taken as 0" in cube.meta.notes["reader"]["byte_order"]


def test_data_that_went_through_gzip_are_read_and_their_damage_is_found(tmp_path: Path) -> None:
    extra = "data ignore value = -9999\nreflectance scale factor = 10000\nfile compression = 1\n"
    path = envi(tmp_path / "a.hdr", counts(), extra)
    assert "file compression = 0" in refused(path)
    whole = gzip.compress(counts().tobytes())
    (tmp_path / "a").write_bytes(whole)
    is_right(imported(path))
    (tmp_path / "a").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptData, match="copy the file again"):
        imported(path)


@pytest.mark.parametrize(("layout", "order"), [("BIL", "I"), ("BSQ", "M"), ("BIP", "I")])
def test_esri_headers_are_read(layout: str, order: str, tmp_path: Path) -> None:
    axes = {"BIL": (1, 0, 2), "BSQ": (0, 1, 2), "BIP": (1, 2, 0)}[layout]
    (tmp_path / f"a.{layout.lower()}").write_bytes(counts().transpose(axes).astype("<i2" if order == "I" else ">i2").tobytes())
    text = f"BYTEORDER {order}\nLAYOUT {layout}\nNROWS {H}\nNCOLS {W}\nNBANDS {C}\nNBITS 16\nPIXELTYPE SIGNEDINT\nNODATA -9999\n"
    (tmp_path / "a.hdr").write_text(text + "WAVELENGTHS\n465\n555\n640\n730\nWAVELENGTHS_END\n")
    cube = imported(tmp_path / "a.hdr", wavelengths_nm=None, full_scale=10000.0)
    is_right(cube)
    assert cube.meta.wavelengths_nm == NM
    (tmp_path / "a.hdr").write_text(text + "BANDGAPBYTES 6\n")
    assert "gdal_translate -of ENVI" in refused(tmp_path / "a.hdr")


def test_of_two_data_files_the_one_of_the_right_size_is_taken(tmp_path: Path) -> None:
    path = envi(tmp_path / "a.hdr", counts(), "data ignore value = -9999\nreflectance scale factor = 10000\n")
    (tmp_path / "a").rename(tmp_path / "a.dat")
    (tmp_path / "a").write_bytes(b"notes")
    is_right(imported(path))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.hdr", b"\x5c\x01\x00\x00" + bytes(344), "Analyze or NIfTI"),
        ("a.hdr", b"Landsat\nlines = 3\n", "begins with 'Landsat"),
        ("a.h5", b"CDF\x01" + bytes(99), "nccopy -k nc4"),
        ("a.nc", b"\x0e\x03\x13\x01" + bytes(99), "h4toh5"),
        ("a.h5", b"<!DOCTYPE html><html>Please log in</html>", "a web page"),
        ("a.tif", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        ("a.mat", b"\x89PNG\r\n\x1a\n" + bytes(99), "a PNG, named .mat"),
    ],
)
def test_a_whole_file_of_another_kind_is_not_called_damaged(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert said in refused(tmp_path / name)


@pytest.mark.parametrize(
    ("missing", "said"),
    [("interleave", "interleave = bsq"), ("data type", "no data type"), ("bands", "no bands"), ("samples", "no samples")],
)
def test_what_a_header_lacks_is_named(missing: str, said: str, tmp_path: Path) -> None:
    assert said in refused(envi(tmp_path / "a.hdr", counts(), leave_out=(missing,)))


def test_an_import_of_an_elder_way_of_reading_is_not_taken_for_this_one(tmp_path: Path) -> None:
    path = FILES["ENVI"](tmp_path)
    config = ImportConfig(source=path)
    importer.import_cubes(config, tmp_path / "out")
    record = json.loads((tmp_path / "out" / folder.IMPORT_RECORD).read_bytes())
    del record["options"]["reading"]
    (tmp_path / "out" / folder.IMPORT_RECORD).write_text(json.dumps(record))
    with pytest.raises(UnsafeResume, match="choose another OUT"):
        importer.import_cubes(config, tmp_path / "out")


def test_attributes_and_fields_that_are_not_used_stand_in_the_notes(tmp_path: Path) -> None:
    cube = imported(hdf5(tmp_path / "a.h5", counts(), Scale_Factor=10000.0, Data_Ignore_Value=-9999, Interleave="BSQ", Lamp=np.float32(3)))
    assert cube.meta.notes["reader"]["not_used"] == ["Interleave", "Lamp"]
    extra = "data ignore value = -9999\nreflectance scale factor = 10000\nsensor type = X\n"
    assert imported(envi(tmp_path / "b.hdr", counts(), extra)).meta.notes["reader"]["not_used"] == ["sensor type"]


def test_unsigned_netcdf_values_in_a_signed_type(tmp_path: Path) -> None:
    data_CHW = counts("uint16", 65535)
    path = hdf5(tmp_path / "a.nc", data_CHW.view(np.int16), _Unsigned="true", _FillValue=np.int16(-1), scale_factor=1e-5)
    is_right(imported(path), 1e-5)


def test_a_compression_that_nobody_here_can_undo_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, counts(), photometric="minisblack", metadata=None, compression="zlib")
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        places = [page.tags[259].valueoffset for page in file.pages]
    for place in places:
        content[place : place + 2] = (34887).to_bytes(2, "little")  # LERC
    path.write_bytes(content)
    assert "compression LERC" in (said := refused(path)) and "pip install imagecodecs" in said


def test_a_colour_tiff_without_its_opaque_alpha_keeps_its_scales(tmp_path: Path) -> None:
    data_HWS = np.full((H, W, 4), 500, np.uint16)
    data_HWS[..., 3] = 65535
    xml = "".join(f'<Item name="SCALE" sample="{i}" role="scale">{1e-4 if i < 3 else 1}</Item>' for i in range(4))
    tags = [(42112, 2, 0, f"<GDALMetadata>{xml}</GDALMetadata>", True)]
    tifffile.imwrite(tmp_path / "a.tif", data_HWS, photometric="rgb", extrasamples=["unassalpha"], metadata=None, extratags=tags)
    assert imported(tmp_path / "a.tif", wavelengths_nm=None).meta.scale == 1e-4


@pytest.mark.parametrize(
    ("name", "value"), [("radio_add_offset", -1000.0), ("BOA_ADD_OFFSET", -1000.0), ("reflectance_offset", -0.1), ("dark_offset", 40)]
)
def test_an_offset_of_any_name_is_not_passed_over(name: str, value: float, tmp_path: Path) -> None:
    path = hdf5(tmp_path / "a.h5", counts(), quantification_value=10000.0, Data_Ignore_Value=-9999, **{name: value})
    assert name in (said := refused(path)) and "--offset X" in said
    is_right(imported(path, full_scale=10000.0, offset=0.0))


@pytest.mark.parametrize("unit", ["Wavenumber", "cm-1", "GHz", "eV"])
def test_what_is_no_length_is_never_advised_as_one(unit: str, tmp_path: Path) -> None:
    extra = f"wavelength = {{21505, 18018, 15625, 13698}}\nwavelength units = {unit}\n"
    path = envi(tmp_path / "a.hdr", counts(), extra, leave_out=("wavelength", "wavelength units"))
    assert "--wavelengths LIST" in (said := refused(path, wavelengths_nm=None)) and "21505,18018" not in said


@pytest.mark.parametrize("unit", ["wavelength units = Index\n", ""])
@pytest.mark.parametrize("first", [0, 1])
def test_numbers_of_bands_are_not_advised_as_their_centres(unit: str, first: int, tmp_path: Path) -> None:
    extra = f"wavelength = {{{', '.join(str(first + i) for i in range(C))}}}\n{unit}"
    path = envi(tmp_path / "a.hdr", counts(), extra, leave_out=("wavelength", "wavelength units"))
    assert "--wavelengths LIST" in (said := refused(path, wavelengths_nm=None)) and "µm" not in said


def test_an_interleave_that_the_band_centres_belie_is_no_advice_to_take_rows_for_bands(tmp_path: Path) -> None:
    """NEON's files say BSQ of rows x columns x bands."""
    path = hdf5(tmp_path / "a.h5", counts().transpose(1, 2, 0), Scale_Factor=10000.0, Data_Ignore_Value=-9999.0, Interleave="BSQ")
    said = refused(path, wavelengths_nm=None)
    assert "--axes HWC" in said and "linspace" not in said
    is_right(imported(path, wavelengths_nm=None, read=ReadOptions(axes="HWC")))
