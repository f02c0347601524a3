"""Errors meant for people. Each carries the exit code of the command line and says what, where, expected, and the mend."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable
from itertools import count
from pathlib import Path

LONGEST_WORD = 500  # a name has at most 255 bytes; a forged file may claim one of megabytes
LONGEST_TEXT = 2000
STARS = "***"
ADDRESSED = "abfss?|wasbs?|adl|s?ftp|ssh|hdfs|webhdfs|smb"
"""Kinds of URL whose `NAME@host` is an account or a container; elsewhere a name without a password may be a token."""
CREDENTIAL = "token|sig|secret|passw|pwd|credential|key|auth|code|session|jwt|sas"


def without_credentials(text: str) -> str:
    """The text with passwords, tokens and signatures of URLs starred: for messages, and for every file that others may read."""
    text = re.sub(r"(://[^/?#\s:@]*:)[^/\s]*@", rf"\1{STARS}@", text)
    text = re.sub(r"(://[^/?#\s:@]*:)(?!\d+[/?#])[^\s@]*@", rf"\1{STARS}@", text)  # a password with / in it; a number is a port
    text = re.sub(rf"(\b(?!(?:{ADDRESSED})://)[a-z][a-z0-9+.-]*://)[^/?#\s:@]+@", rf"\1{STARS}@", text, flags=re.IGNORECASE)
    if "://" not in text:
        return text
    return re.sub(rf"([?&;#][^=&;#\s]*(?:{CREDENTIAL})[^=&;\s]*=)[^&;#\s'\"]+", rf"\1{STARS}", text, flags=re.IGNORECASE)


class RetinaforgeError(ValueError):
    """A fault that a person can mend.

    Args:
        what: what was found, with the value given.
        where: file, shard, sample or configuration key.
        expected: what would have been right.
        mend: the command or the edit that mends it.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: object = None, expected: str | None = None, mend: str | None = None) -> None:
        self.where = where
        self.what, self.expected, self.mend = (
            None if text is None else shortened(without_credentials(str(text))) for text in (what, expected, mend)
        )
        lines = [self.what]
        if where is not None:
            lines.append(f"  where:    {shortened(without_credentials(str(where)))}")
        if expected is not None:
            lines.append(f"  expected: {self.expected}")
        if mend is not None:
            lines.append(f"  mend:     {self.mend}")
        super().__init__("\n".join(lines))


class InputError(RetinaforgeError):
    """Wrong input or configuration: exit code 2."""

    exit_code = 2


class UnsafeResume(RetinaforgeError):
    """Progress exists that cannot be loaded or does not belong to this run: exit code 3."""

    exit_code = 3


class CorruptData(RetinaforgeError):
    """Bytes on disk are not the bytes that were written: exit code 4."""

    exit_code = 4


class TryAgain(RetinaforgeError):
    """Nothing is wrong with the input; the same command later may succeed: exit code 75 (EX_TEMPFAIL)."""

    exit_code = 75


class Overtaken(TryAgain):
    """Another process published the same name, and what this one had written beside it was cleared away."""


def shortened(text: str) -> str:
    """Text for a terminal: of a word or of a whole that is too long (a name that a forged file gives) the middle is left out."""
    text = re.sub(rf"\S{{{LONGEST_WORD + 1},}}", lambda word: _cut(word[0], LONGEST_WORD), text)
    return _cut(text, LONGEST_TEXT)


def _cut(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    return f"{text[: longest * 2 // 3]}… {len(text)} characters …{text[-longest // 4 :]}"


def command(*words: object) -> str:
    """A line that a shell takes as these words, whatever blanks and signs a path has."""
    return shlex.join(map(str, words))


def moved_aside(path: Path) -> str:
    """The command that makes room at `path` and loses nothing."""
    return command("mv", path, next(free for n in count(1) if not (free := path.with_name(f"{path.name}.old-{n}")).exists()))


def nearest(name: str, known: Iterable[str]) -> str:
    """'did you mean …?' for an unknown name, or the whole list when nothing is near."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else "one of " + ", ".join(known)
