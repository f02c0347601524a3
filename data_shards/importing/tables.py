"""Tables of others: a CSV with a header line, a row for each image."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from data_shards.errors import InputError, nearest
from data_shards.importing.partners import composed, keys_of, stem_of


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
    row_of: dict[Path, dict[str, str]] = {}
    for row in rows:
        image = known.get(row[column]) or known.get(composed(row[column]))
        if image is None:
            raise InputError(
                f"{row[column]!r} has no image",
                where=path,
                expected=f"a file of the source folder ({nearest(row[column], exact)})",
                mend="add the image or remove the row",
            )
        if image in row_of:
            raise InputError(f"{row[column]!r} stands twice", where=path, expected="one row for each image", mend="remove one of the rows")
        row_of[image] = row
    return row_of
