"""The stream of batches a trainer reads.

Reads and decoders let go of the interpreter's lock, so a few threads do what other loaders take processes for, and nothing is
copied between processes. A batch's memory is used again once nobody refers to it (ring.py).

Legend: B batch, C band, H W pixels.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch

from data_shards import folder as loose
from data_shards.errors import CorruptData, InputError, RetinaforgeError, without_credentials
from data_shards.reading.batch import Batch, stacked
from data_shards.reading.dataset import Dataset
from data_shards.reading.mixture import Mixture
from data_shards.reading.order import hash64, rank_positions
from data_shards.reading.ring import Ring, page_aligned
from data_shards.shards.layout import Region

LOGGER = logging.getLogger("retinaforge")


@dataclass(frozen=True, kw_only=True)
class ReadConfig:
    """How a stream reads; nothing but `bad_share` can change what a batch holds.

    Attributes:
        threads: readers of this process.
        ahead: batches read before they are asked for.
        check: compare crc32c on every read.
        bad_share: this share of the split's samples may be unreadable to this process. Each is logged and another takes its place,
            the same one in every run; one more ends the run. Reading a split once, as encoding does, takes none.
    """

    threads: int = 2
    ahead: int = 2
    check: bool = True
    bad_share: float = 0.0

    def __post_init__(self) -> None:
        if self.threads < 1 or self.ahead < 0 or not 0 <= self.bad_share <= 1:
            raise InputError(
                f"threads {self.threads}, ahead {self.ahead}, bad_share {self.bad_share}",
                expected="at least one thread, none below 0, a share from 0 to 1",
            )


PLAN_SAMPLES = 1024  # places worked out at once: what numpy costs a call, not a value, is most of the work


class _Planned(NamedTuple):
    """A batch that is to be read; `epoch_B` is None outside of an epoch."""

    start: int
    position_B: np.ndarray
    sample_B: np.ndarray
    epoch_B: np.ndarray | None
    corner_B2: np.ndarray


class CubeStream:
    """Batches of one split, in the order of order.py (of several datasets: mixture.py).

    Args:
        dataset: an open dataset, or a mixture of some.
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
        self.dataset, self.split, self.batch_size, self.seed = dataset, split, batch_size, seed
        self.rank, self.world, self.maps, self.crop, self.config, self.device = rank, world, maps, crop, read, torch.device(device)
        self.bands = None if bands is None else tuple(bands)
        self.count = dataset.count(split)
        self.epoch_samples = epoch_samples or self.count
        self.bad: dict[int, str] = {}
        self._unreadable: set[tuple[int, ...]] = set()
        self._check()
        dataset.check(split)
        c, h, w = dataset.shape
        self.shape = (c if self.bands is None else len(self.bands), *(crop or (h, w)))
        self._fallbacks = np.zeros(self.shape[1:], np.uint8), np.ones(self.shape[1:], bool)
        self._ring = Ring(keep=read.ahead + 2, allocate=_page_locked if self.device.type == "cuda" else page_aligned)

    def _check(self) -> None:
        c, h, w = self.dataset.shape
        if self.crop and not (1 <= self.crop[0] <= h and 1 <= self.crop[1] <= w):
            raise InputError(f"crops of {self.crop[0]} x {self.crop[1]}", expected=f"within the {h} x {w} pixels of a cube")
        if self.bands is not None and (not self.bands or len(set(self.bands)) < len(self.bands) or not set(self.bands) <= set(range(c))):
            raise InputError(f"bands {list(self.bands)}", expected=f"different ones of 0 to {c - 1}")
        if min(self.batch_size, self.epoch_samples) < 1 or not 0 <= self.rank < self.world:
            raise InputError(
                f"batch {self.batch_size}, epoch of {self.epoch_samples}, rank {self.rank} of {self.world}",
                expected="a batch and an epoch of 1 or more, a rank below the world",
            )

    def place(self, position_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Global positions → (sample, epoch)."""
        return self.dataset.place(self.split, position_B, self.seed)

    def batches(self, consumed: int = 0) -> Iterator[Batch]:
        """Endless batches from the global position `consumed` on. The caller keeps that integer; the stream has no state."""

        def plan() -> Iterator[_Planned]:
            start, many = consumed, max(1, PLAN_SAMPLES // self.batch_size)
            while True:
                starts = start + self.batch_size * self.world * np.arange(many)
                position_KB = np.stack([rank_positions(int(s), self.batch_size, rank=self.rank, world=self.world) for s in starts])
                drawn = [a.reshape(position_KB.shape) for a in self.place(position_KB.reshape(-1))]
                for planned in zip(starts.tolist(), position_KB, *drawn, self._corners(*drawn), strict=True):
                    yield _Planned(*planned)
                start += many * self.batch_size * self.world

        return self._read_ahead(plan())

    def once(self) -> Iterator[Batch]:
        """Each sample of the split once, in index order; the last batch is smaller. Ranks take every world-th sample."""
        mine = np.arange(self.rank, self.count, self.world)
        chunks = (mine[a : a + self.batch_size] for a in range(0, len(mine), self.batch_size))
        return self._read_ahead(self._outside(chunk, int(chunk[0])) for chunk in chunks)

    def read(self, sample_B: np.ndarray, epoch_B: np.ndarray | None = None) -> Batch:
        """The named samples of the split, read now; cropped as in that epoch, or in the middle."""
        sample_B = np.asarray(sample_B)
        with ThreadPoolExecutor(self.config.threads) as pool:
            if epoch_B is None:
                return self._assemble(pool, self._outside(sample_B, 0), strict=False)().to(self.device)
            (corner_B2,) = self._corners(sample_B[None], epoch_B[None])
            return self._assemble(pool, _Planned(0, sample_B, sample_B, epoch_B, corner_B2))().to(self.device)

    def _outside(self, sample_B: np.ndarray, start: int) -> _Planned:
        """Samples asked for outside of an epoch: crops lie in the middle."""
        middle = [(whole - crop) // 2 for whole, crop in zip(self.dataset.shape[1:], self.shape[1:], strict=True)]
        return _Planned(start, sample_B, sample_B, None, np.tile(middle, (len(sample_B), 1)))

    def _read_ahead(self, plan: Iterable[_Planned]) -> Iterator[Batch]:
        batches = self._on_host(plan)
        return _copied(batches, self.device) if self.device.type == "cuda" else batches

    def _on_host(self, plan: Iterable[_Planned]) -> Iterator[Batch]:
        waiting: deque = deque()
        with ThreadPoolExecutor(self.config.threads, thread_name_prefix="stream") as pool:
            try:
                for planned, following in pairwise(chain(plan, [None])):
                    if following is not None:
                        pool.submit(self._expect, following)
                    waiting.append(self._assemble(pool, planned, strict=planned.epoch_B is None))
                    if len(waiting) > self.config.ahead:
                        yield waiting.popleft()()
                while waiting:
                    yield waiting.popleft()()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _assemble(self, pool: ThreadPoolExecutor, planned: _Planned, *, strict: bool = False) -> Callable[[], Batch]:
        """Start the reads of one batch; the returned function waits for them. `strict`: no other sample may take a place."""
        start, position_B, sample_B, epoch_B, corner_B2 = planned
        view = self._ring.lease((len(sample_B), *self.shape), self.dataset.manifest.dtype)
        out = torch.from_numpy(view)  # holds `view` itself, and with it the memory
        epoch_B = np.zeros_like(sample_B) if epoch_B is None else epoch_B
        wanted = list(zip(sample_B.tolist(), epoch_B.tolist(), corner_B2.tolist(), view, strict=True))

        def read(first: int) -> list[tuple[Any, ...]]:
            return [self._read_one(*one, strict) for one in wanted[first::jobs]]

        # a job a thread, not a sample: where a crop takes less than a millisecond, handing it over takes a good part of that
        jobs = min(self.config.threads, len(wanted))
        parts: list[Future] = [pool.submit(read, k) for k in range(jobs)]

        def ready() -> Batch:
            read = [part.result() for part in parts]
            rows = [read[b % jobs][b // jobs] for b in range(len(wanted))]
            return Batch(
                cubes_BCHW=out,
                position=start,
                position_B=position_B,
                sample_B=np.array([row[0] for row in rows]),
                epoch_B=epoch_B,
                keys=[row[1] for row in rows],
                subjects=[row[2] for row in rows],
                labels_BHW=stacked([row[3] for row in rows], self._fallbacks[0]),
                fov_BHW=stacked([row[4] for row in rows], self._fallbacks[1]),
                corner_B2=None if self.crop is None else corner_B2,
            )

        return ready

    def _expect(self, planned: _Planned) -> None:
        """Tell the disk of a batch that comes after the next. What goes wrong here is told by the read that follows."""
        with contextlib.suppress(RetinaforgeError, OSError):
            for i, corner in zip(planned.sample_B.tolist(), planned.corner_B2.tolist(), strict=True):
                shard, row = self.dataset.locate(self.split, i)
                shard.expect(row, self._region(corner))

    def _region(self, corner: Sequence[int]) -> Region | None:
        if self.crop is None and self.bands is None:
            return None
        (top, left), (height, width) = corner, self.shape[1:]
        return Region(top, top + height, left, left + width, self.bands)

    def _corners(self, sample_KB: np.ndarray, epoch_KB: np.ndarray) -> np.ndarray:
        """First row and column of the crops of K batches: (K, B, 2)."""
        free = [whole - crop for whole, crop in zip(self.dataset.shape[1:], self.shape[1:], strict=True)]
        if free == [0, 0]:
            return np.zeros((*sample_KB.shape, 2), np.int64)
        drawn = [hash64(self.seed, sample_KB, epoch_KB, 0x63726F70, axis) % np.uint64(free[axis] + 1) for axis in range(2)]
        return np.stack(drawn, axis=-1).astype(np.int64)

    def _read_one(self, i: int, epoch: int, corner: list[int], out_CHW: np.ndarray, strict: bool) -> tuple[Any, ...]:
        """Sample `i`, or the first readable one of those that a hash of (seed, sample, epoch) names in its place."""
        wanted = i
        if strict:
            return i, *self._load(i, corner, out_CHW)
        for attempt in range(1, 65):
            try:
                if (i, *corner) not in self._unreadable:  # a bad sector takes seconds of retries each time it is asked
                    return i, *self._load(i, corner, out_CHW)
            except CorruptData as error:
                self._note_bad(i, error)
                self._unreadable.add((i, *corner))  # another crop of the same sample may be whole
            i = int(hash64(self.seed, wanted, epoch, 0x737562, attempt) % np.uint64(self.count))
        raise CorruptData("64 samples in a row cannot be read", where=self.split, mend="retinaforge data verify DATASET")

    def _note_bad(self, i: int, error: CorruptData) -> None:
        if i not in self.bad:
            self.bad[i] = without_credentials(f"{error.where}: {error.what}")
            if self.config.bad_share:
                LOGGER.warning("sample left out, another takes its place: %s", self.bad[i])
        allowed = int(self.config.bad_share * self.count)
        if len(self.bad) > allowed:
            if not allowed:
                raise error
            raise CorruptData(
                f"{len(self.bad)} samples cannot be read, the last: {error.what}",
                where=error.where,
                expected=f"at most {allowed} of {self.count} (a share of {self.config.bad_share:g})",
                mend=error.mend,
            ) from error

    def _load(self, i: int, corner: list[int], out_CHW: np.ndarray) -> tuple[Any, ...]:
        """Fill `out_CHW` with a sample; its key, subject and maps."""
        shard, row = self.dataset.locate(self.split, i)
        region = self._region(corner)
        shard.array_into(row, out_CHW, region=region, check=self.config.check)
        maps: list[np.ndarray | None] = [None, None]
        for k, (member, mask) in enumerate((("labels.png", False), ("fov.png", True)) if self.maps else ()):
            if content := shard.named(row, member):
                map_HW = loose.png_map(content, mask=mask, where=f"{shard.path}: sample {shard.index.keys[row]}")
                if map_HW.shape != self.dataset.shape[1:]:
                    raise CorruptData(f"{member} of size {map_HW.shape}", where=f"{shard.path}: sample {shard.index.keys[row]}")
                maps[k] = map_HW if region is None else map_HW[region.top : region.bottom, region.left : region.right]
        return shard.index.keys[row], shard.index.subjects[row], *maps


def _page_locked(nbytes: int) -> np.ndarray:
    """Memory that a GPU reads by itself, while the processor goes on."""
    return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True).numpy()


def _copied(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches on a GPU, each copied on a stream of its own while the one before is worked on."""
    side, waiting = torch.cuda.Stream(device), deque()

    def arrived(host: Batch, moved: Batch, done: torch.cuda.Event) -> Batch:
        done.synchronize()  # begun a batch ago; from here on the host's memory may be used again
        torch.cuda.current_stream(device).wait_event(done)
        for value in vars(moved).values():
            if isinstance(value, torch.Tensor):
                value.record_stream(torch.cuda.current_stream(device))
        return moved

    for host in batches:
        with torch.cuda.stream(side):
            moved = host.to(device, non_blocking=True)
        waiting.append((host, moved, side.record_event()))
        if len(waiting) > 1:
            yield arrived(*waiting.popleft())
    while waiting:
        yield arrived(*waiting.popleft())
