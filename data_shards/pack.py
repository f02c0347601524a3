"""Packing: loose cubes (or another dataset) into shards, splits by subject, per-band statistics, manifest.

Legend: C band, H W pixels.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from data_shards import durable
from data_shards.band_statistics import FORMAT as STATISTICS
from data_shards.band_statistics import BandAccumulator
from data_shards.codecs import Encoding
from data_shards.cube import Cube
from data_shards.dataset import Dataset
from data_shards.errors import InputError
from data_shards.index import FORMAT as INDEX_FORMAT
from data_shards.index import ShardIndex, index_path
from data_shards.manifest import FORMAT as DATASET_FORMAT
from data_shards.manifest import NAME, BandStats, Manifest, ShardEntry, read_manifest, write_manifest
from data_shards.shard import write_shard
from data_shards.sources import Read, source_of
from data_shards.splits import SPLITS, check_split_names, split_subjects, stated_splits

Watch = Callable[[Iterable[Any]], Iterable[Any]]  # wraps what is iterated over, to show progress


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


def pack(
    source: Path | str,
    out: Path,
    *,
    splits: dict[str, float] | None = None,
    seed: int = 0,
    codec: str = "raw",
    max_error: int = 0,
    tile: int = 0,
    shard_mib: int = 1024,
    workers: int = 1,
    watch: Watch = iter,
) -> Manifest:
    """Pack loose cubes, or repack a dataset, into `out`. `out` appears whole when all is written, or not at all.

    The same samples give the same bytes, whatever `workers` is and however often the packing was killed: finished shards are kept
    and the same call goes on behind them.

    Args:
        splits: fractions by subject; None takes the splits that the samples state, else SPLITS.
        codec, max_error, tile: as Encoding.
        shard_mib: a shard is closed before it would grow over this, as raw counts.
        workers: threads, each on a shard of its own.
        watch: wraps the keys as they are packed (a progress bar).

    Raises:
        InputError: mixed shapes, bands or dtypes; a subject in two splits; an empty split; `out` holds something else.
    """
    encoding = Encoding(codec, max_error, tile)
    rows, read, samples = source_of(source)
    asked = {**asdict(encoding), "seed": seed, "shard_mib": shard_mib, "splits": splits}
    request = {"pack": asked, "samples": samples}
    if done := _standing(out, encoding, request):
        return done
    split_of = _splits_for(rows, splits, seed)
    parts: dict[str, list[str]] = {name: [] for name in (splits or dict.fromkeys([*SPLITS, *split_of.values()]))}
    check_split_names(parts)
    for key, subject, _ in rows:
        parts[split_of[subject]].append(key)
    first = read(next(keys for keys in parts.values() if keys)[0])
    each = _samples_a_shard(first, shard_mib)
    shards = {name: [keys[a : a + each] for a in range(0, len(keys), each)] for name, keys in parts.items() if keys}
    return _write_shards(out, shards, read, first, encoding, source=request, workers=workers, watch=watch)


def recode(
    source: Path | str, out: Path, *, codec: str, max_error: int = 0, tile: int = 0, workers: int = 1, watch: Watch = iter
) -> Manifest:
    """The dataset `source` in another encoding: the same samples in the same splits and shards. As `pack` otherwise."""
    encoding = Encoding(codec, max_error, tile)
    dataset = Dataset(source)
    _, read, samples = source_of(source)
    request = {"recode": asdict(encoding), "samples": samples}
    if done := _standing(out, encoding, request):
        return done
    shards = {split: [list(shard.index.keys) for shard in dataset.shards(split)] for split, info in dataset.splits.items() if info.count}
    first = dataset.cube(next(iter(shards)), 0)
    return _write_shards(out, shards, read, first, encoding, source=request, workers=workers, watch=watch)


def _standing(out: Path, encoding: Encoding, request: dict[str, Any]) -> Manifest | None:
    """The dataset at `out` where it is the one asked for; None where nothing stands there.

    Raises:
        InputError: something else does, or the codec cannot be used.
    """
    _ = encoding.coder
    if (out / NAME).exists() and (done := read_manifest(out)).source == request:
        return done
    if out.exists():
        raise InputError(
            "the place is taken",
            where=out,
            expected="a path that does not exist yet, or this very dataset",
            mend=f"choose another, or rm -r {out}",
        )
    return None


def _samples_a_shard(first: Cube, shard_mib: int) -> int:
    return max(1, (shard_mib << 20) // first.data_CHW.nbytes)


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


@dataclass(frozen=True, kw_only=True)
class _Written:
    """A finished shard, and what the manifest needs of it."""

    entry: ShardEntry
    subjects: list[str]
    bands: BandAccumulator

    def save(self, staging: Path, source: Any) -> None:
        fields = {"entry": asdict(self.entry), "subjects": self.subjects, "bands": self.bands.fields(), "source": source}
        durable.write_bytes(staging / f"{self.entry.name}{WRITTEN}", durable.canonical_json(fields))

    @classmethod
    def load(cls, staging: Path, name: str, source: Any) -> _Written | None:
        """The shard as a killed packing left it; None where it is not whole, or was made of other files."""
        record = staging / f"{name}{WRITTEN}"
        if not record.exists() or (fields := json.loads(record.read_bytes()))["source"] != source:
            return None
        return cls(entry=ShardEntry(**fields["entry"]), subjects=fields["subjects"], bands=BandAccumulator(**fields["bands"]))


WRITTEN = ".written"  # beside a shard of an unfinished dataset


def _write_one(staging: Path, split: str, number: int, cubes: Iterable[Cube], first: Cube, encoding: Encoding) -> _Written:
    shard, bands = staging / f"{split}-{number:06d}.tar", BandAccumulator()
    near = encoding.coder if encoding.max_error else None
    if near and first.data_CHW.dtype != np.uint16:
        raise InputError("codec 'near' on latents", where=first.meta.key, expected="counts (uint16): its bound is in counts")
    stored = (replace(cube, data_CHW=near.rounded(cube.data_CHW)) for cube in cubes) if near else cubes
    index = write_shard(shard, checked(stored, first, bands), encoding, stem=payload_of(first))
    return _Written(entry=entry_of(shard, index, split), subjects=sorted(set(index.subjects)), bands=bands)


def _write_shards(
    out: Path,
    shards: dict[str, list[list[str]]],
    read: Read,
    first: Cube,
    encoding: Encoding,
    *,
    source: dict[str, Any],
    workers: int,
    watch: Watch,
) -> Manifest:
    """Write the shards, named by the keys in each, side by side."""
    told: SimpleQueue[BaseException | None] = SimpleQueue()  # a None for each cube that is done, or what went wrong
    ended = threading.Event()

    def cubes(keys: list[str]) -> Iterator[Cube]:
        for key in keys:
            if ended.is_set():
                raise KeyboardInterrupt
            yield read(key)
            told.put(None)

    def write(staging: Path, split: str, number: int, keys: list[str]) -> _Written:
        try:
            stamps = [read.stamp(key) for key in keys]
            written = _Written.load(staging, f"{split}-{number:06d}.tar", stamps)
            if written:
                for _ in keys:
                    told.put(None)
            else:
                written = _write_one(staging, split, number, cubes(keys), first, encoding)
                written.save(staging, stamps)
            return written
        except BaseException as error:
            told.put(error)
            raise

    request = durable.canonical_json({**source, "shards": shards, "formats": [DATASET_FORMAT, INDEX_FORMAT, STATISTICS]}).decode()
    with durable.writing_folder(out, request=request) as staging, ThreadPoolExecutor(workers) as pool:
        try:
            jobs = [pool.submit(write, staging, split, n, keys) for split, parts in shards.items() for n, keys in enumerate(parts)]
            for _ in watch([key for parts in shards.values() for keys in parts for key in keys]):
                if error := told.get():
                    raise error
            return _describe_written(staging, [job.result() for job in jobs], list(shards), first, encoding.max_error, source)
        finally:
            ended.set()
            pool.shutdown(cancel_futures=True)


def write_dataset(
    out: Path,
    parts: dict[str, Iterable[Cube]],
    *,
    codec: str = "raw",
    max_error: int = 0,
    tile: int = 0,
    shard_mib: int = 1024,
    source: dict[str, Any],
) -> Manifest:
    """Write the cubes of each split as shards, index and manifest; `out` appears whole, or not at all.

    Raises:
        InputError: cubes of mixed shape, dtype, band list or affine map; `out` cannot be written. TryAgain: disk full.
    """
    encoding = Encoding(codec, max_error, tile)
    _ = encoding.coder
    check_split_names(parts)
    with durable.writing_folder(out) as staging:
        first, written = None, []
        for split, cubes in parts.items():
            waiting, number = iter(cubes), 0
            while (head := next(waiting, None)) is not None:
                first = first or head
                chunk = chain([head], islice(waiting, _samples_a_shard(head, shard_mib) - 1))
                written.append(_write_one(staging, split, number, chunk, first, encoding))
                number += 1
        return _describe_written(staging, written, list(parts), first, encoding.max_error, source)


def _describe_written(
    staging: Path, written: list[_Written], splits: list[str], first: Cube, max_error: int, source: dict[str, Any]
) -> Manifest:
    """Write dataset.json over finished shards; their statistics are added up in the order of the shards, whoever wrote them."""
    stats_split, bands, sizes = stats_split_of(splits), BandAccumulator(), {}
    for split in splits:
        mine = [w for w in written if w.entry.split == split]
        sizes[split] = {"count": sum(w.entry.count for w in mine), "subjects": len({s for w in mine for s in w.subjects})}
    for shard in written:
        if shard.entry.split == stats_split:
            bands.merge(shard.bands)
        (staging / f"{shard.entry.name}{WRITTEN}").unlink(missing_ok=True)
    stats = bands.stats(stats_split, first.meta.scale, first.meta.offset)
    manifest = describe(first, shards=[shard.entry for shard in written], splits=sizes, stats=stats, source=source, max_error=max_error)
    write_manifest(staging, manifest)
    return manifest


def checked(cubes: Iterable[Cube], first: Cube, bands: BandAccumulator | None) -> Iterator[Cube]:
    """The cubes, each of the kind of `first`, entered into the statistics as they pass."""
    for cube in cubes:
        _same_kind(cube, first)
        if bands is not None:
            bands.add(cube)
        yield cube


def payload_of(cube: Cube) -> str:
    """'cube' for stored counts, 'latent' for floats."""
    return "cube" if cube.data_CHW.dtype == np.uint16 else "latent"


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
    first: Cube,
    *,
    shards: Iterable[ShardEntry],
    splits: dict[str, dict[str, int]],
    stats: BandStats | None,
    source: dict[str, Any],
    max_error: int = 0,
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
        max_error=max_error,
        stats=stats,
        source=source,
    )
