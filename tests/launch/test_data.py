"""retinaforge data …: packing by workers, recoding, trying codecs, and sets at URLs, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data_shards.errors import CorruptData, InputError
from data_shards.reading.dataset import Dataset
from tests.commands import invoke


def test_pack_recode_and_verify(cube_folder: Path, tmp_path: Path) -> None:
    invoke("data", "pack", cube_folder, tmp_path / "set", "--workers", 2)
    said = invoke("data", "recode", tmp_path / "set", tmp_path / "small", "near", "--max-error", 3)
    assert "no count further off than 3" in said and "times smaller" in said
    assert json.loads(invoke("data", "ls", tmp_path / "small", "--json"))["max_error"] == 3
    assert json.loads(invoke("data", "verify", tmp_path / "small", "--json"))["faults"] == {}
    off = np.abs(Dataset(tmp_path / "small").cube("val", 1).data_CHW.astype(int) - Dataset(tmp_path / "set").cube("val", 1).data_CHW)
    assert off.max() == 3


def test_a_bound_without_near_and_near_without_a_bound_are_refused(cube_folder: Path, tmp_path: Path) -> None:
    for words in (("--codec", "near"), ("--codec", "pcodec", "--max-error", "1")):
        with pytest.raises(InputError, match="maximum error"):
            invoke("data", "pack", cube_folder, tmp_path / "set", *words)
    assert not list(tmp_path.iterdir())


def test_bench_tries_every_codec_and_leaves_nothing(packed: Path, tmp_path: Path) -> None:
    said = json.loads(invoke("data", "bench", packed, "--at", tmp_path, "--samples", 4, "--max-error", 2, "--seconds", 0.1, "--json"))
    rows = {row["codec"]: row for row in said["codecs"]}
    assert list(rows) == ["raw", "blosc2", "pcodec", "near"] and said["fastest_cold"]["codec"] in rows
    assert rows["near"]["compression"] > rows["pcodec"]["compression"] > rows["raw"]["compression"] == 1
    assert all(row[name] > 0 for row in rows.values() for name in ("cold_s", "warm_s", "encode_s"))
    assert not list(tmp_path.iterdir())
    assert "fastest from this storage" in invoke("data", "bench", packed, "--at", tmp_path, "--samples", 2, "--seconds", 0)


def test_bench_of_crops_tries_tiles_too(packed: Path, tmp_path: Path) -> None:
    words = ("data", "bench", packed, "--at", tmp_path, "--samples", 3, "--crop", 16, "--seconds", 0)
    said = json.loads(invoke(*words, "--json"))
    assert [(row["codec"], row["tile"]) for row in said["codecs"]] == [
        ("raw", 0),
        ("tiles", 96),
        ("blosc2", 0),
        ("blosc2", 96),
        ("pcodec", 0),
        ("pcodec", 96),
    ]
    assert "blosc2, tiles of 96" in invoke(*words)
    with pytest.raises(InputError, match="crops of 99 x 99"):
        invoke("data", "bench", packed, "--at", tmp_path, "--crop", 99)
    assert not list(tmp_path.iterdir())


def test_a_set_in_tiles_is_read_verified_and_described_as_any_other(packed: Path, tmp_path: Path) -> None:
    invoke("data", "recode", packed, tmp_path / "tiles", "tiles", "--tile", 20)
    invoke("data", "recode", tmp_path / "tiles", tmp_path / "back", "raw")
    assert json.loads(invoke("data", "verify", tmp_path / "tiles", "--json"))["faults"] == {}
    tiles, back = Dataset(tmp_path / "tiles"), Dataset(tmp_path / "back")
    assert tiles.locate("val", 0)[0].layout.block == (4, 20, 20) and tiles.stats == Dataset(packed).stats
    assert [s.sha256 for s in back.manifest.shards] == [s.sha256 for s in Dataset(packed).manifest.shards]
    (tmp_path / "tiles" / "dataset.json").unlink()
    invoke("data", "index", tmp_path / "tiles")
    assert np.array_equal(Dataset(tmp_path / "tiles").cube("val", 1).data_CHW, back.cube("val", 1).data_CHW)


def test_a_set_at_a_url_is_listed_described_verified_and_packed_anew(packed: Path, tmp_path: Path) -> None:
    url = f"file://{packed}"
    assert json.loads(invoke("data", "ls", url, "--json"))["digest"] == Dataset(packed).digest
    assert json.loads(invoke("data", "stats", url, "--json"))["values"] == Dataset(packed).stats.values
    assert "no fault" in invoke("data", "verify", url)
    invoke("data", "recode", url, tmp_path / "here", "blosc2")
    assert Dataset(tmp_path / "here").stats == Dataset(packed).stats


def test_faults_of_a_set_at_a_url_are_named(packed: Path, tmp_path: Path) -> None:
    for path in packed.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    shard, row = Dataset(tmp_path).locate("val", 2)
    content = bytearray(shard.path.read_bytes())
    content[int(shard.index.offset_NM[row, shard.index.payload(row)[0]]) + 5] ^= 1
    shard.path.write_bytes(content)
    (tmp_path / "stray.tar").write_bytes(b"")
    with pytest.raises(CorruptData, match=rf"sample {shard.index.keys[row]}: member cube\.raw has changed") as caught:
        invoke("data", "verify", f"file://{tmp_path}")
    assert "stray.tar" in str(caught.value)
