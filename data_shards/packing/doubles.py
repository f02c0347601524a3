"""The same picture under two names: in two splits it leaks what is held out, and it blinds whatever compares a set with its like."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from data_shards.errors import RetinaforgeError
from data_shards.manifest import ShardEntry
from data_shards.reading.reader import Shard
from data_shards.shards.index import ShardIndex, index_path, open_index

LOGGER = logging.getLogger("retinaforge")
SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Double:
    """Two samples with the same array."""

    keys: tuple[str, str]
    subjects: tuple[str, str]
    splits: tuple[str, str]

    @property
    def across(self) -> bool:
        """One of them is held out from the other."""
        return self.splits[0] != self.splits[1]

    def __str__(self) -> str:
        (a, b), (anna, ben), (one, other) = self.keys, self.subjects, self.splits
        return f"samples {a} of {anna} in {one} and {b} of {ben} in {other} are the same picture"


class Doubles:
    """Finds doubles from the checksums in the indices; those that agree are read and compared.

    Args:
        place: the folder or URL of the shards.
    """

    def __init__(self, place: Path | str) -> None:
        self.place = place
        self._first: dict[int, tuple[ShardEntry, int]] = {}

    def add(self, entry: ShardEntry, index: ShardIndex) -> list[Double]:
        """The samples of a shard that are doubles of one that came before."""
        doubles = []
        for i in range(len(index)):
            m, _ = index.payload(i)
            mark = hash((int(index.crc_NM[i, m]), int(index.size_NM[i, m]), index.shape(i), index.block_crc_NK[i].tobytes()))
            before, row = self._first.setdefault(mark, (entry, i))
            if (before, row) != (entry, i) and (double := self._compared((before, row), (entry, i))):
                doubles.append(double)
        return doubles

    def _compared(self, *both: tuple[ShardEntry, int]) -> Double | None:
        """The double, where not the checksums alone agree; what cannot be read is not its business."""
        try:
            shards = [(Shard(self.place, entry), i) for entry, i in both]
            arrays = [shard.member(i, shard.index.payload(i)[0], check=False) for shard, i in shards]
        except RetinaforgeError:
            return None
        if arrays[0] != arrays[1]:
            return None
        return Double(
            keys=tuple(shard.index.keys[i] for shard, i in shards),
            subjects=tuple(shard.index.subjects[i] for shard, i in shards),
            splits=tuple(entry.split for entry, _ in both),
        )


def few(doubles: list[Double]) -> str:
    """Some of them, and how many there are."""
    return "; ".join(map(str, doubles[:SHOWN])) + (f"; and {len(doubles) - SHOWN} more" if len(doubles) > SHOWN else "")


def warn_of_doubles(folder: Path, out: Path, entries: Iterable[ShardEntry]) -> None:
    """Say which pictures stand twice in the shards in a folder, which are going to be the set `out`."""
    doubles = Doubles(folder)
    found = [double for entry in entries for double in doubles.add(entry, open_index(index_path(folder / entry.name)))]
    across = [double for double in found if double.across]
    if across:
        LOGGER.error(
            "%s: %s. What is held out is trained on, and `data verify` refuses this set: remove one of each pair from the source, or "
            "give both one subject_id (and one split), and pack again",
            *(out, few(across)),
        )
    if within := [double for double in found if not double.across]:
        LOGGER.warning("%s: %s", out, few(within))
