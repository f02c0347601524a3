"""Images of others to a folder of loose cubes: names first, then pixels, then one rename.

Everything that names can tell (partners, persons, splits, keys) is checked before a pixel is read. The cubes are
gathered in a hidden folder beside OUT, which takes its place when the last one is whole; the same command again
continues there after a kill, and finds nothing to do once OUT stands.

Legend: C band, H W pixels.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shlex
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_shards import durable, formats
from data_shards.cube import CubeMeta
from data_shards.errors import CorruptData, InputError, UnsafeResume, command, moved_aside
from data_shards.folder import IMPORT_RECORD, PHANTOM_RECORD, meta_from, write_cube
from data_shards.formats.faults import refuse_absent_links
from data_shards.formats.other_kinds import conversion_of, kinds_of
from data_shards.formats.raw import is_litter, listing
from data_shards.importing import labels, map_files, masks, partners
from data_shards.importing.config import ImportConfig, Item
from data_shards.importing.conversion import make_cube
from data_shards.look_alikes import warn_of_look_alikes

LOGGER = logging.getLogger("retinaforge")
READING = 2  # how files are read: what an elder way of reading has made of the same files is another import
RECORD = IMPORT_RECORD
SELECTING = ("source", "pattern", "labels", "onh", "fov", "onh_circles", "subjects", "match", "allow_missing")


@dataclass(frozen=True, kw_only=True)
class ImportSummary:
    """What stands in OUT at the end.

    Attributes:
        cubes, written: samples in OUT, and how many of them this run wrote.
        values: what was made of the files' values, in words: how they are stored, what is no-data, which bands are left out.
        assumed: who was taken for a person, where nobody said.
        sizes: (H, W) to count. label_share: class to share of all labelled pixels. with_maps: map to count of cubes that have it.
        joined: subjects with images in several folders of the source.
    """

    cubes: int
    written: int
    wavelengths_nm: tuple[float, ...]
    sizes: dict[tuple[int, int], int]
    subjects: int
    splits: dict[str, int]
    label_share: dict[str, float]
    with_maps: dict[str, int]
    pairs: dict[str, str]
    ignored: list[str]
    assumed: str
    joined: list[str]
    values: list[str]


def find_images(config: ImportConfig) -> tuple[list[Path], list[str]]:
    """The images of the source, sorted by name, and the names of files that no reader knows.

    Raises:
        InputError: no such place, or nothing there to read.
    """
    source = config.source
    refuse_absent_links([source])
    if not source.exists():
        raise InputError("no such file or folder", where=source, expected="an image or a folder of images")
    if config.per_band:
        folders = sorted(path for path in source.iterdir() if path.is_dir() and not is_litter(path, source)) if source.is_dir() else []
        if source.is_dir():
            refuse_absent_links(path for path in sorted(source.iterdir()) if not is_litter(path, source))
        else:
            raise InputError("--per-band on a file", where=source, expected="a folder of folders, or of single-band images")
        return folders or [source], []
    if source.is_file():
        return [source], []
    if any((source / name).exists() for name in (RECORD, PHANTOM_RECORD)):
        mend = command("retinaforge", "data", "pack", source, "DATASET")
        raise InputError("these are cubes already", where=source, expected="images to make cubes of", mend=mend)
    if not config.pattern or config.pattern.startswith("/"):
        raise InputError(f"pattern {config.pattern!r}", where="--pattern", expected="a glob inside SRC", mend="--pattern '**/*.tif'")
    files = listing(source, config.pattern)
    images = [path for path in files if path.suffix.lower() in formats.READERS]
    refuse_absent_links(images)
    if not images:
        raise InputError(
            f"no images that match {config.pattern!r}" + (f", but {kinds_of(files)}" if files else ""),
            where=source,
            expected="files " + " ".join(formats.READERS),
            mend=conversion_of(files) if files else _other_place(source),
        )
    return images, [path.name for path in files if path not in set(images)]


def _other_place(source: Path) -> str:
    """Where the images may be instead."""
    folders = sorted(path.name for path in source.iterdir() if path.is_dir() and not is_litter(path, source))
    return (
        f"name the folder with the images: {', '.join(folders[:5])}; or --per-band if each is one cube"
        if folders
        else "name another folder"
    )


def plan(config: ImportConfig) -> list[Item]:
    """Match every image with its maps and its person, by names alone.

    Raises:
        InputError: whatever `partners` and `labels.parse_label_map` refuse.
    """
    images, _ = find_images(config)
    keys = partners.keys_of(images)
    persons = partners.people(images, table=config.subjects, pattern=config.subject_pattern, allow_missing=config.allow_missing)
    if config.labels and not config.label_map:
        raise InputError(
            "label files without the meaning of their values",
            where="--labels",
            expected="a stated mapping",
            mend="--label-map '0=background,1=artery,2=vein'",
        )
    if config.label_map:
        labels.parse_label_map(config.label_map)
        if not config.labels:
            raise InputError("a label map without label files", where="--label-map", expected="both or neither", mend="--labels DIR")
    for role in ("onh", "fov"):
        if values := getattr(config, f"{role}_values"):
            masks.parse_inside(values, f"--{role}-values")
            if not getattr(config, role):
                raise InputError(
                    "values of a mask without a mask", where=f"--{role}-values", expected="both or neither", mend=f"--{role} DIR"
                )
    maps: dict[Path, dict[str, Path]] = {image: {} for image in images}
    for role, suffixes in (("labels", map_files.EXACT_SUFFIXES), ("onh", map_files.SUFFIXES), ("fov", map_files.SUFFIXES)):
        if where := getattr(config, role):
            files = partners.listed(where, suffixes, f"--{role}")
            found = partners.pair(images, files, option=f"--{role}", match=config.match, allow_missing=config.allow_missing)
            for image, file in found.items():
                maps[image][role] = file
    circles = _circles(config, images)
    return [Item(key=keys[image], image=image, person=persons[image], maps=maps[image], circle=circles.get(image)) for image in images]


def _circles(config: ImportConfig, images: list[Path]) -> dict[Path, tuple[float, float, float]]:
    """x, y, diameter of each image's optic disc."""
    if config.onh_circles is None:
        return {}
    table = config.onh_circles
    rows = partners.rows_of(table, config.onh_columns, "--onh-columns")
    column = next((name for name in ("file", "key", "image_id", "image") if name in rows[0]), None)
    if column is None:
        raise InputError("no column that names the image", where=table, expected="file, key, image_id or image")
    found = partners.rows_by_image(images, rows, column, table)
    if not config.allow_missing and (without := [image.name for image in images if image not in found]):
        raise InputError(f"no optic disc for {without[0]}", where=table, expected="a row for each image", mend="add it, or --allow-missing")
    try:
        circles = {image: tuple(float(row[name]) for name in config.onh_columns) for image, row in found.items()}
    except ValueError as error:
        raise InputError(f"not a number: {error}", where=table, expected=f"numbers in {', '.join(config.onh_columns)}") from error
    for image, circle in circles.items():
        if not all(map(math.isfinite, circle)) or circle[2] <= 0:
            raise InputError(
                f"{', '.join(f'{name} {value:g}' for name, value in zip(config.onh_columns, circle, strict=True))} for {image.name}",
                where=table,
                expected="finite numbers of pixels, the diameter above 0",
                mend="correct the row, or remove it and give --allow-missing",
            )
    return circles


def identity(item: Item, config: ImportConfig) -> tuple[str, dict[str, str]]:
    """A digest of everything that decides one cube, and the sha256 of each file read for it."""
    own = formats.files_of(item.image)
    files, roles = [*own, *item.maps.values()], [*("" for _ in own), *item.maps]
    names = [str(path.relative_to(item.image)) if item.image in path.parents else path.name for path in files]
    try:
        digests = [durable.sha256_of(path) for path in files]
    except OSError as error:
        raise InputError(f"cannot read: {error.strerror}", where=error.filename, expected="files that this user may read") from error
    told = {
        "options": options_of(config),
        "person": asdict(item.person),
        "circle": item.circle,
        "files": [list(pair) for pair in zip(names, digests, strict=True)],
    }
    hashes = {f"{role} {name}" if role else name: digest for role, name, digest in zip(roles, names, digests, strict=True)}
    return hashlib.sha256(durable.canonical_json(told)).hexdigest(), hashes


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
    _warn_of_twins(config, items)
    out = Path(os.path.abspath(out))  # '.' has no name to put the stage beside
    options, samples = options_of(config), {}
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        standing = _record_of(out, options)
        for item in track(items):
            samples[item.key], _ = identity(item, config)
        _check_samples(out, standing, samples)
        return summarise(config, items, out, written=0)
    written = 0
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
        _check_alike(stage, items)
        durable.write_json(stage / RECORD, {"options": options, "samples": samples})
        summary = summarise(config, items, stage, written=written)
    return summary


def _warn_of_twins(config: ImportConfig, items: list[Item]) -> None:
    """Say which people, and which files, may be one under two spellings: a Mac writes é as two signs, Linux as one."""
    warn_of_look_alikes((item.person.subject_id for item in items), config.source, "state who is who: --subjects CSV")
    spelt: dict[Path, list[str]] = {}
    for item in items:
        spelt.setdefault(item.image.with_name(unicodedata.normalize("NFC", item.image.name)), []).append(item.image.name)
    if twins := [names for names in spelt.values() if len(names) > 1]:
        LOGGER.warning(
            "%s: files whose names are the same in another Unicode form (%d, first %s) are taken for several images; if they are one, move "
            "one of them away",
            *(config.source, len(twins), " and ".join(map(ascii, twins[0]))),
        )


def _with_what_is_kept(error: InputError | CorruptData, made: int, of: int, stage: Path) -> InputError | CorruptData:
    """The same fault, and what the next run finds."""
    if not made:
        return error
    kept = f"the {made} of {of} cubes made before it are kept: the same command goes on behind them"
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
        if _meta(stage, key).notes.get("import") == digest:
            return True
        mark.unlink()
        for path in stage.glob(f"{key}.*"):
            path.unlink()
    return False


def _meta(folder: Path, key: str) -> CubeMeta:
    return meta_from((folder / f"{key}.json").read_bytes(), where=folder / f"{key}.json")


def _record_of(out: Path, options: dict[str, Any]) -> dict[str, Any]:
    """What the finished import in `out` recorded, which must have had the same options."""
    try:
        record = json.loads((out / RECORD).read_bytes())
        theirs = record["options"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            "the place is taken, and no import made what is there",
            where=out,
            expected="an absent or empty folder",
            mend="choose another OUT",
        ) from error
    names = sorted({*options, *theirs})
    if changed := [f"{name} {theirs.get(name)!r} now {options.get(name)!r}" for name in names if options.get(name) != theirs.get(name)]:
        raise _another(out, "; ".join(changed))
    return record


def _check_samples(out: Path, record: dict[str, Any], samples: dict[str, str]) -> None:
    """The files and persons of the finished import must be those of today."""
    theirs = record.get("samples", {})
    if changed := sorted(key for key in {*theirs, *samples} if theirs.get(key) != samples.get(key)):
        raise _another(out, f"{len(changed)} samples differ in files or subjects, first {changed[0]}")


def _another(out: Path, difference: str) -> UnsafeResume:
    return UnsafeResume(
        f"another import stands here: {difference}",
        where=out,
        expected="the same options and the same files",
        mend=f"choose another OUT, or {moved_aside(out)}",
    )


def _check_alike(folder: Path, items: list[Item]) -> None:
    """One dataset has one band list and one scale: name the first image that differs."""
    first = _meta(folder, items[0].key)
    for item in items[1:]:
        meta = _meta(folder, item.key)
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


def summarise(config: ImportConfig, items: list[Item], folder: Path, *, written: int) -> ImportSummary:
    """The summary of a finished folder, from the samples' own notes."""
    metas = {item.key: _meta(folder, item.key) for item in items}
    notes = [meta.notes for meta in metas.values()]
    pixels = Counter()
    for note in notes:
        pixels.update(note.get("label_pixels", {}))
    roles = {item.key: {*item.maps, *(("onh circle",) if item.circle else ())} for item in items}
    pairs = {f"--{role}": f"{items[0].image.name} with {file.name}" for role, file in items[0].maps.items()}
    return ImportSummary(
        cubes=len(items),
        written=written,
        wavelengths_nm=next(iter(metas.values())).wavelengths_nm,
        sizes=dict(Counter((note["shape"][1], note["shape"][2]) for note in notes)),
        subjects=len({item.person.subject_id for item in items}),
        splits=dict(Counter(item.person.split for item in items if item.person.split)),
        label_share={name: count / pixels.total() for name, count in pixels.items()},
        with_maps=dict(Counter(role for of_key in roles.values() for role in sorted(of_key))),
        pairs=pairs,
        ignored=find_images(config)[1],
        assumed=partners.assumed([item.image for item in items], table=config.subjects, pattern=config.subject_pattern),
        values=_values_in_words(metas),
        joined=_joined(config, items),
    )


def _joined(config: ImportConfig, items: list[Item]) -> list[str]:
    """Subjects with images in several folders, where names told who they are: two people may bear one number."""
    if config.subjects:
        return []
    folders: dict[str, set[Path]] = {}
    for item in items:
        folders.setdefault(item.person.subject_id, set()).add(item.image.parent)
    return sorted(subject for subject, where in folders.items() if len(where) > 1)


def _values_in_words(metas: dict[str, CubeMeta]) -> list[str]:
    """How values are stored, the pixels that count as no-data, and the bands that were left out, over all samples."""
    first = next(iter(metas.values()))
    words = [f"reflectance = {first.scale:.6g} * stored {'-' if first.offset < 0 else '+'} {abs(first.offset):.6g}"]
    without = [note["pixels"] for meta in metas.values() if (note := meta.notes.get("no_data")) and note["pixels"]]
    if without:
        words.append(f"{sum(without)} pixels of {len(without)} images hold no-data and leave the field of view")
    if left_out := first.notes.get("bands_left_out"):
        words.append(f"bands {', '.join(map(str, left_out['bands_from_1']))} left out by {left_out['by']}")
    return words
