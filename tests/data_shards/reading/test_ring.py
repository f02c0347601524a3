"""The ring: memory comes back when nobody refers to it, and never before."""

from __future__ import annotations

import gc

import numpy as np
import torch

from data_shards.reading.config import ReadConfig
from data_shards.reading.dataset import Dataset
from data_shards.reading.ring import Ring
from data_shards.reading.stream import CubeStream


def test_memory_comes_back_with_the_last_view_of_a_tensor() -> None:
    ring = Ring(keep=4)
    tensor = torch.from_numpy(ring.lease((4, 8), "uint16"))
    address = tensor.data_ptr()
    part, flat = tensor[1:3], tensor.numpy()
    del tensor
    assert not ring.free, "a slice and a numpy view still look at it"
    del part
    assert not ring.free
    del flat
    gc.collect()
    assert torch.from_numpy(ring.lease((2, 3), "float32")).data_ptr() == address


def test_no_more_than_keep_blocks_wait() -> None:
    ring = Ring(keep=2)
    held = [ring.lease((100,), "uint8") for _ in range(5)]
    del held
    assert len(ring.free) == 2


def test_blocks_are_page_aligned() -> None:
    assert all(Ring(keep=1).lease((n,), "uint8").ctypes.data % 4096 == 0 for n in (1, 5000, 1 << 20))


def test_batches_that_are_kept_are_never_written_over(dataset: Dataset) -> None:
    stream = CubeStream(dataset, "train", batch_size=3, read=ReadConfig(ahead=1))
    kept = list(stream.once())
    for batch in kept:
        for b, i in enumerate(batch.sample_B):
            assert np.array_equal(batch.cubes_BCHW[b].numpy(), dataset.cube("train", int(i)).data_CHW)


def test_an_epoch_needs_the_memory_of_a_few_batches(dataset: Dataset) -> None:
    stream, allocated = CubeStream(dataset, "train", batch_size=2), []
    make = stream._ring.allocate
    stream._ring.allocate = lambda nbytes: allocated.append(nbytes) or make(nbytes)
    batches = stream.batches(0)
    for _ in range(60):
        next(batches)
    batches.close()
    assert len(allocated) <= stream.config.ahead + 2
