"""A phantom cube is a pure function of its config and place, looks as an eye does in each band, and its labels are exact."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from data_shards.cube import BANDS_16_NM, KEY, LABELS, Cube, CubeMeta, reflectance
from data_shards.errors import InputError, RetinaforgeError, UnsafeResume
from data_shards.folder import keys_in, meta_bytes, read_cube, wanted_in, write_cube
from data_shards.packing.pack import pack
from data_shards.phantom.eyes import EYES, PhantomConfig, make_eye, phantom_cube, tissue_of, write_phantoms
from data_shards.phantom.painted import paint_labels, painted_key, write_painted
from data_shards.phantom.persons import person, view

QUIET = PhantomConfig(size=224, wavelengths_nm=(900, 845, 815, 730, 700, 640, 585, 555, 465), noise=0, uneven_light=0, seed=5)
SMALL = PhantomConfig(size=64, wavelengths_nm=(730, 640, 555))
REAL = Path(os.environ.get("RETINAFORGE_REAL_DATA", Path(__file__).parents[4] / "shared" / "data"))


def digest(cube: Cube) -> str:
    return hashlib.sha256(
        cube.data_CHW.tobytes() + cube.labels_HW.tobytes() + cube.fov_HW.tobytes() + meta_bytes(cube.meta, cube.data_CHW)
    ).hexdigest()


@pytest.fixture(scope="module")
def eyes() -> list[Cube]:
    return [phantom_cube(QUIET, subject=subject, eye=eye, visit=0) for subject, eye in ((0, "OD"), (1, "OS"), (2, "OD"))]


def band(cube: Cube, nm: float) -> np.ndarray:
    return reflectance(cube.data_CHW, cube.meta)[cube.meta.wavelengths_nm.index(nm)]


def contrast(cube: Cube, nm: float, kind: str) -> float:
    """Mean over the inner pixels of a kind of vessel, divided by the mean of the background around it, minus 1."""
    from scipy.ndimage import binary_dilation, binary_erosion

    vessel = cube.labels_HW == LABELS[kind]
    any_vessel = (cube.labels_HW == LABELS["artery"]) | (cube.labels_HW == LABELS["vein"])
    near_disc = binary_dilation(cube.labels_HW == LABELS["onh"], iterations=8)
    other = any_vessel & ~vessel
    inner = binary_erosion(vessel) & ~near_disc & ~binary_dilation(other, iterations=3)
    around = (
        binary_dilation(inner, iterations=7)
        & ~binary_dilation(any_vessel, iterations=2)
        & ~near_disc
        & binary_erosion(cube.fov_HW, iterations=4)
    )
    return float(band(cube, nm)[inner].mean() / band(cube, nm)[around].mean() - 1)


def test_a_cube_is_a_function_of_its_place_in_any_order_and_process() -> None:
    places = [(0, "OD", 0), (3, "OS", 1), (0, "OS", 1), (3, "OS", 0)]
    forwards = [digest(phantom_cube(SMALL, subject=s, eye=e, visit=v)) for s, e, v in places]
    backwards = [digest(phantom_cube(SMALL, subject=s, eye=e, visit=v)) for s, e, v in reversed(places)][::-1]
    code = (
        "from tests.data_shards.phantom.test_phantom import SMALL, digest, phantom_cube\n"
        f"for s, e, v in {places!r}: print(digest(phantom_cube(SMALL, subject=s, eye=e, visit=v)))"
    )
    elsewhere = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3]
    ).stdout.split()
    assert forwards == backwards == elsewhere
    assert len(set(forwards)) == len(places)


def test_bands_do_not_depend_on_the_bands_beside_them() -> None:
    three = phantom_cube(SMALL, subject=1, eye="OD", visit=0)
    forty = phantom_cube(
        dataclasses.replace(SMALL, wavelengths_nm=(*np.linspace(440, 910, 39).tolist(), 555.0)), subject=1, eye="OD", visit=0
    )
    assert forty.data_CHW.shape == (40, 64, 64)
    assert np.array_equal(three.data_CHW[2], forty.data_CHW[-1])
    assert phantom_cube(PhantomConfig(size=64), subject=1, eye="OD", visit=0).meta.wavelengths_nm == tuple(map(float, BANDS_16_NM))


def test_visits_share_the_anatomy_and_differ_in_the_taking() -> None:
    first, second = (phantom_cube(dataclasses.replace(SMALL, size=224), subject=4, eye="OD", visit=v) for v in (0, 1))
    other = phantom_cube(dataclasses.replace(SMALL, size=224), subject=4, eye="OS", visit=0)
    vessels = [(c.labels_HW == 1) | (c.labels_HW == 2) for c in (first, second, other)]

    def best_overlap(a: np.ndarray, b: np.ndarray) -> float:
        shifts = [(dy, dx) for dy in range(-9, 10) for dx in range(-9, 10)]
        return max((a & np.roll(b, shift, (0, 1))).sum() for shift in shifts) / a.sum()

    assert not np.array_equal(first.data_CHW, second.data_CHW)
    assert best_overlap(vessels[0], vessels[1]) > 0.45  # a turn of a few degrees remains
    assert best_overlap(vessels[0], vessels[2][:, ::-1]) < 0.35
    truth = ("age_years", "artery_saturation", "vein_saturation", "biomarker_strength")
    assert len({tuple(c.meta.notes[name] for name in truth) for c in (first, second, other)}) == 1


def test_every_size_shows_the_same_eye_sampled_finer() -> None:
    fine, coarse = (phantom_cube(dataclasses.replace(QUIET, size=size), subject=0, eye="OD", visit=0) for size in (448, 64))
    blocks = fine.data_CHW.reshape(-1, 64, 7, 64, 7).mean((2, 4))
    inside = fine.fov_HW.reshape(64, 7, 64, 7).all((1, 3)) & coarse.fov_HW
    for c in range(len(blocks)):
        assert np.corrcoef(blocks[c][inside], coarse.data_CHW[c][inside])[0, 1] > 0.98
        assert coarse.data_CHW[c][inside].mean() == pytest.approx(blocks[c][inside].mean(), rel=0.02)


def test_vessels_are_dark_in_the_green_and_fade_towards_the_infrared(eyes) -> None:
    for eye in eyes:
        for kind in ("artery", "vein"):
            green, yellow, infrared = (contrast(eye, nm, kind) for nm in (555, 585, 900))
            assert green < -0.25, kind
            assert yellow < -0.25, kind
            assert -0.15 < infrared < 0.01, kind


def test_red_light_shows_the_oxygen_in_the_blood(eyes) -> None:
    """HbO2 absorbs a tenth of what Hb does at 640 nm: veins stay dark there, arteries all but vanish."""
    for eye in eyes:
        artery, vein = contrast(eye, 640, "artery"), contrast(eye, 640, "vein")
        assert vein < artery - 0.03
        assert vein < -0.06
        assert eye.meta.notes["artery_saturation"] > 0.94 > 0.73 > eye.meta.notes["vein_saturation"]


def test_the_nerve_head_outshines_the_fundus_below_730_nm_only(eyes) -> None:
    ratios = []
    for eye in eyes:
        onh, back = eye.labels_HW == LABELS["onh"], (eye.labels_HW == LABELS["background"]) & eye.fov_HW
        ratios.append([band(eye, nm)[onh].mean() / band(eye, nm)[back].mean() for nm in eye.meta.wavelengths_nm])
        assert ratios[-1][:6] == sorted(ratios[-1][:6])  # from 900 nm down to 640
        assert min(ratios[-1][6:]) > 1.8  # 585 nm and below
    mean = dict(zip(QUIET.wavelengths_nm, np.mean(ratios, 0), strict=True))
    assert mean[700] > 1.1
    assert mean[640] > 1.4
    assert mean[845] < 1.05
    assert mean[900] < 0.97


def test_the_choroid_appears_in_the_far_red(eyes) -> None:
    """Correlation with the lumen of the great choroidal vessels, away from retinal vessels and nerve head."""
    from scipy.ndimage import binary_erosion, gaussian_filter

    seen = []
    for subject, eye in enumerate(eyes):
        side = EYES.index(eye.meta.eye)
        anatomy = make_eye(QUIET.seed, subject, side, person(QUIET, subject).age_years)
        tissue = tissue_of(anatomy, QUIET, view(QUIET, subject, side, 0), side)
        clear = (
            binary_erosion(eye.fov_HW, iterations=24) & (eye.labels_HW == 0) & (tissue.artery + tissue.vein < 0.05) & (tissue.onh < 0.01)
        )
        maps = [
            gaussian_filter(image_HW, 2) - gaussian_filter(image_HW, 10)
            for image_HW in (*(band(eye, nm) for nm in (555, 640, 730)), tissue.choroid_blood)
        ]
        seen.append(np.corrcoef([detail_HW[clear] for detail_HW in maps])[-1, :-1])
    green, red, far_red = np.mean(seen, 0)
    assert abs(green) < 0.15
    assert far_red > 0.3
    assert far_red > red > green


def test_the_fovea_is_dark_in_the_blue(eyes) -> None:
    from scipy.ndimage import gaussian_filter

    for eye in eyes:
        blue = np.where(eye.fov_HW, gaussian_filter(band(eye, 465), 4), 1)
        column = np.unravel_index(blue.argmin(), blue.shape)[1]
        onh_column = np.argwhere(eye.labels_HW == LABELS["onh"])[:, 1].mean()
        assert 80 < abs(onh_column - column) < 140  # 4.5 mm or 15.5° from the nerve head
        assert (onh_column > column) == (eye.meta.eye == "OD")  # the nose lies to the right of a right eye
        assert blue.min() < 0.7 * np.median(blue[eye.fov_HW])


def test_labels_hold_all_classes_and_lie_where_vessels_are_drawn(eyes) -> None:
    for eye in eyes:
        assert set(np.unique(eye.labels_HW)) == set(LABELS.values())
        assert not eye.labels_HW[~eye.fov_HW].any()
        share = (eye.labels_HW == LABELS["onh"]).sum() / eye.fov_HW.sum()
        assert 0.02 < share < 0.06  # 1.8 mm of 9.1 mm, squared
        vessels = ((eye.labels_HW == 1) | (eye.labels_HW == 2)).sum() / eye.fov_HW.sum()
        assert 0.06 < vessels < 0.25


@pytest.mark.parametrize("size", [64, 96])
def test_small_rasters_keep_the_arcades_in_one_piece(size: int) -> None:
    from scipy.ndimage import label

    cube = phantom_cube(dataclasses.replace(SMALL, size=size), subject=0, eye="OD", visit=0)
    pieces, _ = label(cube.labels_HW > 0, np.ones((3, 3)))
    sizes = np.sort(np.bincount(pieces.ravel())[1:])
    assert sizes[-1] > 0.6 * sizes.sum()


def test_counts_are_12_bits_and_the_field_is_a_disc() -> None:
    cube = phantom_cube(dataclasses.replace(SMALL, size=96, central_disc=True), subject=0, eye="OD", visit=0)
    assert cube.data_CHW.dtype == np.uint16
    assert cube.data_CHW.max() <= 4095
    assert reflectance(np.array([4095]), cube.meta)[0] == pytest.approx(0.30)
    assert cube.fov_HW.mean() == pytest.approx(np.pi / 4 * 0.97**2, abs=0.02)
    assert not cube.fov_HW[46:50, 46:50].any()
    assert cube.data_CHW[:, ~cube.fov_HW].max() < 10
    assert np.median(cube.data_CHW[0][cube.fov_HW]) > 500
    assert phantom_cube(dataclasses.replace(SMALL, size=96), subject=0, eye="OD", visit=0).fov_HW[46:50, 46:50].all()


def test_few_pixels_are_clipped() -> None:
    for subject in range(4):
        cube = phantom_cube(PhantomConfig(size=64, seed=9), subject=subject, eye="OD", visit=0)
        assert (cube.data_CHW == 4095).mean() < 0.001
        assert (cube.data_CHW[:, cube.fov_HW] == 0).mean() < 0.001


def test_the_biomarker_changes_flagged_subjects_only_and_most_in_the_blue() -> None:
    bands = {"wavelengths_nm": (465, 555, 730, 900), "noise": 0, "size": 64}
    without, some = PhantomConfig(biomarker_share=0, **bands), PhantomConfig(biomarker_share=0.4, **bands)
    flagged = []
    for subject in range(8):
        plain, marked = (phantom_cube(config, subject=subject, eye="OD", visit=0) for config in (without, some))
        assert plain.meta.notes["biomarker"] is False
        assert plain.meta.notes["biomarker_strength"] == 0
        flagged.append(marked.meta.notes["biomarker"])
        ratio = [band(marked, nm)[plain.fov_HW].sum() / band(plain, nm)[plain.fov_HW].sum() for nm in (465, 555, 730, 900)]
        if flagged[-1]:
            assert 0.03 <= marked.meta.notes["biomarker_strength"] <= 0.09
            assert ratio == sorted(ratio)
            assert ratio[0] < 0.97
        else:
            assert np.array_equal(plain.data_CHW, marked.data_CHW)
    assert 1 <= sum(flagged) < 8


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"size": 4}, "size"),
        ({"size": 100_000}, "size"),
        ({"seed": -1}, "seed"),
        ({"field_degrees": 60}, "field"),
        ({"biomarker_share": 2}, "share"),
        ({"noise": -1}, "noise"),
        ({"full_scale": 0}, "full_scale"),
        ({"wavelengths_nm": (200,)}, "outside"),
    ],
)
def test_a_config_that_cannot_be_is_refused(wrong: dict, word: str) -> None:
    with pytest.raises(InputError, match=word):
        PhantomConfig(**wrong)
    with pytest.raises(InputError, match="eye"):
        phantom_cube(SMALL, subject=0, eye="left", visit=0)


def test_a_folder_is_completed_and_another_config_refused(tmp_path) -> None:
    out = tmp_path / "cubes"
    assert write_phantoms(SMALL, out, subjects=1, visits=1) == 2
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "s0000-OS-v0.json").unlink()
    assert write_phantoms(SMALL, out, subjects=1, visits=1) == 1
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert write_phantoms(SMALL, out, subjects=2, visits=1) == 2
    assert keys_in(out) == ["s0000-OD-v0", "s0000-OS-v0", "s0001-OD-v0", "s0001-OS-v0"]
    assert digest(read_cube(out, "s0001-OS-v0")) == digest(phantom_cube(SMALL, subject=1, eye="OS", visit=0))
    with pytest.raises(UnsafeResume, match="seed 0, now 1"):
        write_phantoms(dataclasses.replace(SMALL, seed=1), out, subjects=1, visits=1)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    with pytest.raises(UnsafeResume, match="not empty"):
        write_phantoms(SMALL, tmp_path / "full", subjects=1)
    (tmp_path / "file").write_text("")
    for place, words in (("file", "a file, where"), ("file/cubes", "cannot write")):
        with pytest.raises(InputError, match=words):
            write_phantoms(SMALL, tmp_path / place, subjects=1)


def test_long_names_stay_apart_when_painted() -> None:
    keys = {painted_key("x" * 60 + end, 1) for end in "abc"} | {painted_key("21_training", 0)}
    assert "21_training-v0" in keys
    assert len(keys) == 4
    assert all(KEY.fullmatch(key) for key in keys)


def real_anatomy(size: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """A label map as of a photograph: nerve head to the right, an artery and a vein in arcs, oblong, of another size."""
    yy, xx = np.mgrid[:size, : size + 10].astype(float)
    labels = np.zeros(yy.shape, np.uint8)
    labels[np.hypot(yy - 60, xx - 100) < 10] = LABELS["onh"]
    labels[(abs(np.hypot(yy - 60, xx - 60) - 40) < 2.0) & (yy < 60)] = LABELS["artery"]
    labels[(abs(np.hypot(yy - 60, xx - 60) - 40) < 2.6) & (yy > 60)] = LABELS["vein"]
    return labels, np.hypot(yy - 60, xx - 65) < 58


def test_real_anatomy_is_painted_where_it_lies() -> None:
    labels, fov = real_anatomy()
    config = dataclasses.replace(QUIET, size=240)
    cube = paint_labels(config, labels, fov, number=0, key="photo", subject_id="p", eye="")
    assert cube.data_CHW.shape == (9, 240, 240)
    assert "120x130 to 240x240" in cube.meta.notes["anatomy"]["labels"]
    for kind in ("artery", "vein", "onh"):
        painted, real = (cube.labels_HW == LABELS[kind]).mean(), (labels == LABELS[kind])[fov].sum() / (116 / 0.97) ** 2
        assert painted == pytest.approx(real, rel=0.15), kind
    assert contrast(cube, 555, "artery") < -0.25
    assert contrast(cube, 640, "vein") < contrast(cube, 640, "artery")
    column = np.where(cube.fov_HW, band(cube, 465), 1).min(0).argmin()
    assert column < 120  # the macula lies on the other side of the field than the nerve head
    again = paint_labels(config, labels, fov, number=0, key="photo", subject_id="p", eye="")
    assert digest(cube) == digest(again)


def test_labels_of_the_right_size_are_kept_as_they_are() -> None:
    labels, fov = real_anatomy()
    labels, fov = labels[:, 5:125], fov[:, 5:125]
    cube = paint_labels(dataclasses.replace(SMALL, size=120), labels, fov, number=0, key="photo", subject_id="p")
    assert np.array_equal(cube.labels_HW, labels)
    assert np.array_equal(cube.fov_HW, fov)
    assert cube.meta.notes["anatomy"]["labels"] == "as they are"


def test_anatomy_without_vessels_is_refused() -> None:
    labels, fov = real_anatomy()
    with pytest.raises(InputError, match="vein"):
        paint_labels(SMALL, np.where(labels == LABELS["vein"], 0, labels).astype(np.uint8), fov, number=0, key="photo", subject_id="p")


def test_a_folder_of_photographs_is_painted_and_completed(tmp_path) -> None:
    labels, fov = real_anatomy()
    for subject in ("a", "b"):
        photograph = phantom_cube(dataclasses.replace(SMALL, size=120), subject=0, eye="OD", visit=0)
        meta = dataclasses.replace(photograph.meta, key=f"photo-{subject}", subject_id=subject, notes={"split": "train"})
        write_cube(tmp_path / "photographs", dataclasses.replace(photograph, meta=meta, labels_HW=labels[:, 5:125], fov_HW=fov[:, 5:125]))
    out = tmp_path / "painted"
    assert write_painted(SMALL, tmp_path / "photographs", out, visits=2) == 4
    assert write_painted(SMALL, tmp_path / "photographs", out, visits=2) == 0
    cubes = [read_cube(out, key) for key in keys_in(out)]
    assert [c.meta.subject_id for c in cubes] == ["a", "a", "b", "b"]
    assert all(c.meta.notes["split"] == "train" and c.data_CHW.shape == (3, 64, 64) for c in cubes)
    assert not np.array_equal(cubes[0].data_CHW, cubes[2].data_CHW)  # another person's blood and pigments
    with pytest.raises(UnsafeResume):
        write_phantoms(SMALL, out, subjects=1)


def test_the_command_writes_cubes_and_explains_mistakes(tmp_path) -> None:
    from launch.cli import app

    run = CliRunner().invoke
    made = run(app, ["data", "phantom", str(tmp_path / "p"), "--subjects", "1", "--visits", "1", "--size", "32", "--bands", "640,555,465"])
    assert made.exit_code == 0, made.output
    assert "2 cubes" in made.output
    assert read_cube(tmp_path / "p", "s0000-OD-v0").data_CHW.shape == (3, 32, 32)
    assert json.loads((tmp_path / "p" / "phantom.json").read_text())["phantom"]["wavelengths_nm"] == [640, 555, 465]
    for options, word in (
        (["--bands", "300,400"], "440 to 910"),
        (["--bands", "red"], "--bands"),
        (["--size", "3"], "--size"),
        (["--anatomy", "/nowhere"], "no such folder"),
    ):
        failed = run(app, ["data", "phantom", str(tmp_path / "q"), *options])
        assert isinstance(failed.exception, RetinaforgeError), options
        assert word in str(failed.exception)
        assert not (tmp_path / "q").exists()


@pytest.mark.skipif(not (REAL / "DRIVE").is_dir(), reason=f"no DRIVE in {REAL} (RETINAFORGE_REAL_DATA)")
def test_drive_is_painted_at_672() -> None:
    from PIL import Image

    def image(path: str) -> np.ndarray:
        return np.array(Image.open(REAL / "DRIVE" / path))

    vessels, disc = image("av/22_training.png"), image("optic_disc/22_training_gt.tif")[..., 0] > 0
    labels = np.where((vessels == 0) & disc, LABELS["onh"], vessels % 3).astype(np.uint8)
    cube = paint_labels(
        dataclasses.replace(QUIET, size=672), labels, image("fov/22_training_mask.gif") > 0, number=0, key="d22", subject_id="22"
    )
    assert cube.data_CHW.shape == (9, 672, 672)
    assert 0.010 < cube.meta.notes["anatomy"]["mm_per_pixel"] < 0.025
    assert contrast(cube, 555, "vein") < -0.25
    assert contrast(cube, 640, "vein") < contrast(cube, 640, "artery")


def killed_phantom(out: Path, *, after: int) -> None:
    script = f"""
import os, signal
from pathlib import Path
from data_shards.phantom.eyes import PhantomConfig, write_phantoms

def watch(keys):
    for n, key in enumerate(keys, 1):
        if n == {after}:
            os.kill(os.getpid(), signal.SIGKILL)
        yield key

write_phantoms(PhantomConfig(size=32, wavelengths_nm=(555.0, 640.0)), Path({str(out)!r}), subjects=4, visits=1, watch=watch)
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=120).returncode == -signal.SIGKILL


def test_a_killed_phantom_is_not_packed_as_if_it_were_whole(tmp_path: Path) -> None:
    config = PhantomConfig(size=32, wavelengths_nm=(555.0, 640.0))
    killed_phantom(tmp_path / "cubes", after=3)
    with pytest.raises(InputError, match="cubes, where 8 were asked for") as caught:
        pack(tmp_path / "cubes", tmp_path / "set", splits={"train": 1.0})
    assert not (tmp_path / "set").exists()
    shutil.copytree(tmp_path / "cubes", tmp_path / "few")
    write_phantoms(config, tmp_path / "cubes", subjects=4, visits=1)  # the same command once more
    assert pack(tmp_path / "cubes", tmp_path / "set", splits={"train": 1.0}).splits["train"]["count"] == 8
    (tmp_path / "few" / Path(caught.value.mend.split()[-1]).name).unlink()  # as the message says
    assert pack(tmp_path / "few", tmp_path / "few.set", splits={"train": 1.0}).splits["train"]["count"] < 8


def test_fewer_phantoms_than_a_killed_run_was_asked_for_are_not_the_whole(tmp_path: Path) -> None:
    killed_phantom(tmp_path / "cubes", after=3)
    write_phantoms(PhantomConfig(size=32, wavelengths_nm=(555.0, 640.0)), tmp_path / "cubes", subjects=1, visits=1)
    with pytest.raises(InputError, match="cubes, where 8 were asked for"):
        pack(tmp_path / "cubes", tmp_path / "set")


def test_two_phantoms_at_once_in_one_place_make_it_together(tmp_path: Path) -> None:
    config = PhantomConfig(size=32, wavelengths_nm=(555.0, 640.0))

    def while_another_asks_for_more(keys):
        for n, key in enumerate(keys):
            if n == 0:
                assert write_phantoms(config, tmp_path / "out", subjects=2, visits=1) == 3
            yield key

    assert write_phantoms(config, tmp_path / "out", subjects=1, visits=1, watch=while_another_asks_for_more) == 2
    assert len(keys_in(tmp_path / "out")) == 4 and wanted_in(tmp_path / "out") == 4
    assert not list(tmp_path.glob("out/.*"))


def test_a_painting_that_was_killed_before_its_first_cube_goes_on(tmp_path: Path) -> None:
    """An array without its metadata is no sample, and no reason to end."""
    config = PhantomConfig(size=32, wavelengths_nm=(555.0, 640.0))
    labels_HW = np.zeros((32, 32), np.uint8)
    labels_HW[8:12], labels_HW[20:24] = LABELS["artery"], LABELS["vein"]
    meta = CubeMeta(key="a", wavelengths_nm=(555.0,), scale=1.0, subject_id="p")
    (tmp_path / "in").mkdir()
    write_cube(tmp_path / "in", Cube(data_CHW=np.zeros((1, 32, 32), np.uint16), meta=meta, labels_HW=labels_HW))
    assert write_painted(config, tmp_path / "in", tmp_path / "out") == 1
    (tmp_path / "out" / "a-v0.json").unlink()
    assert write_painted(config, tmp_path / "in", tmp_path / "out") == 1
