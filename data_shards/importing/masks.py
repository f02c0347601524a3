"""Masks of others (optic disc, field of view): which pixels lie inside, where the file can say so or the user does.

A file can say so with two values. Anything else needs to be stated: a cup inside a disc, a map drawn dark on bright.
Legend: H W pixels.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import maximum_filter, minimum_filter

from data_shards.errors import InputError
from data_shards.importing.labels import MEANT
from data_shards.importing.map_files import MapFile

LARGEST_DISC = 0.25  # share of an image; a nerve head takes 1 to 3 % of a photograph
INSIDE_OUT = 0.5  # so much more of the margin than of the middle in a field of view: it was drawn the other way round
JPEG_FLAT = 1 / 8  # of the range: JPEG's ringing stays within it on even ground, and beyond it at edges
JPEG_LEAST = 64  # a smaller range than this cannot be told from what JPEG adds
INSIDE = re.compile(r"(\d+)(?:-(\d+))?|#([0-9a-fA-F]{6})")


@dataclass(frozen=True, kw_only=True)
class Inside:
    """The values that the user states to lie inside a mask: ranges with both ends, of numbers or of 0xRRGGBB."""

    ranges: tuple[tuple[int, int], ...]
    colour: bool


def parse_inside(text: str, option: str) -> Inside:
    """'1,2' or '128-255' or '#ff0000,#00ff00'.

    Raises:
        InputError: not such a list, or numbers and colours mixed.
    """
    wrong = {"where": option, "expected": "values, ranges of values, or colours: 1,2 or 128-255 or #ff0000", "mend": f"{option} 1,2"}
    ranges, colours = [], set()
    for part in (part.strip() for part in text.split(",")):
        if not (match := INSIDE.fullmatch(part)):
            raise InputError(f"{part!r} in {text!r}", **wrong)
        first = int(match[3], 16) if match[3] else int(match[1])
        last = int(match[2]) if match[2] else first
        if last < first:
            raise InputError(f"the range {part!r}", **wrong)
        ranges.append((first, last))
        colours.add(bool(match[3]))
    if len(colours) != 1:
        raise InputError(f"numbers and colours in {text!r}", **wrong)
    return Inside(ranges=tuple(ranges), colour=colours.pop())


def mask_of(file: MapFile, role: str, inside: Inside | None, *, labels_free: bool = False) -> np.ndarray:
    """The pixels inside a mask, bool (H, W).

    Args:
        role: 'onh' or 'fov', as in the options --ROLE and --ROLE-values. inside: what the user states; None lets two values speak.
        labels_free: no label maps are given, so --labels may be advised in place of --onh.

    Raises:
        InputError: more than two values, two of which neither is the background, a disc over a quarter of the image, a
            field of view that is inside out, or stated values that the file does not hold.
    """
    if inside is not None:
        return _stated(file, role, inside)
    if file.lossy:
        values_HW = _jpeg_values(file, role)
        inside_HW = values_HW > values_HW.max() / 2
    else:
        inside_HW = np.isin(file.values_HW, _inner_values(file, role, labels_free))
    if role == "onh" and (share := inside_HW.mean()) > LARGEST_DISC:
        raise InputError(
            f"an optic disc over {share:.0%} of the image, by the values {file.counted()}",
            where=file.path,
            expected=f"at most {LARGEST_DISC:.0%}, unless the values are stated",
            mend=f"if the disc is the rest: {_option(file, role, ~inside_HW)}; if it is that large: {_option(file, role, inside_HW)}",
        )
    if role == "fov" and _margin(inside_HW).mean() - _middle(inside_HW).mean() > INSIDE_OUT:
        raise InputError(
            f"a field of view that holds the margin of the image and not its middle, by the values {file.counted()}",
            where=file.path,
            expected="the middle inside, unless the values are stated",
            mend=f"if it is drawn the other way round: {_option(file, role, ~inside_HW)}; if not: {_option(file, role, inside_HW)}",
        )
    return inside_HW


def _stated(file: MapFile, role: str, inside: Inside) -> np.ndarray:
    """The pixels whose values the user names; a file of one value may be empty, any other must hold one of them."""
    values_HW, colour = (_brightness(file), False) if file.lossy else (file.values_HW, file.colour)
    if colour != inside.colour:
        raise InputError(
            f"a mask in {'colour' if colour else 'grey or by palette'}: {file.counted()}",
            where=file.path,
            expected=f"{'colours' if inside.colour else 'numbers'}, as --{role}-values states",
            mend=f"--{role}-values with {'#RRGGBB' if colour else 'numbers'}",
        )
    inside_HW = np.logical_or.reduce([(values_HW >= first) & (values_HW <= last) for first, last in inside.ranges])
    if not inside_HW.any() and values_HW.min() != values_HW.max():
        raise InputError(
            f"none of the values of --{role}-values in a mask of {file.counted()}",
            where=file.path,
            expected="at least one of them",
            mend=f"--{role}-values with those that lie inside",
        )
    return inside_HW


def _inner_values(file: MapFile, role: str, labels_free: bool) -> list[int]:
    """Of two values the one that is not black; of two greys the brighter."""
    values = [int(value) for value in np.unique(file.values_HW)]
    colours = [file.rgb(value) for value in values]
    if len(set(colours)) < len(colours):  # a palette that shows its indices alike
        colours = [(value,) * 3 for value in values]
    if len(values) == 1:
        return [value for value, rgb in zip(values, colours, strict=True) if any(rgb)]
    if len(values) == 2:
        black = [not any(rgb) for rgb in colours]
        grey = all(len(set(rgb)) == 1 for rgb in colours)
        if any(black) or grey:
            return [values[int(np.argmax([max(rgb) for rgb in colours]))]]
    outside = _commonest(_margin(file.values_HW))
    raise InputError(
        f"a mask of {len(values)} values: {file.counted()}",
        where=file.path,
        expected="two, one of them black or both grey; or what lies inside, stated",
        mend=_statement(file, role, outside, labels_free),
    )


def _statement(file: MapFile, role: str, outside: int, labels_free: bool) -> str:
    """The option that reads a mask of several values, filled in as if the value of its margin were outside."""
    option = f"if {file.shown(outside)} is outside: {_option(file, role, file.values_HW != outside)}"
    values = [int(value) for value in np.unique(file.values_HW)]
    if role != "onh" or not labels_free or len(values) > MEANT:
        return option
    meaning = ",".join(f"{file.shown(value)}={'background' if value == outside else 'onh'}" for value in values)
    return f"{option}; or, in place of --onh: --labels {shlex.quote(str(file.path.parent))} --label-map '{meaning}'"


def _option(file: MapFile, role: str, inside_HW: np.ndarray) -> str:
    """--ROLE-values for these pixels: each value where they are few, else the half of the range in which most of them lie."""
    values = [int(value) for value in np.unique(file.values_HW[inside_HW])]
    if len(values) > MEANT and file.colour and not file.lossy:  # a mask drawn on a photograph: colours have no halves
        return f"--{role}-values '#RRGGBB' with the colour that was drawn; or export the mask alone as PNG"
    if len(values) > MEANT or (file.lossy and values):  # the half of the range
        half, top = int(file.values_HW.max()) // 2, int(file.values_HW.max())
        bright = np.median(file.values_HW[inside_HW]) > half
        return f"--{role}-values {half + 1}-{top}" if bright else f"--{role}-values 0-{half}"
    listed = ",".join(map(file.shown, values))
    return f"--{role}-values {shlex.quote(listed)}" if values else "check the file"


def _brightness(file: MapFile) -> np.ndarray:
    """The values, or the brightest channel of a colour."""
    if not file.colour:
        return file.values_HW
    return np.maximum.reduce([file.values_HW >> 16, file.values_HW >> 8 & 255, file.values_HW & 255])


def _jpeg_values(file: MapFile, role: str) -> np.ndarray:
    """Brightness of a JPEG mask, which must have two levels apart from what the compression added.

    Raises:
        InputError: even ground at a third level, levels too near each other, or colours without black.
    """
    values_HW = _brightness(file)
    low, high = int(values_HW.min()), int(values_HW.max())
    if low == high:
        return values_HW
    margin = (high - low) * JPEG_FLAT
    even_HW = maximum_filter(values_HW, 3) - minimum_filter(values_HW, 3) <= margin
    levels = np.unique(values_HW[even_HW & (values_HW > low + margin) & (values_HW < high - margin)])
    if high - low < JPEG_LEAST or (file.colour and low >= JPEG_LEAST):
        raise InputError(
            f"a JPEG mask from {low} to {high}, which JPEG's own changes may reach",
            where=file.path,
            expected="black and bright, or a file that keeps its values",
            mend="export the mask as PNG",
        )
    if len(levels):
        dark = _commonest(_margin(values_HW)) < (low + high) / 2
        inside = f"{(low + levels[0]) // 2 + 1}-{high}" if dark else f"0-{(high + levels[-1]) // 2}"
        raise InputError(
            f"a JPEG mask with even ground at {levels[0]} to {levels[-1]} besides {low} and {high}",
            where=file.path,
            expected="two levels; or what lies inside, stated",
            mend=f"if {'dark' if dark else 'bright'} is outside: --{role}-values {inside}",
        )
    return values_HW


def _commonest(values: np.ndarray) -> int:
    distinct, counts = np.unique(values, return_counts=True)
    return int(distinct[np.argmax(counts)])


def _margin(map_HW: np.ndarray) -> np.ndarray:
    """The pixels on the four sides, in one row."""
    return np.concatenate([map_HW[0], map_HW[-1], map_HW[:, 0], map_HW[:, -1]])


def _middle(map_HW: np.ndarray) -> np.ndarray:
    """The middle half of the rows and columns."""
    height, width = map_HW.shape
    return map_HW[height // 4 : -(-3 * height // 4), width // 4 : -(-3 * width // 4)]
