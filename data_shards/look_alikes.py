"""Names that one person, or one file, may have been given twice."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterable

LOGGER = logging.getLogger("retinaforge")
DASHES = re.compile(r"(?<!\d)-+|-+(?!\d)")  # between digits they stay: 1-2 is not 12
LEADING_ZEROS = re.compile(r"(?<!\d)0+(?=\d)")


def look_alike(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Names that one person, or one file, may have been given twice, and that no computer takes for one: see `_read_aloud`."""
    spelt: dict[str, set[str]] = {}
    for name in set(names):
        spelt.setdefault(_read_aloud(name), set()).add(name)
    return sorted(tuple(sorted(spellings)) for spellings in spelt.values() if len(spellings) > 1)


def _read_aloud(name: str) -> str:
    """A name without what spellings of it differ in: Unicode form, width, invisible signs, capitals, blanks, dashes, leading zeros."""
    if name.isascii():  # nearly all are, and a set may have a million
        text = re.sub(r"[\s_]", "-", name).casefold().strip("-")
        return LEADING_ZEROS.sub("", DASHES.sub("", text))
    visible = "".join(sign for sign in unicodedata.normalize("NFKC", name) if unicodedata.category(sign) != "Cf")
    text = unicodedata.normalize("NFKC", visible.casefold())
    text = "".join("-" if sign.isspace() or sign == "_" or unicodedata.category(sign) == "Pd" else sign for sign in text).strip("-")
    text = re.sub(r"\d", lambda digit: str(unicodedata.decimal(digit[0])), text)
    return LEADING_ZEROS.sub("", DASHES.sub("", text))


def warn_of_look_alikes(subjects: Iterable[str], where: object, mend: str) -> None:
    """Say which subjects are likely one person, who may then stand in several splits."""
    if alike := look_alike(subjects):
        LOGGER.warning(
            "%s: subjects written in several ways (%d, first %s) are taken for several people, who may stand in several splits; if each is "
            "one person, %s",
            *(where, len(alike), " and ".join(map(_shown, alike[0])), mend),
        )


def _shown(name: str) -> str:
    """A name in quotes, with what cannot be seen written out."""
    return repr(name) if name.isascii() else f"{name!r} ({name!a})"
