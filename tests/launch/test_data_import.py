"""`retinaforge data import`: words become the right import, and every fault ends with its exit code and its mend."""

from __future__ import annotations

import json
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from data_shards import folder
from data_shards.cube import reflectance
from data_shards.folder import keys_in, meta_from
from launch import cli
from tests.commands import invoke


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Two grey-free photographs of 16x16 with labels, and a stack of float spectra as a matrix."""
    for name in ("images", "av"):
        (tmp_path / name).mkdir()
    for i in (1, 2):
        Image.fromarray(np.full((16, 16, 3), 40 * i, np.uint8)).save(tmp_path / "images" / f"{i}_h.png")
        Image.fromarray(np.full((16, 16), i, np.uint8)).save(tmp_path / "av" / f"{i}_h_AV.png")
    np.save(tmp_path / "matrix.npy", np.linspace(0, 5000, 4 * 6, dtype=np.float32).reshape(4, 6))
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr("sys.argv", ["retinaforge", "data", "import", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code or 0


def test_photographs(scans: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        scans / "images",
        scans / "out",
        "--labels",
        scans / "av",
        "--label-map",
        "1=artery,2=vein",
        "--resize",
        "8x8",
        "--subject-pattern",
        r"^(\d)",
    ]
    assert run(monkeypatch, *words) == 0
    cube = folder.read_cube(scans / "out", "2_h")
    assert cube.data_CHW.shape == (3, 8, 8)
    assert cube.meta.subject_id == "2"
    assert (cube.labels_HW == 2).all()
    said = capsys.readouterr().out
    for text in ("2 (2 written now)", "3: 610, 545, 465 nm", "8x8", "artery 50.00%", "1_h.png with 1_h_AV.png", "retinaforge data pack"):
        assert text in " ".join(said.split())


def test_every_option_of_a_matrix_arrives(scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [scans / "matrix.npy", scans / "out", "--reshape", "2x3", "--pixel-order", "columns", "--axes", "CP"]
    words += ["--wavelengths", "linspace:400:700:4", "--full-scale", 4000, "--float-range", "-0.25:1.25"]
    assert run(monkeypatch, *words) == 0
    cube = folder.read_cube(scans / "out", "matrix")
    expected_CHW = np.load(scans / "matrix.npy").reshape(4, 3, 2).transpose(0, 2, 1) / 4000
    assert np.abs(cube.meta.scale * cube.data_CHW + cube.meta.offset - expected_CHW).max() <= cube.meta.scale / 2 * 1.0001
    assert cube.meta.wavelengths_nm == (400, 500, 600, 700)
    assert json.loads((scans / "out" / "import.config.json").read_text())["options"]["read"]["pixel_order"] == "columns"


def test_every_option_of_values_arrives(scans: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    data_CHW = np.full((4, 8, 8), 2000, np.int16)
    data_CHW[:, 0], data_CHW[0, 1] = -9999, -9999
    with h5py.File(scans / "a.h5", "w") as file:
        file["cube"], file["centres"] = data_CHW, [400.0, 500.0, 600.0, 700.0]
    words = [scans / "a.h5", scans / "out", "--variable", "cube", "--full-scale", 10000, "--offset", "-0.1", "--nodata", "-9999"]
    words += ["--nodata-any", "--bad-bands", "3", "--wavelengths", "hdf5:centres"]
    assert run(monkeypatch, *words) == 0
    cube = folder.read_cube(scans / "out", "a")
    assert cube.meta.wavelengths_nm == (400, 500, 700)
    np.testing.assert_allclose(reflectance(cube.data_CHW, cube.meta)[:, 2:], 0.1, atol=1e-6)
    assert cube.fov_HW.sum() == 6 * 8
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "16 pixels of 1 images hold no-data" in said and "bands 3 left out by --bad-bands" in said


def test_dry_run_shows_the_pairs_and_writes_nothing(
    scans: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, scans / "images", scans / "out", "--labels", scans / "av", "--label-map", "1=artery,2=vein", "--dry-run") == 0
    assert "1_h_AV.png" in capsys.readouterr().out
    assert not (scans / "out").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["absent"], 2, "no such file or folder"),
        (["images", "--labels", "av"], 2, "--label-map '0=background,1=artery,2=vein'"),
        (["images", "--labels", "av", "--label-map", "1=artery"], 2, "2 (256 pixels)"),
        (["images", "--crop", "0:99,0:99"], 2, "a window inside the image"),
        (["images", "--wavelengths", "500,600"], 2, "3 bands"),
        (["images", "--float-range", "1:0"], 2, "--float-range 0:1"),
        (["images", "--float-range", "x"], 2, "--float-range 0:1"),
        (["images", "--full-scale", "0"], 2, "--full-scale 4095"),
        (["images", "--offset", "nan"], 2, "--offset -0.1"),
        (["images", "--nodata", "x"], 2, "--nodata none"),
        (["images", "--bad-bands", "0"], 2, "--bad-bands none"),
        (["images", "--wavelengths", "0.61,0.545,0.465"], 2, "--wavelengths 610,545,465"),
        (["images", "--wavelengths", "hdf5:x"], 2, "means nothing for a .png file"),
        (["images", "--onh-columns", "x,y"], 2, "X,Y,DIAMETER"),
        (["matrix.npy", "--reshape", "2by3"], 2, "--reshape 512x512"),
        (["matrix.npy", "--wavelengths", "500"], 2, "values outside 0 … 1: from 0 to 5000"),
        (["cut.png"], 4, "cannot be read"),
    ],
)
def test_faults_end_with_their_code(
    scans: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], code: int, said: str
) -> None:
    monkeypatch.chdir(scans)
    (scans / "cut.png").write_bytes((scans / "images" / "1_h.png").read_bytes()[:50])
    before = sorted(path.name for path in scans.iterdir())
    assert run(monkeypatch, words[0], "out", *words[1:]) == code
    assert said in capsys.readouterr().err
    assert sorted(path.name for path in scans.iterdir() if not path.name.startswith(".part-")) == before  # there: what was made so far


def test_another_import_in_the_same_place_is_exit_3(scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, scans / "images", scans / "out") == 0
    assert run(monkeypatch, scans / "images", scans / "out") == 0
    assert run(monkeypatch, scans / "images", scans / "out", "--resize", "8x8") == 3


def two_eyes(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for n, name in enumerate(names):
        Image.fromarray(np.random.default_rng(n).integers(0, 255, (8, 8, 3), np.uint8)).save(folder / name)
    return folder


def test_who_was_taken_for_a_person_is_said_and_the_advice_joins_two_eyes(tmp_path: Path) -> None:
    eyes = two_eyes(tmp_path / "eyes", "p01_OD.png", "p01_OS.png", "p02_OD_v2.png", "p02_OS_v2.png")
    said = invoke("data", "import", eyes, tmp_path / "out")
    assert "each image is taken for a person of its own (4 people)" in said and "p01_OD.png and p01_OS.png look like two eyes" in said
    pattern = re.search(r"--subject-pattern '(.*)'", said)[1]
    said = invoke("data", "import", eyes, tmp_path / "joined", "--subject-pattern", pattern)
    assert "assumed" not in said
    metas = [meta_from((tmp_path / "joined" / f"{key}.json").read_bytes(), where=key) for key in keys_in(tmp_path / "joined")]
    assert {(meta.subject_id, meta.eye) for meta in metas} == {(p, e) for p in ("p01", "p02") for e in ("OD", "OS")}


def test_names_without_eyes_are_said_to_be_people_without_a_hint(tmp_path: Path) -> None:
    said = invoke("data", "import", two_eyes(tmp_path / "in", "a1.png", "a2.png"), tmp_path / "out")
    assert "each image is taken for a person of its own (2 people)" in said and "look like" not in said
