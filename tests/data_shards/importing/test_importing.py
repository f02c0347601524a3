"""Import: names are paired without guessing, integers stay exact, what was done is recorded, faults leave nothing behind."""

from __future__ import annotations

import errno
import gzip
import os
import re
import signal
import subprocess
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import tifffile
from PIL import Image

from data_shards import folder
from data_shards.cube import LABELS, reflectance
from data_shards.errors import CorruptData, InputError, RetinaforgeError, TryAgain, UnsafeResume
from data_shards.formats import ReadOptions
from data_shards.importing import geometry, importer, labels, map_files, masks, partners, people
from data_shards.importing.config import ImportConfig
from data_shards.importing.counts import to_uint16
from data_shards.importing.geometry import Geometry, Planes
from data_shards.importing.values import Values
from data_shards.importing.wavelengths import parse_wavelengths

REAL = Path(os.environ.get("RETINAFORGE_REAL_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))
H, W = 24, 20
MAP = "0=background,1=artery,2=vein,3=background"


def photo(i: int) -> np.ndarray:
    """(H, W, 3) uint8, another one for each i."""
    return np.random.default_rng((41, i)).integers(0, 256, (H, W, 3), np.uint8)


def classes(i: int) -> np.ndarray:
    """(H, W) values 0 to 3."""
    return np.random.default_rng((43, i)).integers(0, 4, (H, W), np.uint8)


def disc() -> np.ndarray:
    yy, xx = np.mgrid[:H, :W]
    return (yy - 10) ** 2 + (xx - 8) ** 2 <= 25


def view() -> np.ndarray:
    yy, xx = np.mgrid[:H, :W]
    return (yy - 12) ** 2 + (xx - 9) ** 2 <= 64


@pytest.fixture
def drive_like(tmp_path: Path) -> Path:
    """Four photographs named and stored as DRIVE's are: TIFF, labels PNG, masks GIF, discs RGBA TIFF."""
    root = tmp_path / "drive"
    for name in ("images", "av", "fov", "disc"):
        (root / name).mkdir(parents=True)
    for i in range(21, 25):
        Image.fromarray(photo(i)).save(root / "images" / f"{i}_training.tif", compression="tiff_lzw")
        Image.fromarray(classes(i)).save(root / "av" / f"{i}_training.png")
        Image.fromarray(view().astype(np.uint8) * 255).save(root / "fov" / f"{i}_training_mask.gif")
        rgba_HWS = np.dstack([disc().astype(np.uint8) * 255] * 3 + [np.full((H, W), 255, np.uint8)])
        Image.fromarray(rgba_HWS).save(root / "disc" / f"{i}_training_gt.tif", compression="tiff_lzw")
    for name in ("Thumbs.db", "readme.txt", "._21_training.tif"):
        (root / "images" / name).write_bytes(b"x")
    return root


def config(root: Path, **more) -> ImportConfig:
    wanted = {"labels": str(root / "av"), "label_map": MAP, "onh": str(root / "disc"), "fov": str(root / "fov"), **more}
    return ImportConfig(source=root / "images", **wanted)


def bytes_below(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def test_photographs_labels_discs_and_masks(drive_like: Path, tmp_path: Path) -> None:
    summary = importer.import_cubes(config(drive_like), tmp_path / "out")
    assert folder.keys_in(tmp_path / "out") == [f"{i}_training" for i in range(21, 25)]
    for i in range(21, 25):
        cube = folder.read_cube(tmp_path / "out", f"{i}_training")
        assert np.array_equal(cube.data_CHW.transpose(1, 2, 0), photo(i))
        vessels_HW = np.isin(classes(i), (1, 2))
        assert np.array_equal(cube.labels_HW, np.where(vessels_HW, classes(i), np.where(disc(), LABELS["onh"], 0)))
        assert np.array_equal(cube.fov_HW, view())
        assert np.allclose(reflectance(cube.data_CHW, cube.meta), photo(i).transpose(2, 0, 1) / 255)
        assert cube.meta.subject_id == f"{i}_training"
        assert cube.meta.notes["labels"] == f"{i}_training.png"
        assert cube.meta.notes["label_order"] == "vessels over optic disc"
        assert cube.meta.notes["wavelengths"] == "nominal"
        assert len(cube.meta.notes["sha256"]) == 4
    assert (summary.cubes, summary.written, summary.subjects, summary.sizes) == (4, 4, 4, {(H, W): 4})
    assert summary.ignored == ["readme.txt"]
    assert sum(summary.label_share.values()) == pytest.approx(1)
    assert not list(tmp_path.glob(".part-*"))


# Resuming


def test_the_same_command_again_writes_nothing(drive_like: Path, tmp_path: Path) -> None:
    importer.import_cubes(config(drive_like), tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in [tmp_path / "out", *(tmp_path / "out").iterdir()]}
    assert importer.import_cubes(config(drive_like), tmp_path / "out").written == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_killed_import_continues_and_equals_an_uninterrupted_one(drive_like: Path, tmp_path: Path) -> None:
    def killed_after_two(items):
        for n, item in enumerate(items):
            if n == 2:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        importer.import_cubes(config(drive_like), tmp_path / "out", track=killed_after_two)
    assert not (tmp_path / "out").exists()
    stage = next(tmp_path.glob(".part-*"))
    (stage / "23_training.npy").write_bytes(b"half written")
    assert importer.import_cubes(config(drive_like), tmp_path / "out").written == 2
    importer.import_cubes(config(drive_like), tmp_path / "straight")
    assert bytes_below(tmp_path / "out") == bytes_below(tmp_path / "straight")


def test_kill_9_leaves_no_out_and_the_next_run_takes_over(drive_like: Path, tmp_path: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from data_shards.importing import importer
from data_shards.importing.config import ImportConfig

def track(items):
    for n, item in enumerate(items):
        if n == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        yield item

importer.import_cubes(ImportConfig(source=Path({str(drive_like / "images")!r})), Path({str(tmp_path / "out")!r}), track)
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert importer.import_cubes(ImportConfig(source=drive_like / "images"), tmp_path / "out").written == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["drive", "out"]


def test_of_two_imports_into_one_place_the_second_is_told_and_no_cube_is_lost(drive_like: Path, tmp_path: Path) -> None:
    def while_another_starts(items):
        for n, item in enumerate(items):
            if n == 2:
                with pytest.raises(TryAgain, match="another process is writing this place"):
                    importer.import_cubes(config(drive_like), tmp_path / "out")
            yield item

    assert importer.import_cubes(config(drive_like), tmp_path / "out", track=while_another_starts).written == 4
    assert importer.import_cubes(config(drive_like), tmp_path / "out").written == 0
    assert len(folder.keys_in(tmp_path / "out")) == 4 and sorted(p.name for p in tmp_path.iterdir()) == ["drive", "out"]


def test_an_import_that_ends_while_another_waits_to_begin_is_not_written_over(
    drive_like: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importer.durable.sole_writer

    def outrun(final: Path):
        monkeypatch.undo()
        importer.import_cubes(config(drive_like), tmp_path / "out")
        return real(final)

    monkeypatch.setattr(importer.durable, "sole_writer", outrun)
    with pytest.raises(TryAgain, match="has just written this place"):
        importer.import_cubes(config(drive_like), tmp_path / "out")
    assert importer.import_cubes(config(drive_like), tmp_path / "out").written == 0


def test_a_stage_of_other_options_is_not_taken_over(drive_like: Path, tmp_path: Path) -> None:
    def killed_at_the_end(items):
        yield from items
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        importer.import_cubes(config(drive_like), tmp_path / "out", track=killed_at_the_end)
    assert importer.import_cubes(config(drive_like, geometry=Geometry(resize="12x10")), tmp_path / "out").written == 4


def test_another_import_in_the_same_place_is_refused(drive_like: Path, tmp_path: Path) -> None:
    importer.import_cubes(config(drive_like), tmp_path / "out")
    before = bytes_below(tmp_path / "out")
    with pytest.raises(UnsafeResume, match=r"geometry[\s\S]*resize': '12x10'[\s\S]*mv ") as caught:
        importer.import_cubes(config(drive_like, geometry=Geometry(resize="12x10")), tmp_path / "out")
    assert caught.value.exit_code == 3
    Image.fromarray(photo(99)).save(drive_like / "images" / "22_training.tif")
    with pytest.raises(UnsafeResume, match="1 samples differ in files or subjects, first 22_training"):
        importer.import_cubes(config(drive_like), tmp_path / "out")
    assert bytes_below(tmp_path / "out") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="no import made what is there") as caught:
        importer.import_cubes(config(drive_like), tmp_path / "mine")
    assert "rm -r" not in str(caught.value), "what others made is not ours to throw away"
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_a_full_disk_leaves_nothing_and_says_try_again(drive_like: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_fsync, calls = os.fsync, []

    def full(fd: int) -> None:
        calls.append(fd)
        if len(calls) > 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real_fsync(fd)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TryAgain) as caught:
        importer.import_cubes(config(drive_like), tmp_path / "out")
    assert caught.value.exit_code == 75
    assert [path.name for path in tmp_path.iterdir()] == ["drive"]


def test_an_unwritable_place_is_named(drive_like: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot write"):
        importer.import_cubes(config(drive_like), tmp_path / "file" / "out")


# Values


def full(value: float | None) -> Values:
    return Values(scale_C=(1 / value,), offset_C=(0.0,)) if value else Values()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
@pytest.mark.parametrize("full_scale", [None, 4095.0])
def test_integers_come_back_bit_for_bit(dtype: str, full_scale: float | None) -> None:
    limits = np.iinfo(dtype)
    data_CHW = np.linspace(limits.min, limits.max, 3 * 8 * 8).astype(dtype).reshape(3, 8, 8)
    data_CHW[0, 0, :2] = limits.min, limits.max
    stored_CHW, scale, offset, note = to_uint16(data_CHW, ImportConfig(source=Path()), full(full_scale), "x")
    assert stored_CHW.dtype == np.uint16
    back_CHW = np.rint((scale * stored_CHW.astype(np.float64) + offset) * (full_scale or limits.max))
    assert np.array_equal(back_CHW.astype(dtype), data_CHW)
    assert note.startswith("exact")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floats_are_within_half_a_step(dtype: str) -> None:
    data_CHW = np.random.default_rng(1).uniform(-0.1, 1.3, (2, 30, 30)).astype(dtype)
    stored_CHW, scale, offset, note = to_uint16(data_CHW, ImportConfig(source=Path(), float_range=(-0.2, 1.4)), Values(), "x")
    assert np.abs(scale * stored_CHW.astype(np.float64) + offset - data_CHW.astype(np.float64)).max() <= scale / 2 * (1 + 1e-9)
    assert f"error at most {scale / 2:.3g}" in note


def refused(data_CHW: np.ndarray, **more) -> str:
    with pytest.raises(InputError) as caught:
        to_uint16(data_CHW, ImportConfig(source=Path(), **more), full(more.get("full_scale")), "FILE")
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_values_that_cannot_be_stored_are_counted() -> None:
    data_CHW = np.full((2, 4, 4), 0.5, np.float32)
    data_CHW[0, 0, :3] = np.nan, np.inf, -np.inf
    assert re.search(r"3 values are NaN or infinite[\s\S]*FILE[\s\S]*--nan-as 0", refused(data_CHW))
    data_CHW[0, 0, :3] = 1.25, -0.5, 1.2
    assert re.search(r"3 values outside 0 … 1: from -0.5 to 1.25[\s\S]*--float-range -0.5:1.25", refused(data_CHW))
    for dtype in ("int32", "uint64", "bool", "int8"):
        assert f"values of dtype {dtype}" in refused(np.ones((1, 2, 2), dtype))


def test_nan_as_is_counted_in_the_notes() -> None:
    data_CHW = np.full((2, 4, 4), 0.5, np.float32)
    data_CHW[1, 2, 3] = np.nan
    stored_CHW, scale, _, note = to_uint16(data_CHW, ImportConfig(source=Path(), nan_as=0.25), Values(), "x")
    assert stored_CHW[1, 2, 3] * scale == pytest.approx(0.25, abs=scale)
    assert "1 values that were not finite set to 0.25" in note
    for wrong in (2.0, np.nan, np.inf):
        with pytest.raises(InputError, match="in place of NaN"):
            ImportConfig(source=Path(), nan_as=wrong)


def test_wavelengths() -> None:
    assert parse_wavelengths("610, 545,465") == (610, 545, 465)
    assert parse_wavelengths("linspace:400:500:3") == (400, 450, 500)
    aviris = parse_wavelengths("linspace:380:2500:224/1-3,108-112,154-166,220-224")
    assert len(aviris) == 198
    assert aviris[0] == pytest.approx(380 + 3 * 2120 / 223)
    for wrong in (
        "",
        "610,x",
        "0,1",
        "-5",
        "nan",
        "linspace:1:2",
        "linspace:1:2:0",
        "linspace:1:2:3/9",
        "linspace:1:2:999999999",
        "absent.txt",
    ):
        with pytest.raises(InputError, match="--wavelengths"):
            parse_wavelengths(wrong)


def test_wavelengths_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "nm.txt").write_text("# centre\n450\n455.5 ; blue\n".replace(" ; blue", "  # blue"))
    assert parse_wavelengths(str(tmp_path / "nm.txt")) == (450, 455.5)


def test_a_wrong_band_count_names_file_and_mend(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "s.tif", np.zeros((5, 6, 7), np.uint16), photometric="minisblack")
    with pytest.raises(InputError, match=r"5 bands \(5x6x7[\s\S]*4 wavelengths[\s\S]*s.tif[\s\S]*--wavelengths with 5 centres"):
        importer.import_cubes(ImportConfig(source=tmp_path / "s.tif", wavelengths_nm=(401.0, 402.0, 403.0, 404.0)), tmp_path / "out")
    with pytest.raises(InputError, match=r"5 bands of unknown wavelength[\s\S]*--wavelengths with 5 centres"):
        importer.import_cubes(ImportConfig(source=tmp_path / "s.tif"), tmp_path / "out")


NM4 = (450.0, 500.0, 550.0, 600.0)


def array_file(path: Path, array: np.ndarray) -> Path:
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".mat":
        scipy.io.savemat(path, {"Y": array})
    elif path.suffix == ".tif":
        tifffile.imwrite(path, array, photometric="minisblack")  # one page for each of the first axis
    else:
        with h5py.File(path, "w") as file:
            file["cube"] = array
    return path


@pytest.mark.parametrize("order", ["CHW", "HCW", "HWC"])
@pytest.mark.parametrize("suffix", [".npy", ".h5", ".mat", ".tif"])
def test_rows_that_were_taken_for_bands_are_noticed_and_the_advised_axes_read_them(tmp_path: Path, suffix: str, order: str) -> None:
    data_CHW = np.random.default_rng(3).integers(0, 4096, (4, 9, 7), np.uint16)
    path = array_file(tmp_path / f"a{suffix}", data_CHW.transpose(["CHW".index(axis) for axis in order]))
    custom = "HWC" if suffix == ".mat" else "CHW"
    axes = ""
    if order != custom:
        with pytest.raises(InputError, match=rf"4 wavelengths[\s\S]*--axes {order}") as caught:
            importer.import_cubes(ImportConfig(source=path, wavelengths_nm=NM4), tmp_path / "out")
        axes = re.search(r"--axes (\w+)", caught.value.mend)[1]
        with pytest.raises(
            InputError, match=rf"unknown wavelength[\s\S]*if it has 4 bands: --axes {order}; and --wavelengths with 4 centres"
        ):
            importer.import_cubes(ImportConfig(source=path), tmp_path / "out")
    importer.import_cubes(ImportConfig(source=path, wavelengths_nm=NM4, read=ReadOptions(axes=axes)), tmp_path / "out")
    assert np.array_equal(folder.read_cube(tmp_path / "out", "a").data_CHW, data_CHW)


@pytest.mark.parametrize("suffix", [".npy", ".h5", ".mat"])
def test_two_axes_as_long_as_the_list_of_bands_need_the_statement(tmp_path: Path, suffix: str) -> None:
    array = np.random.default_rng(3).integers(0, 4096, (4, 9, 4), np.uint16)
    path = array_file(tmp_path / f"a{suffix}", array)
    with pytest.raises(InputError, match=r"2 axes of 4[\s\S]*--axes (CHW or --axes HWC|HWC or --axes CHW)"):
        importer.import_cubes(ImportConfig(source=path, wavelengths_nm=NM4), tmp_path / "out")
    importer.import_cubes(ImportConfig(source=path, wavelengths_nm=NM4, read=ReadOptions(axes="HWC")), tmp_path / "out")
    assert np.array_equal(folder.read_cube(tmp_path / "out", "a").data_CHW, array.transpose(2, 0, 1))


@pytest.mark.parametrize("said", ["labels", "scales", "interleave"])
def test_hdf5_that_names_its_axes_is_read_by_them(tmp_path: Path, said: str) -> None:
    data_CHW = np.random.default_rng(3).integers(0, 4096, (4, 9, 4), np.uint16)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        cube = file.create_dataset("cube", data=data_CHW.transpose(1, 2, 0))
        for i, name in enumerate(("y", "x", "wavelength")):
            if said == "labels":
                cube.dims[i].label = name
            elif said == "scales":
                file[name] = np.arange(cube.shape[i], dtype=np.float32) + 450.0
                file[name].make_scale(name)
                cube.dims[i].attach_scale(file[name])
        if said == "interleave":
            cube.attrs["interleave"] = "BIP"
    read = ReadOptions(variable="cube")
    importer.import_cubes(ImportConfig(source=tmp_path / "a.h5", wavelengths_nm=NM4, read=read), tmp_path / "out")
    assert np.array_equal(folder.read_cube(tmp_path / "out", "a").data_CHW, data_CHW)


@pytest.mark.parametrize(
    ("least", "most"),
    [
        (-0.5, 1.25),
        (0, 5000),
        (-1e-6, 2e-5),
        (1.0000012, 1.0000043),
        (-3e9, 7.7e9),
        (0.999, 123.4),
        (1e-30, 2e-30),
        (-0.1, 1.0),
        (1.5, 1.5),
    ],
)
def test_the_advised_range_holds_the_values_and_is_no_coarser_than_they_are(least: float, most: float) -> None:
    data_CHW = np.linspace(least, most, 2 * 8 * 8).reshape(2, 8, 8)
    with pytest.raises(InputError, match="--float-range") as caught:
        to_uint16(data_CHW, ImportConfig(source=Path()), Values(kept=(0, 1)), "x")
    low, high = map(float, re.search(r"--float-range (\S+?):([^,\s]+)", caught.value.mend).groups())
    stored_CHW, scale, offset, _ = to_uint16(data_CHW, ImportConfig(source=Path(), float_range=(low, high)), Values(kept=(0, 1)), "x")
    assert np.abs(scale * stored_CHW.astype(np.float64) + offset - data_CHW).max() <= scale * 0.51
    assert most == least or (most - least) / scale > 20000


def test_the_ranges_advised_for_one_image_after_the_other_end(tmp_path: Path) -> None:
    for name, least, most in (("a", 0.0, 1.3), ("b", -0.2, 1.1), ("c", 0.1, 1.7)):
        np.save(tmp_path / f"{name}.npy", np.linspace(least, most, 4 * 9 * 7, dtype=np.float32).reshape(4, 9, 7))
    stated = None
    for _ in range(3):
        with pytest.raises(InputError, match="values outside") as caught:
            importer.import_cubes(ImportConfig(source=tmp_path, pattern="*.npy", wavelengths_nm=NM4, float_range=stated), tmp_path / "out")
        stated = tuple(map(float, re.search(r"--float-range (\S+?):([^,\s]+)", caught.value.mend).groups()))
    assert (
        importer.import_cubes(
            ImportConfig(source=tmp_path, pattern="*.npy", wavelengths_nm=NM4, float_range=stated), tmp_path / "out"
        ).cubes
        == 3
    )


def test_floats_that_a_wide_range_would_flatten_are_refused() -> None:
    """Radiances of 1e-6 over 0 … 1 all became 0 without a word."""
    data_CHW = np.linspace(0, 1e-6, 2 * 8 * 8).reshape(2, 8, 8).astype(np.float32)
    with pytest.raises(InputError, match=r"of the 65535 steps from 0 to 1[\s\S]*--float-range 0:1e-0?6"):
        to_uint16(data_CHW, ImportConfig(source=Path()), Values(kept=(0, 1)), "x")
    to_uint16(np.full((2, 8, 8), 0.5, np.float32), ImportConfig(source=Path()), Values(kept=(0, 1)), "x")


def test_images_that_cannot_be_one_dataset_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(photo(0)).save(tmp_path / "in" / "a.png")
    tifffile.imwrite(tmp_path / "in" / "b.tif", np.zeros((H, W, 3), np.uint16), photometric="rgb")
    with pytest.raises(InputError, match=r"b.tif[\s\S]*that of a.png[\s\S]*--full-scale"):
        importer.import_cubes(ImportConfig(source=tmp_path / "in"), tmp_path / "out")
    assert importer.import_cubes(ImportConfig(source=tmp_path / "in", full_scale=255), tmp_path / "out").cubes == 2


# Labels


def classes_of(path: Path, label_map: labels.LabelMap) -> np.ndarray:
    return labels.classes_of(map_files.read_map(path, ReadOptions()), label_map)


def test_label_maps_of_colours_and_of_palettes(tmp_path: Path) -> None:
    values_HW = classes(1)
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255], [0, 255, 0]], np.uint8)
    Image.fromarray(colours[values_HW]).save(tmp_path / "rgb.png")
    by_colour = labels.parse_label_map("#000000=background,#FF0000=artery,#0000ff=vein,#00ff00=background")
    palette = Image.fromarray(values_HW)
    palette.putpalette([9, 9, 9, 255, 255, 255, 0, 0, 0, 7, 7, 7])
    palette.save(tmp_path / "palette.png")
    expected_HW = np.where(values_HW == 3, 0, values_HW)
    assert np.array_equal(classes_of(tmp_path / "rgb.png", by_colour), expected_HW)
    assert np.array_equal(classes_of(tmp_path / "palette.png", labels.parse_label_map(MAP)), expected_HW)
    Image.fromarray(np.dstack([values_HW] * 3)).save(tmp_path / "grey.png")
    assert np.array_equal(classes_of(tmp_path / "grey.png", labels.parse_label_map(MAP)), expected_HW)
    with pytest.raises(InputError, match=r"colour label file, mapped by value[\s\S]*#ff0000=CLASS"):
        classes_of(tmp_path / "rgb.png", labels.parse_label_map(MAP))


def test_values_without_a_class_are_counted(tmp_path: Path) -> None:
    values_HW = np.zeros((4, 5), np.uint8)
    values_HW[0, :3], values_HW[1, 0] = 7, 9
    Image.fromarray(values_HW).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"7 \(3 pixels\), 9 \(1 pixels\)[\s\S]*a.png[\s\S]*7=background"):
        classes_of(tmp_path / "a.png", labels.parse_label_map("0=background"))


@pytest.mark.parametrize("text", ["", "1", "1=artery,1=vein", "1=arteries", "1=artery,#ff0000=vein", "x=artery", "1=artery;2=vein"])
def test_wrong_label_maps_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="--label-map"):
        labels.parse_label_map(text)


@pytest.mark.parametrize(("mode", "high"), [("L", 255), ("L", 1), ("P", 255), ("1", 1), ("RGB", 255)])
def test_masks_of_many_kinds(tmp_path: Path, mode: str, high: int) -> None:
    image = Image.fromarray(view().astype(np.uint8) * high) if mode != "1" else Image.fromarray(view())
    image.convert(mode).save(tmp_path / "m.png")
    assert np.array_equal(masks.mask_of(map_files.read_map(tmp_path / "m.png", ReadOptions()), "fov", None), view())


def test_labels_of_another_size(drive_like: Path, tmp_path: Path) -> None:
    Image.fromarray(np.kron(classes(23), np.ones((2, 2), np.uint8))).save(drive_like / "av" / "23_training.png")
    with pytest.raises(InputError, match=r"48x40 pixels[\s\S]*23_training.png[\s\S]*24x20[\s\S]*--resize-labels"):
        importer.import_cubes(config(drive_like), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    importer.import_cubes(config(drive_like, onh="", resize_labels=True), tmp_path / "out")
    assert np.array_equal(folder.read_cube(tmp_path / "out", "23_training").labels_HW, np.where(classes(23) == 3, 0, classes(23)))


def test_labels_need_a_stated_meaning(drive_like: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--labels[\s\S]*--label-map '0=background"):
        importer.plan(config(drive_like, label_map=""))
    with pytest.raises(InputError, match=r"3 \(\d+ pixels\)"):
        importer.import_cubes(config(drive_like, label_map="0=background,1=artery,2=vein"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["drive"]


def test_an_empty_field_of_view_is_refused(drive_like: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((H, W), np.uint8)).save(drive_like / "fov" / "22_training_mask.gif")
    with pytest.raises(InputError, match=r"empty field of view[\s\S]*22_training_mask.gif"):
        importer.import_cubes(config(drive_like), tmp_path / "out")


def test_discs_as_circles(drive_like: Path, tmp_path: Path) -> None:
    table = tmp_path / "discs.csv"
    table.write_text("# two observers\nimage_id,od_x_a,od_y_a,od_d\n" + "".join(f"{i}_training,8,10,10\n" for i in range(21, 25)))
    more = {"onh": "", "onh_circles": table, "onh_columns": ("od_x_a", "od_y_a", "od_d")}
    importer.import_cubes(config(drive_like, **more), tmp_path / "out")
    cube = folder.read_cube(tmp_path / "out", "21_training")
    assert np.array_equal(cube.labels_HW == 3, disc() & ~np.isin(classes(21), (1, 2)))
    assert cube.meta.notes["onh_circle_px"] == [8, 10, 10]
    table.write_text(table.read_text().replace("22_training,8", "22_training,left"))
    with pytest.raises(InputError, match=r"'left'[\s\S]*discs.csv"):
        importer.plan(config(drive_like, **more))
    table.write_text("image_id,od_x_a,od_y_a,od_d\n21_training,8,10,10\n")
    with pytest.raises(InputError, match="no optic disc for 22_training.tif"):
        importer.plan(config(drive_like, **more))


def test_folders_of_single_bands_with_labels(tmp_path: Path) -> None:
    for person in ("p1.v1", "p1.v2"):
        (tmp_path / "scans" / person).mkdir(parents=True)
        for nm in (905, 450, 555):
            Image.fromarray(np.full((H, W), nm, np.uint16)).save(tmp_path / "scans" / person / f"band_{nm}nm.tif")
    (tmp_path / "av").mkdir()
    for person in ("p1.v1", "p1.v2"):
        Image.fromarray(classes(1)).save(tmp_path / "av" / f"{person}_av.png")
    wanted = ImportConfig(
        source=tmp_path / "scans", per_band=True, full_scale=4095, labels=str(tmp_path / "av"), label_map=MAP, subject_pattern=r"^(p\d+)"
    )
    summary = importer.import_cubes(wanted, tmp_path / "out")
    assert (summary.cubes, summary.subjects, summary.wavelengths_nm) == (2, 1, (450, 555, 905))
    cube = folder.read_cube(tmp_path / "out", "p1_v2")
    assert (cube.data_CHW == np.array([450, 555, 905])[:, None, None]).all()
    assert sorted(cube.meta.notes["sha256"]) == ["band_450nm.tif", "band_555nm.tif", "band_905nm.tif", "labels p1.v2_av.png"]
    (tmp_path / "scans" / "p1.v2" / "band_905nm.tif").unlink()
    with pytest.raises(InputError, match=r"2 bands from 450 to 555 nm[\s\S]*p1.v2[\s\S]*as in p1.v1: 3 bands"):
        importer.import_cubes(wanted, tmp_path / "other")


# Names


def paired(images: list[str], files: list[str], **more) -> dict[str, str]:
    found = partners.pair([Path(name) for name in images], [Path("maps") / name for name in files], option="--labels", **more)
    return {image.name: file.name for image, file in found.items()}


@pytest.mark.parametrize(
    ("images", "files"),
    [
        (["21_training.tif", "22_training.tif"], ["21_training_mask.gif", "22_training_mask.gif"]),  # DRIVE
        (["21_training.tif", "22_training.tif"], ["21_manual1.gif", "22_manual1.gif"]),  # DRIVE's own labels
        (["01_h.jpg", "01_g.jpg", "01_dr.jpg"], ["01_h_AVmanual.png", "01_g_AVmanual.png", "01_dr_AVmanual.png"]),  # HRF
        (["Image_01L.jpg", "Image_01R.jpg"], ["Image_01L_1stHO.png", "Image_01R_1stHO.png"]),  # CHASE-DB1
        (["im0001.ppm.tif", "im0002.ppm.tif"], ["im0001.ppm.ah.png", "im0002.ppm.ah.png"]),  # STARE
        (["a1.tif", "a1_2.tif"], ["a1_av.png", "a1_2_av.png"]),
        (["left.tif", "right.tif"], ["left mask.png", "right mask.png"]),
    ],
)
def test_public_names_pair(images: list[str], files: list[str]) -> None:
    assert paired(images, files[::-1]) == dict(zip(images, files, strict=True))


@pytest.mark.parametrize(
    ("images", "files", "message"),
    [
        (["case_1.tif"], ["case_2_mask.png"], r"no partner in --labels[\s\S]*case_1.tif"),
        (["01_h.jpg", "01_g.jpg"], ["01_g_mask.png"], r"no partner[\s\S]*01_h.jpg"),
        (["01_h.jpg", "01_g.jpg"], ["01_mask.png"], r"01_mask.png also fits 01_g.jpg"),
        (["1.tif"], ["1_observer_a.png", "1_observer_b.png"], r"several partners[\s\S]*1_observer_a.png, 1_observer_b.png[\s\S]*glob"),
        (["21_training.tif"], ["2_training.png", "1_training.png", "211_training.png"], "no partner"),
        (["left.tif"], ["leftover.png"], "no partner"),
    ],
)
def test_nothing_is_paired_by_a_guess(images: list[str], files: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        paired(images, files)


def test_match_and_allow_missing() -> None:
    assert paired(["scan-7-OD.tif", "scan-8-OD.tif"], ["av_8.png", "av_7.png"], match=r"[-_](\d+)") == {
        "scan-7-OD.tif": "av_7.png",
        "scan-8-OD.tif": "av_8.png",
    }
    assert paired(["1.tif", "2.tif"], ["2_av.png"], allow_missing=True) == {"2.tif": "2_av.png"}
    with pytest.raises(InputError, match=r"does not fit the name[\s\S]*left.tif"):
        paired(["left.tif"], ["1.png"], match=r"(\d+)")


def test_missing_labels_leave_no_labels_behind(drive_like: Path, tmp_path: Path) -> None:
    (drive_like / "av" / "22_training.png").unlink()
    with pytest.raises(InputError, match=r"no partner in --labels[\s\S]*22_training.tif[\s\S]*--allow-missing"):
        importer.import_cubes(config(drive_like), tmp_path / "out")
    summary = importer.import_cubes(config(drive_like, allow_missing=True), tmp_path / "out")
    assert folder.read_cube(tmp_path / "out", "22_training").labels_HW is None  # a disc alone would claim that there are no vessels
    assert summary.with_maps == {"labels": 3, "onh": 4, "fov": 4}


@pytest.mark.parametrize(
    "wrong", [{"match": "("}, {"subject_pattern": "["}, {"pattern": ""}, {"pattern": "/tmp/*"}, {"labels": "", "label_map": MAP}]
)
def test_wrong_patterns_are_refused(drive_like: Path, wrong: dict[str, str]) -> None:
    with pytest.raises(InputError, match="|".join("--" + name.replace("_", "-") for name in wrong)):
        importer.plan(config(drive_like, **wrong))


def test_keys(tmp_path: Path) -> None:
    assert list(partners.keys_of([Path("a b.c.tif"), Path("Bild-7.png")]).values()) == ["a_b_c", "Bild-7"]
    with pytest.raises(InputError, match=r"two images with the key 'a'[\s\S]*--pattern '\*.png'"):
        partners.keys_of([Path("a.tif"), Path("a.png")])
    for one, other, mend in (("a b.png", "a_b.png", "rename one"), ("x/a.png", "y/a.png", "rename one, or import each folder by itself")):
        with pytest.raises(InputError, match="two images with the key") as caught:
            partners.keys_of([Path(one), Path(other)])
        assert caught.value.mend == mend, "a pattern would not keep them apart"
    with pytest.raises(InputError, match="at most 63"):
        partners.keys_of([Path("x" * 64 + ".tif")])


def test_names_in_any_script_have_keys_that_keep_them_apart() -> None:
    names = ["\u773c.png", "\u76ee.png", "\u00c4 \u00f6 \u00fc.png", "\u00c4 \u00f6 u.png", "zo\u00eb.png", "zoe\u0308.png"]
    names.append("\u773c" * 60 + ".png")
    keys = list(partners.keys_of([Path(name) for name in names]).values())
    assert [key[:-9] for key in keys] == ["_", "_", "A_o_u", "A_o_u", "zoe", "zoe", "_"] and len(set(keys)) == 7
    assert partners.keys_of([Path(names[0])])[Path(names[0])] == keys[0], "a key does not depend on who else is there"
    pairs = paired(["\u773c.png", "\u76ee.png", "zo\u00eb.png"], ["\u76ee_av.png", "\u773c_av.png", "zoe\u0308_av.png"])
    assert pairs == {"\u773c.png": "\u773c_av.png", "\u76ee.png": "\u76ee_av.png", "zo\u00eb.png": "zoe\u0308_av.png"}


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_table_in_another_unicode_form_than_the_files_fits_them(drive_like: Path, tmp_path: Path, form: str) -> None:
    name, other = unicodedata.normalize(form, "zo\u00eb.tif"), unicodedata.normalize({"NFC": "NFD", "NFD": "NFC"}[form], "zo\u00eb.tif")
    (drive_like / "images" / "21_training.tif").rename(drive_like / "images" / name)
    wanted = with_table(drive_like, "file,subject_id\n" + GOOD.replace("21_training.tif", other), labels="", label_map="", onh="", fov="")
    assert importer.import_cubes(wanted, tmp_path / "out").subjects == 4


def test_an_empty_source_says_where_the_images_may_be(drive_like: Path) -> None:
    with pytest.raises(InputError, match="name the folder with the images: av, disc, fov, images"):
        importer.plan(ImportConfig(source=drive_like))
    with pytest.raises(InputError, match="no such file or folder"):
        importer.plan(ImportConfig(source=drive_like / "absent"))
    with pytest.raises(InputError, match=r"no files for --fov[\s\S]*absent"):
        importer.plan(config(drive_like, fov="absent"))


@pytest.mark.parametrize("kind", ["images", "pattern", "single", "maps", "bands", "folders", "envi"])
def test_links_whose_content_was_not_fetched_are_named_and_nothing_is_imported_without_them(
    drive_like: Path, tmp_path: Path, kind: str
) -> None:
    wanted, name = ImportConfig(source=drive_like / "images", wavelengths_nm=(610, 545, 465)), "24_training.tif"
    if kind == "maps":
        wanted, name = config(drive_like), "24_training.png"
    link = (drive_like / "av" if kind == "maps" else drive_like / "images") / name
    if kind == "pattern":
        wanted, link = ImportConfig(source=drive_like, pattern="*/21_training.tif"), drive_like / "more" / "21_training.tif"
        link.parent.mkdir()
    if kind == "single":
        wanted = ImportConfig(source=link)
    if kind in ("bands", "folders"):
        for eye in ("a", "b"):
            (tmp_path / "eyes" / eye).mkdir(parents=True)
            for nm in (500, 600):
                Image.fromarray(photo(nm)[..., 0]).save(tmp_path / "eyes" / eye / f"{nm}nm.png")
        wanted = ImportConfig(source=tmp_path / "eyes", per_band=True)
        link = tmp_path / "eyes" / ("c" if kind == "folders" else "a/700nm.png")
    if kind == "envi":
        (tmp_path / "e").mkdir()
        (tmp_path / "e" / "x.hdr").write_text("ENVI\nsamples = 2\nlines = 2\nbands = 1\ndata type = 1\ninterleave = bsq\n")
        wanted, link = ImportConfig(source=tmp_path / "e", wavelengths_nm=(500,)), tmp_path / "e" / "x.img"
    link.unlink(missing_ok=True)
    link.symlink_to(tmp_path / ".git" / "annex" / "objects" / "Xq" / "SHA256E-s1--00.tif")
    with pytest.raises(InputError, match=f"1 links whose content is absent: {link.name} -> .*annex") as caught:
        importer.import_cubes(wanted, tmp_path / "out")
    assert caught.value.where == link.parent and f"git annex get {link.name}" in caught.value.mend
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".part-*"))


def test_a_link_that_is_no_image_does_not_stop_an_import(drive_like: Path, tmp_path: Path) -> None:
    (drive_like / "images" / "notes.txt").symlink_to(tmp_path / "gone")
    assert importer.import_cubes(config(drive_like), tmp_path / "out").ignored == ["notes.txt", "readme.txt"]


def test_files_of_one_name_in_two_unicode_forms_are_told(drive_like: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number, name in enumerate(("zo\u00eb.tif", "zoe\u0308.tif")):
        Image.fromarray(photo(number)).save(drive_like / "images" / name)
    wanted = ImportConfig(source=drive_like / "images", subject_pattern=r"(?P<subject>.+)\.")
    importer.import_cubes(wanted, tmp_path / "out")
    assert "in another Unicode form (1, first 'zoe\\u0308.tif' and 'zo\\xeb.tif')" in caplog.text
    assert "subjects written in several ways (1, first" in caplog.text


# Persons


def with_table(root: Path, text: str, **more) -> ImportConfig:
    (root / "people.csv").write_text(text)
    return config(root, subjects=root / "people.csv", **more)


def test_a_table_of_subjects(drive_like: Path, tmp_path: Path) -> None:
    rows = "21_training.tif,p1,R,2020-01-02,train,61\n22_training,p1,OS,,train,61\n"
    rows += "23_training.tif,p2,,,val,\n24_training.tif,p3,left,,test,40\n"
    summary = importer.import_cubes(with_table(drive_like, "\ufefffile,subject_id,eye,acquired,split,age\n" + rows), tmp_path / "out")
    metas = [folder.read_cube(tmp_path / "out", f"{i}_training").meta for i in range(21, 25)]
    assert [(m.subject_id, m.eye, m.acquired, m.notes["split"]) for m in metas] == [
        ("p1", "OD", "2020-01-02", "train"),
        ("p1", "OS", "", "train"),
        ("p2", "", "", "val"),
        ("p3", "OS", "", "test"),
    ]
    assert [m.notes.get("subject") for m in metas] == [{"age": "61"}, {"age": "61"}, None, {"age": "40"}]
    assert (summary.subjects, summary.splits) == (3, {"train": 2, "val": 1, "test": 1})


GOOD = "21_training.tif,a\n22_training.tif,b\n23_training.tif,c\n24_training.tif,d\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "file,subject_id,split\n21_training.tif,p,train\n22_training.tif,p,val\n23_training.tif,q,val\n24_training.tif,r,val\n",
            r"subject 'p' in the splits 'train' and 'val'",
        ),
        ("file,subject_id\n" + GOOD + "25_training.tif,e\n", r"'25_training.tif' has no image[\s\S]*did you mean"),
        ("file,subject_id\n" + GOOD + "21_training.tif,a\n", r"'21_training.tif' stands twice"),
        ("file,subject_id\n" + GOOD.replace("24_training.tif,d\n", ""), r"1 images without a row, first 24_training.tif"),
        ("file,person\n" + GOOD, r"no column 'subject_id'[\s\S]*there are: file, person"),
        ("image,subject_id\n" + GOOD, "no column 'file' or 'key'"),
        ("file,subject_id\n" + GOOD.replace(",d", ","), "no subject_id for '24_training.tif'"),
        ("file,subject_id,eye\n" + GOOD.replace("\n", ",both\n"), "eye 'both' of '21_training.tif'"),
        ("file,subject_id\n", "a table without rows"),
        ("file,subject_id, subject_id\n" + GOOD.replace("\n", ",x\n"), r"2 columns are called 'subject_id'[\s\S]*rename or remove"),
        (
            "# by hand\n\nfile,subject_id\n" + GOOD.replace(",c", ",c,train"),
            "line 6 has more fields than the header: 23_training.tif,c,train",
        ),
        ("file,subject_id\n" + GOOD.replace(",c", ',"c'), "cannot read the table from line 4 on: unexpected end of data"),
    ],
)
def test_wrong_tables_are_refused_by_name(drive_like: Path, tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        importer.import_cubes(with_table(drive_like, text), tmp_path / "out")
    assert "people.csv" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["drive"]


def test_commas_behind_a_table_are_no_fields(drive_like: Path, tmp_path: Path) -> None:
    text = "file,subject_id ,,\n" + GOOD.replace("\n", ",, , \n")
    assert importer.import_cubes(with_table(drive_like, text), tmp_path / "out").subjects == 4


@pytest.mark.parametrize("where", ["the header", "--wavelengths"])
def test_two_bands_of_one_centre_are_refused_and_the_advice_leaves_one_out(tmp_path: Path, where: str) -> None:
    data_CHW = np.arange(4 * 30, dtype=np.uint16).reshape(4, 5, 6)
    (tmp_path / "x.img").write_bytes(data_CHW.tobytes())
    nm = (465.0, 640.0, 465.0, 730.0)
    text = "ENVI\nsamples = 6\nlines = 5\nbands = 4\ndata type = 12\ninterleave = bsq\nbyte order = 0\n"
    (tmp_path / "x.hdr").write_text(text + (f"wavelength = {{{','.join(map(str, nm))}}}\n" if where == "the header" else ""))
    more = {} if where == "the header" else {"wavelengths_nm": nm}
    with pytest.raises(InputError, match="bands 1 and 3 both at 465 nm") as caught:
        importer.import_cubes(ImportConfig(source=tmp_path / "x.hdr", **more), tmp_path / "out")
    bad = caught.value.mend.rpartition("--bad-bands ")[2]
    made = importer.import_cubes(ImportConfig(source=tmp_path / "x.hdr", bad_bands=bad, **more), tmp_path / "out")
    assert made.wavelengths_nm == (465.0, 640.0, 730.0)


UNWRITTEN = {
    "nothing was written": {},
    "no chunk was written": {"chunks": (1, 5, 6)},
    "chunks are missing": {"chunks": (1, 3, 6)},
    "a sparse TIFF": {},
}


def unwritten(path: Path, how: str, **attributes: float) -> ImportConfig:
    """Four bands of 5 x 6, of which rows 3 and 4, or all, were never written."""
    counts_CHW = np.arange(1, 121, dtype=np.uint16).reshape(4, 5, 6)
    if how == "a sparse TIFF":
        tags = [(42113, "s", 0, f"{attributes['_FillValue']:g}", True)] if attributes else []
        tifffile.imwrite(path / "x.tif", counts_CHW, photometric="minisblack", metadata=None, rowsperstrip=3, extratags=tags)
        with tifffile.TiffFile(path / "x.tif", mode="r+b") as tiff:
            for page in tiff.pages:
                for name in ("StripOffsets", "StripByteCounts"):
                    page.tags[name].overwrite((page.tags[name].value[0], 0))
        return ImportConfig(source=path / "x.tif", wavelengths_nm=(465, 555, 640, 730))
    with h5py.File(path / "x.h5", "w") as file:
        cube = file.create_dataset("cube", (4, 5, 6), "uint16", **UNWRITTEN[how])
        cube.attrs.update(attributes)
        if how == "chunks are missing":
            cube[:, :3] = counts_CHW[:, :3]
    return ImportConfig(source=path / "x.h5", wavelengths_nm=(465, 555, 640, 730))


@pytest.mark.parametrize("how", UNWRITTEN)
def test_what_was_never_written_is_no_black_image(tmp_path: Path, how: str) -> None:
    wanted = unwritten(tmp_path, how)
    for stated in ({}, {"nodata": "none"}, {"nodata": "7"}):
        with pytest.raises(InputError, match="were never written, and read as 0: the acquisition or the copy was interrupted"):
            importer.import_cubes(replace(wanted, **stated), tmp_path / "out")


@pytest.mark.parametrize("how", ["chunks are missing", "a sparse TIFF"])
@pytest.mark.parametrize("declared", [True, False])
def test_what_was_never_written_and_is_declared_as_no_data_is_outside_the_field_of_view(tmp_path: Path, how: str, declared: bool) -> None:
    wanted = unwritten(tmp_path, how, **({"_FillValue": 0} if declared else {}))
    importer.import_cubes(wanted if declared else replace(wanted, nodata="0"), tmp_path / "out")
    fov_HW = folder.read_cube(tmp_path / "out", "x").fov_HW
    assert fov_HW[:3].all() and not fov_HW[3:].any()


def test_subjects_from_names() -> None:
    images = [Path("p01_OD_2020.tif"), Path("p01_OS_2021.tif")]
    found = people.persons_of(images, table=None, pattern=r"(?P<subject>p\d+)_(?P<eye>O[DS])_(?P<acquired>\d+)", allow_missing=False)
    assert [(p.subject_id, p.eye, p.acquired) for p in found.values()] == [("p01", "OD", "2020"), ("p01", "OS", "2021")]
    with pytest.raises(InputError, match=r"finds no subject[\s\S]*p01_OD_2020.tif"):
        people.persons_of(images, table=None, pattern=r"^(\d+)_", allow_missing=False)


# Size


def test_shrinking_is_the_area_mean_and_maps_keep_their_classes() -> None:
    data_CHW = np.random.default_rng(2).uniform(0, 1, (3, 31, 29)).astype(np.float32)
    for size_HW in ((31, 7), (10, 11), (1, 1)):
        fine_CHW = np.kron(data_CHW.astype(np.float64), np.ones((1, *size_HW)))  # each pixel cut so finely that blocks fit exactly
        expected_CHW = fine_CHW.reshape(3, size_HW[0], 31, size_HW[1], 29).mean(axis=(2, 4))
        assert np.allclose(geometry.resize_image(data_CHW, size_HW), expected_CHW, atol=1e-6)
    counts_CHW = (data_CHW * 65535).astype(np.uint16)
    assert geometry.resize_image(counts_CHW, (62, 58)).max() <= counts_CHW.max()
    shrunk_HW = geometry.resize_map(classes(3), (7, 9))
    assert set(np.unique(shrunk_HW)) <= {0, 1, 2, 3}
    assert np.array_equal(geometry.resize_map(np.kron(classes(3), np.ones((3, 3), np.uint8)), (H, W)), classes(3))


def test_crop_pad_and_resize_keep_image_and_maps_together_and_are_recorded(drive_like: Path, tmp_path: Path) -> None:
    wanted = Geometry(crop="fov", pad_square=True, resize="34x34")
    importer.import_cubes(config(drive_like, geometry=wanted), tmp_path / "out")
    cube = folder.read_cube(tmp_path / "out", "21_training")
    assert cube.data_CHW.shape == (3, 34, 34)
    assert cube.meta.notes["original_shape"] == [3, H, W]
    assert cube.meta.notes["operations"] == ["crop 4:21,1:18", "resize 17x17 to 34x34: image by bilinear, maps by nearest pixel"]
    assert cube.meta.notes["stored"] == "rounded to whole counts by the resizing: stored = uint8 value"
    assert np.array_equal(cube.fov_HW[::2, ::2], view()[4:21, 1:18])
    importer.import_cubes(config(drive_like, geometry=Geometry(crop="2:10,0:20", pad_square=True)), tmp_path / "padded")
    cube = folder.read_cube(tmp_path / "padded", "21_training")
    assert cube.meta.notes["operations"] == ["crop 2:10,0:20", "pad 6 above, 6 below, 0 left, 0 right with 0"]
    assert np.array_equal(cube.data_CHW[:, 6:14], photo(21).transpose(2, 0, 1)[:, 2:10])
    assert not cube.fov_HW[:6].any()
    assert not cube.fov_HW[14:].any()


def test_padding_without_a_mask_makes_one() -> None:
    planes, _ = geometry.apply(Geometry(pad_square=True), Planes(data_CHW=np.ones((2, 3, 6), np.uint16)), "x")
    assert planes.data_CHW.shape == (2, 6, 6)
    assert np.array_equal(planes.fov_HW, planes.data_CHW[0] == 1)


def test_resize_by_height_keeps_proportion() -> None:
    planes, done = geometry.apply(Geometry(resize="12"), Planes(data_CHW=np.ones((1, 24, 36), np.uint16)), "x")
    assert planes.data_CHW.shape == (1, 12, 18)
    assert done == ["resize 24x36 to 12x18: image by area mean, maps by larger share, vessels whole"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop": "0:5"},
        {"crop": "center:5"},
        {"crop": "middle"},
        {"resize": "big"},
        {"resize": "0x5"},
        {"crop": "center:99x99"},
        {"crop": "0:25,0:5"},
        {"crop": "5:5,0:5"},
        {"crop": "fov"},
    ],
)
def test_wrong_geometry_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"--crop|--resize|--fov"):
        geometry.apply(Geometry(**wrong), Planes(data_CHW=np.ones((1, H, W), np.uint16)), "x")


def test_a_bad_last_image_leaves_the_others_converted_and_no_out(drive_like: Path, tmp_path: Path) -> None:
    good = (drive_like / "images" / "24_training.tif").read_bytes()
    (drive_like / "images" / "24_training.tif").write_bytes(good[: len(good) // 2])
    with pytest.raises(CorruptData, match=r"24_training.tif[\s\S]*3 of 4 cubes made before it are kept[\s\S]*rm -r") as caught:
        importer.import_cubes(config(drive_like), tmp_path / "out")
    assert caught.value.exit_code == 4
    assert not (tmp_path / "out").exists()
    (drive_like / "images" / "24_training.tif").write_bytes(good)
    assert importer.import_cubes(config(drive_like), tmp_path / "out").written == 1
    importer.import_cubes(config(drive_like), tmp_path / "straight")
    assert bytes_below(tmp_path / "out") == bytes_below(tmp_path / "straight")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["drive", "out", "straight"]


def test_a_bad_first_image_leaves_nothing(drive_like: Path, tmp_path: Path) -> None:
    (drive_like / "images" / "21_training.tif").write_bytes(b"II*\0 cut")
    with pytest.raises(RetinaforgeError, match="21_training.tif") as caught:
        importer.import_cubes(config(drive_like), tmp_path / "out")
    assert "kept" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["drive"]


def test_a_folder_of_other_kinds_says_which_and_how_to_convert(tmp_path: Path) -> None:
    for name in ("a.ppm.gz", "b.ppm.gz", "c.txt", "._d.tif", "Thumbs.db"):
        (tmp_path / name).write_bytes(gzip.compress(b"P6 1 1 255\n\0\0\0"))
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "e.tif").write_bytes(b"x")
    with pytest.raises(InputError, match=r"no images that match '\*', but 2 .ppm.gz, 1 .txt") as caught:
        importer.plan(ImportConfig(source=tmp_path))
    command = caught.value.mend.removeprefix("unpack them first: ")
    subprocess.run(["/bin/sh", "-c", command], check=True)
    assert importer.import_cubes(ImportConfig(source=tmp_path), tmp_path / "out").cubes == 2
    with pytest.raises(InputError, match=r"no files for --labels, but 2 .ppm.gz, 1 .txt"):
        partners.listed(str(tmp_path / "*.[gt][zx]*"), (".png",), "--labels")
    with pytest.raises(InputError, match="no images"):
        importer.plan(ImportConfig(source=tmp_path, pattern="**/e.tif"))


@pytest.mark.parametrize(("name", "said"), [("a.nii.gz", "nibabel"), ("a.dcm", "pydicom"), ("a.npz", "numpy.load"), ("a.svs", "TIFF")])
def test_what_is_not_read_comes_with_its_conversion(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    for source in (tmp_path, tmp_path / name):
        with pytest.raises(InputError, match=said):
            importer.import_cubes(ImportConfig(source=source), tmp_path / "out")


def test_maps_that_are_all_jpeg_are_to_be_exported_anew(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match=r"but 1 .jpg[\s\S]*anew as PNG"):
        partners.listed(str(tmp_path), map_files.EXACT_SUFFIXES, "--labels")


# Real data


def real(name: str) -> Path:
    if not (REAL / name).is_dir():
        pytest.skip(f"{REAL / name} is absent: set RETINAFORGE_REAL_DATA")
    return REAL / name


def test_real_drive(tmp_path: Path) -> None:
    drive = real("DRIVE")
    wanted = ImportConfig(
        source=drive / "images",
        labels=str(drive / "av"),
        label_map=MAP,
        onh=str(drive / "optic_disc"),
        fov=str(drive / "fov"),
        subject_pattern=r"^(\d+)_",
    )
    summary = importer.import_cubes(wanted, tmp_path / "out")
    assert (summary.cubes, summary.subjects, summary.sizes) == (20, 20, {(584, 565): 20})
    assert summary.with_maps == {"labels": 20, "onh": 20, "fov": 20}
    for cube in folder.read_folder(tmp_path / "out"):
        assert np.array_equal(cube.data_CHW.transpose(1, 2, 0), np.array(Image.open(drive / "images" / f"{cube.meta.key}.tif")))
        inside = {name: cube.fov_HW[cube.labels_HW == number].mean() for name, number in LABELS.items() if number}
        assert min(inside.values()) > 0.95  # labels lie in the field of view: nothing is shifted or mirrored
        green_HW = cube.data_CHW[1].astype(float)
        plain_HW = cube.fov_HW & (cube.labels_HW == 0)
        assert green_HW[cube.labels_HW == LABELS["onh"]].mean() > green_HW[plain_HW].mean()
        assert green_HW[cube.labels_HW == LABELS["vein"]].mean() < green_HW[plain_HW].mean()


def test_real_hrf(tmp_path: Path) -> None:
    hrf = real("HRF")
    wanted = ImportConfig(
        source=hrf / "images",
        pattern="0[1-2]_h.jpg",
        labels=str(hrf / "av"),
        label_map=MAP,
        fov=str(hrf / "fov"),
        geometry=Geometry(resize="584"),
    )
    summary = importer.import_cubes(wanted, tmp_path / "out")
    assert (summary.cubes, summary.sizes) == (2, {(584, 876): 2})
    cube = folder.read_cube(tmp_path / "out", "01_h")
    blocks = np.array(Image.open(hrf / "images" / "01_h.jpg")).reshape(584, 4, 876, 4, 3).mean(axis=(1, 3))
    assert np.abs(cube.data_CHW.transpose(1, 2, 0) - blocks).max() <= 0.501
    green_HW = cube.data_CHW[1]
    assert green_HW[cube.labels_HW == 2].mean() < green_HW[cube.fov_HW & (cube.labels_HW == 0)].mean()


def test_real_jasper_ridge(tmp_path: Path) -> None:
    path = real("JasperRidge") / "jasperRidge2_R198.mat"
    aviris = "linspace:380:2500:224/1-3,108-112,154-166,220-224"
    options = ReadOptions(variable="Y", reshape_HW=(100, 100), pixel_order="columns")
    summary = importer.import_cubes(
        ImportConfig(source=path, read=options, wavelengths_nm=parse_wavelengths(aviris), full_scale=5000), tmp_path / "out"
    )
    assert (summary.cubes, len(summary.wavelengths_nm), summary.sizes) == (1, 198, {(100, 100): 1})
    cube = folder.read_cube(tmp_path / "out", "jasperRidge2_R198")
    stored = scipy.io.loadmat(path)
    assert np.array_equal(cube.data_CHW, stored["Y"].reshape(198, 100, 100, order="F"))
    channels = stored["SlectBands"].ravel()  # the file's own list of the AVIRIS channels that were kept
    assert np.allclose(cube.meta.wavelengths_nm, 380 + (channels - 1.0) * 2120 / 223, atol=1e-6)
    assert cube.meta.scale == 1 / 5000


def test_cubes_are_not_imported_as_images(drive_like: Path, tmp_path: Path) -> None:
    importer.import_cubes(config(drive_like), tmp_path / "cubes")
    with pytest.raises(InputError, match="cubes already") as caught:
        importer.import_cubes(ImportConfig(source=tmp_path / "cubes"), tmp_path / "out")
    assert "retinaforge data pack" in caught.value.mend
    assert not (tmp_path / "out").exists()


def test_the_advice_to_move_a_folder_away_names_that_folder_alone_and_works(drive_like: Path, tmp_path: Path) -> None:
    out = tmp_path / "my data" / "a;b"
    importer.import_cubes(config(drive_like), out)
    with pytest.raises(UnsafeResume, match="mv ") as caught:
        importer.import_cubes(config(drive_like, geometry=Geometry(resize="12x10")), out)
    (tmp_path / "my data" / "a;b.old-1").mkdir()
    subprocess.run(["sh", "-c", caught.value.mend[caught.value.mend.index("mv ") :]], check=True)
    assert not out.exists()


def test_floats_of_counts_are_offered_their_scale() -> None:
    """2000 to 2500 are no reflectances, so a range of such is not all that the message offers."""
    said = refused(np.linspace(2000, 2500, 2 * 4 * 4, dtype=np.float32).reshape(2, 4, 4))
    assert "--float-range 2000:2500 if these are reflectances" in said and "counts or percent, --full-scale N" in said
