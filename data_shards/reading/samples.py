"""Single samples of a split, read straight into their places in a batch; another takes the place of one that cannot be read.

Legend: C band, H W pixels.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from data_shards import folder as loose
from data_shards.errors import CorruptData, InputError, without_credentials
from data_shards.reading.dataset import Dataset
from data_shards.reading.mixture import Mixture
from data_shards.reading.order import hash64
from data_shards.reading.reader import Shard
from data_shards.shards.layout import Region

LOGGER = logging.getLogger("retinaforge")
SUBSTITUTES = 64  # so many are tried in the place of one sample


class Sample(NamedTuple):
    """A sample whose array was read: its number in the split, its names and, where they were asked for and it has them, its maps."""

    number: int
    key: str
    subject: str
    labels_HW: np.ndarray | None
    fov_HW: np.ndarray | None


@dataclass(frozen=True)
class Cut:
    """What of every array of shape `whole` is read.

    Attributes:
        crop: height and width of a crop; None: all pixels.
        bands: None: all.

    Raises:
        InputError: the crop or the bands are not within the array.
    """

    whole: tuple[int, int, int]
    crop: tuple[int, int] | None
    bands: tuple[int, ...] | None

    def __post_init__(self) -> None:
        c, h, w = self.whole
        if self.crop and not (1 <= self.crop[0] <= h and 1 <= self.crop[1] <= w):
            raise InputError(f"crops of {self.crop[0]} x {self.crop[1]}", expected=f"within the {h} x {w} pixels of a cube")
        if self.bands is not None and (not self.bands or len(set(self.bands)) < len(self.bands) or not set(self.bands) <= set(range(c))):
            raise InputError(f"bands {list(self.bands)}", expected=f"different ones of 0 to {c - 1}")

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Of what is read."""
        c, h, w = self.whole
        return (c if self.bands is None else len(self.bands), *(self.crop or (h, w)))

    @cached_property
    def free(self) -> tuple[int, int]:
        """How far the first row and the first column of a crop may lie from the array's."""
        (_, h, w), (_, height, width) = self.whole, self.shape
        return h - height, w - width

    def region(self, top: int, left: int) -> Region | None:
        """The crop that begins there; None: the whole array."""
        if self.crop is None and self.bands is None:
            return None
        _, height, width = self.shape
        return Region(top, top + height, left, left + width, self.bands)


class SampleReader:
    """Reads samples of one split.

    Args:
        seed: of what takes the place of unreadable samples.
        maps: also read labels and field-of-view masks.
        check: compare crc32c.
        bad_share: the share of the split's samples that may be unreadable.

    Attributes:
        bad: samples that could not be read, and why.
    """

    def __init__(self, dataset: Dataset | Mixture, split: str, cut: Cut, *, seed: int, maps: bool, check: bool, bad_share: float) -> None:
        self.dataset, self.split, self.cut, self.count = dataset, split, cut, dataset.count(split)
        self.seed, self.maps, self.check, self.bad_share = seed, maps, check, bad_share
        self.bad: dict[int, str] = {}
        self._unreadable: set[tuple[int, int, int]] = set()

    def expect(self, i: int, top: int, left: int) -> None:
        """Tell the disk that this sample is read soon."""
        shard, row = self.dataset.locate(self.split, i)
        shard.expect(row, self.cut.region(top, left))

    def read(self, i: int, top: int, left: int, out_CHW: np.ndarray) -> Sample:
        """Fill `out_CHW` with a sample.

        Raises:
            CorruptData: it cannot be read; names shard, sample and member.
        """
        shard, row = self.dataset.locate(self.split, i)
        region = self.cut.region(top, left)
        shard.array_into(row, out_CHW, region=region, check=self.check)
        labels_HW = self._map(shard, row, "labels.png", region) if self.maps else None
        fov_HW = self._map(shard, row, "fov.png", region) if self.maps else None
        return Sample(i, shard.index.keys[row], shard.index.subjects[row], labels_HW, fov_HW)

    def _map(self, shard: Shard, row: int, member: str, region: Region | None) -> np.ndarray | None:
        content = shard.named(row, member)
        if not content:
            return None
        where = f"{shard.path}: sample {shard.index.keys[row]}"
        map_HW = loose.png_map(content, mask=member == "fov.png", where=where)
        if map_HW.shape != self.cut.whole[1:]:
            raise CorruptData(f"{member} of size {map_HW.shape}", where=where)
        return map_HW if region is None else map_HW[region.top : region.bottom, region.left : region.right]

    def read_or_other(self, wanted: int, epoch: int, top: int, left: int, out_CHW: np.ndarray) -> Sample:
        """As `read`; in place of an unreadable sample the first readable one of those that a hash of (seed, sample, epoch) names.

        Raises:
            CorruptData: more samples are unreadable than `bad_share` allows.
        """
        i = wanted
        for attempt in range(1, SUBSTITUTES + 1):
            try:
                if (i, top, left) not in self._unreadable:  # a bad sector takes seconds of retries each time it is asked
                    return self.read(i, top, left, out_CHW)
            except CorruptData as error:
                self._note_bad(i, error)
                self._unreadable.add((i, top, left))  # another crop of the same sample may be whole
            i = int(hash64(self.seed, wanted, epoch, 0x737562, attempt) % np.uint64(self.count))
        raise CorruptData(f"{SUBSTITUTES} samples in a row cannot be read", where=self.split, mend="retinaforge data verify DATASET")

    def _note_bad(self, i: int, error: CorruptData) -> None:
        if i not in self.bad:
            self.bad[i] = without_credentials(f"{error.where}: {error.what}")
            if self.bad_share:
                LOGGER.warning("sample left out, another takes its place: %s", self.bad[i])
        allowed = int(self.bad_share * self.count)
        if len(self.bad) <= allowed:
            return
        if not allowed:
            raise error
        raise CorruptData(
            f"{len(self.bad)} samples cannot be read, the last: {error.what}",
            where=error.where,
            expected=f"at most {allowed} of {self.count} (a share of {self.bad_share:g})",
            mend=error.mend,
        ) from error
