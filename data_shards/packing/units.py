"""A set made in its own folder, shard by shard, by any number of processes: a shard is a unit, and leaves what the manifest needs of it.

The manifest is merged from these records, in the order of the shards, whoever made them: nobody reads the set again to finish it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_shards import durable
from data_shards.cube import Cube, same_kind
from data_shards.errors import CorruptData, InputError
from data_shards.manifest import Manifest, ShardEntry
from data_shards.packing.pack import entry_of, payload_of, stats_split_of
from data_shards.packing.statistics import FORMAT as STATISTICS
from data_shards.packing.statistics import BandAccumulator
from data_shards.reading.reader import Shard
from data_shards.shards.index import index_path
from data_shards.shards.shard import write_index, write_tar

RECORD = ".unit"
FORMAT = f"retinaforge-unit-1, {STATISTICS}"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What all samples of a set have in common."""

    payload: str
    dtype: str
    shape: tuple[int, int, int]
    wavelengths_nm: tuple[float, ...]
    scale: float
    offset: float

    @classmethod
    def of(cls, cube: Cube) -> Kind:
        """That of a sample."""
        meta = cube.meta
        return cls(
            payload=payload_of(cube),
            dtype=cube.data_CHW.dtype.name,
            shape=cube.data_CHW.shape,
            wavelengths_nm=meta.wavelengths_nm,
            scale=meta.scale,
            offset=meta.offset,
        )


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What a finished shard leaves: its line in the manifest, who is in it, the sums of its bands."""

    entry: ShardEntry
    kind: Kind
    subjects: tuple[str, ...]
    bands: BandAccumulator


def record_path(shard: Path) -> Path:
    """`synthetic-000000.tar` → `synthetic-000000.unit`."""
    return shard.with_suffix(RECORD)


def write_unit(shard: Path, split: str, cubes: Iterable[Cube]) -> None:
    """Publish a shard, its index and its record, each first-writer-wins; what a killed writer left is completed.

    Raises:
        InputError: cubes of several kinds, or of other counts. TryAgain: disk full.
    """
    bands, ours = BandAccumulator(), False
    if not shard.exists():
        waiting = iter(cubes)
        first = next(waiting, None)
        if first is None:
            raise InputError("no sample for a shard", where=shard)
        ours = write_tar(shard, _summed(first, waiting, bands), stem=payload_of(first), keep_first=True)
    index = write_index(shard)
    entry = entry_of(shard, index, split)
    there = Shard(shard.parent, entry)
    if not ours:  # another writer's bytes stand, so their sums count
        bands = BandAccumulator()
        for i in range(entry.count):
            bands.add(there.cube(i))
    record = {
        "format": FORMAT,
        "entry": asdict(entry),
        "kind": asdict(Kind.of(there.cube(0))),
        "subjects": sorted(set(index.subjects)),
        "bands": bands.fields(),
    }
    durable.write_bytes(record_path(shard), durable.canonical_json(record))


def read_unit(shard: Path) -> Unit | None:
    """The record of a finished shard; None where there is none, or one of another form, and the shard is to be looked at again.

    Raises:
        CorruptData: the shard has another size than was recorded.
    """
    try:
        fields = json.loads(record_path(shard).read_bytes())
        if fields["format"] != FORMAT:
            return None
        entry, kind = ShardEntry(**fields["entry"]), fields["kind"]
        kind = Kind(**{**kind, "shape": tuple(kind["shape"]), "wavelengths_nm": tuple(kind["wavelengths_nm"])})
        unit = Unit(
            entry=entry,
            kind=kind,
            subjects=tuple(fields["subjects"]),
            bands=BandAccumulator(**fields["bands"]),
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    if not (shard.exists() and index_path(shard).exists()):
        return None
    if (found := shard.stat().st_size) != entry.bytes:
        raise CorruptData(
            f"a finished shard of {found} bytes, {entry.bytes} were written",
            where=shard,
            mend="move the shard and its .index and .unit files away, and run the same command again",
        )
    return unit


def merged(units: Sequence[Unit], splits: Sequence[str], source: dict[str, Any]) -> Manifest:
    """The manifest of a set of these shards, in their order.

    Raises:
        InputError: shards of several kinds.
    """
    first = units[0]
    for unit in units:
        if unit.kind != first.kind:
            raise InputError(f"a shard of {unit.kind}", where=unit.entry.name, expected=f"{first.kind}, as {first.entry.name}")
    stats_split, bands, sizes = stats_split_of(splits), BandAccumulator(), {}
    for split in splits:
        mine = [unit for unit in units if unit.entry.split == split]
        sizes[split] = {"count": sum(u.entry.count for u in mine), "subjects": len({s for u in mine for s in u.subjects})}
    for unit in units:
        if unit.entry.split == stats_split:
            bands.merge(unit.bands)
    kind = first.kind
    stats = bands.stats(stats_split, kind.scale, kind.offset)
    return Manifest(**asdict(kind), shards=tuple(unit.entry for unit in units), splits=sizes, stats=stats, source=source)


def _summed(first: Cube, others: Iterable[Cube], bands: BandAccumulator) -> Iterator[Cube]:
    bands.add(first)
    yield first
    for cube in others:
        same_kind(cube, first)
        bands.add(cube)
        yield cube
