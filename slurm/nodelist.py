"""SLURM's short form of node names, such as n[003-005,9],m1, written out as `scontrol show hostnames` writes it out."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from data_shards.errors import InputError

MOST = 1 << 16  # names of one range, as of SLURM


def expand(nodelist: str) -> list[str]:
    """All names, in SLURM's order; what is named twice comes twice.

    Raises:
        InputError: a bracket that is not closed or is followed by more name, a range that runs backwards, is empty or too long.
    """
    return [name for entry in _entries(nodelist) for name in _names(entry, nodelist)]


def _entries(nodelist: str) -> Iterator[str]:
    """Parts between commas that stand outside brackets."""
    depth, begun = 0, 0
    for at, letter in enumerate(nodelist + ","):
        depth += (letter == "[") - (letter == "]")
        if letter == "," and not depth:
            if at > begun:
                yield nodelist[begun:at]
            begun = at + 1
        if depth not in (0, 1):
            break
    if depth:
        raise _refused(nodelist, "brackets that are closed, and none within another")


def _names(entry: str, nodelist: str) -> Iterator[str]:
    """Names of one entry: the last bracket runs fastest, then the first, then the second (SLURM's own order)."""
    parts = re.split(r"\[([^\]]*)\]", entry)
    if len(parts) == 1:
        yield entry
        return
    if parts.pop():
        raise _refused(nodelist, "nothing after the last bracket of a name")
    words, *numbers = parts[::2], *(list(_numbers(ranges, nodelist)) for ranges in parts[1::2])
    *before, last = numbers
    for slow in itertools.product(*reversed(before)):
        prefix = "".join(word + number for word, number in zip(words, reversed(slow), strict=False)) + words[-1]
        yield from (prefix + number for number in last)


def _numbers(ranges: str, nodelist: str) -> Iterator[str]:
    """'003-005,9' is 003, 004, 005, 9: as wide as the first number of a range is written."""
    for part in ranges.split(","):
        match = re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if not 0 <= last - first < MOST:
            raise _refused(nodelist, f"ranges such as 3 or 003-017, of at most {MOST} numbers, in place of {part!r}")
        yield from (str(number).zfill(len(match[1])) for number in range(first, last + 1))


def _refused(nodelist: str, expected: str) -> InputError:
    return InputError(f"not a list of nodes: {nodelist!r}", where="SLURM_JOB_NODELIST, SLURM_STEP_NODELIST", expected=expected)
