"""Whatever happens to a packed set, verify names the shard and the sample."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_shards.dataset import Dataset
from data_shards.errors import CorruptData
from data_shards.index import open_index
from data_shards.manifest import read_manifest, write_manifest
from data_shards.shard import scan_shard
from data_shards.stream import CubeStream
from data_shards.verify import verify


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
