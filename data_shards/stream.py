"""The stream of batches a trainer reads. The only file here that knows torch.

Legend: B batch, C band, H W pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from data_shards import folder as loose
from data_shards.dataset import Dataset
from data_shards.order import rank_positions, sample_at


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One rank's share of a global batch.

    Attributes:
        cubes_BCHW: uint16 as stored (latents: float32), contiguous; cast and normalise it on the device.
        position: global position of the first sample of the GLOBAL batch.
        position_B, sample_B, epoch_B: global position, index in the split, and epoch of each sample.
        labels_BHW: uint8, where the stream was asked for maps and any sample has labels, else None; one without has no vessel.
        fov_BHW: bool, where it was asked and any sample has a mask, else None; one without is all within. So what is
            summed over maps does not depend on which samples share a batch.
    """

    cubes_BCHW: torch.Tensor
    position: int
    position_B: np.ndarray
    sample_B: np.ndarray
    epoch_B: np.ndarray
    keys: list[str]
    subjects: list[str]
    labels_BHW: torch.Tensor | None = None
    fov_BHW: torch.Tensor | None = None

    def part(self, rows: slice) -> Batch:
        """Some of the samples, as views."""
        cut = {name: value[rows] if value is not None and name != "position" else value for name, value in vars(self).items()}
        return Batch(**cut)


class CubeStream:
    """Batches of one split, in the order of order.py.

    Args:
        dataset: an open dataset.
        split: 'train', 'val', …
        batch_size: samples a rank and batch.
        seed: of the order.
        rank, world: this process's share.
        maps: also read labels and field-of-view masks.
        threads: readers; pread and decoders release the GIL.
        ahead: batches read before they are asked for.
        check: compare crc32c on every read.

    Raises:
        InputError: the split is empty. CorruptData (while reading): names shard, sample and member.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        maps: bool = False,
        threads: int = 2,
        ahead: int = 2,
        check: bool = True,
    ) -> None:
        self.dataset, self.split, self.batch_size, self.seed = dataset, split, batch_size, seed
        self.rank, self.world, self.maps, self.threads, self.ahead, self.check = rank, world, maps, threads, ahead, check
        self.count = dataset.count(split)

    def batches(self, consumed: int = 0) -> Iterator[Batch]:
        """Endless batches from the global position `consumed` on. The caller keeps that integer; the stream has no state."""
        step = self.batch_size * self.world

        def plan() -> Iterator[tuple[int, np.ndarray]]:
            start = consumed
            while True:
                yield start, rank_positions(start, self.batch_size, rank=self.rank, world=self.world)
                start += step

        return self._read_ahead(plan(), lambda g: sample_at(g, count=self.count, seed=self.seed))

    def once(self) -> Iterator[Batch]:
        """Each sample of the split once, in index order; the last batch is smaller. Ranks take every world-th sample."""
        mine = np.arange(self.rank, self.count, self.world)
        plan = ((int(mine[a]), mine[a : a + self.batch_size]) for a in range(0, len(mine), self.batch_size))
        return self._read_ahead(plan, lambda g: (g, np.zeros_like(g)))

    def read(self, sample_B: np.ndarray) -> Batch:
        """The named samples of the split, read now."""
        sample_B = np.asarray(sample_B)
        with ThreadPoolExecutor(self.threads) as pool:
            return self._assemble(pool, 0, sample_B, sample_B, np.zeros_like(sample_B))()

    def _read_ahead(self, plan: Iterator[tuple[int, np.ndarray]], place) -> Iterator[Batch]:
        waiting: deque = deque()
        with ThreadPoolExecutor(self.threads, thread_name_prefix="stream") as pool:
            try:
                for start, g in plan:
                    waiting.append(self._assemble(pool, start, g, *place(g)))
                    if len(waiting) > self.ahead:
                        yield waiting.popleft()()
                while waiting:
                    yield waiting.popleft()()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _assemble(self, pool: ThreadPoolExecutor, start: int, position_B: np.ndarray, sample_B: np.ndarray, epoch_B: np.ndarray):
        """Start the reads of one batch; the returned function waits for them."""
        out = torch.empty((len(sample_B), *self.dataset.shape), dtype=getattr(torch, self.dataset.manifest.dtype))
        view = out.numpy()
        jobs: list[Future] = [pool.submit(self._read_one, int(i), view[b]) for b, i in enumerate(sample_B)]

        fallbacks = (np.zeros(self.dataset.shape[1:], np.uint8), np.ones(self.dataset.shape[1:], bool))

        def ready() -> Batch:
            rows = [job.result() for job in jobs]
            labels_BHW, fov_BHW = (_stacked([row[2 + k] for row in rows], fallbacks[k]) for k in range(2))
            return Batch(
                cubes_BCHW=out,
                position=start,
                position_B=position_B,
                sample_B=sample_B,
                epoch_B=epoch_B,
                keys=[row[0] for row in rows],
                subjects=[row[1] for row in rows],
                labels_BHW=labels_BHW,
                fov_BHW=fov_BHW,
            )

        return ready

    def _read_one(self, i: int, out_CHW: np.ndarray) -> tuple[str, str, np.ndarray | None, np.ndarray | None]:
        shard, row = self.dataset.locate(self.split, i)
        shard.array_into(row, out_CHW, check=self.check)
        maps: list[np.ndarray | None] = [None, None]
        if self.maps:
            for k, (member, mask) in enumerate((("labels.png", False), ("fov.png", True))):
                if content := shard.named(row, member):
                    maps[k] = loose.png_map(content, mask=mask, where=f"{shard.path}: sample {shard.index.keys[row]}")
        return shard.index.keys[row], shard.index.subjects[row], maps[0], maps[1]


def _stacked(maps: list[np.ndarray | None], fallback_HW: np.ndarray) -> torch.Tensor | None:
    """Maps of a batch, `fallback_HW` for samples without one; None when no sample has one."""
    if all(m is None for m in maps):
        return None
    return torch.from_numpy(np.stack([fallback_HW if m is None else m for m in maps]))
