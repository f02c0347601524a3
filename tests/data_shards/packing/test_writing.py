"""The writer, which reads nothing again, against plain ways that do: the tar by `tarfile`, the index by a scan, the sums in Python."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_shards import durable
from data_shards.cube import Cube, CubeMeta
from data_shards.packing import writing
from data_shards.packing.pack import write_one
from data_shards.packing.statistics import BandTally, Histogram, addends
from data_shards.packing.units import alike, read_unit, write_unit
from data_shards.packing.writing import write_shard
from data_shards.shards.codecs import Encoding
from data_shards.shards.index import index_bytes, index_path
from data_shards.shards.shard import members_of, scan_shard

SHAPES = {"small": ((2, 8, 8), 700), "medium": ((16, 96, 96), 9), "large": ((5, 700, 690), 3)}
ENCODINGS = (Encoding(), Encoding("npy"), Encoding("tiles", tile=32), Encoding("blosc2"), Encoding("pcodec", tile=64), Encoding("near", 2))
# what digests begin with, of shard and index, by the writer before this one, which read all of it again
GOLDEN = {
    "small": (
        "52cf116ebbfabaa7",
        "d9727f09d0fbd16f",
    ),
    "medium": (
        "2bc43cb0f47a3fef",
        "64b48e94bd79a33a",
    ),
    "large": (
        "355f132af179f0d9",
        "6e5075cb5012e43b",
    ),
}


def cubes(shape: tuple[int, int, int], count: int, dtype: str = "uint16", *, maps: bool = True) -> Iterator[Cube]:
    rng = np.random.default_rng(7)
    c, *frame = shape
    for i in range(count):
        data_CHW = rng.integers(0, 4096, shape).astype(np.uint16) if dtype == "uint16" else rng.normal(size=shape).astype(np.float32)
        said = {"refused": ["range", "spectrum"]} if i == 2 else {}
        meta = CubeMeta(
            key=f"k{i:04d}",
            subject_id=f"p{i % 5}é",
            wavelengths_nm=tuple(500.0 + b for b in range(c)),
            scale=2e-4,
            offset=-0.01,
            notes=said,
        )
        fov_HW = rng.random(frame) > 0.3 if maps else None
        labels_HW = rng.integers(0, 4, frame).astype(np.uint8) if maps and i % 3 else None  # some samples have fewer members
        yield Cube(data_CHW=data_CHW, meta=meta, fov_HW=fov_HW, labels_HW=labels_HW)


def plainly(path: Path, samples: list[Cube], encoding: Encoding, stem: str) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for cube in samples:
            for member, content in members_of(cube, encoding, stem):
                info = tarfile.TarInfo(f"{cube.meta.key}.{member}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.parametrize("size", SHAPES)
def test_tar_and_index_are_those_of_tarfile_and_of_a_scan(tmp_path: Path, size: str, dtype: str, encoding: Encoding) -> None:
    if encoding.codec == "near" and dtype == "float32":
        pytest.skip("near is of counts")
    shape, count = SHAPES[size]
    samples, stem = list(cubes(shape, min(count, 50), dtype)), "cube" if dtype == "uint16" else "latent"
    shard = tmp_path / "train-000000.tar"
    index = write_shard(shard, samples, encoding, stem=stem)
    plainly(tmp_path / "plain.tar", samples, encoding, stem)
    assert shard.read_bytes() == (tmp_path / "plain.tar").read_bytes()
    assert index_path(shard).read_bytes() == index_bytes(index) == index_bytes(scan_shard(shard))


def test_arrays_of_several_shapes_are_indexed_as_a_scan_does(tmp_path: Path) -> None:
    samples = [*cubes((2, 8, 8), 3), *(replace(c, meta=replace(c.meta, key=f"{c.meta.key}b")) for c in cubes((2, 300, 200), 2))]
    index = write_shard(tmp_path / "a.tar", samples)
    assert index.block is None and index_bytes(index) == index_bytes(scan_shard(tmp_path / "a.tar"))


@pytest.mark.parametrize("size", SHAPES)
def test_shards_are_those_of_the_writer_before(tmp_path: Path, size: str) -> None:
    shard = tmp_path / "synthetic-000000.tar"
    write_unit(shard, "synthetic", cubes(*SHAPES[size], maps=False))  # a PNG depends on the version of zlib
    assert (durable.sha256_of(shard)[:16], durable.sha256_of(index_path(shard))[:16]) == GOLDEN[size]


@pytest.mark.parametrize("maps", [False, True])
def test_sums_of_counts_are_exact_and_the_same_in_any_order_and_grouping(maps: bool) -> None:
    samples = list(cubes((3, 17, 20), 12, maps=maps))
    samples[4] = replace(samples[4], data_CHW=samples[4].data_CHW + np.uint16(60000))  # some far above the rest
    one, other = BandTally(), BandTally()
    one.enter(addends(samples))
    for cube in reversed(samples):
        other.enter(addends([cube]))
    assert one.sums().fields() == other.sums().fields()
    pixels = [np.concatenate([c.data_CHW[b][c.fov_HW if maps else ...].ravel() for c in samples]).tolist() for b in range(3)]
    sums = one.sums()
    assert sums.sums_C == [sum(p) for p in pixels] and sums.squares_C == [sum(v * v for v in p) for p in pixels]
    assert (sums.min_C, sums.max_C, sums.values) == ([min(p) for p in pixels], [max(p) for p in pixels], len(pixels[0]))


def test_sums_of_counts_do_not_overflow() -> None:
    many = 1 << 40
    sums = Histogram([np.eye(1, 65536, 65535, np.int64)[0] * many], 0.0, many).sums()
    assert sums.squares_C == [many * 65535**2] and sums.sums_C == [many * 65535]


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_neither_threads_nor_groups_change_a_byte_nor_a_sum(tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def record(threads: int, group: int) -> bytes:
        folder = tmp_path / f"{threads}-{group}"
        folder.mkdir()
        monkeypatch.setattr(writing, "_threads", lambda: threads)
        monkeypatch.setattr(writing, "GROUP_CUBES", group)
        write_unit(folder / "a.tar", "train", cubes((2, 90, 80), 23, dtype))
        return (folder / "a.unit").read_bytes()

    assert len({record(threads, group) for threads, group in [(1, 1), (1, 256), (4, 1), (3, 7)]}) == 1


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_a_record_made_of_a_shard_that_stands_is_that_of_its_writer(tmp_path: Path, dtype: str) -> None:
    shard = tmp_path / "a.tar"
    write_unit(shard, "train", cubes((2, 90, 80), 23, dtype))
    before = (tmp_path / "a.unit").read_bytes()
    for suffix in ("unit", "index"):
        (tmp_path / f"a.{suffix}").unlink()
    write_unit(shard, "train", iter(()))
    assert (tmp_path / "a.unit").read_bytes() == before and read_unit(shard).refused == {"range": 1, "spectrum": 1}


def test_memory_does_not_grow_with_the_shard(tmp_path: Path) -> None:
    """Only so many cubes are asked for ahead of what is written."""
    asked, written = [0], [0]
    real = writing._Tar.add

    def counted(*words: object) -> int:
        written[0] += 1
        return real(*words)

    def lazily() -> Iterator[Cube]:
        for cube in cubes((16, 200, 200), 30, maps=False):
            asked[0] += 1
            assert asked[0] - written[0] // 2 <= writing.THREADS + 2
            yield cube

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing._Tar, "add", counted)
        write_one(tmp_path / "a.tar", "train", lazily(), next(cubes((16, 200, 200), 1, maps=False)), Encoding())
    assert asked == [30]


def test_what_fails_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    samples = list(cubes((2, 300, 300), 6))
    samples[5] = replace(samples[5], data_CHW=samples[5].data_CHW[:, :, :200], fov_HW=None, labels_HW=None)
    with pytest.raises(ValueError, match="shape"):
        write_shard(tmp_path / "a.tar", alike(samples, samples[0]))
    assert not list(tmp_path.iterdir())


def test_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    index = write_shard(tmp_path / "a.tar", cubes((16, 200, 200), 30, maps=False))
    assert index.sha256 == hashlib.sha256((tmp_path / "a.tar").read_bytes()).hexdigest()


def test_a_key_that_comes_twice_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    one = next(cubes((2, 8, 8), 1))
    with pytest.raises(ValueError, match="'k0000' stands twice"):
        write_shard(tmp_path / "a.tar", [one, one])
    assert not list(tmp_path.iterdir())
