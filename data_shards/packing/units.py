"""A set made in its own folder, shard by shard, by any number of processes: a shard is a unit, and leaves what the manifest needs of it.

The manifest is merged from these records, in the order of the shards, whoever made them: nobody reads the set again to finish it.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from data_shards import durable
from data_shards.cube import Cube, same_kind
from data_shards.errors import CorruptData, InputError, Overtaken, command, moved_aside
from data_shards.folder import meta_bytes, meta_from
from data_shards.manifest import Kind, Manifest, ShardEntry, payload_of, write_manifest
from data_shards.packing.statistics import FORMAT as STATISTICS
from data_shards.packing.statistics import BandAccumulator, BandTally, sums_of
from data_shards.packing.writing import write_shard
from data_shards.reading.reader import Shard
from data_shards.shards.codecs import Encoding
from data_shards.shards.index import ShardIndex, index_path, open_index
from data_shards.shards.shard import write_index

RECORD = ".unit"
FORMAT = f"retinaforge-unit-2, {STATISTICS}"


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What a finished shard leaves.

    Attributes:
        entry: its line in the manifest.
        subjects: who is in it.
        bands: the sums of its bands; none of codes.
        refused: how often a generator refused what would have been one of its images, by cause: their notes, added up.
        stamps: of the files it was made of.
        notes: of its first image; None in records of earlier versions.
    """

    entry: ShardEntry
    kind: Kind
    subjects: tuple[str, ...]
    bands: BandAccumulator
    refused: dict[str, int] = field(default_factory=dict)
    stamps: str = ""
    notes: dict[str, Any] | None = None

    def save(self, shard: Path) -> None:
        """Write the record beside the shard."""
        fields = {"entry": asdict(self.entry), "kind": asdict(self.kind), "subjects": self.subjects, "bands": self.bands.fields()}
        fields |= {"refused": self.refused, "stamps": self.stamps, "notes": self.notes}
        durable.write_bytes(record_path(shard), durable.canonical_json({"format": FORMAT, **fields}))


def entry_of(shard: Path, index: ShardIndex, split: str) -> ShardEntry:
    """The manifest's line for a finished shard."""
    return ShardEntry(
        name=shard.name,
        split=split,
        count=len(index),
        bytes=index.shard_bytes,
        sha256=index.sha256,
        index_sha256=durable.sha256_of(index_path(shard)),
    )


def stats_split_of(splits: Iterable[str]) -> str:
    """The split that statistics are taken from: 'train', or the first where there is none of that name."""
    names = list(splits)
    return "train" if "train" in names else names[0]


def record_path(shard: Path) -> Path:
    """`synthetic-000000.tar` → `synthetic-000000.unit`."""
    return shard.with_suffix(RECORD)


def write_unit(shard: Path, split: str, cubes: Iterable[Cube]) -> None:
    """Publish a shard, its index and its record, each first-writer-wins; what a killed writer left is completed.

    Raises:
        InputError: cubes of several kinds, or of other counts. TryAgain: disk full. CorruptData: a shard stands that was altered.
    """
    tally, refused, index = BandTally(), Counter[str](), None
    if not shard.exists():
        waiting = iter(cubes)
        first = next(waiting, None)
        if first is None:
            raise InputError("no sample for a shard", where=shard)
        whole = noted(alike(chain([first], waiting), first), refused)
        encoding = Encoding("pcodec") if first.codes else Encoding()
        index = write_shard(shard, whole, encoding, stem=payload_of(first), bands=tally, keep_first=True)
    if index is None:  # another writer's bytes stand, so their sums count
        _check_unaltered(shard)
        index, refused = write_index(shard), Counter()
        there = Shard(shard.parent, entry_of(shard, index, split))
        first = there.cube(0)
        bands = sums_of(noted(map(there.cube, range(len(index))), refused))
    else:
        bands = tally.sums()
    meta = meta_from(meta_bytes(first.meta, first.data_CHW), where=shard)  # as it is read from there
    unit = Unit(
        entry=entry_of(shard, index, split),
        kind=Kind.of(replace(first, meta=meta)),
        subjects=tuple(sorted(set(index.subjects))),
        bands=bands,
        refused=dict(refused),
        notes=meta.notes,
    )
    unit.save(shard)


def _check_unaltered(shard: Path) -> None:
    """Refuse to describe anew a shard that its index contradicts: that would hide what happened to it.

    Raises:
        CorruptData: as said.
    """
    try:
        named = open_index(index_path(shard)).sha256
    except CorruptData:  # of an index that is absent or damaged nothing follows
        return
    if named != durable.sha256_of(shard):
        raise CorruptData(
            "its bytes are not those that its index was written for",
            where=shard,
            expected="an unaltered shard",
            mend=f"copy it back; or {command('rm', '-f', shard, index_path(shard), record_path(shard))}, and the same command again",
        )


def read_unit(shard: Path) -> Unit | None:
    """The record of a finished shard; None where there is none, or one of another form, and the shard is to be looked at again.

    Raises:
        CorruptData: the shard has another size than was recorded, or its index another content.
    """
    try:
        fields = json.loads(record_path(shard).read_bytes())
        if fields["format"] != FORMAT or not isinstance(fields.get("notes") or {}, dict):
            return None
        entry, kind = ShardEntry(**fields["entry"]), fields["kind"]
        kind = Kind(**{**kind, "shape": tuple(kind["shape"]), "wavelengths_nm": tuple(kind["wavelengths_nm"])})
        unit = Unit(
            entry=entry,
            kind=kind,
            subjects=tuple(fields["subjects"]),
            bands=BandAccumulator(**fields["bands"]),
            refused=fields.get("refused", {}),
            stamps=fields["stamps"],
            notes=fields.get("notes"),
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return None
    except OSError as error:
        raise unreadable(record_path(shard), error) from error
    try:
        index_sha256 = durable.sha256_of(index_path(shard))
        found = shard.stat().st_size
    except FileNotFoundError:
        return None
    if entry.name != shard.name:
        return None
    mend = "move the shard and its .index and .unit files away, and run the same command again"
    if found != entry.bytes:
        raise CorruptData(f"a finished shard of {found} bytes, {entry.bytes} were written", where=shard, mend=mend)
    if index_sha256 != entry.index_sha256:
        raise CorruptData("the index of a finished shard is not as it was written", where=index_path(shard), mend=mend)
    return unit


def unreadable(path: Path, error: OSError) -> InputError:
    """Of a set's file that is there."""
    return InputError(f"cannot be read: {error.strerror}", where=path, expected="a set that this user may read")


def read_request(path: Path) -> dict[str, Any] | None:
    """What the first process wrote down that the set is asked for; None where none has.

    Raises:
        CorruptData: damaged. InputError: it cannot be read.
    """
    try:
        request = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, RecursionError):
        request = None  # no JSON, or one that no request is
    if isinstance(request, dict):
        return request
    raise CorruptData(
        "what the set was asked for is damaged",
        where=path,
        expected="a JSON object, as it was written: without it nobody knows what the shards here hold",
        mend=f"copy the file back, or begin anew: {moved_aside(path.parent)}",
    )


def publish_manifest(out: Path, manifest: Manifest) -> None:
    """Write dataset.json over a set that several processes may finish at one moment: all of them write the same. What killed writers left
    beside what is published goes."""
    with contextlib.suppress(Overtaken):  # another has written it, and cleared up
        write_manifest(out, manifest)
    durable.sweep_published(out)


def merged(units: Sequence[Unit], splits: Sequence[str], source: dict[str, Any], *, max_error: int = 0) -> Manifest:
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
    stats = None if kind.payload == "codes" else bands.stats(stats_split, kind.scale, kind.offset)
    entries = tuple(unit.entry for unit in units)
    return Manifest(**asdict(kind), shards=entries, splits=sizes, max_error=max_error, stats=stats, source=source)


def alike(cubes: Iterable[Cube], first: Cube) -> Iterator[Cube]:
    """The cubes, each of the kind of `first`."""
    for cube in cubes:
        same_kind(cube, first)
        yield cube


def noted(cubes: Iterable[Cube], refused: Counter[str]) -> Iterator[Cube]:
    """The cubes, with what their notes say was refused in their place entered as they pass."""
    for cube in cubes:
        refused.update(cube.meta.notes.get("refused", ()))
        yield cube
