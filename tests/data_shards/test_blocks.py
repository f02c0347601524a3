"""Blocks: every codec gives back what it was given (or keeps its bound), and a region costs the bytes of its blocks alone."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards import payload
from data_shards.codecs import CODECS, STORED, get_codec
from data_shards.codecs.pco import Near
from data_shards.cube import Cube
from data_shards.dataset import Dataset
from data_shards.errors import CorruptData, InputError
from data_shards.layout import Layout, Region
from data_shards.pack import write_dataset
from data_shards.stream import CubeStream
from tests.conftest import made_cube

ALL = (*STORED, *CODECS)
SHAPE = (5, 300, 500)  # three blocks a band


def coder(name: str):
    return get_codec(name, 2 if name == "near" else 0)


def smooth(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (2000 + 300 * np.sin(np.arange(np.prod(shape)) / 40) + rng.normal(0, 8, int(np.prod(shape)))).astype(np.uint16).reshape(shape)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    """The same three cubes of several blocks, in every codec."""
    folder = tmp_path_factory.mktemp("codecs")
    for name in ALL:
        cubes = (large_cube(i) for i in range(3))
        write_dataset(folder / name, {"train": cubes}, codec=name, max_error=2 if name == "near" else 0, source={})
    return {name: Dataset(folder / name) for name in ALL}


def large_cube(i: int) -> Cube:
    small = made_cube(i, bands=SHAPE[0])
    return replace(small, data_CHW=smooth(SHAPE, i), labels_HW=None, fov_HW=None)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 40), st.integers(1, 40)), block=st.integers(1, 4000), itemsize=st.sampled_from([2, 4])
)
def test_blocks_are_neighbouring_runs_that_fill_the_array(shape, block: int, itemsize: int) -> None:
    layout = Layout.fitting(shape, itemsize, block)
    starts = [layout.start(k) for k in range(len(layout) + 1)]
    assert starts[0] == 0 and starts[-1] == np.prod(shape) and starts == sorted(set(starts))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), shape=st.tuples(st.integers(1, 6), st.integers(1, 40), st.integers(1, 40)), block=st.integers(1, 4000))
def test_the_blocks_of_a_region_hold_it(data, shape, block: int) -> None:
    layout, numbers = Layout.fitting(shape, 2, block), np.arange(np.prod(shape)).reshape(shape)
    top, left = data.draw(st.integers(0, shape[1] - 1)), data.draw(st.integers(0, shape[2] - 1))
    region = Region(top, data.draw(st.integers(top + 1, shape[1])), left, data.draw(st.integers(left + 1, shape[2])), (shape[0] - 1,))
    held = {n for run in layout.runs(region) for n in range(layout.start(run.first), layout.start(run.last))}
    assert set(numbers[-1, region.top : region.bottom, region.left : region.right].ravel().tolist()) <= held


@pytest.mark.parametrize("name", [n for n in ALL if n != "near"])
@settings(max_examples=15, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 60), st.integers(1, 60)),
    dtype=st.sampled_from(["uint16", "float32"]),
    seed=st.integers(0, 99),
)
def test_a_lossless_codec_gives_back_every_value(name: str, shape, dtype: str, seed: int) -> None:
    array = np.random.default_rng(seed).integers(0, 65536, shape).astype(dtype)
    content, out = payload.encode(array, name, coder(name)), np.empty(shape, dtype)
    payload.decode_into(content, name, out, "here")
    assert np.array_equal(out, array)


@settings(max_examples=80, deadline=None)
@given(bound=st.integers(1, Near.LARGEST), low=st.integers(0, 65535), seed=st.integers(0, 99))
def test_near_keeps_its_bound_up_to_the_largest_count(bound: int, low: int, seed: int) -> None:
    array = np.random.default_rng(seed).integers(low, 65536, (2, 20, 20)).astype(np.uint16)
    array[0, 0, :4] = 65535, 65534, low, 0
    out = np.empty_like(array)
    payload.decode_into(payload.encode(array, "near", get_codec("near", bound)), "near", out, "here")
    assert np.abs(out.astype(np.int32) - array).max() <= bound


def test_near_is_smaller_than_lossless_and_its_bound_is_in_the_manifest(sets) -> None:
    sizes = {name: sum(s.bytes for s in data.manifest.shards) for name, data in sets.items()}
    assert sizes["near"] < sizes["pcodec"] < sizes["raw"]
    assert {name: data.manifest.max_error for name, data in sets.items()} == {name: 2 if name == "near" else 0 for name in ALL}
    for i in range(3):
        off = np.abs(sets["near"].cube("train", i).data_CHW.astype(int) - sets["raw"].cube("train", i).data_CHW)
        assert 0 < off.max() <= 2
    stored = np.concatenate([sets["near"].cube("train", i).data_CHW.reshape(SHAPE[0], -1) for i in range(3)], axis=1)
    np.testing.assert_allclose(sets["near"].stats.mean_C, stored.mean(1) / 4095, rtol=1e-12, err_msg="statistics of what is stored")


@pytest.mark.parametrize(("name", "bound"), [("near", 0), ("near", 256), ("raw", 1), ("pcodec", 2)])
def test_a_bound_where_there_is_none_is_refused(name: str, bound: int) -> None:
    with pytest.raises(InputError, match="maximum error"):
        get_codec(name, bound)


@pytest.mark.parametrize("name", ALL)
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
    assert sum(read) == sum(edges[run.last] - edges[run.first] for run in shard.layout.runs(region))
    assert sum(read) < 0.9 * edges[-1]


@pytest.mark.parametrize("name", ALL)
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
            with pytest.raises(CorruptData, match=rf"sample c0000, member cube\.{name}"):
                Dataset(tmp_path).locate("train", 0)[0].array_into(
                    row, np.empty((1, 4, 4), np.uint16), region=Region(top, top + 4, 0, 4, (band,))
                )


@pytest.mark.parametrize("name", CODECS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_damaged_payloads_are_refused_and_never_unfold_beyond_their_array(name: str, data) -> None:
    """Without their checksums: what a decoder itself makes of damage. Nothing but CorruptData, or other values of the right size."""
    array = smooth((2, 40, 50))
    content = bytearray(payload.encode(array, name, coder(name)))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, min(len(content) - 1, 200)))] ^= 1 << data.draw(st.integers(0, 7))
    guard = np.full(array.size + 2000, 7, np.uint16)
    with contextlib.suppress(CorruptData):
        payload.decode_into(bytes(content), name, guard[1000:-1000].reshape(array.shape), "here")
    assert (guard[:1000] == 7).all() and (guard[-1000:] == 7).all()


@pytest.mark.parametrize("name", ALL)
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
