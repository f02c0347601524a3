"""Several datasets read as one, each with its share of the samples.

Legend: B batch.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import numpy as np

from data_shards.errors import InputError
from data_shards.manifest import Manifest
from data_shards.reading.dataset import Dataset
from data_shards.reading.order import hash64, sample_at
from data_shards.reading.reader import Shard

PERIOD = 4096  # of so many samples in a row each dataset gives its share, to the nearest whole number


class Mixture:
    """Datasets of one kind, mixed by weight. A stream reads it as it reads a dataset.

    In every period of PERIOD positions each dataset has a fixed number, at places that a hash of the seed scatters; its own
    samples come in its own order (order.py). So the sample at a position is a pure function of the seed and the position here too,
    and a dataset that is read through begins anew by itself: each of its samples comes once before any comes again.

    Args:
        datasets: open datasets.
        weights: above 0; their ratios are the shares.

    Raises:
        InputError: bands, shapes, dtypes or scales differ, the same dataset twice, people whom one set trains on and another holds
            out, or a share that is too small to be read at all.
    """

    def __init__(self, datasets: Sequence[Dataset], weights: Sequence[float]) -> None:
        if len(datasets) != len(weights) or not datasets or not all(np.isfinite(w) and w > 0 for w in weights):
            raise InputError(f"{len(datasets)} datasets, weights {list(weights)}", expected="one weight above 0 for each dataset")
        self.datasets, self.weights, self.first = list(datasets), list(weights), datasets[0]
        for other in self.datasets[1:]:
            _same_kind(other, self.first)
        if len({dataset.digest for dataset in datasets}) < len(datasets):
            raise InputError("the same dataset twice", where=", ".join(str(d.path) for d in datasets), mend="give it one larger weight")
        _held_out_stay_held_out(self.datasets)
        exact = np.asarray(weights, float) / np.sum(weights) * PERIOD
        self.share = np.floor(exact).astype(np.int64)
        self.share[np.argsort(self.share - exact, kind="stable")[: PERIOD - self.share.sum()]] += 1  # largest remainders
        if not self.share.all():
            small = self.datasets[int(np.argmin(self.share))]
            raise InputError("a weight too small to be read at all", where=small.path, expected=f"a share of at least 1 in {PERIOD}")
        self.edges = np.concatenate([[0], np.cumsum(self.share)])

    shape = property(lambda self: self.first.shape)

    @property
    def manifest(self) -> Manifest:
        """The first dataset's: the kind of all."""
        return self.first.manifest

    def count(self, split: str) -> int:
        """Samples of a split, in all datasets together.

        Raises:
            InputError: a dataset without that split.
        """
        return sum(dataset.count(split) for dataset in self.datasets)

    def locate(self, split: str, i: int) -> tuple[Shard, int]:
        """Shard and row of sample `i`; the datasets' samples are numbered one dataset behind the other."""
        for dataset in self.datasets:
            if i < dataset.count(split):
                return dataset.locate(split, i)
            i -= dataset.count(split)
        raise IndexError(f"sample beyond the {self.count(split)} of split {split!r}")

    def place(self, split: str, position_B: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Global positions → (sample, how often its dataset was read through before)."""
        slot_B, period_B = sample_at(position_B, count=PERIOD, seed=int(hash64(seed, 0x6D6978) >> np.uint64(1)))
        part_B = np.searchsorted(self.edges, slot_B, side="right") - 1
        sample_B, epoch_B, first = np.empty_like(slot_B), np.empty_like(slot_B), 0
        for d, dataset in enumerate(self.datasets):
            mine = part_B == d
            own = period_B[mine] * self.share[d] + slot_B[mine] - self.edges[d]
            sample_B[mine], epoch_B[mine] = dataset.place(split, own, int(hash64(seed, d) >> np.uint64(1)))
            sample_B[mine] += first
            first += dataset.count(split)
        return sample_B, epoch_B

    def check(self, split: str) -> None:
        """As Dataset.check."""
        for dataset in self.datasets:
            dataset.check(split)


def _held_out_stay_held_out(datasets: Sequence[Dataset]) -> None:
    """Raises: InputError: a person in the training split of one set and in another split of another."""
    people = [{subject: split for split, info in d.splits.items() if info.count for subject in d.subjects(split)} for d in datasets]
    for a, trained in enumerate(people):
        for b, others in enumerate(people):
            leaked = sorted(s for s, split in others.items() if split != "train" and trained.get(s) == "train") if a != b else []
            if leaked:
                one, other = str(datasets[a].path), str(datasets[b].path)
                fresh = f"{one.rpartition('/')[2] if '://' in one else one}-split"
                raise InputError(
                    f"{len(leaked)} people whom one set trains on are held out in another: {', '.join(leaked[:5])}",
                    where=f"train of {one}, {others[leaked[0]]} of {other}",
                    expected="one person in one split of all sets; or, if these are other people, other subject_ids",
                    mend=shlex.join(["retinaforge", "data", "pack", one, fresh, "--splits-from", other]),
                )


def _same_kind(dataset: Dataset, first: Dataset) -> None:
    for name in ("payload", "dtype", "shape", "wavelengths_nm", "scale", "offset"):
        a, b = getattr(dataset.manifest, name), getattr(first.manifest, name)
        if a != b:
            raise InputError(
                f"{name} {a}",
                where=dataset.path,
                expected=f"{b}, as in {first.path}: datasets that are mixed have one {name}",
                mend="retinaforge data import with --wavelengths, --resize or --scale, or train on one of them",
            )
