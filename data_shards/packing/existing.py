"""Shards that lie there without index: ours, or written by stock webdataset."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from data_shards import durable
from data_shards.cube import Cube
from data_shards.errors import CorruptData, InputError, RetinaforgeError, moved_aside
from data_shards.formats.faults import refuse_absent_links
from data_shards.look_alikes import warn_of_look_alikes
from data_shards.manifest import NAME, BandStats, Kind, Manifest, ShardEntry, read_manifest, write_manifest
from data_shards.packing.statistics import BandAccumulator, sums_of
from data_shards.packing.units import alike, entry_of, stats_split_of
from data_shards.reading.dataset import Dataset
from data_shards.reading.reader import Shard
from data_shards.shards import payload
from data_shards.shards.index import ShardIndex, index_bytes, index_path, open_index
from data_shards.shards.shard import scan_shard


@dataclass(frozen=True, kw_only=True)
class _Record:
    """What is written down of the shards of a folder.

    Attributes:
        manifest: dataset.json, where it is sound.
        sha256s: shard name to what its bytes may hash to: as the manifest says or, where there is no sound one, also the index.
        source: provenance; not to be relied on where `manifest` is None.
        stands: there is a dataset.json, sound or not.
    """

    manifest: Manifest | None
    sha256s: dict[str, set[str]]
    source: Any
    stands: bool


class _Scanned(NamedTuple):
    """A shard, the split that its name says, and its index, made anew; None where it is damaged and will be refused."""

    path: Path
    split: str
    index: ShardIndex | None


def index_folder(folder: Path | str, *, changed: bool = False) -> Manifest:
    """Index every `SPLIT-*.tar` of a folder (ours, or written by stock webdataset) and write dataset.json with statistics.

    The split is the file name up to its last '-'. Shards of which a sha256 is written down (in dataset.json or, where that is
    gone, in their index) have to be those still: else damage would be taken for data. Where all are, provenance is kept.

    Args:
        changed: take shards that are not what was written down; the old digest and provenance are kept under `source.before`.

    Raises:
        InputError: no shards, mixed kinds, a subject in two splits, shards that dataset.json does not name. CorruptData: a damaged
            shard, or one that is not what was written down, or is gone.
    """
    folder = Path(folder)
    paths = sorted(path for path in folder.glob("*.tar") if not path.name.startswith(durable.PART))
    if not paths:
        raise InputError("no shards here", where=folder, expected="SPLIT-000000.tar files")
    refuse_absent_links(paths)
    record = _record_of(folder)
    shards = [_Scanned(path, path.stem.rpartition("-")[0] or path.stem, _index_of(path, record, changed)) for path in paths]
    if not changed:
        _check_against(record, folder, {shard.path.name: None if shard.index is None else shard.index.sha256 for shard in shards})
    _check_samples(folder, record, shards)
    for shard in shards:
        durable.write_bytes(index_path(shard.path), index_bytes(shard.index))
    entries = [entry_of(shard.path, shard.index, shard.split) for shard in shards]
    filled = [entry for entry in entries if entry.count]
    if not filled:
        raise InputError("no sample in any shard", where=folder, expected="KEY.json and KEY.cube.<codec> members")
    first, max_error = Shard(folder, filled[0]).cube(0), max(bound_of(folder, entry) for entry in filled)
    old = record.manifest
    if old and {(s.name, s.sha256) for s in old.shards} == {(e.name, e.sha256) for e in entries}:
        entry_of_name = {entry.name: entry for entry in entries}
        manifest = replace(old, shards=tuple(entry_of_name[s.name] for s in old.shards))  # order and provenance as they were
    else:
        kind, source = asdict(Kind.of(first)), _source(record, entries)
        manifest = Manifest(**kind, shards=tuple(entries), splits=_split_sizes(shards), source=source, max_error=max_error)
    manifest = replace(manifest, stats=_checked_stats(Dataset(folder, manifest), first))
    write_manifest(folder, manifest)
    return manifest


def _check_samples(folder: Path, record: _Record, shards: Sequence[_Scanned]) -> None:
    """Raises: InputError: a subject in two splits, a key that stands twice, or arrays of several shapes."""
    people = [(subject, shard.path.name, shard.split) for shard in shards for subject in dict.fromkeys(shard.index.subjects)]
    _one_split_each(folder, record, people)
    warn_of_look_alikes((subject for subject, _, _ in people), folder, "correct subject_id in the JSON of its samples")
    _each_once((key, shard.path.name) for shard in shards for key in shard.index.keys)
    _one_shape((f"{shard.path.name}: sample {key}", shard.index.shape(i)) for shard in shards for i, key in enumerate(shard.index.keys))


def _split_sizes(shards: Sequence[_Scanned]) -> dict[str, dict[str, int]]:
    """Samples and subjects of each split, as the manifest has them."""
    sizes = {}
    for split in sorted({shard.split for shard in shards}):
        indices = [shard.index for shard in shards if shard.split == split]
        subjects = {subject for index in indices for subject in index.subjects}
        sizes[split] = {"count": sum(map(len, indices)), "subjects": len(subjects)}
    return sizes


def _record_of(folder: Path) -> _Record:
    """What dataset.json and the indices say, as far as they can be read."""
    manifest, source, sha256s = None, None, {}
    try:
        manifest = read_manifest(folder)
        return _Record(manifest=manifest, sha256s={s.name: {s.sha256} for s in manifest.shards}, source=manifest.source, stands=True)
    except InputError:
        stands = False
    except CorruptData:
        stands = True
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):  # what can be read of it is compared all the same
            fields = json.loads((folder / NAME).read_bytes())
            source = fields.get("source")
            sha256s = {str(shard["name"]): {shard["sha256"]} for shard in fields["shards"]}
    for path in sorted(folder.glob("*.index")):
        known = sha256s.setdefault(path.with_suffix(".tar").name, set())
        with contextlib.suppress(CorruptData):
            known.add(open_index(path).sha256)
    return _Record(manifest=None, sha256s=sha256s, source=source, stands=stands)


def _index_of(shard: Path, record: _Record, changed: bool) -> ShardIndex | None:
    """The shard's index; None where it cannot be indexed, and is refused anyway: it is not what was written down.

    Raises:
        InputError, CorruptData: as scan_shard.
    """
    try:
        return scan_shard(shard)
    except RetinaforgeError:
        if changed or shard.name not in record.sha256s or durable.sha256_of(shard) in record.sha256s[shard.name]:
            raise
        return None


def _check_against(record: _Record, folder: Path, sha256_of: dict[str, str | None]) -> None:
    """Raises: CorruptData: a shard that is not what was written down, or is gone. InputError: one that nothing names."""
    wrong = [f"{name} is missing" for name in sorted(record.sha256s) if name not in sha256_of]
    for name, sha256 in sha256_of.items():
        known = record.sha256s.get(name)
        if known is not None and sha256 not in known:
            wrong.append(f"{name} is not as it was written" if known else f"nothing readable tells what {name} has to be")
    purpose = "shards that were written, added or removed on purpose are taken with the option --changed"
    if wrong:
        raise CorruptData(
            "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""),
            where=folder,
            expected=f"the shards that {NAME} and the indices describe; {purpose}",
            mend="copy these shards again, or pack the set again from its source",
        )
    if record.stands and (new := sorted(set(sha256_of) - set(record.sha256s))):
        raise InputError(f"{NAME} does not name {', '.join(new[:5])}", where=folder, expected=f"the shards that it names; {purpose}")


def _source(record: _Record, entries: list[ShardEntry]) -> dict[str, Any]:
    """Provenance of shards that were not one set before, with what is known of the set that stood here."""
    source = {"index": [entry.name for entry in entries]}
    if record.manifest:
        source["before"] = {"digest": record.manifest.digest, "source": record.manifest.source}
    elif record.source:
        source["before"] = {"unchecked": record.source}
    return source


def _one_split_each(folder: Path, record: _Record, rows: list[tuple[str, str, str]]) -> None:
    """Raises: InputError: a subject in shards of two splits."""
    first: dict[str, tuple[str, str]] = {}
    for subject, name, split in rows:
        other, other_split = first.setdefault(subject, (name, split))
        if other_split != split:
            aside = other if name in record.sha256s and other not in record.sha256s else name  # rather the one that was added
            raise InputError(
                f"subject {subject!r} stands in two splits: {other_split!r} ({other}) and {split!r} ({name})",
                where=folder,
                expected="every cube of one subject in one split, which is the shard's name up to its last '-'",
                mend=f"move one of the shards aside: {moved_aside(folder / aside)}; or pack the set again from its source",
            )


def _each_once(rows: Iterable[tuple[str, str]]) -> None:
    shard_of: dict[str, str] = {}
    for key, shard in rows:
        if shard_of.setdefault(key, shard) != shard:
            raise InputError(
                f"sample {key!r} stands in {shard_of[key]} and in {shard}", expected="every key once", mend="remove one of them"
            )


def _one_shape(rows: Iterable[tuple[str, tuple[int, ...]]]) -> None:
    first = None
    for where, shape in rows:
        first = first or shape
        if shape != first:
            raise InputError(f"shape {shape}", where=where, expected=f"{first}: one dataset has one shape", mend="two folders")


def _checked_stats(dataset: Dataset, first: Cube) -> BandStats | None:
    """Band statistics (codes: none) of shards from elsewhere, every cube of every split decoded and compared with the first on the way."""
    bands, stats_split = BandAccumulator(), stats_split_of(dataset.splits)
    for split in (name for name, info in dataset.splits.items() if info.count):
        for shard in dataset.shards(split):
            sums = sums_of(alike(map(shard.cube, range(len(shard.index))), first))
            if split == stats_split:
                bands.merge(sums)
    return None if first.codes else bands.stats(stats_split, dataset.scale, dataset.offset)


def bound_of(folder: Path, entry: ShardEntry) -> int:
    """How far counts of a shard may lie from what was packed: as its first array says."""
    shard = Shard(folder, entry)
    m, codec_name = shard.index.payload(0)
    return payload.stated_bound(shard.member(0, m)) if codec_name == "near" else 0
