"""Packing: loose cubes (or another dataset) into shards, splits by subject, per-band statistics, manifest.

Legend: C band, H W pixels.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from data_shards import durable
from data_shards import folder as loose
from data_shards.codecs import get_codec
from data_shards.cube import KEY, Cube
from data_shards.dataset import Dataset, Shard
from data_shards.errors import InputError
from data_shards.index import ShardIndex, index_bytes, index_path
from data_shards.manifest import LOG_KNEE, NAME, BandStats, Manifest, ShardEntry, read_manifest, write_manifest
from data_shards.shard import scan_shard, write_shard

Read = Callable[[str], Cube]
Watch = Callable[[Iterable[Any]], Iterable[Any]]  # wraps what is iterated over, to show progress

SPLITS = {"train": 0.8, "val": 0.1, "test": 0.1}


def check_fractions(fractions: dict[str, float]) -> None:
    """Refuse fractions that do not divide a whole.

    Raises:
        InputError: none at all, one below 0, a sum that is not 1.
    """
    if not fractions or not abs(sum(fractions.values()) - 1) <= 1e-6 or min(fractions.values()) < 0:
        raise InputError(
            f"split fractions {fractions}", expected="none below 0, adding up to 1", mend="--splits train=0.8,val=0.1,test=0.1"
        )


def split_subjects(subjects: Iterable[str], fractions: dict[str, float], seed: int) -> dict[str, str]:
    """Subject → split. Subjects are ranked by a hash of (seed, subject) and cut at the fractions, each split rounded to the nearest.

    Raises:
        InputError: fractions that do not add up to 1, or a split that would be empty.
    """
    check_fractions(fractions)
    ranked = sorted(set(subjects), key=lambda s: hashlib.sha256(f"{seed}\0{s}".encode()).digest())
    cuts = np.rint(np.cumsum([0.0, *fractions.values()]) * len(ranked)).astype(int)
    split_of = {s: name for name, a, b in zip(fractions, cuts, cuts[1:], strict=False) for s in ranked[a:b]}
    empty = [name for name, share in fractions.items() if share > 0 and name not in split_of.values()]
    if empty:
        raise InputError(
            f"split {empty[0]!r} would be empty",
            where=f"{len(ranked)} subjects, fractions {fractions}",
            expected="at least one subject in every split (splits are by subject, never by image)",
            mend="add subjects, or change --splits",
        )
    return split_of


def stated_splits(splits_by_subject: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Subject → split, as the samples' own metadata (`notes.split`) states it.

    Raises:
        InputError: a subject that stands in two splits.
    """
    split_of: dict[str, str] = {}
    for subject, split in splits_by_subject:
        if split_of.setdefault(subject, split) != split:
            raise InputError(
                f"subject {subject!r} stands in two splits: {split_of[subject]!r} and {split!r}",
                expected="every cube of one subject in one split",
                mend="correct the column 'split' of the subjects CSV and import again",
            )
    return split_of


@dataclass
class BandAccumulator:
    """Exact per-band sums of stored integers (Python integers: no order dependence, no overflow); floats in float64."""

    sums_C: list[Any] = field(default_factory=list)
    squares_C: list[Any] = field(default_factory=list)
    min_C: list[float] = field(default_factory=list)
    max_C: list[float] = field(default_factory=list)
    logs_C: np.ndarray | float = 0.0
    log_squares_C: np.ndarray | float = 0.0
    values: int = 0

    def add(self, cube: Cube) -> None:
        flat_CN = cube.data_CHW[:, cube.fov_HW] if cube.fov_HW is not None else cube.data_CHW.reshape(len(cube.data_CHW), -1)
        if not flat_CN.shape[1]:
            return
        exact = flat_CN.dtype.kind == "u"
        wide_CN = flat_CN.astype(np.uint64 if exact else np.float64)
        to = int if exact else float
        sums, squares = [to(v) for v in wide_CN.sum(1)], [to(v) for v in (wide_CN * wide_CN).sum(1)]
        low, high = flat_CN.min(1).tolist(), flat_CN.max(1).tolist()
        if not self.values:
            self.sums_C, self.squares_C, self.min_C, self.max_C = sums, squares, low, high
        else:
            self.sums_C = [a + b for a, b in zip(self.sums_C, sums, strict=True)]
            self.squares_C = [a + b for a, b in zip(self.squares_C, squares, strict=True)]
            self.min_C = [min(a, b) for a, b in zip(self.min_C, low, strict=True)]
            self.max_C = [max(a, b) for a, b in zip(self.max_C, high, strict=True)]
        if exact:
            logs_CN = np.log1p(flat_CN / LOG_KNEE)
            self.logs_C, self.log_squares_C = self.logs_C + logs_CN.sum(1), self.log_squares_C + (logs_CN * logs_CN).sum(1)
        self.values += flat_CN.shape[1]

    def stats(self, split: str, scale: float, offset: float) -> BandStats:
        """Reflectance statistics: mean and standard deviation follow the affine map of the stored values."""
        if not self.values:
            raise InputError(f"no pixel of split {split!r} lies in a field of view", mend="check the masks: retinaforge data ls")
        n = self.values
        means = [s / n for s in self.sums_C]
        # var = (n Σx² − (Σx)²)/n², in integers where the values are integers: no cancellation
        stds = [math.sqrt(max((n * q - s * s) / (n * n), 0.0)) for s, q in zip(self.sums_C, self.squares_C, strict=True)]
        log_mean_C = np.asarray(self.logs_C) / n
        log_std_C = np.sqrt(np.maximum(np.asarray(self.log_squares_C) / n - log_mean_C**2, 0))
        return BandStats(
            split=split,
            log_mean_C=tuple(np.atleast_1d(log_mean_C).tolist()) if np.any(log_mean_C) else (),
            log_std_C=tuple(np.atleast_1d(log_std_C).tolist()) if np.any(log_mean_C) else (),
            mean_C=tuple(scale * m + offset for m in means),
            std_C=tuple(scale * s for s in stds),
            min_C=tuple(scale * v + offset for v in self.min_C),
            max_C=tuple(scale * v + offset for v in self.max_C),
            values=n,
        )


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


def _same_kind(cube: Cube, first: Cube) -> None:
    def kind(c: Cube) -> tuple[Any, ...]:
        return c.data_CHW.shape, c.data_CHW.dtype.name, c.meta.wavelengths_nm, c.meta.scale, c.meta.offset

    for name, a, b in zip(("shape", "dtype", "wavelengths_nm", "scale", "offset"), kind(cube), kind(first), strict=True):
        if a != b:
            raise InputError(
                f"{name} {a}",
                where=cube.meta.key,
                expected=f"{b}, as in {first.meta.key}: one dataset has one {name}",
                mend="retinaforge data import with --resize, --crop or --wavelengths, or pack into two datasets",
            )


def _source(path: Path) -> tuple[list[tuple[str, str, str]], Read, str]:
    """(key, subject, stated split) of each sample, how to read one, and what names them all: an import made anew has other metadata."""
    if (path / NAME).exists():
        dataset = Dataset(path)
        place = {key: (split, i) for split, info in dataset.splits.items() if info.count for i, key in enumerate(dataset.keys(split))}
        rows = [
            (k, s, split)
            for split, info in dataset.splits.items()
            if info.count
            for k, s in zip(dataset.keys(split), dataset.subjects(split), strict=True)
        ]
        return rows, lambda key: dataset.cube(*place[key]), dataset.digest
    rows, told = [], hashlib.sha256()
    for key in loose.keys_in(path):
        content = (path / f"{key}.json").read_bytes()
        told.update(hashlib.sha256(content).digest())
        meta = loose.meta_from(content, where=path / f"{key}.json")
        rows.append((key, meta.subject_id, str(meta.notes.get("split", ""))))
    return rows, lambda key: loose.read_cube(path, key), told.hexdigest()


def pack(
    source: Path,
    out: Path,
    *,
    splits: dict[str, float] | None = None,
    seed: int = 0,
    codec: str = "raw",
    shard_mib: int = 1024,
    watch: Watch = iter,
) -> Manifest:
    """Pack loose cubes, or repack a dataset, into `out`. `out` appears whole when all is written, or not at all.

    Args:
        splits: fractions by subject; None takes the splits that the samples state, else SPLITS.
        shard_mib: a shard is closed before it would grow over this.
        watch: wraps the keys as they are packed (a progress bar).

    Raises:
        InputError: mixed shapes, bands or dtypes; a subject in two splits; an empty split; `out` holds something else.
    """
    get_codec(codec)
    rows, read, samples = _source(source)
    request = {"pack": {"codec": codec, "seed": seed, "shard_mib": shard_mib, "splits": splits}, "samples": samples}
    if (out / NAME).exists() and (done := read_manifest(out)).source == request:
        return done
    if out.exists():
        raise InputError(
            "the place is taken",
            where=out,
            expected="a path that does not exist yet, or this very dataset",
            mend=f"choose another, or rm -r {out}",
        )
    split_of = _splits_for(rows, splits, seed)
    parts: dict[str, list[str]] = {name: [] for name in (splits or dict.fromkeys([*SPLITS, *split_of.values()]))}
    if strange := [name for name in parts if not KEY.fullmatch(name)]:
        raise InputError(
            f"split name {strange[0]!r} is not allowed", expected="letters, digits, '_' and '-': it becomes a file name", mend="--splits …"
        )
    for key, subject, _ in rows:
        parts[split_of[subject]].append(key)
    stream = iter(watch([key for keys in parts.values() for key in keys]))
    cubes = {name: (read(next(stream)) for _ in keys) for name, keys in parts.items() if keys}
    manifest = write_dataset(out, cubes, codec=codec, shard_mib=shard_mib, source=request)
    next(stream, None)  # past the last key: what watches the keys sees their end
    return manifest


def _splits_for(rows: list[tuple[str, str, str]], fractions: dict[str, float] | None, seed: int) -> dict[str, str]:
    unstated = [key for key, _, split in rows if not split]
    if fractions is None and not unstated:
        return stated_splits((subject, split) for _, subject, split in rows)
    if fractions is None and len(unstated) < len(rows):
        raise InputError(
            f"{len(rows) - len(unstated)} of {len(rows)} samples state a split, the others do not",
            where=f"sample {unstated[0]} and {len(unstated) - 1} more",
            expected="a split for all of them, or for none",
            mend="fill the column 'split' and import again, or divide all anew: --splits train=0.8,val=0.1,test=0.1",
        )
    return split_subjects((subject for _, subject, _ in rows), fractions or SPLITS, seed)


def write_dataset(
    out: Path, parts: dict[str, Iterable[Cube]], *, codec: str = "raw", shard_mib: int = 1024, source: dict[str, Any]
) -> Manifest:
    """Write the cubes of each split as shards, index and manifest; `out` appears whole, or not at all.

    Raises:
        InputError: cubes of mixed shape, dtype, band list or affine map; `out` cannot be written. TryAgain: disk full.
    """
    with durable.writing_folder(out) as staging:
        stats_split = stats_split_of(parts)
        bands, first, entries, sizes = BandAccumulator(), None, [], {}
        for split, cubes in parts.items():
            waiting, subjects = iter(cubes), set()
            while (head := next(waiting, None)) is not None:
                first = first or head
                chunk = chain([head], islice(waiting, max(0, (shard_mib << 20) // head.data_CHW.nbytes - 1)))
                shard = staging / f"{split}-{sum(e.split == split for e in entries):06d}.tar"
                checked = _checked(chunk, first, bands if split == stats_split else None)
                index = write_shard(shard, checked, codec=codec, stem=payload_of(head))
                entries.append(entry_of(shard, index, split))
                subjects.update(index.subjects)
            sizes[split] = {"count": sum(e.count for e in entries if e.split == split), "subjects": len(subjects)}
        stats = bands.stats(stats_split, first.meta.scale, first.meta.offset)
        manifest = describe(first, shards=entries, splits=sizes, stats=stats, source=source)
        write_manifest(staging, manifest)
    return manifest


def _checked(cubes: Iterable[Cube], first: Cube, bands: BandAccumulator | None) -> Iterator[Cube]:
    """The cubes, each of the kind of `first`, entered into the statistics as they pass."""
    for cube in cubes:
        _same_kind(cube, first)
        if bands is not None:
            bands.add(cube)
        yield cube


def payload_of(cube: Cube) -> str:
    """'cube' for stored counts, 'latent' for floats."""
    return "cube" if cube.data_CHW.dtype == np.uint16 else "latent"


def index_folder(folder: Path) -> Manifest:
    """Index every `SPLIT-*.tar` of a folder (ours, or written by stock webdataset) and write dataset.json with statistics.

    The split is the file name up to its last '-'.

    Raises:
        InputError: no shards, mixed kinds, a subject in two splits. CorruptData: a damaged shard.
    """
    shards = sorted(folder.glob("*.tar"))
    if not shards:
        raise InputError("no shards here", where=folder, expected="SPLIT-000000.tar files")
    scanned = [(shard, shard.stem.rpartition("-")[0] or shard.stem, scan_shard(shard)) for shard in shards]
    stated_splits((subject, split) for _, split, index in scanned for subject in index.subjects)
    _each_once((key, shard.name) for shard, _, index in scanned for key in index.keys)
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
    first = Shard(folder, filled).cube(0)
    manifest = describe(first, shards=entries, splits=splits, stats=None, source={"index": [e.name for e in entries]})
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


def _checked_stats(dataset: Dataset, first: Cube) -> BandStats:
    """Band statistics of shards from elsewhere, every cube of every split decoded and compared with the first on the way."""
    bands, stats_split = BandAccumulator(), stats_split_of(dataset.splits)
    for split in (name for name, info in dataset.splits.items() if info.count):
        for _ in _checked(dataset.cubes(split), first, bands if split == stats_split else None):
            pass
    return bands.stats(stats_split, dataset.scale, dataset.offset)


def stats_split_of(splits: Iterable[str]) -> str:
    """The split that statistics are taken from: 'train', or the first where there is none of that name."""
    names = list(splits)
    return "train" if "train" in names else names[0]


def band_stats(dataset: Dataset, watch: Watch = iter) -> BandStats:
    """Per-band statistics of the training split (of the first split where there is none of that name).

    Raises:
        InputError: a cube of another shape, dtype, band list or affine map than the first.
    """
    split = stats_split_of(dataset.splits)
    bands, first = BandAccumulator(), dataset.cube(split, 0)
    for i in watch(range(dataset.count(split))):
        cube = dataset.cube(split, i)
        _same_kind(cube, first)
        bands.add(cube)
    return bands.stats(split, dataset.scale, dataset.offset)


def describe(
    first: Cube, *, shards: Iterable[ShardEntry], splits: dict[str, dict[str, int]], stats: BandStats | None, source: dict[str, Any]
) -> Manifest:
    """The manifest of a set of which `first` is one sample."""
    return Manifest(
        payload=payload_of(first),
        dtype=first.data_CHW.dtype.name,
        shape=first.data_CHW.shape,
        wavelengths_nm=first.meta.wavelengths_nm,
        scale=first.meta.scale,
        offset=first.meta.offset,
        shards=tuple(shards),
        splits=splits,
        stats=stats,
        source=source,
    )
