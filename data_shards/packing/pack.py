"""Packing: loose cubes (or another dataset) into shards, splits by subject, per-band statistics, manifest.

Legend: C band, H W pixels.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from itertools import chain, islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from data_shards import durable
from data_shards.cube import Cube, same_kind
from data_shards.errors import InputError, command
from data_shards.look_alikes import warn_of_look_alikes
from data_shards.manifest import FORMAT as DATASET_FORMAT
from data_shards.manifest import BandStats, Kind, Manifest, ShardEntry, payload_of, write_manifest
from data_shards.packing.doubles import Doubles, few
from data_shards.packing.sources import Read, source_of
from data_shards.packing.splits import Kept, check_split_names, divided, split_words
from data_shards.packing.standing import stamps_digest, standing, write_stamps
from data_shards.packing.statistics import BandAccumulator
from data_shards.packing.units import FORMAT as UNIT_FORMAT
from data_shards.packing.units import Unit, entry_of, merged, read_unit, record_path, stats_split_of, summed
from data_shards.reading.dataset import Dataset
from data_shards.shards.codecs import Encoding
from data_shards.shards.index import FORMAT as INDEX_FORMAT
from data_shards.shards.index import index_path, open_index
from data_shards.shards.shard import write_shard
from data_shards.stores import place_of

LOGGER = logging.getLogger("retinaforge")
Watch = Callable[[Iterable[Any]], Iterable[Any]]  # wraps what is iterated over, to show progress


def pack(
    source: Path | str,
    out: Path,
    *,
    splits: dict[str, float] | None = None,
    splits_from: Path | str | None = None,
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
        splits_from: a packed set; who stands in it keeps that split. The others are divided by the fractions, which name the same
            splits; None: by what their samples state, else by that set's fractions.
        codec, max_error, tile: as Encoding.
        shard_mib: a shard is closed before it would grow over this, as raw counts.
        workers: threads, each on a shard of its own.
        watch: wraps the keys as they are packed (a progress bar).

    Raises:
        InputError: mixed shapes, bands or dtypes; a subject in two splits; an empty split; other splits than `splits_from` has;
            `out` holds something else.
    """
    encoding, source, out = Encoding(codec, max_error, tile), place_of(str(source)), Path(out)
    _check_outside(source, out)
    rows, read, samples = source_of(source)
    asked = {**asdict(encoding), "seed": seed, "shard_mib": shard_mib, "splits": splits}
    again = _command(source, asked, workers)
    kept = Kept() if splits_from is None else Kept.of(splits_from, splits)
    if splits_from is not None:
        asked["splits_from"], again = kept.digest, [*again, "--splits-from", str(splits_from)]
    by_hash = splits is not None or not all(split for *_, split in rows)
    request = {"pack": asked, "samples": samples}
    if done := standing(out, encoding, request, read, again, grown=["--splits-from", str(out)] if by_hash and not kept.split_of else []):
        return done
    warn_of_look_alikes([*kept.split_of, *(subject for _, subject, _ in rows)], source, "correct subject_id and pack anew")
    if kept.split_of and splits is None:
        kept.check_stated(rows, source, packed=read.packed)
    split_of = divided(rows, splits, seed, kept)
    parts: dict[str, list[str]] = {name: [] for name in dict.fromkeys([*(splits or kept.shares), *split_of.values()])}
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
    encoding, source, out = Encoding(codec, max_error, tile), place_of(str(source)), Path(out)
    _check_outside(source, out)
    dataset = Dataset(source)
    _, read, samples = source_of(source)
    request = {"recode": asdict(encoding), "samples": samples}
    options = _options({"max_error": max_error, "tile": tile}, workers)
    if done := standing(out, encoding, request, read, ["retinaforge", "data", "recode", str(source), "{}", codec, *options]):
        return done
    shards = {split: [list(shard.index.keys) for shard in dataset.shards(split)] for split, info in dataset.splits.items() if info.count}
    first = dataset.cube(next(iter(shards)), 0)
    return _write_shards(out, shards, read, first, encoding, source=request, workers=workers, watch=watch)


def _check_outside(source: Path | str, out: Path) -> None:
    """Raises: InputError: the place to write lies in what is read: the next to read it would find both."""
    if isinstance(source, Path) and source.resolve() in out.resolve().parents:
        raise InputError(
            f"the place to write, {out}, lies inside the source",
            where=source,
            expected="a place outside it",
            mend=f"write beside it, such as {command(source.resolve().with_name(f'{source.resolve().name}-{out.name}'))}",
        )


DEFAULTS = {"codec": "raw", "max_error": 0, "tile": 0, "seed": 0, "shard_mib": 1024, "splits": None}


def _command(source: Path | str, asked: dict[str, Any], workers: int) -> list[str]:
    """The words that ask for this packing on the command line, with '{}' for its place."""
    return ["retinaforge", "data", "pack", str(source), "{}", *_options(asked, workers)]


def _options(asked: dict[str, Any], workers: int) -> list[str]:
    words = {name: value for name, value in asked.items() if value != DEFAULTS[name]} | ({"workers": workers} if workers != 1 else {})
    if splits := words.get("splits"):
        words["splits"] = split_words(splits)
    return [word for name, value in words.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def _samples_a_shard(first: Cube, shard_mib: int) -> int:
    return max(1, (shard_mib << 20) // first.data_CHW.nbytes)


def _write_one(staging: Path, split: str, number: int, cubes: Iterable[Cube], first: Cube, encoding: Encoding, stamps: str = "") -> Unit:
    shard, bands = staging / f"{split}-{number:06d}.tar", BandAccumulator()
    near = encoding.coder if encoding.max_error else None
    if near and first.data_CHW.dtype != np.uint16:
        raise InputError("codec 'near' on latents", where=first.meta.key, expected="counts (uint16): its bound is in counts")
    stored = (replace(cube, data_CHW=near.rounded(cube.data_CHW)) for cube in cubes) if near else cubes
    index = write_shard(shard, summed(stored, first, bands), encoding, stem=payload_of(first))
    subjects = tuple(sorted(set(index.subjects)))
    return Unit(entry=entry_of(shard, index, split), kind=Kind.of(first), subjects=subjects, bands=bands, stamps=stamps)


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

    def write(staging: Path, split: str, number: int, keys: list[str]) -> Unit:
        try:
            stamps, shard = stamps_digest(read, keys), staging / f"{split}-{number:06d}.tar"
            unit = read_unit(shard)
            if unit and unit.stamps == stamps:  # as a killed packing left it
                for _ in keys:
                    told.put(None)
            else:
                unit = _write_one(staging, split, number, cubes(keys), first, encoding, stamps)
                unit.save(shard)
            return unit
        except BaseException as error:
            told.put(error)
            raise

    formats = [DATASET_FORMAT, INDEX_FORMAT, UNIT_FORMAT]
    request = durable.canonical_json({**source, "shards": shards, "formats": formats}).decode()
    with durable.writing_folder(out, request=request) as staging, ThreadPoolExecutor(workers) as pool:
        try:
            jobs = [pool.submit(write, staging, split, n, keys) for split, parts in shards.items() for n, keys in enumerate(parts)]
            for _ in watch([key for parts in shards.values() for keys in parts for key in keys]):
                if error := told.get():
                    raise error
            written = [job.result() for job in jobs]
            _warn_of_doubles(staging, out, [unit.entry for unit in written])
            return _finished(staging, written, list(shards), encoding.max_error, source)
        finally:
            ended.set()
            pool.shutdown(cancel_futures=True)


def _warn_of_doubles(staging: Path, out: Path, entries: list[ShardEntry]) -> None:
    doubles = Doubles(staging)
    found = [double for entry in entries for double in doubles.add(entry, open_index(index_path(staging / entry.name)))]
    across = [double for double in found if double.across]
    if across:
        LOGGER.error(
            "%s: %s. What is held out is trained on, and `data verify` refuses this set: remove one of each pair from the source, or "
            "give both one subject_id (and one split), and pack again",
            *(out, few(across)),
        )
    if within := [double for double in found if not double.across]:
        LOGGER.warning("%s: %s", out, few(within))


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
    encoding, out = Encoding(codec, max_error, tile), Path(out)
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
        return _finished(staging, written, list(parts), encoding.max_error, source)


def _finished(staging: Path, units: list[Unit], splits: list[str], max_error: int, source: dict[str, Any]) -> Manifest:
    """Write dataset.json over finished shards, and what they were made of; their records go."""
    for unit in units:
        record_path(staging / unit.entry.name).unlink(missing_ok=True)
    write_stamps(staging, {unit.entry.name: unit.stamps for unit in units})
    manifest = merged(units, splits, source, max_error=max_error)
    write_manifest(staging, manifest)
    return manifest


def band_stats(dataset: Dataset, watch: Watch = iter) -> BandStats:
    """Per-band statistics of the training split (of the first split where there is none of that name).

    Raises:
        InputError: a cube of another shape, dtype, band list or affine map than the first.
    """
    split = stats_split_of(dataset.splits)
    bands, first = BandAccumulator(), dataset.cube(split, 0)
    for i in watch(range(dataset.count(split))):
        cube = dataset.cube(split, i)
        same_kind(cube, first)
        bands.add(cube)
    return bands.stats(split, dataset.scale, dataset.offset)
