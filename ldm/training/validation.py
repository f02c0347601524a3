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
from ldm.training.monitor import figures


class Judge(Protocol):
    """The part of a trainer that validation asks."""

    def as_loaded(self) -> AbstractContextManager[None]: ...
    def validate(self, batch: Batch, samples: int) -> dict[str, Tensor]: ...  # a number of each sample, or the monitor's sums of each


Best = dict[str, float]
"""{'value': the lowest validation loss so far, 'samples': when}; JSON, kept in checkpoints."""


@torch.no_grad()
def validated(judge: Judge, comm: Communicator, stream: CubeStream, *, samples: int, limit: int) -> dict[str, float]:
    """Of the first `limit` samples of the stream's split: means of what `judge` says of each, and the monitor's figures of what it
    sums. Collective.

    Every rank makes the same number of calls, as a wrapper that gathers weights requires; one that has no sample left judges
    another's again and leaves it out of the sum. What is judged is what a loader of the checkpoint gives.
    """
    count, total = min(limit, stream.count), None
    with judge.as_loaded():
        for start in range(0, count, stream.batch_size * comm.world):
            position_B = start + comm.rank + comm.world * np.arange(stream.batch_size)
            inside_B = torch.from_numpy(position_B < count)
            values = judge.validate(stream.read(np.where(position_B < count, position_B, 0)), samples)
            names = sorted(values)
            sums = [values[name][inside_B.to(values[name].device)].double().sum(0) for name in names]
            of_batch = torch.cat([of_name.flatten() for of_name in sums])
            total = of_batch if total is None else total + of_batch
    parts = comm.all_reduce_sum_(total).cpu().split([of_name.numel() for of_name in sums])
    summed = {name: part.view(of_name.shape) for name, part, of_name in zip(names, parts, sums, strict=True)}
    watched = {name: of_all.numpy() for name, of_all in summed.items() if of_all.ndim}
    means = {name: of_all.item() / count for name, of_all in summed.items() if not of_all.ndim}
    return {f"val/{name}": value for name, value in {**means, **(figures(**watched) if watched else {})}.items()}


def better(best: Best | None, values: dict[str, float], samples: int) -> Best | None:
    """The best so far: the lower loss; of two equal ones the earlier."""
    if not math.isfinite(values.get("val/loss", math.nan)) or (best and values["val/loss"] >= best["value"]):
        return best
    return {"value": values["val/loss"], "samples": samples}
