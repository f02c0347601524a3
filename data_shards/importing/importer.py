"""Images of others to a folder of loose cubes: names first, then pixels, then one rename.

Everything that names can tell (partners, persons, splits, keys) is checked before a pixel is read. The cubes are
gathered in a hidden folder beside OUT, which takes its place when the last one is whole; the same command again
continues there after a kill, and finds nothing to do once OUT stands.

Legend: C band, H W pixels.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_shards import durable, formats
from data_shards.cube import CubeMeta
from data_shards.errors import CorruptData, InputError, UnsafeResume, moved_aside
from data_shards.folder import IMPORT_RECORD, read_meta, write_cube
from data_shards.importing.config import ImportConfig, Item
from data_shards.importing.conversion import make_cube
from data_shards.importing.planning import plan, warn_of_twins
from data_shards.importing.summary import ImportSummary, summarise

READING = 2  # how files are read: what an elder way of reading has made of the same files is another import
SELECTING = ("source", "pattern", "labels", "onh", "fov", "onh_circles", "subjects", "match", "allow_missing")


def identity(item: Item, config: ImportConfig) -> tuple[str, dict[str, str]]:
    """A digest of everything that decides one cube, and the sha256 of each file read for it."""
    files = [("", path) for path in formats.files_of(item.image)] + list(item.maps.items())
    names = [str(path.relative_to(item.image)) if item.image in path.parents else path.name for _, path in files]
    try:
        digests = [durable.sha256_of(path) for _, path in files]
    except OSError as error:
        raise InputError(f"cannot read: {error.strerror}", where=error.filename, expected="files that this user may read") from error
    decisive = {
        "options": options_of(config),
        "person": asdict(item.person),
        "circle": item.circle,
        "files": [list(pair) for pair in zip(names, digests, strict=True)],
    }
    hashes = {f"{role} {name}" if role else name: digest for (role, _), name, digest in zip(files, names, digests, strict=True)}
    return hashlib.sha256(durable.canonical_json(decisive)).hexdigest(), hashes


def options_of(config: ImportConfig) -> dict[str, Any]:
    """The options that decide what a cube holds: neither the places of the files nor what only selects or permits."""
    options = json.loads(json.dumps(asdict(config), default=str))
    options["read"].pop("max_values")
    return {"reading": READING, **{name: value for name, value in options.items() if name not in SELECTING}}


def import_cubes(config: ImportConfig, out: Path, track: Callable[[list[Item]], Iterable[Item]] = iter) -> ImportSummary:
    """Import everything `config` names into the folder `out`, which appears when all of it is whole.

    Args:
        track: wraps the list of items where the caller wants to show progress.

    Raises:
        InputError, CorruptData: the first image that cannot be imported; `out` is not there, and the cubes made before it wait
            hidden beside it for the same command.
        UnsafeResume: `out` already holds something else. TryAgain: the disk is full, or another import is writing `out`.
    """
    items = plan(config)
    warn_of_twins(config, items)
    out = Path(os.path.abspath(out))  # '.' has no name to put the stage beside
    options, samples, written = options_of(config), {}, 0
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        recorded = _recorded_samples(out, options)
        for item in track(items):
            samples[item.key], _ = identity(item, config)
        _check_samples(out, recorded, samples)
        return summarise(config, items, _metas(out, items), written=0)
    # one request for every import: each sample says itself of what it was made
    with durable.writing_folder(out, request="import", mendable=(InputError, CorruptData)) as stage:
        _tidy(stage, {item.key for item in items})
        for number, item in enumerate(track(items)):
            try:
                samples[item.key], hashes = identity(item, config)
                if not _stands(stage, item.key, samples[item.key]):
                    write_cube(stage, make_cube(item, config, hashes, samples[item.key]))
                    written += 1
            except (InputError, CorruptData) as error:
                raise _with_what_is_kept(error, number, len(items), stage) from error
        metas = _metas(stage, items)
        _check_alike(items, metas)
        durable.write_json(stage / IMPORT_RECORD, {"options": options, "samples": samples})
        return summarise(config, items, metas, written=written)


def _metas(folder: Path, items: Iterable[Item]) -> dict[str, CubeMeta]:
    return {item.key: read_meta(folder, item.key) for item in items}


def _with_what_is_kept(error: InputError | CorruptData, finished: int, of: int, stage: Path) -> InputError | CorruptData:
    """The same fault, and what the next run finds."""
    if not finished:
        return error
    kept = f"the {finished} of {of} cubes made before it are kept: the same command goes on behind them"
    kept += f" (to give up: rm -r {shlex.quote(str(stage))})"
    return type(error)(error.what, where=error.where, expected=error.expected, mend=f"{error.mend or 'mend the file'}; {kept}")


def _tidy(stage: Path, keys: set[str]) -> None:
    """Remove from the stage of a killed run whatever is half written or belongs to no image of this one."""
    for path in stage.iterdir():
        if path.name != durable.REQUEST and ((key := path.name.split(".")[0]) not in keys or not (stage / f"{key}.json").exists()):
            path.unlink()


def _stands(stage: Path, key: str, digest: str) -> bool:
    """Whether a killed run finished this very sample; if it is another, its files go, the mark of wholeness first."""
    mark = stage / f"{key}.json"
    if mark.exists():
        if read_meta(stage, key).notes.get("import") == digest:
            return True
        mark.unlink()
        for path in stage.glob(f"{key}.*"):
            path.unlink()
    return False


def _recorded_samples(out: Path, options: Mapping[str, Any]) -> dict[str, str]:
    """Key to digest of each sample of the finished import in `out`, which must have had the same options."""
    try:
        record = json.loads((out / IMPORT_RECORD).read_bytes())
        theirs, samples = record["options"], record.get("samples", {})
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(
            "the place is taken, and no import made what is there",
            where=out,
            expected="an absent or empty folder",
            mend="choose another OUT",
        ) from error
    if changed := [name for name in sorted({*options, *theirs}) if options.get(name) != theirs.get(name)]:
        raise _another(out, "; ".join(f"{name} {theirs.get(name)!r} now {options.get(name)!r}" for name in changed))
    return samples


def _check_samples(out: Path, recorded: Mapping[str, str], samples: Mapping[str, str]) -> None:
    """The files and persons of the finished import must be those of today."""
    if changed := sorted(key for key in {*recorded, *samples} if recorded.get(key) != samples.get(key)):
        raise _another(out, f"{len(changed)} samples differ in files or subjects, first {changed[0]}")


def _another(out: Path, difference: str) -> UnsafeResume:
    return UnsafeResume(
        f"another import stands here: {difference}",
        where=out,
        expected="the same options and the same files",
        mend=f"choose another OUT, or {moved_aside(out)}",
    )


def _check_alike(items: list[Item], metas: Mapping[str, CubeMeta]) -> None:
    """One dataset has one band list and one scale: name the first image that differs."""
    first = metas[items[0].key]
    for item in items[1:]:
        meta = metas[item.key]
        if meta.wavelengths_nm != first.wavelengths_nm:
            raise InputError(
                _span(meta),
                where=item.image,
                expected=f"as in {items[0].image.name}: {_span(first)}",
                mend="--pattern to import one kind of image at a time",
            )
        if (meta.scale, meta.offset) != (first.scale, first.offset):
            raise InputError(
                f"reflectance = {meta.scale:.6g} * stored + {meta.offset:g} ({meta.notes['stored']})",
                where=item.image,
                expected=f"that of {items[0].image.name}: {first.scale:.6g} * stored + {first.offset:g} ({first.notes['stored']})",
                mend="--full-scale N for all of them, or one import for each kind",
            )


def _span(meta: CubeMeta) -> str:
    return f"{len(meta.wavelengths_nm)} bands from {meta.wavelengths_nm[0]:g} to {meta.wavelengths_nm[-1]:g} nm"
