"""Arrays of jobs: their indices, and arrays longer than a cluster takes, which go as several."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from data_shards.errors import InputError
from slurm.programs import ask

FIRST = "RETINAFORGE_ARRAY_FIRST"
"""The variable by which a part's script says where in the array the part begins."""
ARRAY = "RETINAFORGE_ARRAY"
"""The variable by which it names that array: a job that is submitted again may be so with some of its indices."""
USUAL_SIZE = 1001
"""SLURM's own default of MaxArraySize."""
MOST_INDICES = 4_000_000  # what SLURM itself can be set to
SPAN = r"\d+(-\d+(:\d+)?)?"


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of an array that goes to SLURM by itself: index i of `array` stands for the (first + i)-th index of `whole`."""

    array: str
    first: int
    whole: str
    after: str | None = None


def array_indices(text: str) -> list[int]:
    """Indices of a SLURM array: '0-6:2,9%2' is 0, 2, 4, 6, 9."""
    return [index for first, last, step in _spans(text) for index in range(first, last + 1, step)]


def _spans(text: str) -> Iterator[tuple[int, int, int]]:
    """The first, the last and the step of each part between commas."""
    for part in text.partition("%")[0].split(","):
        span, _, step = part.partition(":")
        first, _, last = span.partition("-")
        yield int(first), int(last or first), int(step or 1)


def check_array(text: str) -> None:
    """Refuse what is no array, and one that counts backwards, by nothing, or without end.

    Raises:
        InputError: as said.
    """
    if not re.fullmatch(rf"{SPAN}(,{SPAN})*(%[1-9]\d*)?", text, re.ASCII):
        raise InputError(f"array={text!r}", where="job", expected="such as 0-9, 1,3,5 or 0-99%8")
    count = 0
    for first, last, step in _spans(text):
        if last < first or step < 1:
            raise InputError(
                f"array={text!r}: {first}-{last}", where="job", expected="the lowest index first, and a step from 1 on: 1-5, 0-9:3"
            )
        count += (last - first) // step + 1
    if count > MOST_INDICES:
        raise InputError(f"array={text!r}: {count:,} indices", where="job", expected=f"at most {MOST_INDICES:,}")


def parts_of(array: str, most: int) -> list[Part]:
    """The parts of an array where no index may reach `most`; none: it may go as it is.

    Raises:
        InputError: a cluster without arrays.
    """
    indices = array_indices(array)
    if max(indices) < most:
        return []
    if most < 2:
        raise InputError(f"--array {array}", expected="no array: MaxArraySize of this cluster is " + str(most))
    limit = array.partition("%")[1] + array.partition("%")[2]
    starts = range(0, len(indices), most)
    return [Part(array=f"0-{min(most, len(indices) - start) - 1}{limit}", first=start, whole=array) for start in starts]


def array_task(array: str | None, environ: Mapping[str, str]) -> str | None:
    """This task's index in its array, None outside one."""
    index, first, whole = environ.get("SLURM_ARRAY_TASK_ID"), environ.get(FIRST), environ.get(ARRAY) or array
    if index is None or first is None or whole is None:
        return index
    return str(array_indices(whole)[int(first) + int(index)])


def spelled(indices: Iterable[int]) -> str:
    """The shortest words for these indices: '0-2,7'. The inverse of `array_indices`."""
    words: list[str] = []
    for _, run in itertools.groupby(enumerate(sorted(indices)), lambda pair: pair[1] - pair[0]):
        each = [index for _, index in run]
        words.append(str(each[0]) if len(each) == 1 else f"{each[0]}-{each[-1]}")
    return ",".join(words)


@dataclass(frozen=True, kw_only=True)
class Site:
    """What the live configuration of a cluster says of it: its name, and what no index of an array may reach."""

    cluster: str = ""
    max_array_size: int = USUAL_SIZE


def site_here() -> Site:
    """The cluster that SLURM's programs speak with.

    Raises:
        TryAgain: the controller does not answer.
    """
    settings = dict(re.findall(r"^(\w+)\s*=\s*(.*?)\s*$", ask("scontrol", "show", "config"), re.MULTILINE))
    return Site(cluster=settings.get("ClusterName", ""), max_array_size=int(settings.get("MaxArraySize", USUAL_SIZE)))
