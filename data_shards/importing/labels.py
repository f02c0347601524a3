"""Label maps of others, turned into our classes by a mapping that the user states.

Legend: H W pixels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from data_shards.cube import LABELS
from data_shards.errors import InputError, nearest
from data_shards.importing.map_files import EXACT_SUFFIXES, LISTED, MapFile

UNSTATED = 255
MEANT = 16  # more values than these come from smoothed edges
VESSELS = (LABELS["artery"], LABELS["vein"])


@dataclass(frozen=True, kw_only=True)
class LabelMap:
    """What each value of somebody's label files means here.

    Attributes:
        classes: value in the file (for colour files 0xRRGGBB) to one of LABELS.
        colour: the files are in colour.
    """

    classes: dict[int, int]
    colour: bool


def parse_label_map(text: str) -> LabelMap:
    """'1=artery,2=vein,3=background,0=background' or '#ff0000=artery,#0000ff=vein,#000000=background'.

    Raises:
        InputError: not such a list, an unknown class, a value twice, or numbers and colours mixed.
    """
    example = "--label-map '0=background,1=artery,2=vein,3=background'"
    classes: dict[int, int] = {}
    colours = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"(\d+|#[0-9a-fA-F]{6})\s*=\s*(\w+)", part)
        if not match:
            raise InputError(f"{part!r} in a label map", where="--label-map", expected="VALUE=CLASS or #RRGGBB=CLASS", mend=example)
        if match[2] not in LABELS:
            raise InputError(f"unknown class {match[2]!r}", where="--label-map", expected=nearest(match[2], LABELS), mend=example)
        value = int(match[1][1:], 16) if match[1].startswith("#") else int(match[1])
        if value in classes:
            raise InputError(f"value {match[1]} stated twice", where="--label-map", expected="each value once", mend=example)
        classes[value] = LABELS[match[2]]
        colours.add(match[1].startswith("#"))
    if len(colours) != 1:
        raise InputError(f"label map {text!r}", where="--label-map", expected="values only, or colours only", mend=example)
    return LabelMap(classes=classes, colour=colours.pop())


def classes_of(file: MapFile, label_map: LabelMap) -> np.ndarray:
    """A label file as uint8 classes (H, W). Palette images are read by index, not by colour.

    Raises:
        InputError: JPEG, a value without a stated class (with its pixel count), colour where values are stated or the reverse.
    """
    if file.lossy:
        raise InputError(
            "labels in a JPEG, which changes values",
            where=file.path,
            expected=" ".join(EXACT_SUFFIXES),
            mend="export the labels anew as PNG; converting this file keeps its wrong values",
        )
    values = [int(value) for value in np.unique(file.values_HW)]
    if file.colour != label_map.colour:
        kind = "a colour" if file.colour else "a grey"
        if file.palette is not None:
            kind = "a palette"
        raise InputError(
            f"{kind} label file, mapped by {'colour' if label_map.colour else 'value'}",
            where=file.path,
            expected="colours of the form #RRGGBB=CLASS" if file.colour else "VALUE=CLASS",
            mend=f"--label-map '{','.join(f'{file.shown(value)}=CLASS' for value in values[:LISTED])}'",
        )
    classes_HW = np.full(file.values_HW.shape, UNSTATED, np.uint8)
    for value, number in label_map.classes.items():
        classes_HW[file.values_HW == value] = number
    if (unknown_HW := classes_HW == UNSTATED).any():
        raise InputError(
            f"label values without a class: {file.counted(unknown_HW)}",
            where=file.path,
            expected=f"only the stated values {', '.join(map(file.shown, label_map.classes))}",
            mend=_naming([value for value in values if value not in label_map.classes], file),
        )
    return classes_HW


def _naming(values: list[int], file: MapFile) -> str:
    """How to give values a class, where they are few enough to have been meant."""
    if len(values) > MEANT:
        return "export the labels anew, without smoothing their edges and without JPEG"
    return f"give each a class, e.g. add {','.join(f'{file.shown(value)}=background' for value in values)} to --label-map"


def circle_mask(size_HW: tuple[int, int], x_px: float, y_px: float, diameter_px: float) -> np.ndarray:
    """The disc of one row of --onh-circles: pixels whose centre lies within it."""
    rows_H1, columns_1W = np.ogrid[: size_HW[0], : size_HW[1]]
    return (columns_1W - x_px) ** 2 + (rows_H1 - y_px) ** 2 <= (diameter_px / 2) ** 2


def over_disc(labels_HW: np.ndarray, disc_HW: np.ndarray) -> np.ndarray:
    """Add the optic nerve head; vessels stay on top, because they cross the disc."""
    return np.where(disc_HW & ~np.isin(labels_HW, VESSELS), np.uint8(LABELS["onh"]), labels_HW)


def pixels_per_class(labels_HW: np.ndarray) -> dict[str, int]:
    """How many pixels each class holds."""
    return {name: int((labels_HW == number).sum()) for name, number in LABELS.items()}
