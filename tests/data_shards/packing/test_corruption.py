"""Two thousand random faults in shards, indexes and the manifest: `data verify` finds every one, and no read gives wrong values."""

from __future__ import annotations

import errno
import io
import json
import os
import tracemalloc
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from data_shards.errors import CorruptData, InputError, RetinaforgeError, TryAgain
from data_shards.manifest import NAME, read_manifest, write_manifest
from data_shards.packing.pack import write_dataset
from data_shards.packing.verify import verify
from data_shards.reading.config import ReadConfig
from data_shards.reading.dataset import Dataset
from data_shards.reading.sequential import read_shard
from data_shards.reading.stream import CubeStream
from data_shards.shards.index import FORMAT, Names, ShardIndex, index_bytes, index_path, open_index
from data_shards.shards.layout import Layout, Region
from data_shards.shards.shard import scan_shard
from data_shards.stores import local, retry
from tests.conftest import made_cube

CODECS = ("raw", "blosc2", "pcodec", "npy")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sets")
    for codec in CODECS:
        write_dataset(folder / codec, {"train": (made_cube(i, size=16) for i in range(3))}, codec=codec, source={})
    return {codec: folder / codec for codec in CODECS}


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Cut short, some bits flipped, or a page zeroed; never the same bytes."""
    out = bytearray(content)
    kind = rng.integers(3)
    if kind == 0:
        del out[rng.integers(len(out)) :]
    elif kind == 1:
        for at in rng.integers(len(out), size=rng.integers(1, 4)):
            out[at] ^= 1 << rng.integers(8)
    else:
        start = rng.integers(len(out)) // 512 * 512
        out[start : start + 4096] = bytes(len(out[start : start + 4096]))
    return bytes(out) if out != content else damaged(content, rng)


@pytest.mark.parametrize("codec", CODECS)
def test_every_fault_is_found_and_no_read_is_wrong(sets, codec: str, tmp_path: Path) -> None:
    clean, rng = sets[codec], np.random.default_rng(CODECS.index(codec))
    held = {path.name: path.read_bytes() for path in clean.iterdir()}
    truth = [Dataset(clean).cube("train", i).data_CHW for i in range(3)]
    for name, content in held.items():
        (tmp_path / name).write_bytes(content)
    for n in range(500):
        name = sorted(held)[n % len(held)]
        (tmp_path / name).write_bytes(damaged(held[name], rng))
        with pytest.raises(RetinaforgeError):
            faults = [fault for _, found in verify(tmp_path) for fault in found]
            raise CorruptData(f"{len(faults)} faults") if faults else AssertionError(f"fault {n} in {name} was not found")
        for i in range(3):
            try:
                got = Dataset(tmp_path).cube("train", i).data_CHW
            except RetinaforgeError as error:
                assert error.exit_code in (2, 4)
            else:
                assert np.array_equal(got, truth[i]), f"fault {n} in {name}: other values, and no error"
        (tmp_path / name).write_bytes(held[name])


def copy_of(clean: Path, to: Path) -> Path:
    to.mkdir(exist_ok=True)
    for path in clean.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


# --- what a stream makes of it --------------------------------------------------------------------------------------


@pytest.fixture
def one_bad(packed: Path, tmp_path: Path) -> tuple[Path, str]:
    """The packed set with one bit of sample 5's array changed, and the key of that sample."""
    folder = copy_of(packed, tmp_path / "bad")
    shard, row = Dataset(folder).locate("train", 5)
    flip(shard.path, int(shard.index.offset_NM[row, shard.index.payload(row)[0]]) + 100)
    return folder, shard.index.keys[row]


def test_a_bad_sample_ends_the_run_unless_a_share_is_allowed(one_bad) -> None:
    folder, key = one_bad
    with pytest.raises(CorruptData, match=rf"sample {key}, member cube\.raw") as caught:
        list(CubeStream(Dataset(folder), "train", batch_size=4).once())
    assert caught.value.exit_code == 4


def test_another_sample_takes_its_place_the_same_in_every_run_and_world(one_bad, caplog) -> None:
    folder, key = one_bad
    seen, met = [], 0
    for world in (1, 2, 4):
        keys: dict[int, str] = {}
        for rank in range(world):
            stream = CubeStream(
                Dataset(folder), "train", batch_size=8 // world, rank=rank, world=world, read=ReadConfig(bad_share=0.05), seed=2
            )
            batches = stream.batches(0)
            for _ in range(8):
                batch = next(batches)
                keys |= dict(zip(batch.position_B.tolist(), batch.keys, strict=True))
                assert [Dataset(folder).keys("train")[i] for i in batch.sample_B] == batch.keys
            batches.close()
            assert set(stream.bad) <= {5}
            met += len(stream.bad)
        seen.append(keys)
    assert seen[0] == seen[1] == seen[2]
    assert key not in seen[0].values() and len(set(seen[0].values())) == 31
    said = [r.message for r in caplog.records if key in r.message]
    assert len(said) == met >= 3, "once for each rank that met it"


def test_a_split_that_is_read_once_has_each_sample_or_none(one_bad) -> None:
    folder, key = one_bad
    with pytest.raises(CorruptData, match=key):
        list(CubeStream(Dataset(folder), "train", batch_size=4, read=ReadConfig(bad_share=0.5)).once())


def test_more_than_the_allowed_share_is_exit_4(packed: Path, tmp_path: Path) -> None:
    folder = copy_of(packed, tmp_path / "bad")
    for i in (1, 9, 20):
        shard, row = Dataset(folder).locate("train", i)
        flip(shard.path, int(shard.index.offset_NM[row, shard.index.payload(row)[0]]) + 7)
    stream = CubeStream(Dataset(folder), "train", batch_size=4, read=ReadConfig(bad_share=2 / 32))
    with pytest.raises(CorruptData, match="3 samples cannot be read") as caught:
        list(islice(stream.batches(), 8))
    assert "at most 2 of 32" in str(caught.value)


def test_a_shard_replaced_under_a_running_job_is_read_on_from_the_old_one(packed: Path, tmp_path: Path) -> None:
    """Replaced by a rename, as every careful writer does: the open file stays what the index says."""
    folder = copy_of(packed, tmp_path / "live")
    dataset = Dataset(folder)
    truth = dataset.cube("train", 0).data_CHW
    shard = dataset.locate("train", 0)[0].path
    (tmp_path / "other").write_bytes(bytes(shard.stat().st_size))
    (tmp_path / "other").replace(shard)
    assert np.array_equal(dataset.cube("train", 0).data_CHW, truth)
    with pytest.raises(CorruptData):
        Dataset(folder).cube("train", 0)


def test_a_shard_overwritten_or_cut_under_a_running_job_is_named(packed: Path, tmp_path: Path) -> None:
    folder = copy_of(packed, tmp_path / "live")
    dataset = Dataset(folder)
    shard, row = dataset.locate("train", 20)
    with open(shard.path, "r+b") as file:
        file.seek(int(shard.index.offset_NM[row].min()))
        file.write(b"\xff" * 50_000)
    os.utime(index_path(shard.path), (1, 1))
    with pytest.raises(CorruptData, match=r"crc32c mismatch.*written after its index"):
        dataset.cube("train", 20)
    os.truncate(shard.path, int(shard.index.offset_NM[row].min()) + 100)
    with pytest.raises(CorruptData, match="short read"):
        dataset.cube("train", 20)


def test_what_is_missing_is_found_before_a_run_begins(packed: Path, tmp_path: Path) -> None:
    folder = copy_of(packed, tmp_path / "gone")
    (folder / "train-000000.index").unlink()
    with pytest.raises(CorruptData, match="shard or index is missing"):
        CubeStream(Dataset(folder), "train", batch_size=1)
    folder = copy_of(packed, tmp_path / "short")
    with open(folder / "train-000000.tar", "ab") as file:
        file.truncate(5000)
    with pytest.raises(CorruptData, match="shard of 5000 bytes"):
        CubeStream(Dataset(folder), "train", batch_size=1)


def test_an_index_of_another_format_names_the_mending_command(packed: Path, tmp_path: Path) -> None:
    folder = copy_of(packed, tmp_path / "old")
    index = index_path(folder / "train-000000.tar")
    content = index.read_bytes().replace(FORMAT.encode(), b"retinaforge-index-1")
    index.write_bytes(content)
    with pytest.raises(CorruptData, match="retinaforge-index-1") as caught:
        open_index(index)
    assert "retinaforge data index" in str(caught.value)


# --- bombs and forgeries --------------------------------------------------------------------------------------------


def forged(**changed) -> ShardIndex:
    layout = Layout.fitting((2, 8, 8), 2, 1 << 16)
    fields = {
        "shard": "x.tar",
        "shard_bytes": 10_000,
        "sha256": "0" * 64,
        "dtype": "uint16",
        "members": ("cube.raw", "json"),
        "keys": Names.of(["a", "b"]),
        "subjects": Names.of(["p", "q"]),
        "shape_N3": np.array([[2, 8, 8]] * 2),
        "offset_NM": np.array([[512, 1024], [2048, 3072]]),
        "size_NM": np.array([[256, 30], [256, 30]]),
        "crc_NM": np.zeros((2, 2)),
        "block": layout.block,
        "edge_NK1": np.array([[0, 256]] * 2),
        "block_crc_NK": np.zeros((2, 1)),
    }
    return ShardIndex(**{**fields, **changed})


def test_the_forged_index_is_sound_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "x.index").write_bytes(index_bytes(forged()))
    assert list(open_index(tmp_path / "x.index").keys) == ["a", "b"]


@pytest.mark.parametrize(
    "changed",
    [
        {"offset_NM": np.array([[512, 1024], [2**63, 3072]], np.uint64)},
        {"size_NM": np.array([[256, 30], [20_000, 30]])},
        {"shape_N3": np.array([[2, 8, 8], [2, 8, 9]])},
        {"shape_N3": np.array([[0, 8, 8]] * 2)},
        {"block": (3, 8)},
        {"block": (0, 1)},
        {"block": (2, 4)},
        {"edge_NK1": np.array([[0, 255]] * 2)},
        {"edge_NK1": np.array([[256, 256]] * 2)},
        {"edge_NK1": np.array([[0, 128, 256]] * 2)},
        {"block_crc_NK": np.zeros((2, 2))},
        {"members": ("cube.raw",)},
        {"members": ("cube.pkl", "json")},
    ],
    ids=str,
)
def test_an_index_at_odds_with_itself_is_refused(changed, tmp_path: Path) -> None:
    (tmp_path / "x.index").write_bytes(index_bytes(forged(**changed)))
    with pytest.raises(CorruptData):
        open_index(tmp_path / "x.index")


def test_a_sample_that_claims_to_be_huge_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    import tarfile
    from io import BytesIO

    meta = {"wavelengths_nm": [1], "scale": 1, "subject_id": "q", "shape": [1, 1 << 20, 1 << 20], "dtype": "uint16"}
    with tarfile.open(tmp_path / "train-000000.tar", "w") as tar:
        for name, content in (("a.json", json.dumps(meta).encode()), ("a.cube.blosc2", b"RFBLOCK1" + bytes(100))):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, BytesIO(content))
    tracemalloc.start()
    with pytest.raises(InputError, match="below 4 GiB"):
        scan_shard(tmp_path / "train-000000.tar")
    assert tracemalloc.get_traced_memory()[1] < 50 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "changed",
    [
        {"dtype": "O"},
        {"dtype": "nonsense"},
        {"size_NM": np.array([[256, 30], [2**63, 30]], np.uint64)},
        {"shape_N3": np.full((2, 3), 2**31)},
    ],
    ids=str,
)
def test_a_forged_index_takes_no_memory(changed, tmp_path: Path) -> None:
    (tmp_path / "x.index").write_bytes(index_bytes(forged(**changed, block=None, edge_NK1=np.zeros((2, 0)), block_crc_NK=np.zeros((2, 0)))))
    with pytest.raises(CorruptData):
        open_index(tmp_path / "x.index")


FORGERIES = {
    "shards.0.name": ["../../escaped.tar", "/tmp/escaped.tar", ".part-x.tar", "a/b.tar", "train-000000"],
    "shards.0.split": ["elsewhere"],
    "shards.0.count": ["3", -1, 2.5, True],
    "splits": [{"../../escaped": {"count": 3, "subjects": 1}, "train": {"count": 3, "subjects": 1}}],
    "dtype": ["O", "float64"],
    "payload": ["pickle"],
    "shape": [[4, 16], [0, 16, 16], [1 << 20, 1 << 20, 1 << 20], [4.0, 16, 16]],
}


@pytest.mark.parametrize(("place", "value"), [(place, value) for place, values in FORGERIES.items() for value in values], ids=str)
def test_a_forged_manifest_is_refused(sets, tmp_path: Path, place: str, value) -> None:
    """As an attacker would write it: with checksums that fit."""
    from data_shards import durable, manifest

    fields = json.loads((sets["raw"] / NAME).read_text())
    fields.pop("sha256")
    holder, *_, last = fields, *place.split(".")
    for part in place.split(".")[:-1]:
        holder = holder[int(part) if part.isdigit() else part]
    holder[last] = value
    (tmp_path / NAME).write_bytes(durable.readable_json(manifest._checked(fields)))
    with pytest.raises(CorruptData):
        read_manifest(tmp_path)


def test_json_without_end_is_corrupt_and_no_crash(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("[" * 200_000)
    with pytest.raises(CorruptData):
        read_manifest(tmp_path)
    with open(tmp_path / NAME, "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CorruptData, match="a file of"):
        read_manifest(tmp_path)


def test_an_index_of_other_bands_than_the_manifest_gives_no_batch(sets, packed: Path) -> None:
    manifest = read_manifest(packed)
    for shape, crop in (((9, 32, 32), (8, 8)), ((4, 32, 48), (8, 8)), ((3, 32, 32), None)):
        lying = manifest.__class__(**{**vars(manifest), "shape": shape})
        with pytest.raises(CorruptData, match="as in dataset.json"):
            next(CubeStream(Dataset(packed, lying), "train", batch_size=2, crop=crop).batches())


def test_more_shards_than_may_be_open_are_read(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from data_shards.reading import dataset as module

    monkeypatch.setattr(module, "OPEN_SHARDS", 1)
    dataset = Dataset(packed)
    keys = [k for split in ("train", "val", "test", "train") for k in dataset.keys(split)]
    assert len(keys) == 72 and len(dataset._open) == 1
    held = len(list(Path("/proc/self/fd").iterdir()))
    for i in range(32):
        dataset.cube("train", i)
    assert len(list(Path("/proc/self/fd").iterdir())) <= held + 1


# --- size -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of a million samples: a manifest and indexes, no arrays. 40 shards of 25 000 latents."""
    import hashlib

    folder, each, shards = tmp_path_factory.mktemp("many"), 25_000, []
    real = tmp_path_factory.mktemp("one") / "set"
    write_dataset(real, {"train": [made_cube(0)]}, source={})
    manifest, rng = read_manifest(real), np.random.default_rng(0)
    for s in range(40):
        names = np.char.add("k", np.char.zfill((np.arange(each) + s * each).astype(str), 9)).astype("S64")
        rows = np.zeros((each, 64), np.uint8)
        rows[:, :10] = names.view(np.uint8).reshape(each, 64)[:, :10]
        index = forged(
            shard=f"train-{s:06d}.tar",
            shard_bytes=each * 30_000,
            keys=Names(rows),
            subjects=Names(rows),
            shape_N3=np.tile(np.array([[2, 8, 8]], np.uint32), (each, 1)),
            offset_NM=np.arange(each * 2, dtype=np.uint64).reshape(each, 2) * 1024,
            size_NM=np.tile(np.array([[256, 30]], np.uint64), (each, 1)),
            crc_NM=rng.integers(0, 1 << 32, (each, 2), np.uint32),
            edge_NK1=np.tile(np.array([[0, 256]], np.uint32), (each, 1)),
            block_crc_NK=rng.integers(0, 1 << 32, (each, 1), np.uint32),
        )
        content = index_bytes(index)
        index_path(folder / index.shard).write_bytes(content)
        entry = manifest.shards[0].__class__(
            name=index.shard,
            split="train",
            count=each,
            bytes=index.shard_bytes,
            sha256="0" * 64,
            index_sha256=hashlib.sha256(content).hexdigest(),
        )
        with open(folder / index.shard, "wb") as file:
            file.truncate(index.shard_bytes)  # a hole: no bytes on the disk
        shards.append(entry)
    write_manifest(
        folder,
        manifest.__class__(
            **{
                **vars(manifest),
                "shape": (2, 8, 8),
                "shards": tuple(shards),
                "splits": {"train": {"count": 40 * each, "subjects": 40 * each}},
            }
        ),
    )
    return folder


def test_a_million_samples_open_within_a_second_and_cost_little_memory(many: Path) -> None:
    """Time is told, not asserted (it depends on the machine); memory is: indexes are mapped."""
    import time

    def anonymous_kib() -> int:
        return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")).split()[1])

    before, began = anonymous_kib(), time.perf_counter()
    dataset = Dataset(many)
    assert dataset.count("train") == 1_000_000
    found = [shard.index.keys[0] for shard in dataset.shards("train")]
    print(f"opened 1 M samples in {time.perf_counter() - began:.2f} s, {(anonymous_kib() - before) >> 10} MiB")
    assert len(found) == 40 and anonymous_kib() - before < 40 << 10
    rng = np.random.default_rng(1)
    for i in rng.integers(0, 1_000_000, 3000):
        shard, row = dataset.locate("train", int(i))
        assert shard.index.keys[row] == f"k{i:09d}"
    assert anonymous_kib() - before < 40 << 10
    assert NAME in {path.name for path in many.iterdir()}


def test_memory_stays_flat_over_an_epoch(packed: Path) -> None:
    stream = CubeStream(Dataset(packed), "train", batch_size=4, crop=(16, 16))
    batches = stream.batches(0)
    for _ in range(16):
        next(batches)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(200):
        next(batches)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    batches.close()
    assert grown < 200_000


def test_a_region_outside_of_a_whole_read_is_the_same_region(sets) -> None:
    """Shards of mixed shapes have no blocks in the index and are read whole."""
    from dataclasses import replace

    dataset = Dataset(sets["pcodec"])
    shard, row = dataset.locate("train", 2)
    whole = shard.cube(row).data_CHW
    shard.layout, shard.index = None, replace(shard.index, block=None)
    out = np.empty((1, 5, 6), np.uint16)
    shard.array_into(row, out, region=Region(3, 8, 2, 8, (1,)))
    assert np.array_equal(out, whole[1:2, 3:8, 2:8])


# --- a bad sector ---------------------------------------------------------------------------------------------------


@pytest.fixture
def bad_sector(packed: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, int]:
    """A byte in the array of the training split's sample 5 that the disk cannot give, whoever asks; its key, and the tries counted."""
    monkeypatch.setattr(retry, "PAUSES_S", (0.001, 0.001))
    monkeypatch.setattr(local, "retrying", lambda action, where: retry.retrying(action, where, retry.PAUSES_S))
    shard, row = Dataset(packed).locate("train", 5)
    m, _ = shard.index.payload(row)
    at, real = int(shard.index.offset_NM[row, m]) + 100, os.preadv
    tries: list[int] = []

    def preadv(fd: int, buffers: list, offset: int) -> int:
        if offset <= at < offset + len(buffers[0]) and os.readlink(f"/proc/self/fd/{fd}").endswith("train-000000.tar"):
            tries.append(offset)
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, buffers, offset)

    monkeypatch.setattr(local.os, "preadv", preadv)
    return shard.index.keys[row], tries


def test_a_bad_sector_is_corrupt_data_that_names_its_sample(packed: Path, bad_sector) -> None:
    key, tries = bad_sector
    with pytest.raises(CorruptData, match="Input/output error") as caught:
        Dataset(packed).cube("train", 5)
    assert f"sample {key}" in str(caught.value.where) and len(tries) == 3, "after the retries"


@pytest.mark.parametrize("crop", [None, (32, 32)])
def test_bad_share_bears_a_bad_sector_and_asks_for_it_once(packed: Path, bad_sector, crop) -> None:
    key, tries = bad_sector
    stream = CubeStream(Dataset(packed), "train", batch_size=4, crop=crop, read=ReadConfig(bad_share=0.05, threads=1, ahead=0))
    seen = [k for _, batch in zip(range(3 * 8), stream.batches(), strict=False) for k in batch.keys]
    assert len(seen) == 96 and key not in seen and len(tries) == 3


def test_a_file_system_that_is_away_is_still_asked_for_again_later(packed: Path, bad_sector, monkeypatch) -> None:
    def away(*_: object) -> int:
        raise OSError(errno.ESTALE, "Stale file handle")

    dataset = Dataset(packed)
    dataset.locate("train", 0)
    monkeypatch.setattr(local.os, "preadv", away)
    with pytest.raises(TryAgain, match="Stale file handle"):
        dataset.cube("train", 0)


@pytest.mark.parametrize("read", [read_manifest, lambda folder: list(read_shard(folder / "train-000000.tar"))])
def test_a_bad_sector_under_manifest_or_bare_shard_is_corrupt_data(packed: Path, read, monkeypatch: pytest.MonkeyPatch) -> None:
    def bad(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(local, "retrying", lambda action, where: retry.retrying(action, where, (0.001,)))
    monkeypatch.setattr(local.os, "preadv", bad)
    with pytest.raises(CorruptData, match="Input/output error"):
        read(packed)


def test_verify_names_the_sample_under_a_bad_sector(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard, row = Dataset(packed).locate("train", 5)
    at, real = int(shard.index.offset_NM[row].max()), open

    class Bad(io.FileIO):
        def readinto(self, buffer) -> int:
            if self.tell() <= at < self.tell() + len(buffer):
                raise OSError(errno.EIO, "Input/output error")
            return super().readinto(buffer)

    def opened(path, mode="r", *words, **options):
        bad = str(path).endswith("train-000000.tar")
        return io.BufferedReader(Bad(path), 512) if bad else real(path, mode, *words, **options)

    monkeypatch.setattr("builtins.open", opened)
    found = dict(verify(packed))["train-000000.tar"]
    assert any(f"sample {shard.index.keys[row]}" in fault and "Input/output error" in fault for fault in found), found
