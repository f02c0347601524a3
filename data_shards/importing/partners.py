"""Which label file, mask, table row and person belong to which image: by names alone, and never by a guess."""

from __future__ import annotations

import csv
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_shards.cube import KEY
from data_shards.errors import InputError, nearest
from data_shards.formats.faults import refuse_absent_links
from data_shards.formats.other_kinds import conversion_of, kinds_of
from data_shards.formats.raw import listing

EYES = {"": "", "OD": "OD", "R": "OD", "RIGHT": "OD", "OS": "OS", "L": "OS", "LEFT": "OS"}
SUBJECT_COLUMNS = ("subject_id", "eye", "acquired", "split")


@dataclass(frozen=True, kw_only=True)
class Person:
    """What is known of the person in one image."""

    subject_id: str
    eye: str = ""
    acquired: str = ""
    split: str = ""
    extra: dict[str, str] = field(default_factory=dict)


def composed(name: str) -> str:
    """A name in one Unicode form (NFC): a Mac writes e and its accent as two signs, other systems as one."""
    return unicodedata.normalize("NFC", name)


def tokens(stem: str) -> list[str]:
    """A name cut at everything that is neither a letter nor a digit, of whatever script."""
    return [token for token in re.split(r"[\W_]+", composed(stem)) if token]


def compiled(pattern: str, option: str) -> re.Pattern[str]:
    """A regular expression of the user's."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise InputError(
            f"{pattern!r} is no regular expression: {error}",
            where=option,
            expected="a group for what names the image",
            mend=f"{option} '^([0-9]+)_'",
        ) from error


def stem_of(image: Path) -> str:
    """The name without suffix; a folder that is one cube has none."""
    return image.name if image.is_dir() else image.stem


def keys_of(images: Sequence[Path]) -> dict[Path, str]:
    """A sample key for every image: see `_key`.

    Raises:
        InputError: two images with one key, or a name that cannot be a key.
    """
    keys = {image: _key(stem_of(image)) for image in images}
    seen: dict[str, Path] = {}
    for image, key in keys.items():
        if not KEY.fullmatch(key):
            raise InputError(
                f"sample key {key!r} is not allowed", where=image, expected="at most 63 letters, digits, '_', '-'", mend="rename the file"
            )
        if key in seen:
            one_kind = f", or --pattern '*{image.suffix}' to take one of two kinds" if image.suffix != seen[key].suffix else ""
            raise InputError(
                f"two images with the key {key!r}: {seen[key]} and {image}",
                expected="one key for each, by its name without the suffix",
                mend=("rename one" if image.parent == seen[key].parent else "rename one, or import each folder by itself") + one_kind,
            )
        seen[key] = image
    return keys


def _key(stem: str) -> str:
    """The name with '_' for what a key may not hold. Letters beyond ASCII lose their marks, or are left out; a digest keeps them apart."""
    if stem.isascii():
        return re.sub(r"[^A-Za-z0-9_-]", "_", stem)
    bare = "".join(sign for sign in unicodedata.normalize("NFKD", stem) if not unicodedata.combining(sign))
    return re.sub(r"[^\x00-\x7f]+|[^A-Za-z0-9_-]", "_", bare) + "-" + hashlib.sha256(stem.encode(errors="surrogateescape")).hexdigest()[:8]


def listed(where: str, suffixes: Iterable[str], option: str) -> list[Path]:
    """Files of a folder or of a quoted glob, with one of the suffixes, sorted."""
    folder, pattern = (Path(where), "*") if Path(where).is_dir() else (Path(where).parent, Path(where).name)
    there = listing(folder, pattern) if folder.is_dir() else []
    files = [file for file in there if file.suffix.lower() in suffixes]
    refuse_absent_links(files)
    if not files:
        raise InputError(
            f"no files for {option}" + (f", but {kinds_of(there)}" if there else ""),
            where=where,
            expected=f"a folder or a quoted glob with files {' '.join(suffixes)}",
            mend=_map_conversion(there, option) if there else f"check the folder, or quote the glob: {option} 'DIR/*.png'",
        )
    return files


def _map_conversion(files: Sequence[Path], option: str) -> str:
    """As `conversion_of`; a JPEG has lost what a label map holds, so no conversion is advised."""
    if all(file.suffix.lower() in (".jpg", ".jpeg") for file in files):
        return f"export the maps of {option} anew as PNG: JPEG changes values, and converting keeps the change"
    return conversion_of(files)


def pair(images: Sequence[Path], files: Sequence[Path], *, option: str, match: str = "", allow_missing: bool = False) -> dict[Path, Path]:
    """The one file that belongs to each image.

    Without `match`, names are cut into words at punctuation, and a file belongs to the image with which it shares the
    most leading words: '21_training_mask.gif' to '21_training.tif', '01_h_AVmanual.png' to '01_h.jpg'. The shared words
    must hold every word of the image's name that has a digit (all of its words where none has), and no other file may
    share as many. With `match`, a regular expression, both names must give the same first group.

    Raises:
        InputError: an image with no file (unless `allow_missing`) or with several, or a file with several images.
    """
    image_words = {image: _words(image, match) for image in images}
    by_words: dict[tuple[str, ...], list[Path]] = {}
    for image, words in image_words.items():
        if not words:
            raise InputError(
                f"--match {match!r} does not fit the name", where=image, expected="a first group in every name", mend="--match '^([0-9]+)_'"
            )
        for count in range(_telling(words), len(words) + 1):
            by_words.setdefault(tuple(words[:count]), []).append(image)
    claims: dict[Path, list[tuple[int, Path, list[Path]]]] = {image: [] for image in images}  # image: (words shared, file, its images)
    for file in files:
        words = _words(file, match)
        count = next((n for n in range(len(words), 0, -1) if tuple(words[:n]) in by_words), 0)
        owners = by_words.get(tuple(words[:count]), [])
        for image in owners:
            claims[image].append((count, file, owners))
    found = {image: _only_claim(image, claims[image], files[0].parent, option, allow_missing) for image in images}
    return {image: file for image, file in found.items() if file is not None}


def _words(path: Path, match: str) -> list[str]:
    """The words that identify a file: those of its stem, or what --match finds as one word; [] where it finds nothing."""
    if not match:
        return tokens(stem_of(path))
    fits = compiled(match, "--match").search(composed(path.name))
    word = fits and (fits[1] if fits.re.groups else fits[0])
    return [word] if word else []


def _telling(words: Sequence[str]) -> int:
    """How many leading words must be shared before they name one image: up to the last with a digit, or all of them."""
    return max((i for i, word in enumerate(words, 1) if re.search(r"\d", word)), default=len(words))


def _only_claim(image: Path, claims: Sequence[tuple[int, Path, list[Path]]], folder: Path, option: str, allow_missing: bool) -> Path | None:
    """The file with most words in common, where there is exactly one and it belongs to no other image as well."""
    best = [claim for claim in claims if claim[0] == max(count for count, _, _ in claims)]
    if not best and allow_missing:
        return None
    if not best:
        raise InputError(
            f"no partner in {option}",
            where=image,
            expected=f"a file whose name begins like {image.stem!r} in {folder}",
            mend="add the file, or --allow-missing, or --match REGEX",
        )
    _, file, owners = best[0]
    if len(best) > 1 or len(owners) > 1:
        names = [f.name for _, f, _ in best] if len(best) > 1 else [f"{file.name} also fits {o.name}" for o in owners if o != image]
        raise InputError(
            f"several partners in {option}: {', '.join(names[:5])}",
            where=image,
            expected="one file for each image",
            mend=f"{option} 'DIR/*_manual.png' (a quoted glob), or --match REGEX",
        )
    return file


def rows_of(path: Path, needed: Sequence[str], option: str) -> list[dict[str, str]]:
    """Rows of a CSV with a header line; lines that begin with '#' are comments.

    Raises:
        InputError: no such file, not text, a column that is missing or stands twice, or a line with too many fields.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the table: {error}", where=path, expected="a CSV in UTF-8") from error
    numbered = [(n, line) for n, line in enumerate(text.splitlines(), 1) if line.strip() and not line.startswith("#")]
    table = csv.DictReader([line for _, line in numbered], skipinitialspace=True, strict=True)
    rows = []
    try:
        columns = [name.strip() for name in table.fieldnames or []]
        table.fieldnames = columns
        _check_columns(columns, needed, path, option)
        for row in table:
            line = numbered[table.line_num - 1][0]
            if any(field.strip() for field in row.pop(None, [])):
                raise InputError(
                    f"line {line} has more fields than the header: {numbered[table.line_num - 1][1]}",
                    where=path,
                    expected=f"{len(columns)} fields: {', '.join(columns)}",
                    mend="correct the line; a field with a comma in it stands in double quotes",
                )
            rows.append({name: (value or "").strip() for name, value in row.items() if name})
    except csv.Error as error:
        line = numbered[min(table.line_num, len(numbered) - 1)][0]
        expected = "a CSV in UTF-8, with every quote closed"
        raise InputError(f"cannot read the table from line {line} on: {error}", where=path, expected=expected) from error
    if not rows:
        raise InputError("a table without rows", where=path, expected="one row for each image")
    return rows


def _check_columns(columns: Sequence[str], needed: Sequence[str], path: Path, option: str) -> None:
    """Raises: InputError: a column that is missing, or a name that several columns have: which of them counts is not said."""
    if twice := [name for name in dict.fromkeys(columns) if name and columns.count(name) > 1]:
        raise InputError(
            f"{columns.count(twice[0])} columns are called {twice[0]!r}",
            where=path,
            expected="every name once in the header",
            mend="rename or remove all of them but one",
        )
    for name in needed:
        if name not in columns:
            raise InputError(
                f"no column {name!r}",
                where=path,
                expected=f"{', '.join(needed)}; there are: {', '.join(columns)}",
                mend=f"see {option} in --help",
            )


def rows_by_image(images: Sequence[Path], rows: Sequence[dict[str, str]], column: str, path: Path) -> dict[Path, dict[str, str]]:
    """Each image's row, by file name, stem or key in `column`.

    Raises:
        InputError: a row whose image is absent, or two rows of one image.
    """
    keys = keys_of(images)
    exact = {name: image for image in images for name in (image.name, stem_of(image), keys[image])}
    known = {composed(name): image for name, image in exact.items()} | exact
    found: dict[Path, dict[str, str]] = {}
    for row in rows:
        image = known.get(row[column]) or known.get(composed(row[column]))
        if image is None:
            raise InputError(
                f"{row[column]!r} has no image",
                where=path,
                expected=f"a file of the source folder ({nearest(row[column], exact)})",
                mend="add the image or remove the row",
            )
        if image in found:
            raise InputError(f"{row[column]!r} stands twice", where=path, expected="one row for each image", mend="remove one of the rows")
        found[image] = row
    return found


def people(images: Sequence[Path], *, table: Path | None, pattern: str, allow_missing: bool) -> dict[Path, Person]:
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
    found = rows_by_image(images, rows, column, table)
    without = [image for image in images if image not in found]
    if without and not allow_missing:
        raise InputError(
            f"{len(without)} images without a row, first {without[0].name}",
            where=table,
            expected="a row for each image",
            mend="add it, or --allow-missing",
        )
    persons = {image: _from_row(found[image], column, table) if image in found else _from_name(image, pattern) for image in images}
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


EYE_WORD = re.compile(r"(?<![A-Za-z0-9])(od|os|r|l|right|left)(?![A-Za-z0-9])", re.IGNORECASE)
BY_EYE = r"^(?P<subject>.+?)[^A-Za-z0-9]+(?P<eye>OD|OS|od|os|R|L|r|l|right|left|Right|Left|RIGHT|LEFT)(?![A-Za-z0-9])"


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
