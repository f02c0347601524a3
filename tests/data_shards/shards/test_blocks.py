"""Blocks: every codec gives back what it was given (or keeps its bound), and a region costs the bytes of its blocks alone."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.cube import Cube
from data_shards.errors import CorruptData, InputError
from data_shards.packing.pack import write_dataset
from data_shards.reading.config import ReadConfig
from data_shards.reading.dataset import Dataset
from data_shards.reading.reader import PIECE_BYTES
from data_shards.reading.stream import CubeStream
from data_shards.shards import payload
from data_shards.shards.codecs import BARE, CODECS, STORED, Encoding
from data_shards.shards.codecs.pco import Near
from data_shards.shards.layout import Layout, Region, paste
from tests.conftest import made_cube

ALL = (*STORED, *CODECS)
IN_TILES = tuple(f"{name}, in tiles" for name in ALL if name not in BARE)
SHAPE = (5, 300, 500)  # three blocks a band


def encoding_of(kind: str) -> Encoding:
    """'near, in tiles' → that codec with a bound of 2, in tiles of 70 pixels."""
    name, _, tiles = kind.partition(",")
    return Encoding(name, 2 if name == "near" else 0, 70 if tiles else 0)


def smooth(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (2000 + 300 * np.sin(np.arange(np.prod(shape)) / 40) + rng.normal(0, 8, int(np.prod(shape)))).astype(np.uint16).reshape(shape)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    """The same three cubes of several blocks, in every codec."""
    folder = tmp_path_factory.mktemp("codecs")
    for kind in (*ALL, *IN_TILES):
        write_dataset(folder / kind, {"train": (large_cube(i) for i in range(3))}, **asdict(encoding_of(kind)), source={})
    return {kind: Dataset(folder / kind) for kind in (*ALL, *IN_TILES)}


def large_cube(i: int) -> Cube:
    small = made_cube(i, bands=SHAPE[0])
    return replace(small, data_CHW=smooth(SHAPE, i), labels_HW=None, fov_HW=None)


SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 40), st.integers(1, 40))
LAYOUTS = st.builds(lambda cut, size, of: cut(of, 2, size), st.sampled_from([Layout.fitting, Layout.tiled]), st.integers(1, 4000), SHAPES)


@settings(max_examples=100, deadline=None)
@given(layout=LAYOUTS)
def test_blocks_fill_the_array_one_behind_the_other(layout: Layout) -> None:
    starts = [layout.start(k) for k in range(len(layout) + 1)]
    assert starts[0] == 0 and starts[-1] == np.prod(layout.shape) and starts == sorted(set(starts))


@settings(max_examples=100, deadline=None)
@given(data=st.data(), shape=SHAPES, bands=st.integers(1, 6), rows=st.integers(1, 40), columns=st.integers(1, 40))
def test_the_boxes_of_a_region_give_it_back_and_no_others_are_needed(data, shape, bands: int, rows: int, columns: int) -> None:
    """Any blocks at all, as another writer's payload may have them."""
    c, h, w = shape
    layout, array = Layout(shape, min(bands, c), min(rows, h), min(columns, w)), np.arange(np.prod(shape)).reshape(shape)
    top, left = data.draw(st.integers(0, h - 1)), data.draw(st.integers(0, w - 1))
    some = data.draw(st.none() | st.lists(st.integers(0, c - 1), min_size=1, unique=True).map(tuple))
    region = Region(top, data.draw(st.integers(top + 1, h)), left, data.draw(st.integers(left + 1, w)), some)
    boxes = [box for run in layout.runs(region) for box in run]
    wanted = array[list(range(c) if some is None else some), region.top : region.bottom, region.left : region.right]
    out = np.full(wanted.shape, -1)
    for box in boxes:
        at = tuple(slice(a, a + n) for a, n in zip(box[2:5], box.shape, strict=True))
        assert layout.start(box.last) - layout.start(box.first) == np.prod(box.shape), "as large as its blocks"
        assert np.isin(wanted, array[at]).any(), "holds something that is wanted"
        paste(array[at].ravel(), box, region, out)
    assert np.array_equal(out, wanted)
    read = [k for run in layout.runs(region) for k in range(run[0].first, run[-1].last)]
    assert read == [k for box in boxes for k in range(box.first, box.last)] == sorted(set(read))


@pytest.mark.parametrize("kind", [n for n in (*ALL, *IN_TILES) if not n.startswith("near")])
@settings(max_examples=15, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 60), st.integers(1, 60)),
    dtype=st.sampled_from(["uint16", "float32"]),
    seed=st.integers(0, 99),
)
def test_a_lossless_codec_gives_back_every_value(kind: str, shape, dtype: str, seed: int) -> None:
    array, encoding = np.random.default_rng(seed).integers(0, 65536, shape).astype(dtype), replace(encoding_of(kind), tile=0)
    if "tiles" in kind:
        encoding = replace(encoding, tile=1 + seed)
    content, out = payload.encode(array, encoding), np.empty(shape, dtype)
    payload.decode_into(content, encoding.codec, out, "here")
    assert np.array_equal(out, array)


@settings(max_examples=80, deadline=None)
@given(bound=st.integers(1, Near.LARGEST), low=st.integers(0, 65535), seed=st.integers(0, 99))
def test_near_keeps_its_bound_up_to_the_largest_count(bound: int, low: int, seed: int) -> None:
    array = np.random.default_rng(seed).integers(low, 65536, (2, 20, 20)).astype(np.uint16)
    array[0, 0, :4] = 65535, 65534, low, 0
    out = np.empty_like(array)
    payload.decode_into(payload.encode(array, Encoding("near", bound)), "near", out, "here")
    assert np.abs(out.astype(np.int32) - array).max() <= bound


def test_near_is_smaller_than_lossless_and_its_bound_is_in_the_manifest(sets) -> None:
    sizes = {name: sum(s.bytes for s in sets[name].manifest.shards) for name in ALL}
    assert sizes["near"] < sizes["pcodec"] < sizes["raw"]
    assert {kind: data.manifest.max_error for kind, data in sets.items()} == {kind: 2 * kind.startswith("near") for kind in sets}
    for i in range(3):
        off = np.abs(sets["near"].cube("train", i).data_CHW.astype(int) - sets["raw"].cube("train", i).data_CHW)
        assert 0 < off.max() <= 2
    stored = np.concatenate([sets["near"].cube("train", i).data_CHW.reshape(SHAPE[0], -1) for i in range(3)], axis=1)
    np.testing.assert_allclose(sets["near"].stats.mean_C, stored.mean(1) / 4095, rtol=1e-12, err_msg="statistics of what is stored")


@pytest.mark.parametrize(("name", "bound"), [("near", 0), ("near", 256), ("raw", 1), ("pcodec", 2)])
def test_a_bound_where_there_is_none_is_refused(name: str, bound: int) -> None:
    with pytest.raises(InputError, match="maximum error"):
        Encoding(name, bound)


@pytest.mark.parametrize(("name", "tile"), [("raw", 64), ("npy", 1), ("blosc2", -1)])
def test_tiles_where_there_are_none_are_refused(name: str, tile: int) -> None:
    with pytest.raises(InputError, match=f"tiles of {tile} pixels"):
        Encoding(name, tile=tile)


@pytest.mark.parametrize("name", [*ALL, *IN_TILES])
@pytest.mark.parametrize(
    "region", [Region(0, 300, 0, 500, (3, 0)), Region(131, 132, 0, 500), Region(100, 270, 77, 333, (1, 2, 4)), Region(299, 300, 499, 500)]
)
def test_a_region_is_that_part_of_the_cube_and_costs_its_blocks_alone(sets, name: str, region: Region, monkeypatch) -> None:
    dataset = sets[name]
    whole = dataset.cube("train", 1).data_CHW
    shard, row = dataset.locate("train", 1)
    bands = range(SHAPE[0]) if region.bands is None else region.bands
    out, read = np.empty((len(bands), region.bottom - region.top, region.right - region.left), np.uint16), []
    real = shard.file.read_into
    monkeypatch.setattr(shard.file, "read_into", lambda buffer, offset: read.append(len(buffer)) or real(buffer, offset))
    shard.array_into(row, out, region=region)
    assert np.array_equal(out, whole[list(bands), region.top : region.bottom, region.left : region.right])
    edges = shard.index.edge_NK1[row].astype(int)
    wanted = [int(edges[run[-1].last] - edges[run[0].first]) for run in shard.layout.runs(region)]
    assert sum(read) == sum(wanted) and (read == wanted or max(wanted) > PIECE_BYTES), "one read a run, large ones by pieces"
    tiles_of_all_bands = shard.layout.bands == SHAPE[0] and region.bottom - region.top == SHAPE[1]
    assert sum(read) < 0.9 * edges[-1] or tiles_of_all_bands


def test_the_disk_is_told_of_what_will_be_decoded_and_of_nothing_else(sets, monkeypatch) -> None:
    told: dict[str, set[int]] = {}
    for name, crop in (("blosc2", None), ("blosc2, in tiles", (80, 80)), ("raw", None), ("tiles", (80, 80))):
        ranges, read = told.setdefault(name, set()), set()
        for shard in sets[name].shards("train"):
            monkeypatch.setattr(shard.file, "expect", lambda at, size, ranges=ranges: ranges.update(range(at, at + size)))
            real = shard.file.read_into
            monkeypatch.setattr(
                shard.file, "read_into", lambda b, at, real=real, read=read: read.update(range(at, at + len(b))) or real(b, at)
            )
        batches = CubeStream(sets[name], "train", batch_size=1, crop=crop, read=ReadConfig(threads=1, ahead=0)).batches()
        for _ in range(3):
            next(batches)
        batches.close()
        if name.startswith("blosc2"):
            assert ranges and read, "the first is read at once"
            assert len(read - ranges) <= 0.4 * len(read), "all but the first batch"
    assert not told["raw"] and not told["tiles"]


@pytest.mark.parametrize("name", [*ALL, *IN_TILES])
def test_a_changed_byte_in_any_block_is_found_by_a_crop_that_reads_it(sets, name: str, tmp_path: Path) -> None:
    dataset = sets[name]
    shard, row = dataset.locate("train", 0)
    m, _ = shard.index.payload(row)
    start, edges = int(shard.index.offset_NM[row, m]), shard.index.edge_NK1[row].astype(int)
    content = bytearray(shard.path.read_bytes())
    for k in range(len(shard.layout)):
        content[start + (edges[k] + edges[k + 1]) // 2] ^= 1
    for path in dataset.path.iterdir():
        (tmp_path / path.name).write_bytes(bytes(content) if path.suffix == ".tar" else path.read_bytes())
    for band in range(SHAPE[0]):
        for top in (0, 140, 290):
            with pytest.raises(CorruptData, match=rf"sample c0000, member cube\.{name.partition(',')[0]}"):
                Dataset(tmp_path).locate("train", 0)[0].array_into(
                    row, np.empty((1, 4, 4), np.uint16), region=Region(top, top + 4, 0, 4, (band,))
                )


@pytest.mark.parametrize("name", ["tiles", *CODECS, *IN_TILES])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_damaged_payloads_are_refused_and_never_unfold_beyond_their_array(name: str, data) -> None:
    """Without their checksums: what a decoder itself makes of damage. Nothing but CorruptData, or other values of the right size."""
    array = smooth((2, 40, 50))
    content = bytearray(payload.encode(array, encoding_of(name)))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, min(len(content) - 1, 200)))] ^= 1 << data.draw(st.integers(0, 7))
    guard = np.full(array.size + 2000, 7, np.uint16)
    with contextlib.suppress(CorruptData):
        payload.decode_into(bytes(content), name.partition(",")[0], guard[1000:-1000].reshape(array.shape), "here")
    assert (guard[:1000] == 7).all() and (guard[-1000:] == 7).all()


@pytest.mark.parametrize("name", [*ALL, *IN_TILES])
def test_crops_come_at_the_same_place_whatever_the_world_and_differ_between_epochs(sets, name: str) -> None:
    def read(world: int) -> dict[int, tuple]:
        got = {}
        for rank in range(world):
            stream = CubeStream(sets[name], "train", batch_size=6 // world, rank=rank, world=world, crop=(64, 96), bands=(4, 1), seed=3)
            batch = next(stream.batches(0))
            for b, g in enumerate(batch.position_B):
                whole, (top, left) = sets[name].cube("train", int(batch.sample_B[b])).data_CHW, batch.corner_B2[b]
                assert np.array_equal(batch.cubes_BCHW[b].numpy(), whole[[4, 1], top : top + 64, left : left + 96])
                got[int(g)] = (int(batch.sample_B[b]), int(batch.epoch_B[b]), int(top), int(left))
        return got

    one = read(1)
    assert one == read(2) == read(3)
    places: dict[int, set] = {}
    for sample, _, *corner in one.values():
        places.setdefault(sample, set()).add(tuple(corner))
    assert all(len(corners) == 2 for corners in places.values()), "two epochs, two places"
    middle = CubeStream(sets[name], "train", batch_size=1, crop=(64, 96)).read(np.array([0]))
    assert middle.corner_B2.tolist() == [[118, 202]]


def test_crops_and_bands_that_a_cube_does_not_have_are_refused(dataset: Dataset) -> None:
    for wrong in ({"crop": (33, 8)}, {"crop": (0, 8)}, {"bands": (4,)}, {"bands": (1, 1)}, {"bands": ()}):
        with pytest.raises(InputError):
            CubeStream(dataset, "train", batch_size=1, **wrong)
