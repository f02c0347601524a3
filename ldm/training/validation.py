"""Validation: the loss on held-out samples, always the same ones with the same noise, whatever the world and the batch."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from data_shards.reading.batch import Batch
from data_shards.reading.stream import CubeStream
from ldm.comm import Communicator


class Judge(Protocol):
    """The part of a trainer that validation asks."""

    def as_loaded(self) -> AbstractContextManager[None]: ...
    def validate(self, batch: Batch, samples: int) -> dict[str, Tensor]: ...


Best = dict[str, float]
"""{'value': the lowest validation loss so far, 'samples': when}; JSON, kept in checkpoints."""


@torch.no_grad()
def validated(judge: Judge, comm: Communicator, stream: CubeStream, *, samples: int, limit: int) -> dict[str, float]:
    """Means over the first `limit` samples of the stream's split of what `judge` says of each. Collective.

    Every rank makes the same number of calls, as a wrapper that gathers weights requires; one that has no sample left judges
    another's again and leaves it out of the sum. What is judged is what a loader of the checkpoint gives.
    """
    count, sums = min(limit, stream.count), None
    with judge.as_loaded():
        for start in range(0, count, stream.batch_size * comm.world):
            position_B = start + comm.rank + comm.world * np.arange(stream.batch_size)
            inside_B = torch.from_numpy(position_B < count)
            values = judge.validate(stream.read(np.where(position_B < count, position_B, 0)), samples)
            names = sorted(values)
            of_batch = torch.stack([torch.where(inside_B.to(values[n].device), values[n].double(), 0).sum() for n in names])
            sums = of_batch if sums is None else sums + of_batch
    return {f"val/{name}": value / count for name, value in zip(names, comm.all_reduce_sum_(sums).tolist(), strict=True)}


def better(best: Best | None, values: dict[str, float], samples: int) -> Best | None:
    """The best so far: the lower loss; of two equal ones the earlier."""
    if not math.isfinite(values.get("val/loss", math.nan)) or (best and values["val/loss"] >= best["value"]):
        return best
    return {"value": values["val/loss"], "samples": samples}
