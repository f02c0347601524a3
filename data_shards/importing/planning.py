"""What an import will read: the images, and which maps and which person belong to each. By names alone, before a pixel is read."""

from __future__ import annotations

import logging
import math
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from data_shards import formats
from data_shards.errors import InputError, command
from data_shards.folder import IMPORT_RECORD, PHANTOM_RECORD
from data_shards.formats.faults import refuse_absent_links
from data_shards.formats.other_kinds import conversion_of, kinds_of
from data_shards.formats.raw import is_litter, listing
from data_shards.importing import labels, map_files, masks, partners, people, tables
from data_shards.importing.config import ImportConfig, Item
from data_shards.look_alikes import warn_of_look_alikes

LOGGER = logging.getLogger("retinaforge")
MAP_SUFFIXES = {"labels": map_files.EXACT_SUFFIXES, "onh": map_files.SUFFIXES, "fov": map_files.SUFFIXES}


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
        return _folders_of_bands(source), []
    if source.is_file():
        return [source], []
    if any((source / name).exists() for name in (IMPORT_RECORD, PHANTOM_RECORD)):
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


def _folders_of_bands(source: Path) -> list[Path]:
    """The folders inside, each of which is one cube; the source itself, where there are none."""
    if not source.is_dir():
        raise InputError("--per-band on a file", where=source, expected="a folder of folders, or of single-band images")
    inside = _inside(source)
    refuse_absent_links(inside)
    return [path for path in inside if path.is_dir()] or [source]


def _inside(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if not is_litter(path, folder)]


def _other_place(source: Path) -> str:
    """Where the images may be instead."""
    folders = [path.name for path in _inside(source) if path.is_dir()]
    if not folders:
        return "name another folder"
    return f"name the folder with the images: {', '.join(folders[:5])}; or --per-band if each is one cube"


def plan(config: ImportConfig) -> list[Item]:
    """Match every image with its maps and its person, by names alone.

    Raises:
        InputError: whatever `partners`, `people` and `labels.parse_label_map` refuse.
    """
    images, _ = find_images(config)
    keys = partners.keys_of(images)
    persons = people.persons_of(images, table=config.subjects, pattern=config.subject_pattern, allow_missing=config.allow_missing)
    _check_meanings(config)
    maps: dict[Path, dict[str, Path]] = {image: {} for image in images}
    for role, suffixes in MAP_SUFFIXES.items():
        if where := getattr(config, role):
            files = partners.listed(where, suffixes, f"--{role}")
            pairs = partners.pair(images, files, option=f"--{role}", match=config.match, allow_missing=config.allow_missing)
            for image, file in pairs.items():
                maps[image][role] = file
    circles = _circles(config, images)
    return [Item(key=keys[image], image=image, person=persons[image], maps=maps[image], circle=circles.get(image)) for image in images]


def _check_meanings(config: ImportConfig) -> None:
    """Maps, and what their values mean, come together.

    Raises:
        InputError: one without the other, or a text that cannot be read.
    """
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
    for role, values, masks_of_role in (("onh", config.onh_values, config.onh), ("fov", config.fov_values, config.fov)):
        if values:
            option = f"--{role}-values"
            masks.parse_inside(values, option)
            if not masks_of_role:
                raise InputError("values of a mask without a mask", where=option, expected="both or neither", mend=f"--{role} DIR")


def _circles(config: ImportConfig, images: Sequence[Path]) -> dict[Path, tuple[float, float, float]]:
    """x, y, diameter of each image's optic disc."""
    if config.onh_circles is None:
        return {}
    table = config.onh_circles
    rows = tables.rows_of(table, config.onh_columns, "--onh-columns")
    column = next((name for name in ("file", "key", "image_id", "image") if name in rows[0]), None)
    if column is None:
        raise InputError("no column that names the image", where=table, expected="file, key, image_id or image")
    row_of = tables.rows_by_image(images, rows, column, table)
    if not config.allow_missing and (without := [image.name for image in images if image not in row_of]):
        raise InputError(f"no optic disc for {without[0]}", where=table, expected="a row for each image", mend="add it, or --allow-missing")
    try:
        circles = {image: tuple(float(row[name]) for name in config.onh_columns) for image, row in row_of.items()}
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


def warn_of_twins(config: ImportConfig, items: Sequence[Item]) -> None:
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
