"""Shards that lie there without index: ours, or written by stock webdataset."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from data_shards import durable, payload
from data_shards.band_statistics import BandAccumulator
from data_shards.cube import Cube
from data_shards.dataset import Dataset
from data_shards.errors import InputError
from data_shards.index import index_bytes, index_path
from data_shards.manifest import BandStats, Manifest, ShardEntry, write_manifest
from data_shards.pack import checked, describe, entry_of, stats_split_of
from data_shards.reader import Shard
from data_shards.shard import scan_shard
from data_shards.splits import stated_splits


def index_folder(folder: Path) -> Manifest:
    """Index every `SPLIT-*.tar` of a folder (ours, or written by stock webdataset) and write dataset.json with statistics.

    The split is the file name up to its last '-'.

    Raises:
        InputError: no shards, mixed kinds, a subject in two splits. CorruptData: a damaged shard.
    """
    shards = sorted(path for path in folder.glob("*.tar") if not path.name.startswith(durable.PART))
    if not shards:
        raise InputError("no shards here", where=folder, expected="SPLIT-000000.tar files")
    scanned = [(shard, shard.stem.rpartition("-")[0] or shard.stem, scan_shard(shard)) for shard in shards]
    stated_splits((subject, split) for _, split, index in scanned for subject in index.subjects)
    _each_once((key, shard.name) for shard, _, index in scanned for key in index.keys)
    _one_shape((f"{shard.name}: sample {key}", index.shape(i)) for shard, _, index in scanned for i, key in enumerate(index.keys))
    for shard, _, index in scanned:
        durable.write_bytes(index_path(shard), index_bytes(index))
    entries = [entry_of(shard, index, split) for shard, split, index in scanned]
    splits = {
        s: {
            "count": sum(e.count for e in entries if e.split == s),
            "subjects": len({subject for _, split, index in scanned if split == s for subject in index.subjects}),
        }
        for s in sorted({e.split for e in entries})
    }
    filled = next((entry for entry in entries if entry.count), None)
    if filled is None:
        raise InputError("no sample in any shard", where=folder, expected="KEY.json and KEY.cube.<codec> members")
    first, bounds = Shard(folder, filled).cube(0), {bound_of(folder, entry) for entry in entries if entry.count}
    manifest = describe(
        first, shards=entries, splits=splits, stats=None, source={"index": [e.name for e in entries]}, max_error=max(bounds)
    )
    manifest = replace(manifest, stats=_checked_stats(Dataset(folder, manifest), first))
    write_manifest(folder, manifest)
    return manifest


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


def _checked_stats(dataset: Dataset, first: Cube) -> BandStats:
    """Band statistics of shards from elsewhere, every cube of every split decoded and compared with the first on the way."""
    bands, stats_split = BandAccumulator(), stats_split_of(dataset.splits)
    for split in (name for name, info in dataset.splits.items() if info.count):
        for _ in checked(dataset.cubes(split), first, bands if split == stats_split else None):
            pass
    return bands.stats(stats_split, dataset.scale, dataset.offset)


def bound_of(folder: Path, entry: ShardEntry) -> int:
    """How far counts of a shard may lie from what was packed: as its first array says."""
    shard = Shard(folder, entry)
    m, codec_name = shard.index.payload(0)
    return payload.stated_bound(shard.member(0, m)) if codec_name == "near" else 0
