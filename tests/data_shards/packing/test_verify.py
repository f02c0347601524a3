"""Whatever happens to a packed set, verify names the shard and the sample."""

from __future__ import annotations

import os
import shlex
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_shards.errors import CorruptData, InputError
from data_shards.manifest import read_manifest, write_manifest
from data_shards.packing.existing import index_folder
from data_shards.packing.units import Unit, merged, read_unit, write_unit
from data_shards.packing.verify import verify
from data_shards.packing.writing import write_shard
from data_shards.reading.dataset import Dataset
from data_shards.reading.stream import CubeStream
from data_shards.shards.index import open_index
from data_shards.shards.shard import scan_shard
from tests.commands import invoke
from tests.conftest import made_cube


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    shutil.copytree(packed, tmp_path / "set")
    return tmp_path / "set"


def faults(folder: Path) -> dict[str, list[str]]:
    return {name: found for name, found in verify(folder) if found}


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 4
    path.write_bytes(content)


def test_a_whole_set_has_no_faults(packed: Path) -> None:
    assert faults(packed) == {}


def test_one_flipped_bit_is_named_by_shard_sample_and_member(copy: Path) -> None:
    index = open_index(copy / "train-000000.index")
    flip(copy / "train-000000.tar", int(index.offset_NM[7, index.members.index("cube.raw")]) + 99)
    assert faults(copy) == {"train-000000.tar": [f"sample {index.keys[7]}: member cube.raw has changed (crc32c)"]}
    with pytest.raises(CorruptData, match=f"sample {index.keys[7]}, member cube.raw"):
        list(CubeStream(Dataset(copy), "train", batch_size=4).once())


def test_a_flipped_bit_in_a_tar_header_is_found(copy: Path) -> None:
    flip(copy / "train-000000.tar", 3)
    assert faults(copy)["train-000000.tar"] == ["sha256 mismatch: bytes between the members changed (tar headers or padding)"]


def test_a_truncated_shard_names_what_is_lost(copy: Path) -> None:
    index = open_index(copy / "val-000000.index")
    with open(copy / "val-000000.tar", "r+b") as file:
        file.truncate(int(index.offset_NM[2].min()))
    found = faults(copy)["val-000000.tar"]
    assert f"lost samples: {index.keys[2]}, {index.keys[3]}" in found[0]
    with pytest.raises(CorruptData, match=r"val-000000\.tar"):
        Dataset(copy).cube("val", 0)


def test_a_cut_at_a_members_border_is_no_end_of_file(copy: Path) -> None:
    """tarfile and webdataset take it for the end, and drop the rest of the shard in silence."""
    shard = copy / "val-000000.tar"
    with tarfile.open(shard) as tar:
        third = tar.getmembers()[3].offset
    with open(shard, "r+b") as file:
        file.truncate(third)
    with pytest.raises(CorruptData, match="breaks off"):
        scan_shard(shard)


@pytest.mark.parametrize("member", ["cube.raw", "json", "labels.png"])
def test_a_missing_member_is_named(copy: Path, member: str) -> None:
    """A shard written anew without one member of one sample."""
    shard = copy / "val-000000.tar"
    key = open_index(copy / "val-000000.index").keys[1]
    with tarfile.open(shard) as old, tarfile.open(copy / "new", "w", format=tarfile.USTAR_FORMAT) as new:
        for info in old:
            if info.name != f"{key}.{member}":
                new.addfile(info, old.extractfile(info))
    (copy / "new").rename(shard)
    assert faults(copy) == {"val-000000.tar": [f"sample {key}: member {member} is missing in the tar"]}


def test_a_wrong_count_is_named(copy: Path) -> None:
    manifest = read_manifest(copy)
    write_manifest(copy, replace(manifest, splits={**manifest.splits, "val": {"count": 5, "subjects": 2}}))
    assert faults(copy) == {"dataset.json": ["split val: 4 samples in its shards, 5 in the manifest"]}


def test_a_missing_shard_and_a_stray_one_are_named(copy: Path) -> None:
    (copy / "val-000000.tar").rename(copy / "val-000009.tar")
    found = faults(copy)
    assert found["val-000000.tar"] == ["shard is missing (4 samples)"]
    assert "val-000009.tar" in found["dataset.json"][0]


@pytest.mark.parametrize("edit", [('"count": 4,', '"count": 3,'), ('"mean_C": [', '"mean_C": [ '), ('"values": ', '"values": 1')])
def test_an_edited_manifest_is_not_believed(copy: Path, edit: tuple[str, str]) -> None:
    text = (copy / "dataset.json").read_text()
    assert edit[0] in text
    (copy / "dataset.json").write_text(text.replace(*edit, 1))
    with pytest.raises(CorruptData, match="not as it was written"):
        Dataset(copy)


@pytest.mark.parametrize("text", ["null", "5", "[]", "{}", '{"format": "retinaforge-dataset-2", "digest": ""}', "no JSON"])
def test_a_manifest_that_is_none_is_corrupt(copy: Path, text: str) -> None:
    (copy / "dataset.json").write_text(text)
    with pytest.raises(CorruptData, match="manifest"):
        Dataset(copy)


def test_an_index_older_than_its_shard_is_refused(copy: Path) -> None:
    with open(copy / "val-000000.tar", "ab") as file:
        file.write(bytes(512))
    with pytest.raises(CorruptData, match="as in dataset.json"):
        Dataset(copy).cube("val", 0)


@pytest.mark.parametrize("damage", ["flip", "cut", "zero"])
def test_random_damage_is_always_found(copy: Path, damage: str) -> None:
    """Bits flipped, tails cut, pages zeroed at random places of shards and indexes: none goes unnoticed, none crashes."""
    rng = np.random.default_rng(5)
    change: dict[str, Callable[[bytearray, int], bytearray]] = {
        "flip": lambda b, i: bytearray([*b[:i], b[i] ^ 16, *b[i + 1 :]]),
        "cut": lambda b, i: b[:i],
        "zero": lambda b, i: b[:i] + bytes(min(512, len(b) - i)) + b[i + 512 :],
    }
    for path in (copy / "val-000000.tar", copy / "val-000000.index", copy / "train-000000.index"):
        before = path.read_bytes()
        for _ in range(12):
            after = bytes(change[damage](bytearray(before), int(rng.integers(0, len(before)))))
            if after != before:
                path.write_bytes(after)
                assert faults(copy), f"{damage} in {path.name} went unnoticed"
        path.write_bytes(before)


# --- indexing a set that stands -------------------------------------------------------------------------------------


def same_set(folder: Path, manifest) -> bool:
    return read_manifest(folder) == manifest and not faults(folder)


@pytest.mark.parametrize("lost", ["nothing", "an index", "all indices", "a damaged index"])
def test_indexing_a_whole_set_keeps_its_source_and_its_digest(copy: Path, lost: str) -> None:
    before = read_manifest(copy)
    for path in copy.glob({"an index": "val-*.index", "all indices": "*.index"}.get(lost, "no")):
        path.unlink()
    if lost == "a damaged index":
        flip(copy / "val-000000.index", 900)
        assert faults(copy)["val-000000.tar"][0].endswith("; the shard itself is whole")
    manifest = index_folder(copy)
    assert manifest.source == before.source and manifest.source, "provenance"
    assert same_set(copy, before)


@pytest.mark.parametrize("gone", ["nothing", "dataset.json", "dataset.json damaged", "the index"])
@pytest.mark.parametrize("member", ["cube.raw", "json"])
def test_indexing_blesses_no_flipped_bit(copy: Path, gone: str, member: str) -> None:
    index = open_index(copy / "train-000000.index")
    flip(copy / "train-000000.tar", int(index.offset_NM[7, index.members.index(member)]) + 9)
    match gone:
        case "dataset.json":
            (copy / "dataset.json").unlink()
        case "dataset.json damaged":
            flip(copy / "dataset.json", 300)
        case "the index":
            (copy / "train-000000.index").unlink()
    before = {path: path.read_bytes() for path in copy.iterdir()}
    with pytest.raises(CorruptData, match=r"train-000000\.tar is not as it was written"):
        index_folder(copy)
    assert {path: path.read_bytes() for path in copy.iterdir()} == before


def test_a_damaged_manifest_is_made_anew_where_the_shards_are_those_of_their_indices(copy: Path) -> None:
    before = read_manifest(copy)
    flip(copy / "dataset.json", 300)
    assert (index_folder(copy).digest, faults(copy)) == (before.digest, {})


def test_indexing_notices_shards_that_are_gone_or_new(copy: Path) -> None:
    shutil.copy(copy / "val-000000.tar", copy / "extra-000000.tar")
    with pytest.raises(InputError, match=r"does not name extra-000000\.tar"):
        index_folder(copy)
    (copy / "extra-000000.tar").unlink()
    (copy / "val-000000.tar").unlink()
    with pytest.raises(CorruptData, match=r"val-000000\.tar is missing"):
        index_folder(copy)
    (copy / "dataset.json").write_text("{")
    (copy / "train-000000.index").write_text("{")
    (copy / "val-000000.index").unlink()
    with pytest.raises(CorruptData, match=r"nothing readable tells what train-000000\.tar has to be"):
        index_folder(copy)


def test_shards_changed_on_purpose_are_taken_when_told_and_say_what_they_were(copy: Path) -> None:
    before = read_manifest(copy)
    write_shard(copy / "val-000000.tar", [made_cube(i, split="val") for i in (900, 901)])
    with pytest.raises(CorruptData, match="is not as it was written") as caught:
        index_folder(copy)
    assert "--changed" in caught.value.expected
    invoke("data", "index", copy, "--changed")
    after = read_manifest(copy)
    assert after.source["before"] == {"digest": before.digest, "source": before.source} and not faults(copy)
    assert after.digest != before.digest and after.splits["val"]["count"] == 2


def test_no_message_about_damaged_bytes_advises_to_index_them(copy: Path) -> None:
    """Following the advice would take the damage for data."""
    index = open_index(copy / "train-000000.index")
    flip(copy / "train-000000.tar", int(index.offset_NM[7, index.members.index("cube.raw")]) + 9)
    with pytest.raises(CorruptData) as caught:
        list(CubeStream(Dataset(copy), "train", batch_size=4).once())
    assert "data index" not in str(caught.value)
    flip(copy / "train-000000.index", 900)
    with pytest.raises(CorruptData) as caught:
        Dataset(copy).cube("train", 0)
    assert "data index" not in str(caught.value)


@pytest.mark.parametrize("index", ["whole", "damaged", "gone"])
def test_a_damaged_manifest_over_a_damaged_shard_is_not_made_anew(copy: Path, index: str) -> None:
    """The advice is to index them: followed, it refuses what would take the damage for data."""
    shard, path = copy / "train-000000.tar", copy / "train-000000.index"
    flip(shard, int(open_index(path).offset_NM[7, 0]) + 9)
    flip(copy / "dataset.json", 900)
    {"whole": lambda: None, "damaged": lambda: flip(path, 900), "gone": path.unlink}[index]()
    with pytest.raises(CorruptData) as caught:
        Dataset(copy)
    with pytest.raises((CorruptData, InputError)):
        invoke(*shlex.split(caught.value.mend.partition(" (")[0])[1:])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def test_a_damaged_index_beside_a_whole_shard_has_one_mend_that_works(packed: Path, tmp_path: Path) -> None:
    place = tmp_path / "a set"
    shutil.copytree(packed, place)
    before = Dataset(place).digest
    cut(place / "val-000000.index"), (place / "test-000000.index").unlink()
    with pytest.raises(CorruptData, match="2 faults") as caught:
        invoke("data", "verify", place)
    assert "FOLDER" not in str(caught.value) and "copy" not in str(caught.value)
    invoke(*shlex.split(caught.value.mend)[1:])
    invoke("data", "verify", place)
    assert Dataset(place).digest == before


def test_indices_and_shards_that_are_damaged_have_a_mend_each(copy: Path) -> None:
    cut(copy / "val-000000.index"), cut(copy / "test-000000.tar")
    with pytest.raises(CorruptData) as caught:
        invoke("data", "verify", copy)
    assert caught.value.mend.startswith("copy the named shards again")
    assert caught.value.mend.endswith(f"for the indices of whole shards: retinaforge data index {copy}")


@pytest.mark.parametrize("damage", ["cut", "empty", "edited"])
def test_a_damaged_manifest_over_whole_shards_is_made_anew_by_the_command_that_is_advised(copy: Path, damage: str) -> None:
    before, path = Dataset(copy).digest, copy / "dataset.json"
    content = path.read_bytes()
    path.write_bytes({"cut": content[:-40], "empty": b"", "edited": content.replace(b'"seed": 0', b'"seed": 1')}[damage])
    with pytest.raises(CorruptData) as caught:
        invoke("data", "verify", copy)
    invoke(*shlex.split(caught.value.mend.partition(" (")[0])[1:])
    invoke("data", "verify", copy)
    assert Dataset(copy).digest == before


def test_a_damaged_shard_is_refused_by_index_changed_too(copy: Path) -> None:
    os.truncate(copy / "val-000000.tar", 3000)
    with pytest.raises(CorruptData):
        index_folder(copy, changed=True)


@pytest.mark.parametrize("known", [True, False])
def test_a_shard_that_was_not_fetched_is_told_and_not_taken_for_damage(copy: Path, known: bool) -> None:
    shard = copy / "val-000000.tar"
    shard.unlink()
    shard.symlink_to(copy / ".git" / "annex" / "objects" / "x")
    assert faults(copy)["val-000000.tar"][0].startswith("a link whose content is absent")
    if not known:
        for path in [*copy.glob("*.index"), copy / "dataset.json"]:
            path.unlink()
    for changed in (False, True):
        with pytest.raises(InputError, match="content is absent: val-000000.tar") as caught:
            index_folder(copy, changed=changed)
    assert "git annex get val-000000.tar" in caught.value.mend


def test_an_image_of_a_generated_set_in_the_place_of_another_and_what_a_killed_writer_left_are_named(tmp_path: Path, caplog) -> None:
    def shard(name: str, *numbers: int) -> Unit:
        cubes = (replace(made_cube(i), meta=replace(made_cube(i).meta, key=f"{i:09d}", subject_id="synthetic")) for i in numbers)
        write_unit(tmp_path / name, "synthetic", cubes)
        return read_unit(tmp_path / name)

    units = [shard("synthetic-000000.tar", 0, 1, 2), shard("synthetic-000001.tar", 3, 5, 6)]
    write_manifest(tmp_path, merged(units, ["synthetic"], {"sample": {"count": 6}}))
    (tmp_path / ".part-0123abcd-synthetic-000002.tar").write_bytes(bytes(5_000_000))
    found = faults(tmp_path)
    assert found == {"synthetic-000001.tar": ["2 image(s) in the place of others: 000000005 in the place of image 4"]}
    assert "1 unfinished file(s), 5 MB in all" in caplog.text
