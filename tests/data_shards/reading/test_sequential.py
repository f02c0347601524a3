"""Shards without index, by stock webdataset's own reader: ours and others', and what is refused."""

from __future__ import annotations

import gzip
import io
import tarfile
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import webdataset

from data_shards.errors import CorruptData, InputError
from data_shards.packing.existing import index_folder
from data_shards.packing.pack import write_dataset
from data_shards.reading.dataset import Dataset
from data_shards.reading.sequential import read_shard
from data_shards.reading.sequential_stream import SequentialStream
from tests.conftest import made_cube


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Ten cubes in three shards, without an index: raw and blosc2 of ours, and npy as stock webdataset writes it."""
    folder = tmp_path_factory.mktemp("bare")
    for n, (codec, numbers) in enumerate((("raw", range(4)), ("blosc2", range(4, 7)))):
        write_dataset(folder / codec, {"train": (made_cube(i) for i in numbers)}, codec=codec, source={})
        (folder / codec / "train-000000.tar").rename(folder / f"{n}.tar")
    with webdataset.TarWriter(str(folder / "2.tar")) as writer:
        for cube in (made_cube(i) for i in range(7, 10)):
            meta = {"wavelengths_nm": cube.meta.wavelengths_nm, "scale": cube.meta.scale, "subject_id": cube.meta.subject_id}
            writer.write({"__key__": cube.meta.key, "cube.npy": cube.data_CHW, "json": meta})
    return sorted(folder.glob("*.tar"))


def test_every_sample_comes_as_it_was_written(shards) -> None:
    got = [cube for shard in shards for cube in read_shard(shard)]
    assert len(got) == 10
    for i, cube in enumerate(got):
        made = made_cube(i)
        assert np.array_equal(cube.data_CHW, made.data_CHW) and cube.meta.key == made.meta.key
        assert i >= 7 or (np.array_equal(cube.labels_HW, made.labels_HW) and np.array_equal(cube.fov_HW, made.fov_HW))


def test_a_url_gives_the_same(shards) -> None:
    for shard in shards:
        mine, other = list(read_shard(shard)), list(read_shard(f"file://{shard}"))
        assert [c.meta for c in mine] == [c.meta for c in other]
        assert all(np.array_equal(a.data_CHW, b.data_CHW) for a, b in zip(mine, other, strict=True))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_and_resumes_read_the_one_sequence(shards, world: int) -> None:
    got = {}
    for consumed, steps in ((0, 2), (12, 1)):
        for rank in range(world):
            stream = SequentialStream(shards, batch_size=6 // world, rank=rank, world=world)
            for batch in islice(stream.batches(consumed), steps):
                got |= dict(zip(batch.position_B.tolist(), batch.keys, strict=True))
                assert batch.position % 6 == 0 and batch.fov_BHW is not None
    assert [got[g] for g in range(18)] == [f"c{g % 10:04d}" for g in range(18)]


def test_shards_of_mixed_shapes_are_refused(shards, tmp_path: Path) -> None:
    write_dataset(tmp_path / "small", {"train": [made_cube(0, size=16)]}, source={})
    with pytest.raises(InputError, match=r"\(4, 16, 16\)"):
        next(SequentialStream([shards[0], tmp_path / "small" / "train-000000.tar"], batch_size=5).batches())


def cut(content: bytes) -> list[bytes]:
    """Within a payload, at a member's border, and of the end mark."""
    return [content[: len(content) // 2], content[:512], content[: len(content) // 2 // 512 * 512], content[:-10240], b""]


@pytest.mark.parametrize("n", range(5))
def test_a_cut_shard_is_found(shards, tmp_path: Path, n: int) -> None:
    (tmp_path / "cut.tar").write_bytes(cut(shards[0].read_bytes())[n])
    with pytest.raises(CorruptData):
        list(read_shard(tmp_path / "cut.tar"))


def test_a_damaged_header_in_the_middle_is_found(shards, tmp_path: Path) -> None:
    with tarfile.open(shards[0]) as tar:
        third = [info.offset for info in tar if info.name.endswith(".json")][2]
    content = bytearray(shards[0].read_bytes())
    content[third + 3] ^= 1
    (tmp_path / "bad.tar").write_bytes(content)
    with pytest.raises(CorruptData):
        list(read_shard(tmp_path / "bad.tar"))


def test_a_compressed_tar_is_not_unpacked(shards, tmp_path: Path) -> None:
    name = b"x" * 247 + b"ustar\0"  # a gzip file whose own name puts the mark of a tar where a tar has it
    bomb = b"\x1f\x8b\x08\x08" + bytes(6) + name + gzip.compress(shards[0].read_bytes())[10:] + bytes(2048)
    assert gzip.decompress(bomb[:-2048])[:10] == shards[0].read_bytes()[:10]
    (tmp_path / "bomb.tar").write_bytes(bomb)
    with pytest.raises(CorruptData):
        list(read_shard(tmp_path / "bomb.tar"))


def test_a_sparse_member_takes_no_memory(tmp_path: Path) -> None:
    import subprocess

    with open(tmp_path / "a.json", "wb") as file:
        file.truncate(7 << 30)
    subprocess.run(["tar", "-S", "-cf", tmp_path / "x.tar", "-C", tmp_path, "a.json"], check=True)
    with pytest.raises(InputError, match="unsafe member"):
        list(read_shard(tmp_path / "x.tar"))


@pytest.mark.parametrize("name", ["../a.json", "/etc/a.json", "a.cube.pkl", "a.pickle", "b c.json"])
def test_unsafe_members_are_refused(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        info = tarfile.TarInfo(name)
        info.size = 4
        tar.addfile(info, io.BytesIO(b"null"))
    with pytest.raises(InputError):
        list(read_shard(tmp_path / "x.tar"))


def test_what_is_not_there_or_empty_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such shard"):
        list(read_shard(tmp_path / "none.tar"))
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    with pytest.raises(InputError, match="no sample"):
        next(SequentialStream([tmp_path / "empty.tar"], batch_size=1).batches())


def test_our_raw_shards_are_read_by_stock_webdataset(packed: Path) -> None:
    import json

    shards = sorted(str(path) for path in packed.glob("train-*.tar"))
    seen = 0
    for sample in webdataset.WebDataset(shards, shardshuffle=False, empty_check=False):
        meta = json.loads(sample["json"])
        stored = np.frombuffer(sample["cube.raw"], np.dtype(meta["dtype"]).newbyteorder("<")).reshape(meta["shape"])
        assert np.array_equal(stored, Dataset(packed).cube("train", seen).data_CHW)
        seen += 1
    assert seen == 32


@pytest.mark.parametrize("changed", [{"scale": 0.5}, {"offset": 0.25}, {"wavelengths_nm": (1.0, 2.0, 3.0, 4.0)}])
def test_shards_of_other_scales_or_bands_are_not_mixed(tmp_path: Path, changed: dict) -> None:
    other = replace(made_cube(2), meta=replace(made_cube(2).meta, **changed))
    for name, cube in (("one", made_cube(0)), ("two", other)):
        write_dataset(tmp_path / name, {"train": [cube]}, source={})
    shards = [tmp_path / name / "train-000000.tar" for name in ("one", "two")]
    with pytest.raises(InputError, match=next(iter(changed))):
        next(SequentialStream(shards, batch_size=2).batches())


def test_metadata_that_name_another_sample_are_refused(tmp_path: Path) -> None:
    meta = {"key": "b", "wavelengths_nm": [1.0], "scale": 1, "subject_id": "q"}
    with webdataset.TarWriter(str(tmp_path / "train-000000.tar")) as writer:
        writer.write({"__key__": "a", "cube.npy": np.zeros((1, 2, 2), np.uint16), "json": meta})
    for read in (lambda: list(read_shard(tmp_path / "train-000000.tar")), lambda: index_folder(tmp_path)):
        with pytest.raises(InputError, match=r"key 'b' inside a\.json"):
            read()
