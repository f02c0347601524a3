"""A packed set without some of its samples."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from data_shards.errors import InputError, nearest
from data_shards.ledger import Units
from data_shards.packing.pack import Packing, Standing, check_outside
from data_shards.packing.sources import source_of
from data_shards.packing.standing import standing
from data_shards.reading.dataset import Dataset
from data_shards.shards.codecs import Encoding
from data_shards.stores import place_of


def removing(source: Path | str, out: Path, keys: Collection[str], *, because: dict[str, Any]) -> Units:
    """The set `source` without the samples of these keys, in shards as they were; one that is left empty is left out. What its manifest
    says of where the set came from stays, and says besides what was removed, and why.

    Raises:
        InputError: keys that it does not hold, or all of them; `out` is taken by something else, or lies inside the source.
    """
    source, out, gone = place_of(str(source)), Path(out), set(keys)
    check_outside(source, out)
    dataset = Dataset(source)
    _, read, _ = source_of(source)
    splits = [split for split, info in dataset.splits.items() if info.count]
    there = {key for split in splits for key in dataset.keys(split)}
    if unknown := sorted(gone - there):
        raise InputError(f"no sample {unknown[0]!r}, and {len(unknown) - 1} more", where=source, expected=nearest(unknown[0], there))
    if gone == there:
        raise InputError(f"all of {len(there)} samples would go", where=source, expected="a set of which something is left")
    shards = {
        split: [left for shard in dataset.shards(split) if (left := [key for key in shard.index.keys if key not in gone])]
        for split in splits
    }
    shards = {split: parts for split, parts in shards.items() if parts}
    first = dataset.cube(next(iter(shards)), 0)
    encoding = Encoding("pcodec") if first.codes else Encoding()
    request = {**dataset.manifest.source, "removed": {"of": dataset.digest, "samples": sorted(gone), **because}}
    if done := standing(out, encoding, request, read, ["retinaforge", "audit", "PRESET", "--remove", "{}"]):
        return Standing(done, out)
    return Packing(out, shards, read, first, encoding, request)
