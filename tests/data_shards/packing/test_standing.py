"""A finished pack notices what changed in its source since, says how to pack anew, and leaves the old set alone."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_shards.cube import reflectance
from data_shards.errors import InputError
from data_shards.folder import png_bytes, write_cube
from data_shards.packing import sources
from data_shards.packing.pack import pack, recode
from data_shards.packing.standing import STAMPS
from data_shards.reading.dataset import Dataset
from tests.commands import invoke
from tests.conftest import made_cube


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(12):
        write_cube(tmp_path / "in", made_cube(i))
    return tmp_path / "in"


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def mend_of(words: list[str]) -> str:
    with pytest.raises(InputError, match="the place is taken") as caught:
        invoke(*words)
    return caught.value.mend


CHANGES = {
    "array": lambda f: np.save(f / "c0003.npy", np.load(f / "c0003.npy") // 2),
    "label map": lambda f: (f / "c0003.labels.png").write_bytes(png_bytes(np.full((32, 32), 2, np.uint8))),
    "mask": lambda f: (f / "c0003.fov.png").unlink(),
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("how", [{}, {"codec": "near", "max_error": 2}])
def test_a_finished_pack_notices_what_changed_in_its_source(folder: Path, tmp_path: Path, what: str, how: dict) -> None:
    pack(folder, tmp_path / "set", splits={"train": 1.0}, **how)
    before = content_of(tmp_path / "set")
    CHANGES[what](folder)
    with pytest.raises(InputError, match=f"the {what} of sample c0003 changed since it was packed"):
        pack(folder, tmp_path / "set", splits={"train": 1.0}, **how)
    assert content_of(tmp_path / "set") == before


def test_a_change_that_keeps_size_and_time_of_the_file_is_noticed(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "set", splits={"train": 1.0})
    path = folder / "c0005.npy"
    seen = path.stat()
    np.save(path, np.load(path)[::-1])
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    with pytest.raises(InputError, match="array of sample c0005"):
        pack(folder, tmp_path / "set", splits={"train": 1.0})


def test_a_finished_pack_reads_no_array_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = pack(folder, tmp_path / "set", splits={"train": 1.0})
    monkeypatch.setattr(sources.loose, "read_cube", lambda *_: pytest.fail("an array was read"))
    assert pack(folder, tmp_path / "set", splits={"train": 1.0}) == manifest


@pytest.mark.parametrize("stamps", ["touched", "absent", "no JSON", "another shape"])
def test_the_same_cubes_in_newer_files_are_compared_once_and_known_again(
    folder: Path, tmp_path: Path, stamps: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a copy of the source, and for sets packed before there were stamps."""
    manifest = pack(folder, tmp_path / "set", splits={"train": 1.0})
    match stamps:
        case "touched":
            os.utime(folder / "c0002.npy")
        case "absent":
            (tmp_path / "set" / STAMPS).unlink()
        case _:
            (tmp_path / "set" / STAMPS).write_text("{" if stamps == "no JSON" else "[1]")
    assert pack(folder, tmp_path / "set", splits={"train": 1.0}) == manifest
    monkeypatch.setattr(sources.loose, "read_cube", lambda *_: pytest.fail("compared a second time"))
    assert pack(folder, tmp_path / "set", splits={"train": 1.0}) == manifest


def test_a_set_without_stamps_notices_changes_too(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "set", splits={"train": 1.0})
    (tmp_path / "set" / STAMPS).unlink()
    CHANGES["array"](folder)
    with pytest.raises(InputError, match="array of sample c0003"):
        pack(folder, tmp_path / "set", splits={"train": 1.0})


def test_the_command_that_is_advised_packs_anew_and_leaves_the_old_set(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "a set"
    words = ["data", "pack", str(folder), str(place), "--splits", "train=0.5,val=0.5", "--seed", "3", "--shard-mib", "1", "--workers", "2"]
    invoke(*words)
    before = content_of(place)
    CHANGES["array"](folder)
    advised = shlex.split(mend_of(words))
    invoke(*advised[1:])
    fresh = Dataset(tmp_path / "a set-2")
    assert content_of(place) == before
    old = Dataset(place)
    assert fresh.manifest.source["pack"] == {**old.manifest.source["pack"], "splits_from": old.digest}, "the same options"
    (split,) = (name for name in fresh.splits if "c0003" in fresh.keys(name))
    assert np.array_equal(fresh.cube(split, fresh.keys(split).index("c0003")).data_CHW, np.load(folder / "c0003.npy"))
    assert "a set-3" in mend_of(words), "a place that is free"


def test_a_recoding_that_is_asked_for_otherwise_is_advised_as_one(packed: Path, tmp_path: Path) -> None:
    recode(packed, tmp_path / "set", codec="pcodec")
    with pytest.raises(InputError, match="codec pcodec, now blosc2") as caught:
        recode(packed, tmp_path / "set", codec="blosc2", tile=16)
    advised = shlex.split(caught.value.mend)
    assert advised[-5:] == [str(packed), str(tmp_path / "set-2"), "blosc2", "--tile", "16"]
    invoke(*advised[1:])


def test_other_options_and_other_cubes_are_told_apart(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "set", splits={"train": 1.0})
    with pytest.raises(InputError, match="seed 0, now 1"):
        pack(folder, tmp_path / "set", splits={"train": 1.0}, seed=1)
    write_cube(folder, made_cube(20))
    with pytest.raises(InputError, match="other cubes, or other metadata"):
        pack(folder, tmp_path / "set", splits={"train": 1.0})


def test_a_set_copied_elsewhere_is_read_without_its_source(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "set", splits={"train": 1.0})
    shutil.move(tmp_path / "set", tmp_path / "moved")
    shutil.rmtree(folder)
    assert Dataset(tmp_path / "moved").count("train") == 12
    assert set(json.loads((tmp_path / "moved" / STAMPS).read_bytes())) == {"train-000000.tar"}


def test_texts_in_place_of_paths_are_taken(folder: Path, tmp_path: Path) -> None:
    manifest = pack(str(folder), str(tmp_path / "set"), splits={"train": 1.0})
    assert recode(str(tmp_path / "set"), str(tmp_path / "small"), codec="pcodec").splits == manifest.splits


def test_floats_in_a_loose_folder_are_no_latents(tmp_path: Path) -> None:
    """Reflectance as float32 would pass for what an autoencoder made; the advice keeps it."""
    folder = tmp_path / "in"
    folder.mkdir()
    values = np.random.default_rng(0).random((12, 4, 8, 8), np.float32)
    meta = {"wavelengths_nm": [465, 555, 640, 730], "scale": 1.0}
    for i, value in enumerate(values):
        np.save(folder / f"e{i}.npy", value)
        (folder / f"e{i}.json").write_text(json.dumps({"key": f"e{i}", "subject_id": f"p{i}", **meta}))
    with pytest.raises(InputError, match="an array of float32") as caught:
        pack(folder, tmp_path / "set")
    assert "np.rint((reflectance - offset) / scale) as uint16" in caught.value.mend
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
    for i, value in enumerate(values):
        np.save(folder / f"e{i}.npy", np.rint(value * 65535).astype(np.uint16))
        (folder / f"e{i}.json").write_text(json.dumps({"key": f"e{i}", "subject_id": f"p{i}", **meta, "scale": 1 / 65535}))
    pack(folder, tmp_path / "set", splits={"train": 1.0})
    cube = Dataset(tmp_path / "set").cube("train", 0)
    np.testing.assert_allclose(reflectance(cube.data_CHW, cube.meta), values[0], atol=0.5 / 65535 + 1e-7)


# --- metadata of others ---------------------------------------------------------------------------------------------


def with_meta(folder: Path, stem: str, changed: dict) -> None:
    path = folder / f"{stem}.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **changed}))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"notes": {"pressure": float("nan")}}, "note 'pressure'"),
        ({"notes": {"deep": [{"x": float("inf")}]}}, "note 'deep'"),
        ({"acquired": float("nan")}, "note 'acquired'"),
        ({"subject_id": "p" * 65}, "subject_id 'ppp"),
        ({"subject_id": "ä" * 33}, "subject_id 'äää"),
        ({"subject_id": "p\x00"}, "subject_id"),
        ({"subject_id": "p\ud800"}, "subject_id"),
        ({"key": "another"}, "key 'another' inside c0007.json"),
    ],
)
def test_metadata_that_no_shard_can_hold_are_named_before_anything_is_written(
    folder: Path, tmp_path: Path, changed: dict, said: str
) -> None:
    with_meta(folder, "c0007", changed)
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        pack(folder, tmp_path / "out" / "set")
    assert "c0007" in str(caught.value) and not (tmp_path / "out").exists()


def test_a_subject_of_64_bytes_is_kept(folder: Path, tmp_path: Path) -> None:
    for i in range(12):
        with_meta(folder, f"c{i:04d}", {"subject_id": "ä" * 32})
    pack(folder, tmp_path / "set", splits={"train": 1.0})
    assert set(Dataset(tmp_path / "set").subjects("train")) == {"ä" * 32}
