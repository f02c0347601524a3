"""Who is in each image: by a table, by a pattern of names, or one person an image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_shards.errors import InputError
from data_shards.importing.partners import compiled, stem_of
from data_shards.importing.tables import rows_by_image, rows_of

EYES = {"": "", "OD": "OD", "R": "OD", "RIGHT": "OD", "OS": "OS", "L": "OS", "LEFT": "OS"}
SUBJECT_COLUMNS = ("subject_id", "eye", "acquired", "split")
EYE_WORD = re.compile(r"(?<![A-Za-z0-9])(od|os|r|l|right|left)(?![A-Za-z0-9])", re.IGNORECASE)
BY_EYE = r"^(?P<subject>.+?)[^A-Za-z0-9]+(?P<eye>OD|OS|od|os|R|L|r|l|right|left|Right|Left|RIGHT|LEFT)(?![A-Za-z0-9])"


@dataclass(frozen=True, kw_only=True)
class Person:
    """What is known of the person in one image."""

    subject_id: str
    eye: str = ""
    acquired: str = ""
    split: str = ""
    extra: dict[str, str] = field(default_factory=dict)


def persons_of(images: Sequence[Path], *, table: Path | None, pattern: str, allow_missing: bool) -> dict[Path, Person]:
    """Who is in each image: from a CSV, from names by a regular expression, or one person an image.

    Args:
        table: CSV with `file` (or `key`), `subject_id`, optional `eye`, `acquired`, `split`; further columns are kept.
        pattern: group `subject` (or the first group), optional groups `eye` and `acquired`, searched in the file name.

    Raises:
        InputError: images without a row, rows without an image, an unknown eye, or one person in two splits.
    """
    if table is None:
        return {image: _from_name(image, pattern) for image in images}
    rows = rows_of(table, ("subject_id",), "--subjects")
    column = next((name for name in ("file", "key") if name in rows[0]), None)
    if column is None:
        raise InputError("no column 'file' or 'key'", where=table, expected="file, subject_id, optional eye, acquired, split")
    row_of = rows_by_image(images, rows, column, table)
    without = [image for image in images if image not in row_of]
    if without and not allow_missing:
        raise InputError(
            f"{len(without)} images without a row, first {without[0].name}",
            where=table,
            expected="a row for each image",
            mend="add it, or --allow-missing",
        )
    persons = {image: _from_row(row_of[image], column, table) if image in row_of else _from_name(image, pattern) for image in images}
    splits: dict[str, str] = {}
    for image, person in persons.items():
        if splits.setdefault(person.subject_id, person.split) != person.split:
            raise InputError(
                f"subject {person.subject_id!r} in the splits {splits[person.subject_id]!r} and {person.split!r} ({image.name})",
                where=table,
                expected="all images of a person in one split",
                mend="correct the column split",
            )
    return persons


def assumed(images: Sequence[Path], *, table: Path | None, pattern: str) -> str:
    """What was taken for a person where nobody said, and the option that says it; '' where somebody did."""
    if table is not None or pattern or len(images) < 2:
        return ""
    said = f"each image is taken for a person of its own ({len(images)} people): neither --subjects nor --subject-pattern says who is who"
    by_rest: dict[str, list[str]] = {}
    for image in images:
        by_rest.setdefault(EYE_WORD.sub("", stem_of(image)), []).append(image.name)
    pair = next((names for names in by_rest.values() if len(names) > 1), None)
    if pair is None:
        return said
    fits = all(re.search(BY_EYE, image.name) for image in images)
    mend = f"--subject-pattern '{BY_EYE}'" if fits else "--subjects CSV with the columns file and subject_id"
    return f"{said}. {pair[0]} and {pair[1]} look like two eyes of one person, who may then stand in two splits: {mend}"


def _from_row(row: dict[str, str], column: str, table: Path) -> Person:
    if row.get("eye", "").upper() not in EYES:
        raise InputError(f"eye {row['eye']!r} of {row[column]!r}", where=table, expected="OD, OS, R, L or empty")
    if not row["subject_id"]:
        raise InputError(f"no subject_id for {row[column]!r}", where=table, expected="a name or number for the person")
    extra = {name: value for name, value in row.items() if value and name not in (column, *SUBJECT_COLUMNS)}
    return Person(
        subject_id=row["subject_id"],
        eye=EYES[row.get("eye", "").upper()],
        acquired=row.get("acquired", ""),
        split=row.get("split", ""),
        extra=extra,
    )


def _from_name(image: Path, pattern: str) -> Person:
    if not pattern:
        return Person(subject_id=stem_of(image))
    fits = compiled(pattern, "--subject-pattern").search(image.name)
    groups = {} if fits is None else fits.groupdict()
    subject = groups.get("subject") or (fits[1] if fits and fits.re.groups else "")
    if not subject:
        raise InputError(
            f"--subject-pattern {pattern!r} finds no subject",
            where=image,
            expected="a group in every file name",
            mend="--subject-pattern '^([0-9]+)_'",
        )
    eye = (groups.get("eye") or "").upper()
    if eye not in EYES:
        raise InputError(f"eye {eye!r}", where=image, expected="OD, OS, R or L in the group 'eye'")
    return Person(subject_id=subject, eye=EYES[eye], acquired=groups.get("acquired") or "")
