"""The order contract: a pure function of position, each sample once an epoch, one integer of state, any world size."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.folder import write_cube
from data_shards.packing.pack import pack
from data_shards.reading.config import ReadConfig
from data_shards.reading.dataset import Dataset
from data_shards.reading.order import sample_at
from data_shards.reading.stream import CubeStream
from tests.conftest import made_cube


@given(count=st.integers(1, 3000), seed=st.integers(0, 2**32), epoch=st.integers(0, 1000))
def test_each_epoch_is_a_permutation(count: int, seed: int, epoch: int) -> None:
    samples, epochs = sample_at(np.arange(epoch * count, (epoch + 1) * count), count=count, seed=seed)
    assert sorted(samples) == list(range(count))
    assert set(epochs) == {epoch}


def test_positions_do_not_depend_on_what_was_asked_before() -> None:
    whole, _ = sample_at(np.arange(500), count=97, seed=4)
    single = [int(sample_at(np.array([g]), count=97, seed=4)[0][0]) for g in range(500)]
    assert whole.tolist() == single


def test_the_order_is_the_one_written_down() -> None:
    """A golden value: a change here silently reorders every run that is being resumed."""
    samples, _ = sample_at(np.arange(12), count=10, seed=7)
    assert samples.tolist() == [8, 7, 6, 9, 1, 4, 0, 2, 5, 3, 9, 7]


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(sample_at(np.arange(50) + 50 * e, count=50, seed=s)[0]) for e in range(5) for s in range(5)}
    assert len(orders) == 25


@settings(max_examples=15, deadline=None)
@given(world=st.integers(1, 5), batch=st.integers(1, 7), consumed=st.integers(0, 200))
def test_ranks_together_read_the_one_global_sequence(packed, world: int, batch: int, consumed: int) -> None:
    dataset = Dataset(packed)
    reads = [
        islice(CubeStream(dataset, "train", batch_size=batch, rank=r, world=world, read=ReadConfig(check=False)).batches(consumed), 3)
        for r in range(world)
    ]
    got = {}
    for batches in zip(*reads, strict=True):
        for part in batches:
            got |= dict(zip(part.position_B.tolist(), part.sample_B.tolist(), strict=True))
    positions = np.arange(consumed, consumed + 3 * world * batch)
    assert sorted(got) == positions.tolist()
    assert [got[int(g)] for g in positions] == sample_at(positions, count=32, seed=0)[0].tolist()


def test_a_resume_continues_the_same_sequence(dataset: Dataset) -> None:
    whole = [b.keys for b in islice(CubeStream(dataset, "train", batch_size=6).batches(0), 12)]
    first = [b.keys for b in islice(CubeStream(dataset, "train", batch_size=6).batches(0), 5)]
    assert whole == first + [b.keys for b in islice(CubeStream(dataset, "train", batch_size=6).batches(30), 7)]


def test_batches_hold_the_samples_they_name(dataset: Dataset) -> None:
    for batch in islice(CubeStream(dataset, "train", batch_size=5, maps=True).batches(28), 2):
        for b, (i, key) in enumerate(zip(batch.sample_B, batch.keys, strict=True)):
            cube = dataset.cube("train", int(i))
            assert cube.meta.key == key and cube.meta.subject_id == batch.subjects[b]
            np.testing.assert_array_equal(cube.data_CHW, batch.cubes_BCHW[b].numpy())
            np.testing.assert_array_equal(cube.labels_HW, batch.labels_BHW[b].numpy())
            np.testing.assert_array_equal(cube.fov_HW, batch.fov_BHW[b].numpy())


def test_a_sample_without_maps_is_all_within_and_unlabelled_whatever_shares_its_batch(tmp_path: Path) -> None:
    for i in range(4):
        cube = made_cube(i)
        write_cube(tmp_path / "in", cube if i % 2 else replace(cube, fov_HW=None, labels_HW=None))
    pack(tmp_path / "in", tmp_path / "set", splits={"train": 1.0})
    (batch,) = CubeStream(Dataset(tmp_path / "set"), "train", batch_size=4, maps=True).once()
    for b, key in enumerate(batch.keys):
        whole, i = made_cube(int(key[1:])), int(key[1:])
        fov_HW, labels_HW = (whole.fov_HW, whole.labels_HW) if i % 2 else (np.ones((32, 32), bool), np.zeros((32, 32), np.uint8))
        assert np.array_equal(batch.fov_BHW[b].numpy(), fov_HW)
        assert np.array_equal(batch.labels_BHW[b].numpy(), labels_HW)


def test_once_gives_each_sample_once_whatever_the_world(dataset: Dataset) -> None:
    for world in (1, 3):
        keys = [k for r in range(world) for b in CubeStream(dataset, "val", batch_size=3, rank=r, world=world).once() for k in b.keys]
        assert sorted(keys) == sorted(dataset.keys("val"))


def test_named_samples_are_read_in_their_order_and_hold_what_a_read_of_each_holds(dataset: Dataset) -> None:
    named_N = np.array([7, 3, 31, 0, 12])
    stream = CubeStream(dataset, "train", batch_size=2, maps=True)
    batches = list(stream.each(named_N))
    assert [batch.sample_B.tolist() for batch in batches] == [[7, 3], [31, 0], [12]]
    for batch in batches:
        alone = stream.read(batch.sample_B)
        assert batch.keys == alone.keys and torch.equal(batch.cubes_BCHW, alone.cubes_BCHW) and torch.equal(batch.fov_BHW, alone.fov_BHW)


def test_a_stream_left_early_ends_its_threads(dataset: Dataset) -> None:
    import threading

    batches = CubeStream(dataset, "train", batch_size=4).batches(0)
    next(batches)
    batches.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("stream") and t.is_alive() and not t.daemon] or _settles()


def _settles() -> bool:
    import threading
    import time

    for _ in range(50):
        if not [t for t in threading.enumerate() if t.name.startswith("stream")]:
            return True
        time.sleep(0.1)
    return False


def corners(dataset, **how) -> np.ndarray:
    """(sample, epoch, 2): first row and column of the crops of two epochs."""
    stream = CubeStream(dataset, "train", batch_size=8, crop=(8, 16), **how)
    found = np.full((32, 2, 2), -1)
    for batch in islice(stream.batches(), 8):
        found[batch.sample_B, batch.epoch_B] = batch.corner_B2
    return found


def test_a_crop_lies_where_seed_sample_and_epoch_say(dataset) -> None:
    found = corners(dataset, seed=3)
    assert (found == corners(dataset, seed=3)).all()
    assert found.min() >= 0 and found[..., 0].max() <= 24 and found[..., 1].max() <= 16
    assert (found != corners(dataset, seed=4)).any(-1).mean() > 0.8, "the seed"
    assert (found[:, 0] != found[:, 1]).any(-1).mean() > 0.8, "the epoch"
    assert len(np.unique(found[:, 0], axis=0)) > 20, "the sample"
    assert abs(np.corrcoef(found[..., 0].ravel(), found[..., 1].ravel())[0, 1]) < 0.5, "rows and columns apart"
