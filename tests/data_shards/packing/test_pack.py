"""Packing promises: whole or absent, the same bytes every time, splits by subject, exact statistics, readable by stock webdataset."""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds

from data_shards.cube import Cube
from data_shards.errors import CorruptData, InputError, TryAgain
from data_shards.folder import png_bytes, read_cube, read_folder, write_cube
from data_shards.packing import pack as packing
from data_shards.packing.existing import index_folder
from data_shards.packing.pack import pack, recode
from data_shards.packing.splits import split_subjects
from data_shards.reading.dataset import Dataset, cubes_of
from data_shards.shards.codecs import Encoding
from data_shards.shards.index import open_index
from data_shards.shards.shard import members_of, scan_shard
from tests.conftest import made_cube


def test_every_cube_comes_back_as_it_went_in(cube_folder: Path, packed: Path) -> None:
    loose = {cube.meta.key: cube for cube in read_folder(cube_folder)}
    seen = list(cubes_of(packed))
    assert sorted(c.meta.key for c in seen) == sorted(loose)
    for cube in seen:
        mine = loose[cube.meta.key]
        assert cube.meta == mine.meta
        for a, b in ((cube.data_CHW, mine.data_CHW), (cube.labels_HW, mine.labels_HW), (cube.fov_HW, mine.fov_HW)):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("codec", ["raw", "npy", "blosc2", "pcodec"])
def test_codecs_are_lossless(cube_folder: Path, tmp_path: Path, codec: str) -> None:
    pack(cube_folder, tmp_path / "set", codec=codec)
    cube = Dataset(tmp_path / "set").cube("train", 3)
    np.testing.assert_array_equal(cube.data_CHW, read_cube(cube_folder, cube.meta.key).data_CHW)


def test_the_same_cubes_give_the_same_bytes(cube_folder: Path, packed: Path, tmp_path: Path) -> None:
    again = pack(cube_folder, tmp_path / "again", shard_mib=1)
    assert again.digest == Dataset(packed).digest
    for shard in again.shards:
        for name in (shard.name, shard.name.replace(".tar", ".index")):
            assert (tmp_path / "again" / name).read_bytes() == (packed / name).read_bytes()


def test_repacking_changes_codec_and_keeps_subjects_in_their_split(packed: Path, tmp_path: Path) -> None:
    pack(packed, tmp_path / "set", codec="blosc2")
    a, b = Dataset(packed), Dataset(tmp_path / "set")
    assert all(set(a.subjects(s)) == set(b.subjects(s)) for s in ("train", "val", "test"))
    assert a.stats == b.stats


def test_splits_keep_subjects_together(packed: Path) -> None:
    dataset = Dataset(packed)
    subjects = [set(dataset.subjects(split)) for split in ("train", "val", "test")]
    assert not subjects[0] & subjects[1] and not subjects[0] & subjects[2] and not subjects[1] & subjects[2]
    assert [len(s) for s in subjects] == [16, 2, 2]


def test_statistics_are_those_of_the_training_split_within_the_field_of_view(packed: Path) -> None:
    dataset = Dataset(packed)
    pixels = np.concatenate([c.data_CHW[:, c.fov_HW] / 4095 for c in dataset.cubes("train")], axis=1)
    for mine, theirs in (
        (dataset.stats.mean_C, pixels.mean(1)),
        (dataset.stats.std_C, pixels.std(1)),
        (dataset.stats.max_C, pixels.max(1)),
    ):
        np.testing.assert_allclose(mine, theirs, rtol=1e-9)
    assert dataset.stats.values == pixels.shape[1]


def test_stock_webdataset_reads_our_shards(packed: Path) -> None:
    dataset = Dataset(packed)
    shards = [str(packed / s.name) for s in dataset.manifest.shards if s.split == "train"]
    samples = {s["__key__"]: s for s in wds.WebDataset(shards, shardshuffle=False, empty_check=False)}
    assert set(samples) == set(dataset.keys("train"))
    key = dataset.keys("train")[5]
    fields = json.loads(samples[key]["json"])
    array = np.frombuffer(samples[key]["cube.raw"], fields["dtype"]).reshape(fields["shape"])
    np.testing.assert_array_equal(array, dataset.cube("train", 5).data_CHW)


def test_shards_of_stock_webdataset_work_after_indexing(tmp_path: Path) -> None:
    cubes = [made_cube(i) for i in range(6)]
    with wds.TarWriter(str(tmp_path / "train-000000.tar")) as writer:
        for cube in cubes:
            meta = {"wavelengths_nm": cube.meta.wavelengths_nm, "scale": cube.meta.scale, "subject_id": cube.meta.subject_id}
            writer.write({"__key__": cube.meta.key, "cube.npy": cube.data_CHW, "json": meta})
    manifest = index_folder(tmp_path)
    assert manifest.splits == {"train": {"count": 6, "subjects": 3}}
    np.testing.assert_array_equal(Dataset(tmp_path).cube("train", 4).data_CHW, cubes[4].data_CHW)


def test_indexing_again_finds_the_same_dataset(packed: Path, tmp_path: Path) -> None:
    for path in packed.glob("*.tar"):
        os.link(path, tmp_path / path.name)
    manifest = index_folder(tmp_path)
    assert (manifest.digest, manifest.stats) == (Dataset(packed).digest, Dataset(packed).stats)


def test_payloads_start_on_512_byte_borders(packed: Path) -> None:
    for path in packed.glob("*.index"):
        assert not (open_index(path).offset_NM % 512).any()


def test_a_finished_pack_writes_nothing_again(cube_folder: Path, tmp_path: Path) -> None:
    pack(cube_folder, tmp_path / "set")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "set").iterdir()}
    pack(cube_folder, tmp_path / "set")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "set").iterdir()} == before


def test_another_pack_in_the_same_place_is_refused(cube_folder: Path, packed: Path) -> None:
    with pytest.raises(InputError, match="place is taken"):
        pack(cube_folder, packed, seed=9)


# --- bad input ----------------------------------------------------------------------------------------------------


def folder_with(tmp_path: Path, *cubes) -> Path:
    for cube in cubes:
        write_cube(tmp_path / "in", cube)
    return tmp_path / "in"


def test_mixed_shapes_and_bands_are_refused_and_nothing_stays(tmp_path: Path) -> None:
    for other in (made_cube(1, size=16), made_cube(1, bands=5)):
        folder = folder_with(tmp_path, made_cube(0), other)
        with pytest.raises(InputError, match="c0001"):
            pack(folder, tmp_path / "out", splits={"train": 1.0})
        assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


def test_a_subject_in_two_splits_is_named(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, made_cube(0, subject="anna", split="train"), made_cube(1, subject="anna", split="val"))
    with pytest.raises(InputError, match="'anna' stands in two splits"):
        pack(folder, tmp_path / "out")


def test_stated_splits_are_honoured(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, *(made_cube(i, split="val" if i // 2 == 1 else "train") for i in range(6)))
    pack(folder, tmp_path / "out")
    assert set(Dataset(tmp_path / "out").subjects("val")) == {"s001"}


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(InputError, match="'val' would be empty"):
        split_subjects(["a", "b"], {"train": 0.9, "val": 0.1}, 0)
    with pytest.raises(InputError, match="adding up to 1"):
        split_subjects(["a", "b"], {"train": 0.9, "val": 0.2}, 0)


def test_asking_for_an_empty_split_lists_the_others(packed: Path) -> None:
    with pytest.raises(InputError, match=r"train \(32\)"):
        Dataset(packed).count("nights")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data_CHW": np.zeros((3, 8, 8), np.uint16)}, "3 bands in the array, 4 wavelengths"),
        ({"data_CHW": np.zeros((4, 8), np.uint16)}, "array of shape"),
        ({"data_CHW": np.zeros((4, 32, 32), np.int32)}, "dtype int32"),
        ({"data_CHW": np.full((4, 32, 32), np.nan, np.float32)}, "4096 values are NaN or infinite"),
        ({"labels_HW": np.zeros((31, 32), np.uint8)}, "labels of size"),
        ({"labels_HW": np.full((32, 32), 9, np.uint8)}, "values up to 9"),
        ({"fov_HW": np.ones((4, 4), bool)}, "fov of size"),
    ],
)
def test_a_wrong_cube_is_refused_by_name(change: dict, message: str) -> None:
    cube = made_cube(0)
    with pytest.raises(InputError, match=message) as caught:
        type(cube)(**{**vars(cube), **change})
    assert "c0000" in str(caught.value)


def test_a_codec_that_is_not_installed_says_how_to_install_it(cube_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__
    monkeypatch.setattr(
        builtins, "__import__", lambda name, *a, **k: (_ for _ in ()).throw(ImportError(name)) if name == "blosc2" else real(name, *a, **k)
    )
    with pytest.raises(InputError, match="pip install -c constraints.txt blosc2"):
        pack(cube_folder, tmp_path / "out", codec="blosc2")
    with pytest.raises(InputError, match="did you mean 'blosc2'"):
        pack(cube_folder, tmp_path / "out", codec="blosc")
    assert not list(tmp_path.iterdir())


def shard_of(path: Path, cubes: list[Cube], *extra: tuple[str, bytes]) -> None:
    """A shard as others write it: .npy members, then `extra` ones as they are."""
    path.parent.mkdir(exist_ok=True)
    told = [(f"{c.meta.key}.{member}", content) for c in cubes for member, content in members_of(c, Encoding("npy"), "cube")]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in [*told, *extra]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([made_cube(8, bands=3)], "shape \\(3, 32, 32\\)"),
        ([made_cube(8, size=16)], "shape \\(4, 16, 16\\)"),
        ([replace(made_cube(8), meta=replace(made_cube(8).meta, scale=1.0))], "scale 1.0"),
        ([made_cube(1, subject="s900")], "'c0001' stands in"),
        ([made_cube(0, subject="s000")], "subject 's000' stands in two splits"),
    ],
)
def test_shards_of_another_kind_are_refused_in_any_split(tmp_path: Path, others: list[Cube], message: str) -> None:
    shard_of(tmp_path / "train-000000.tar", [made_cube(i) for i in range(4)])
    shard_of(tmp_path / "val-000000.tar", others)
    with pytest.raises(InputError, match=message):
        index_folder(tmp_path)
    assert not (tmp_path / "dataset.json").exists()


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ('{"a":', "bad sample metadata"),
        ("[]", "bad sample metadata"),
        ('{"wavelengths_nm": [1], "scale": 1, "subject_id": "q"}', "bare bytes of shape None"),
        ('{"wavelengths_nm": [1], "scale": 1, "subject_id": "q", "shape": 5, "dtype": "uint16"}', "bare bytes of shape 5"),
        ('{"wavelengths_nm": [1], "scale": 1, "subject_id": "q", "shape": [1, 1, 1], "dtype": "object"}', "dtype 'object'"),
        ('{"wavelengths_nm": [1], "scale": 1, "subject_id": 7}', "subject_id 7"),
        ('{"wavelengths_nm": [1], "scale": 1, "subject_id": "q", "notes": null}', "notes None"),
        ('{"wavelengths_nm": [NaN], "scale": 1, "subject_id": "q"}', "wavelengths"),
    ],
)
def test_bad_metadata_in_a_shard_is_named_and_nothing_is_written(tmp_path: Path, meta: str, message: str) -> None:
    shard_of(tmp_path / "train-000000.tar", [made_cube(0)], ("z.cube.raw", b"ab"), ("z.json", meta.encode()))
    with pytest.raises(InputError, match=message):
        index_folder(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["train-000000.tar"]


def test_shards_without_a_sample_are_no_dataset(tmp_path: Path) -> None:
    shard_of(tmp_path / "train-000000.tar", [])
    with pytest.raises(InputError, match="no sample in any shard"):
        index_folder(tmp_path)


@pytest.mark.parametrize("split", ["../train", "a/b", "", ".hidden"])
def test_a_split_that_is_no_file_name_is_refused(tmp_path: Path, split: str) -> None:
    folder = folder_with(tmp_path, *(made_cube(i) for i in range(4)))
    with pytest.raises(InputError, match="is not allowed"):
        pack(folder, tmp_path / "out" / "set", splits={split: 1.0})
    assert not (tmp_path / "out").exists()


def test_splits_stated_by_some_samples_alone_are_refused(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, made_cube(0, split="train"), made_cube(2))
    with pytest.raises(InputError, match="1 of 2 samples state a split"):
        pack(folder, tmp_path / "set")


def test_a_source_made_anew_is_not_taken_for_the_one_that_was_packed(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, *(made_cube(i) for i in range(4)))
    pack(folder, tmp_path / "set", splits={"train": 1.0})
    for i in range(4):
        write_cube(folder, made_cube(i, resize="16x16"))
    with pytest.raises(InputError, match="the place is taken"):
        pack(folder, tmp_path / "set", splits={"train": 1.0})


def test_a_pickle_in_a_shard_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "evil.pyd").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with tarfile.open(tmp_path / "train-000000.tar", "w") as tar:
        tar.add(tmp_path / "evil.pyd", "a.pyd")
    with pytest.raises(InputError, match="is a pickle"):
        index_folder(tmp_path)


@pytest.mark.parametrize("name", ["/etc/a.json", "../a.json", "x/../../a.json"])
def test_member_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "train-000000.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(InputError, match="unsafe member"):
        scan_shard(tmp_path / "train-000000.tar")


def test_a_pickled_array_in_a_loose_cube_is_refused(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, made_cube(0))
    np.save(folder / "c0000.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(CorruptData, match="allow_pickle=False"):
        read_cube(folder, "c0000")


def test_an_unwritable_place_is_named(cube_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write") as caught:
        pack(cube_folder, tmp_path / "file" / "set")
    assert "ls -ld" in str(caught.value)


def test_a_full_disk_leaves_nothing_behind(cube_folder: Path, tiny_disk: Path) -> None:
    with pytest.raises(TryAgain, match="No space left") as caught:
        pack(cube_folder, tiny_disk / "set")
    assert caught.value.exit_code == 75
    assert not list(tiny_disk.iterdir())


def test_a_kill_between_write_and_rename_leaves_no_dataset(cube_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(packing.durable, "publish_folder", killed)
    with pytest.raises(KeyboardInterrupt):
        pack(cube_folder, tmp_path / "set")
    assert not (tmp_path / "set").exists()
    monkeypatch.undo()
    pack(cube_folder, tmp_path / "set")
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


PACK_AND = """
import os, signal, sys, time
from pathlib import Path
from data_shards.packing.pack import pack, recode
def watch(keys):
    for i, key in enumerate(keys):
        if i == 20:
            {then}
        yield key
pack(Path(sys.argv[1]), Path(sys.argv[2]), shard_mib=1, watch=watch)
"""


def test_the_next_pack_clears_away_what_a_killed_one_left(cube_folder: Path, packed: Path, tmp_path: Path) -> None:
    script = PACK_AND.format(then="os.kill(os.getpid(), signal.SIGKILL)")
    killed = subprocess.run([sys.executable, "-c", script, cube_folder, tmp_path / "set"], timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".part-*-set"))) == 1
    pack(cube_folder, tmp_path / "set", shard_mib=1)
    assert [p.name for p in tmp_path.iterdir()] == ["set"]
    assert Dataset(tmp_path / "set").digest == Dataset(packed).digest


def test_a_second_live_writer_of_another_request_is_refused_and_one_of_the_same_helps(
    cube_folder: Path, packed: Path, tmp_path: Path
) -> None:
    script = PACK_AND.format(then="print('half way', flush=True); sys.stdin.read()")
    words = [sys.executable, "-c", script, cube_folder, tmp_path / "set"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout.readline() == b"half way\n"
        with pytest.raises(TryAgain, match="another process is writing this place"):
            pack(cube_folder, tmp_path / "set", shard_mib=2)
        assert pack(cube_folder, tmp_path / "set", shard_mib=1).digest == Dataset(packed).digest
        first.communicate(b"", timeout=60)
    assert first.returncode == 0
    assert [p.name for p in tmp_path.iterdir()] == ["set"]
    assert Dataset(tmp_path / "set").digest == Dataset(packed).digest


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def bulky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 cubes of 300 KiB: three to a shard of 1 MiB."""
    folder = tmp_path_factory.mktemp("bulky")
    for i in range(60):
        write_cube(folder, made_cube(i, size=192))
    return folder


@pytest.mark.parametrize(("codec", "bound"), [("raw", 0), ("blosc2", 0), ("near", 3)])
def test_the_number_of_workers_changes_no_byte(bulky: Path, tmp_path: Path, codec: str, bound: int) -> None:
    for workers in (1, 3):
        words = ["--shard-mib", "1", "--workers", str(workers), "--codec", codec, "--max-error", str(bound)]
        subprocess.run([sys.executable, "-m", "launch", "data", "pack", bulky, tmp_path / str(workers), *words], check=True, timeout=120)
    one = content_of(tmp_path / "1")
    assert len(one) > 30 and one == content_of(tmp_path / "3")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "3"]


def killed_packing(source: Path, out: Path) -> None:
    """Pack, and be killed at the twentieth cube."""
    script = PACK_AND.format(then="os.kill(os.getpid(), signal.SIGKILL)")
    assert subprocess.run([sys.executable, "-c", script, source, out], timeout=60).returncode == -signal.SIGKILL


def test_a_killed_packing_goes_on_behind_the_shards_that_it_finished(bulky: Path, tmp_path: Path) -> None:
    pack(bulky, tmp_path / "whole", shard_mib=1)
    for _ in range(2):  # the second time it is killed further on
        killed_packing(bulky, tmp_path / "set")
    (left,) = tmp_path.glob(".part-*-set")
    finished = {path.with_suffix(".tar").name for path in left.glob("*.unit")}
    inodes = {name: (left / name).stat().st_ino for name in finished}
    assert len(finished) >= 6
    pack(bulky, tmp_path / "set", shard_mib=1)
    assert content_of(tmp_path / "set") == content_of(tmp_path / "whole")
    assert {name: (tmp_path / "set" / name).stat().st_ino for name in finished} == inodes, "kept, not written again"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set", "whole"]


def test_a_finished_shard_whose_cubes_changed_since_is_written_again(bulky: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(bulky, source)
    killed_packing(source, tmp_path / "set")
    for path in source.glob("*.npy"):
        np.save(path, np.load(path) // 2)
    pack(source, tmp_path / "set", shard_mib=1)
    pack(source, tmp_path / "again", shard_mib=1)
    assert content_of(tmp_path / "set") == content_of(tmp_path / "again")


def test_another_request_does_not_take_what_a_killed_one_left(bulky: Path, tmp_path: Path) -> None:
    killed_packing(bulky, tmp_path / "set")
    pack(bulky, tmp_path / "set", shard_mib=1, codec="pcodec")
    assert all(Dataset(tmp_path / "set").locate("train", i)[0].index.members[0] == "cube.pcodec" for i in (0, 40))
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_an_error_ends_the_packing_with_its_name(bulky: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(bulky, source)
    (source / "c0031.npy").write_bytes(b"no array")
    with pytest.raises(CorruptData, match="not a plain .npy") as caught:
        pack(source, tmp_path / "set", shard_mib=1)
    assert str(caught.value.where).endswith("c0031.npy")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_recoding_keeps_every_cube_in_its_shard(packed: Path, tmp_path: Path) -> None:
    recode(packed, tmp_path / "small", codec="pcodec")
    a, b = Dataset(packed), Dataset(tmp_path / "small")
    assert [(s.name, s.count, s.split) for s in a.manifest.shards] == [(s.name, s.count, s.split) for s in b.manifest.shards]
    assert (a.stats, a.splits, a.shape) == (b.stats, b.splits, b.shape)
    for split in a.splits:
        for x, y in zip(a.cubes(split), b.cubes(split), strict=True):
            assert x.meta == y.meta and np.array_equal(x.data_CHW, y.data_CHW) and np.array_equal(x.labels_HW, y.labels_HW)
    assert recode(packed, tmp_path / "small", codec="pcodec") == b.manifest, "the same request writes nothing"
    with pytest.raises(InputError, match="the place is taken"):
        recode(packed, tmp_path / "small", codec="blosc2")


def test_labels_corrected_between_a_kill_and_its_continuation_are_in_every_shard(bulky: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(bulky, source)
    killed_packing(source, tmp_path / "set")
    for path in source.glob("*.labels.png"):
        path.write_bytes(png_bytes(np.full((192, 192), 2, np.uint8)))
    pack(source, tmp_path / "set", shard_mib=1)
    assert all((cube.labels_HW == 2).all() for split in ("train", "val", "test") for cube in Dataset(tmp_path / "set").cubes(split))


def test_a_terminated_packing_keeps_what_it_finished(bulky: Path, tmp_path: Path) -> None:
    """Through the command line, as a job at its time limit."""
    words = [sys.executable, "-m", "launch", "data", "pack", str(bulky), str(tmp_path / "set"), "--shard-mib", "1", "--codec", "pcodec"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and len(list(tmp_path.glob(".part-*/[a-z]*.unit"))) < 3:
        time.sleep(0.01)
    process.terminate()
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 75 and "the same command again" in said
    kept = {path.name for path in tmp_path.glob(".part-*/[a-z]*.unit")}
    assert len(kept) >= 3
    pack(bulky, tmp_path / "set", shard_mib=1, codec="pcodec")
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_of_many_packings_at_once_each_writes_some(bulky: Path, tmp_path: Path) -> None:
    script = "import sys; from data_shards.packing.pack import pack; pack(sys.argv[1], sys.argv[2], shard_mib=1)"
    racing = [
        subprocess.Popen([sys.executable, "-c", script, bulky, tmp_path / "set"], stderr=subprocess.PIPE, text=True) for _ in range(6)
    ]
    said = [process.communicate(timeout=120)[1] for process in racing]
    assert [process.returncode for process in racing] == [0] * 6, said
    pack(bulky, tmp_path / "again", shard_mib=1)
    assert content_of(tmp_path / "set") == content_of(tmp_path / "again")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "set"]


@pytest.mark.parametrize("theirs", [".part-import-a-set", ".part-0123abcd-other-set", ".part-0123abcd-set.tar", ".part-0123ABCD-set"])
def test_unfinished_folders_of_other_places_stay(cube_folder: Path, tmp_path: Path, theirs: str) -> None:
    (tmp_path / theirs).mkdir()
    (tmp_path / ".part-0123abcd-set").mkdir()
    pack(cube_folder, tmp_path / "set")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([theirs, "set"])


@pytest.mark.parametrize("name", ["../../escaped", "a/b", "", "-x"])
def test_a_split_that_would_leave_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="split name"):
        packing.write_dataset(tmp_path / "set", {name: [made_cube(0)]}, source={})
    assert not list(tmp_path.iterdir())


def test_two_arrays_in_one_sample_are_refused(tmp_path: Path) -> None:
    with wds.TarWriter(str(tmp_path / "train-000000.tar")) as writer:
        meta = {"wavelengths_nm": [1.0], "scale": 1, "subject_id": "q", "shape": [1, 2, 2], "dtype": "uint16"}
        writer.write({"__key__": "a", "json": meta, "cube.npy": np.zeros((1, 2, 2), np.uint16), "cube.raw": bytes(8)})
    with pytest.raises(InputError, match="two arrays"):
        index_folder(tmp_path)


def test_a_set_indexed_anew_still_says_its_bound(cube_folder: Path, tmp_path: Path) -> None:
    pack(cube_folder, tmp_path / "set", codec="near", max_error=4)
    (tmp_path / "set" / "dataset.json").unlink()
    assert index_folder(tmp_path / "set").max_error == 4


def test_near_on_latents_is_refused(tmp_path: Path) -> None:
    cube = replace(made_cube(0), data_CHW=made_cube(0).data_CHW.astype(np.float32))
    with pytest.raises(InputError, match="latents"):
        packing.write_dataset(tmp_path / "set", {"train": [cube]}, codec="near", max_error=1, source={})


@pytest.mark.parametrize("name", ["c0003.json", "c0003.labels.png", "c0003.npy"])
def test_a_source_that_cannot_be_read_is_named_and_not_the_place_that_is_written(
    cube_folder: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(path: Path, real) -> bytes:
        if path.name == name and inside:
            raise OSError(errno.EIO, "Input/output error")
        return real(path)

    inside, real_bytes, real_load = [], Path.read_bytes, np.load
    monkeypatch.setattr(Path, "read_bytes", lambda path: failing(path, real_bytes))
    monkeypatch.setattr(np, "load", lambda path, **how: failing(Path(path), lambda path: real_load(path, **how)))
    real = packing.write_shard
    monkeypatch.setattr(packing, "write_shard", lambda *words, **how: (inside.append(1), real(*words, **how))[1])
    with pytest.raises(CorruptData, match="Input/output error") as caught:
        pack(cube_folder, tmp_path / "set")
    assert caught.value.where == cube_folder / name and not (tmp_path / "set").exists()


@pytest.mark.parametrize("lost", ["c0003.npy", "c0003.json"])
def test_half_a_sample_is_refused_and_not_left_out(tmp_path: Path, lost: str) -> None:
    for i in range(6):
        write_cube(tmp_path / "in", made_cube(i))
    (tmp_path / "in" / "notes.json").write_text("{}")
    whole = (tmp_path / "in" / lost).read_bytes()
    (tmp_path / "in" / lost).unlink()
    with pytest.raises(InputError, match=f"c0003[.](json|npy) without {lost}"):
        pack(tmp_path / "in", tmp_path / "set", splits={"train": 1.0})
    assert not (tmp_path / "set").exists()
    (tmp_path / "in" / lost).write_bytes(whole)
    assert pack(tmp_path / "in", tmp_path / "set", splits={"train": 1.0}).splits["train"]["count"] == 6


def test_hidden_files_beside_cubes_are_no_cubes(tmp_path: Path) -> None:
    """macOS puts a `._NAME` beside each NAME on foreign disks."""
    for i in range(4):
        write_cube(tmp_path / "in", made_cube(i))
    for path in list((tmp_path / "in").iterdir()):
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
    assert pack(tmp_path / "in", tmp_path / "set", splits={"train": 1.0}).splits["train"]["count"] == 4


@pytest.mark.parametrize("notes", [{"no_data": {"pixels": 192}}, {"fov": "eye_mask.gif"}, {"operations": ["pad 1 above"]}])
@pytest.mark.parametrize("lost", ["removed", "a link without content"])
def test_a_field_of_view_that_got_lost_is_not_packed_as_a_whole_image(tmp_path: Path, notes: dict, lost: str) -> None:
    for i in range(10):
        write_cube(tmp_path / "in", made_cube(i, subject=f"s{i}", **notes))
    path = tmp_path / "in" / "c0007.fov.png"
    path.unlink()
    if lost != "removed":
        path.symlink_to(tmp_path / "gone")
    said = "no c0007.fov.png, and the notes" if lost == "removed" else "1 links whose content is absent: c0007.fov.png"
    with pytest.raises(InputError, match=said):
        pack(tmp_path / "in", tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("notes", [{"label_pixels": {"vein": 3}}, {"labels": "eye_av.png"}])
def test_a_label_map_that_got_lost_is_not_packed_as_an_image_without_one(tmp_path: Path, notes: dict) -> None:
    write_cube(tmp_path, made_cube(0, **notes))
    (tmp_path / "c0000.labels.png").unlink()
    with pytest.raises(InputError, match=r"no c0000.labels.png, and the notes[\s\S]*bring c0000.labels.png back"):
        read_cube(tmp_path, "c0000")


def test_notes_of_others_do_not_ask_for_maps(tmp_path: Path) -> None:
    cube = replace(made_cube(0, fov="45 deg.", labels=2, operations="pad it", no_data="none"), labels_HW=None, fov_HW=None)
    write_cube(tmp_path, cube)
    assert read_cube(tmp_path, "c0000").fov_HW is None


@pytest.mark.parametrize("suffix", [".json", ".npy", ".labels.png"])
@pytest.mark.parametrize("what", ["folder", "link"])
def test_a_folder_or_a_link_without_content_in_place_of_a_file_is_wrong_input(tmp_path: Path, suffix: str, what: str) -> None:
    for i in range(10):
        write_cube(tmp_path / "in", made_cube(i, subject=f"s{i}"))
    path = tmp_path / "in" / f"c0003{suffix}"
    path.unlink()
    path.mkdir() if what == "folder" else path.symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match="cannot open: Is a directory" if what == "folder" else "content is absent: c0003") as caught:
        pack(tmp_path / "in", tmp_path / "set")
    assert caught.value.exit_code == 2 and not (tmp_path / "set").exists()


@pytest.mark.parametrize("place", ["set", "deeper/set", "../link/set"])
def test_a_set_is_not_written_into_its_own_source(tmp_path: Path, place: str) -> None:
    for i in range(10):
        write_cube(tmp_path / "in", made_cube(i, subject=f"s{i}"))
    (tmp_path / "link").symlink_to(tmp_path / "in")
    before = sorted((tmp_path / "in").rglob("*"))
    with pytest.raises(InputError, match="lies inside the source") as caught:
        pack(tmp_path / "in", tmp_path / "in" / place)
    assert sorted((tmp_path / "in").rglob("*")) == before
    free = Path(caught.value.mend.rpartition("such as ")[2])
    pack(tmp_path / "in", free)
    with pytest.raises(InputError, match="lies inside the source"):
        recode(free, free / "small", codec="pcodec")


@pytest.mark.parametrize("copy", ["a-000001.tar", "x-000001.tar"])
def test_a_person_in_shards_of_two_splits_is_told_by_shard_and_the_advice_works(tmp_path: Path, copy: str) -> None:
    for i in range(10):
        write_cube(tmp_path / "in", made_cube(i, subject=f"s{i}"))
    pack(tmp_path / "in", tmp_path / "set")
    before = Dataset(tmp_path / "set").digest
    shutil.copy(tmp_path / "set" / "train-000000.tar", tmp_path / "set" / copy)
    with pytest.raises(InputError, match=rf"in two splits: .*\({copy}\)") as caught:
        index_folder(tmp_path / "set", changed=True)
    assert "CSV" not in str(caught.value)
    subprocess.run(shlex.split(caught.value.mend.partition("aside: ")[2].partition(";")[0]), check=True)
    assert index_folder(tmp_path / "set", changed=True).digest == before
