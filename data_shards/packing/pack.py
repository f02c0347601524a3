"""Packing: loose cubes (or another dataset) into shards, splits by subject, per-band statistics, manifest.

Legend: C band, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any

import numpy as np

from data_shards import durable
from data_shards.cube import Cube
from data_shards.errors import InputError, RetinaforgeError, command
from data_shards.ledger import Units
from data_shards.look_alikes import warn_of_look_alikes
from data_shards.manifest import FORMAT as DATASET_FORMAT
from data_shards.manifest import NAME, BandStats, Kind, Manifest, payload_of, read_manifest, write_manifest
from data_shards.packing.doubles import warn_of_doubles
from data_shards.packing.sources import Read, source_of
from data_shards.packing.splits import Kept, check_split_names, divided, split_words
from data_shards.packing.standing import stamps_digest, standing, write_stamps
from data_shards.packing.statistics import BandAccumulator, BandTally, sums_of
from data_shards.packing.units import FORMAT as UNIT_FORMAT
from data_shards.packing.units import Unit, alike, entry_of, merged, read_unit, record_path, stats_split_of
from data_shards.packing.writing import write_shard
from data_shards.reading.dataset import Dataset
from data_shards.shards.codecs import Encoding
from data_shards.shards.index import FORMAT as INDEX_FORMAT
from data_shards.shared_folder import SharedFolder
from data_shards.stores import place_of

Watch = Callable[[Iterable[Any]], Iterable[Any]]  # wraps what is iterated over, to show progress


def pack(source: Path | str, out: Path, *, watch: Watch = iter, **how: Any) -> Manifest:
    """Pack by this process alone; as `packing` otherwise.

    Args:
        watch: wraps what passes as cubes are packed (a progress bar).
    """
    return packing(source, out, **how).complete(watch)


def recode(source: Path | str, out: Path, *, watch: Watch = iter, **how: Any) -> Manifest:
    """Recode by this process alone; as `recoding` otherwise."""
    return recoding(source, out, **how).complete(watch)


def packing(
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
) -> Units:
    """Loose cubes, or a dataset, packed anew into `out`, in units. `out` appears whole when all is written, or not at all.

    The same samples give the same bytes, however many processes pack them and however often they were killed: finished shards are kept
    and the same call goes on behind them.

    Args:
        splits: fractions by subject; None takes the splits that the samples state, else SPLITS.
        splits_from: a packed set; who stands in it keeps that split. The others are divided by the fractions, which name the same
            splits; None: by what their samples state, else by that set's fractions.
        codec, max_error, tile: as Encoding.
        shard_mib: a shard is closed before it would grow over this, as raw counts.

    Raises:
        InputError: mixed shapes, bands or dtypes; a subject in two splits; an empty split; other splits than `splits_from` has;
            `out` holds something else.
    """
    encoding, source, out = Encoding(codec, max_error, tile), place_of(str(source)), Path(out)
    check_outside(source, out)
    rows, read, samples = source_of(source)
    asked = {**asdict(encoding), "seed": seed, "shard_mib": shard_mib, "splits": splits}
    again = _command(source, asked)
    kept = Kept() if splits_from is None else Kept.of(splits_from, splits)
    if splits_from is not None:
        asked["splits_from"], again = kept.digest, [*again, "--splits-from", str(splits_from)]
    by_hash = splits is not None or not all(split for *_, split in rows)
    request = {"pack": asked, "samples": samples}
    if done := standing(out, encoding, request, read, again, grown=["--splits-from", str(out)] if by_hash and not kept.split_of else []):
        return Standing(done, out)
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
    return Packing(out, shards, read, first, encoding, request)


def recoding(source: Path | str, out: Path, *, codec: str, max_error: int = 0, tile: int = 0) -> Units:
    """The dataset `source` in another encoding: the same samples in the same splits and shards. As `packing` otherwise."""
    encoding, source, out = Encoding(codec, max_error, tile), place_of(str(source)), Path(out)
    check_outside(source, out)
    dataset = Dataset(source)
    _, read, samples = source_of(source)
    request = {"recode": asdict(encoding), "samples": samples}
    options = _options({"max_error": max_error, "tile": tile})
    if done := standing(out, encoding, request, read, ["retinaforge", "data", "recode", str(source), "{}", codec, *options]):
        return Standing(done, out)
    shards = {split: [list(shard.index.keys) for shard in dataset.shards(split)] for split, info in dataset.splits.items() if info.count}
    return Packing(out, shards, read, dataset.cube(next(iter(shards)), 0), encoding, request)


class Standing(Units):
    """A set that stands already."""

    names = ()

    def __init__(self, manifest: Manifest, out: Path) -> None:
        self.manifest, self.out = manifest, out

    def published(self, number: int) -> bool:
        raise IndexError(number)

    def make(self, number: int) -> None:
        raise IndexError(number)

    def finish(self) -> Manifest:
        return self.manifest


class Packing(Units):
    """Shards, named by the keys in each, side by side in a folder that appears at `final` when all are there."""

    def __init__(
        self, final: Path, shards: dict[str, list[list[str]]], read: Read, first: Cube, encoding: Encoding, source: dict[str, Any]
    ) -> None:
        self.final, self.read, self.first, self.encoding, self.source = final, read, first, encoding, source
        self.splits = list(shards)
        self.shards = [(split, f"{split}-{n:06d}", keys) for split, parts in shards.items() for n, keys in enumerate(parts)]
        self.names = [name for _, name, _ in self.shards]
        formats = [DATASET_FORMAT, INDEX_FORMAT, UNIT_FORMAT]
        self.folder = SharedFolder(final, durable.canonical_json({**source, "shards": shards, "formats": formats}).decode())

    def __enter__(self) -> Packing:
        try:
            self.folder.__enter__()
            self.joined, self.out = True, self.folder.path
        except RetinaforgeError:
            if not (self._is_whole() and read_manifest(self.final).source == self.source):
                raise
            self.joined, self.out = False, self.final  # others have finished it since this process began to plan
        return self

    def __exit__(self, *error: Any) -> None:
        if self.joined:
            self.folder.__exit__(*error)

    def size(self, number: int) -> int:
        return len(self.shards[number][2])

    def published(self, number: int) -> bool:
        """Whether a shard is there, made of the files as they are now."""
        return self._is_whole() or ((unit := read_unit(self._path(number))) is not None and unit.stamps == self._stamps(number))

    def make(self, number: int) -> None:
        """Write a shard; one that was made of other files is replaced.

        Raises:
            InputError: mixed shapes, bands or dtypes; latents in codec 'near'.
        """
        split, _, keys = self.shards[number]
        stamps = self._stamps(number)
        write_one(self._path(number), split, map(self.read, keys), self.first, self.encoding, stamps).save(self._path(number))

    def finish(self) -> Manifest:
        if not self.joined:
            return read_manifest(self.final)
        with self.folder.publishing() as ours:
            if ours:
                units = [unit for number in range(len(self.names)) if (unit := read_unit(self._path(number)))]
                assert len(units) == len(self.names), "a shard is missing"
                warn_of_doubles(self.out, self.final, [unit.entry for unit in units])
                finished(self.out, units, self.splits, self.encoding.max_error, self.source)
        for name in self.names:  # who waits for the last shards needs the records until the set is there
            record_path(self.final / name).unlink(missing_ok=True)
        return read_manifest(self.final)

    def _is_whole(self) -> bool:
        return (self.final / NAME).exists()

    def _path(self, number: int) -> Path:
        return self.out / f"{self.names[number]}.tar"

    def _stamps(self, number: int) -> str:
        return stamps_digest(self.read, self.shards[number][2])


def check_outside(source: Path | str, out: Path) -> None:
    """Raises: InputError: the place to write lies in what is read: the next to read it would find both."""
    if isinstance(source, Path) and source.resolve() in out.resolve().parents:
        raise InputError(
            f"the place to write, {out}, lies inside the source",
            where=source,
            expected="a place outside it",
            mend=f"write beside it, such as {command(source.resolve().with_name(f'{source.resolve().name}-{out.name}'))}",
        )


DEFAULTS = {"codec": "raw", "max_error": 0, "tile": 0, "seed": 0, "shard_mib": 1024, "splits": None}


def _command(source: Path | str, asked: dict[str, Any]) -> list[str]:
    """The words that ask for this packing on the command line, with '{}' for its place."""
    return ["retinaforge", "data", "pack", str(source), "{}", *_options(asked)]


def _options(asked: dict[str, Any]) -> list[str]:
    words = {name: value for name, value in asked.items() if value != DEFAULTS[name]}
    if splits := words.get("splits"):
        words["splits"] = split_words(splits)
    return [word for name, value in words.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def _samples_a_shard(first: Cube, shard_mib: int) -> int:
    return max(1, (shard_mib << 20) // first.data_CHW.nbytes)


def write_one(shard: Path, split: str, cubes: Iterable[Cube], first: Cube, encoding: Encoding, stamps: str = "") -> Unit:
    """Write a shard of cubes like `first`; what it leaves for the manifest."""
    bands, near = BandTally(), encoding.coder if encoding.max_error else None
    if near and first.data_CHW.dtype != np.uint16:
        raise InputError("codec 'near' on latents", where=first.meta.key, expected="counts (uint16): its bound is in counts")
    stored = (replace(cube, data_CHW=near.rounded(cube.data_CHW)) for cube in cubes) if near else cubes
    index = write_shard(shard, alike(stored, first), encoding, stem=payload_of(first), bands=bands)
    subjects = tuple(sorted(set(index.subjects)))
    return Unit(entry=entry_of(shard, index, split), kind=Kind.of(first), subjects=subjects, bands=bands.sums(), stamps=stamps)


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
                written.append(write_one(staging / f"{split}-{number:06d}.tar", split, chunk, first, encoding))
                number += 1
        return finished(staging, written, list(parts), encoding.max_error, source)


def finished(staging: Path, units: list[Unit], splits: list[str], max_error: int, source: dict[str, Any]) -> Manifest:
    """Write dataset.json over finished shards, and what they were made of."""
    write_stamps(staging, {unit.entry.name: unit.stamps for unit in units})
    manifest = merged(units, splits, source, max_error=max_error)
    write_manifest(staging, manifest)
    return manifest


def band_stats(dataset: Dataset, watch: Watch = iter) -> BandStats:
    """Per-band statistics of the training split (of the first split where there is none of that name).

    Raises:
        InputError: codes; a cube of another shape, dtype, band list or affine map than the first.
    """
    dataset.expect("cube", "latent")
    split = stats_split_of(dataset.splits)
    bands, first = BandAccumulator(), dataset.cube(split, 0)
    for _, samples in groupby(watch(range(dataset.count(split))), key=lambda i: dataset.locate(split, i)[0]):  # shard by shard
        bands.merge(sums_of(alike((dataset.cube(split, i) for i in samples), first)))
    return bands.stats(split, dataset.scale, dataset.offset)
