"""The stream of batches a trainer reads.

Reads and decoders let go of the interpreter's lock, so a few threads do what other loaders take processes for, and nothing is
copied between processes. A batch's memory is used again once nobody refers to it (ring.py).

Legend: K planned batch, B batch, C band, H W pixels.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np
import torch

from data_shards.errors import InputError, RetinaforgeError
from data_shards.reading.batch import Batch, copied, page_locked, present, stacked
from data_shards.reading.config import ReadConfig
from data_shards.reading.dataset import Dataset
from data_shards.reading.mixture import Mixture
from data_shards.reading.order import hash64, rank_positions
from data_shards.reading.ring import Ring
from data_shards.reading.samples import Cut, Sample, SampleReader
from data_shards.shards.scratch import page_aligned

PLAN_SAMPLES = 1024  # places worked out at once: what numpy costs a call, not a value, is most of the work


class _Planned(NamedTuple):
    """A batch that is to be read.

    Attributes:
        start: global position of the first sample of the global batch.
        exact: no other sample may take the place of an unreadable one.
    """

    start: int
    position_B: np.ndarray
    sample_B: np.ndarray
    epoch_B: np.ndarray
    corner_B2: np.ndarray
    exact: bool = False


class CubeStream:
    """Batches of one split, in the order of order.py (of several datasets: mixture.py).

    Args:
        dataset: an open dataset, or a mixture of some. Of a synthetic set of codes these are what is streamed; ldm.DecodedDataset
            streams the cubes that they stand for.
        split: 'train', 'val', …
        batch_size: samples a rank and batch.
        seed: of the order and of crops.
        rank, world: this process's share.
        maps: also read labels and field-of-view masks.
        crop: height and width of a crop, of which only the rows are read; at a place drawn for each (seed, sample, epoch), or the
            middle where samples are asked for outside of an epoch.
        bands: which bands, of which alone the bytes are read; None: all.
        epoch_samples: how many samples make an epoch; 0: as many as the split has.
        read: threads, checks, and what is done about unreadable samples.
        device: where batches are wanted. On a GPU they are copied from page-locked memory while the batch before is worked on.

    Attributes:
        count: samples of the split. shape: (C, H, W) of a sample in a batch.
        bad: samples that could not be read, and why.

    Raises:
        InputError: the split is empty, or the crop or bands are not within the arrays. CorruptData (also while reading): names
            shard, sample and member.
    """

    def __init__(
        self,
        dataset: Dataset | Mixture,
        split: str,
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        maps: bool = False,
        crop: tuple[int, int] | None = None,
        bands: Sequence[int] | None = None,
        epoch_samples: int = 0,
        read: ReadConfig = ReadConfig(),
        device: torch.device | str = "cpu",
    ) -> None:
        self.dataset, self.split, self.count, self.config = dataset, split, dataset.count(split), read
        self.batch_size, self.seed, self.rank, self.world, self.device = batch_size, seed, rank, world, torch.device(device)
        self.epoch_samples = epoch_samples or self.count
        if min(batch_size, self.epoch_samples) < 1 or not 0 <= rank < world:
            raise InputError(
                f"batch {batch_size}, epoch of {self.epoch_samples}, rank {rank} of {world}",
                expected="a batch and an epoch of 1 or more, a rank below the world",
            )
        self._cut = Cut(dataset.shape, crop, None if bands is None else tuple(bands))
        self.shape = self._cut.shape
        dataset.check(split)
        self._samples = SampleReader(dataset, split, self._cut, seed=seed, maps=maps, check=read.check, bad_share=read.bad_share)
        self.bad = self._samples.bad
        self._ring = Ring(keep=read.ahead + 2, allocate=page_locked if self.device.type == "cuda" else page_aligned)

    def place(self, position_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Global positions → (sample, epoch)."""
        return self.dataset.place(self.split, position_B, self.seed)

    def batches(self, consumed: int = 0) -> Iterator[Batch]:
        """Endless batches from the global position `consumed` on. The caller keeps that integer; the stream has no state."""
        return self._read_ahead(self._plan(consumed))

    def once(self) -> Iterator[Batch]:
        """Each sample of the split once, in index order; the last batch is smaller. Ranks take every world-th sample."""
        return self.each(np.arange(self.rank, self.count, self.world))

    def each(self, sample_N: np.ndarray) -> Iterator[Batch]:
        """The named samples of the split once, in this order; the last batch is smaller. What cannot be read ends it."""
        chunks = (sample_N[a : a + self.batch_size] for a in range(0, len(sample_N), self.batch_size))
        return self._read_ahead(self._outside(chunk, start=int(chunk[0]), exact=True) for chunk in chunks)

    def read(self, sample_B: np.ndarray, epoch_B: np.ndarray | None = None) -> Batch:
        """The named samples of the split, read now; cropped as in that epoch, or in the middle."""
        sample_B = np.asarray(sample_B)
        if epoch_B is None:
            planned = self._outside(sample_B)
        else:
            planned = _Planned(0, sample_B, sample_B, epoch_B, self._corners(sample_B[None], epoch_B[None])[0])
        with ThreadPoolExecutor(self.config.threads) as pool:
            return self._assemble(pool, planned)().to(self.device)

    def _plan(self, consumed: int) -> Iterator[_Planned]:
        many = max(1, PLAN_SAMPLES // self.batch_size)
        while True:
            starts = (consumed + self.batch_size * self.world * np.arange(many)).tolist()
            position_KB = np.stack([rank_positions(start, self.batch_size, rank=self.rank, world=self.world) for start in starts])
            sample_KB, epoch_KB = (drawn.reshape(position_KB.shape) for drawn in self.place(position_KB.reshape(-1)))
            corner_KB2 = self._corners(sample_KB, epoch_KB)
            yield from map(_Planned, starts, position_KB, sample_KB, epoch_KB, corner_KB2)
            consumed += many * self.batch_size * self.world

    def _outside(self, sample_B: np.ndarray, *, start: int = 0, exact: bool = False) -> _Planned:
        """Samples asked for outside of an epoch: crops lie in the middle."""
        middle = [free // 2 for free in self._cut.free]
        return _Planned(start, sample_B, sample_B, np.zeros_like(sample_B), np.tile(middle, (len(sample_B), 1)), exact)

    def _corners(self, sample_KB: np.ndarray, epoch_KB: np.ndarray) -> np.ndarray:
        """First row and column of the crops of K batches: (K, B, 2)."""
        free = self._cut.free
        if free == (0, 0):
            return np.zeros((*sample_KB.shape, 2), np.int64)
        drawn = [hash64(self.seed, sample_KB, epoch_KB, 0x63726F70, axis) % np.uint64(free[axis] + 1) for axis in range(2)]
        return np.stack(drawn, axis=-1).astype(np.int64)

    def _read_ahead(self, plan: Iterable[_Planned]) -> Iterator[Batch]:
        batches = self._on_host(plan)
        return copied(batches, self.device) if self.device.type == "cuda" else batches

    def _on_host(self, plan: Iterable[_Planned]) -> Iterator[Batch]:
        waiting: deque[Callable[[], Batch]] = deque()
        with ThreadPoolExecutor(self.config.threads, thread_name_prefix="stream") as pool:
            try:
                for planned, following in pairwise(chain(plan, [None])):
                    if following is not None:
                        pool.submit(self._expect, following)
                    waiting.append(self._assemble(pool, planned))
                    if len(waiting) > self.config.ahead:
                        yield waiting.popleft()()
                while waiting:
                    yield waiting.popleft()()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _expect(self, planned: _Planned) -> None:
        """Tell the disk of a batch that comes after the next. What goes wrong here is raised by the read that follows."""
        with contextlib.suppress(RetinaforgeError, OSError):
            for i, (top, left) in zip(planned.sample_B.tolist(), planned.corner_B2.tolist(), strict=True):
                self._samples.expect(i, top, left)

    def _assemble(self, pool: ThreadPoolExecutor, planned: _Planned) -> Callable[[], Batch]:
        """Start the reads of one batch; the returned function waits for them."""
        cubes = self._ring.lease((len(planned.sample_B), *self.shape), self.dataset.manifest.dtype)
        cubes_BCHW = torch.from_numpy(cubes)  # holds the array itself, and with it the memory
        wanted = list(zip(planned.sample_B.tolist(), planned.epoch_B.tolist(), planned.corner_B2.tolist(), cubes, strict=True))

        def read(first: int) -> list[Sample]:
            if planned.exact:
                return [self._samples.read(i, *corner, out_CHW) for i, _, corner, out_CHW in wanted[first::jobs]]
            return [self._samples.read_or_other(i, epoch, *corner, out_CHW) for i, epoch, corner, out_CHW in wanted[first::jobs]]

        # a job a thread, not a sample: where a crop takes less than a millisecond, handing it over takes a good part of that
        jobs = min(self.config.threads, len(wanted))
        reads = [pool.submit(read, first) for first in range(jobs)]

        def ready() -> Batch:
            by_job = [job.result() for job in reads]
            return self._batch(planned, cubes_BCHW, [by_job[b % jobs][b // jobs] for b in range(len(wanted))])

        return ready

    def _batch(self, planned: _Planned, cubes_BCHW: torch.Tensor, samples: Sequence[Sample]) -> Batch:
        return Batch(
            cubes_BCHW=cubes_BCHW,
            position=planned.start,
            position_B=planned.position_B,
            sample_B=np.array([sample.number for sample in samples]),
            epoch_B=planned.epoch_B,
            keys=[sample.key for sample in samples],
            subjects=[sample.subject for sample in samples],
            labels_BHW=stacked([sample.labels_HW for sample in samples], missing=0),
            labelled_B=present([sample.labels_HW for sample in samples]),
            fov_BHW=stacked([sample.fov_HW for sample in samples], missing=True),
            corner_B2=None if self._cut.crop is None else planned.corner_B2,
        )
