"""Errors meant for people. Each carries the exit code of the command line and says what, where, expected, and the mend."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

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
        self.what, self.where, self.expected, self.mend = without_credentials(what), where, expected, mend
        lines = [what]
        if where is not None:
            lines.append(f"  where:    {where}")
        if expected is not None:
            lines.append(f"  expected: {expected}")
        if mend is not None:
            lines.append(f"  mend:     {mend}")
        super().__init__(without_credentials("\n".join(lines)))


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


def nearest(name: str, known: Iterable[str]) -> str:
    """'did you mean …?' for an unknown name, or the whole list when nothing is near."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else "one of " + ", ".join(known)
