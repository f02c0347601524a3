"""Cameras with other fields of view in one set are noticed; the shaking of one camera is not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data_shards.cube import Cube, CubeMeta
from data_shards.folder import write_cube
from data_shards.reading.dataset import Dataset
from data_shards.reading.fields_of_view import unlike
from launch import cli

SIDE = 48


def disc(radius: float, x: float = 23.5) -> np.ndarray:
    yy, xx = np.mgrid[:SIDE, :SIDE]
    return (yy - 23.5) ** 2 + (xx - x) ** 2 <= radius**2


def loose(folder: Path, fields: list[np.ndarray | None]) -> Path:
    for i, fov_HW in enumerate(fields):
        meta = CubeMeta(key=f"eye-{i:02d}", wavelengths_nm=(465.0, 555.0), scale=1 / 4095, subject_id=f"p{i}")
        data_CHW = np.random.default_rng(i).integers(1, 4000, (2, SIDE, SIDE), np.uint16)
        write_cube(folder, Cube(data_CHW=data_CHW, meta=meta, fov_HW=fov_HW))
    return folder


def packed(monkeypatch: pytest.MonkeyPatch, source: Path, out: Path) -> None:
    monkeypatch.setattr("sys.argv", ["retinaforge", "data", "pack", str(source), str(out), "--splits", "train=1"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ([disc(22)] * 6 + [disc(22, 26.5)[:, ::-1]] * 6, ""),
        ([None] * 12, ""),
        ([disc(23)] * 6 + [disc(15)] * 6, "31% to 72%"),
        ([disc(18, 18)] * 6 + [disc(18, 29)] * 6, "unlike 12 of 12"),
        ([disc(20)] * 6 + [None] * 6, "unlike 6 of 12"),
    ],
)
def test_pack_says_that_no_camera_has_the_common_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fields: list[np.ndarray | None], said: str
) -> None:
    packed(monkeypatch, loose(tmp_path / "cubes", fields), tmp_path / "set")
    text = capsys.readouterr().err
    assert (said in text and "several cameras" in text) if said else "cameras" not in text
    assert bool(unlike(Dataset(tmp_path / "set"), "train")) == bool(said)


def test_run_says_it_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    packed(monkeypatch, loose(tmp_path / "cubes", [disc(23)] * 6 + [disc(15)] * 6), tmp_path / "set")
    capsys.readouterr()
    monkeypatch.setattr("launch.stages.vqgan.VQGAN.make", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    words = ["retinaforge", "run", "demo", f"data.dataset={tmp_path / 'set'}", f"run={tmp_path / 'run'}"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        cli.main()
    assert "several cameras" in capsys.readouterr().err


def test_people_of_one_number_in_several_folders_are_hinted_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("drive/01_a", "hrf/01_b", "hrf/02_b"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / f"{name}.pgm").write_bytes(b"P5 2 2 255\n" + bytes(4))
    words = ["retinaforge", "data", "import", str(tmp_path / "in"), str(tmp_path / "out"), "--pattern", "**/*.pgm"]
    monkeypatch.setattr("sys.argv", [*words, "--subject-pattern", "^([0-9]+)_", "--wavelengths", "555"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert "1 subjects have images in several folders, first '01'" in " ".join(capsys.readouterr().err.split())
    assert json.loads((tmp_path / "out" / "01_b.json").read_text())["subject_id"] == "01"
