"""Batches of shards that have no index.

Legend: B batch, C band, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from data_shards.cube import same_kind
from data_shards.reading.batch import Batch, present, stacked
from data_shards.reading.sequential import endless, plan_of


class SequentialStream:
    """Batches of shards that have no index, in the shards' own order; nothing is shuffled, and a resume reads up to where it was.

    Every rank reads every shard and keeps its positions: slow, and right for any world. The tools for large runs need an index.

    Args:
        shards: files or URLs.
        batch_size: samples a rank and batch.
        rank, world: this process's share.

    Raises (while reading):
        InputError: samples of another shape, dtype, band list or scale than the first. Otherwise as sequential.read_shard.
    """

    def __init__(self, shards: Sequence[Path | str], *, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self.shards, self.batch_size, self.rank, self.world = list(shards), batch_size, rank, world

    def batches(self, consumed: int = 0) -> Iterator[Batch]:
        """Endless batches from the global position `consumed` on."""
        mine = plan_of(endless(self.shards), self.rank, self.world, consumed)
        first = None
        while True:
            rows = list(islice(mine, self.batch_size))
            cubes = [cube for *_, cube in rows]
            first = first or cubes[0]
            for cube in cubes:
                same_kind(cube, first)
            yield Batch(
                cubes_BCHW=torch.from_numpy(np.stack([cube.data_CHW for cube in cubes])),
                position=rows[0][0] - self.rank,
                position_B=np.array([row[0] for row in rows]),
                sample_B=np.array([row[2] for row in rows]),
                epoch_B=np.array([row[1] for row in rows]),
                keys=[cube.meta.key for cube in cubes],
                subjects=[cube.meta.subject_id for cube in cubes],
                labels_BHW=stacked([cube.labels_HW for cube in cubes], missing=0),
                labelled_B=present([cube.labels_HW for cube in cubes]),
                fov_BHW=stacked([cube.fov_HW for cube in cubes], missing=True),
            )
