"""Label maps and masks of others, turned into our classes by a mapping that the user states.

Legend: H W pixels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_shards.cube import LABELS
from data_shards.errors import InputError, nearest
from data_shards.formats.photographs import opened
from data_shards.formats.raw import ReadOptions

MAP_SUFFIXES = (".png", ".gif", ".tif", ".tiff", ".bmp")  # JPEG changes values: never for labels
MASK_SUFFIXES = (*MAP_SUFFIXES, ".jpg", ".jpeg")
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


def read_labels(path: Path, label_map: LabelMap, options: ReadOptions) -> np.ndarray:
    """One label file as uint8 classes.

    Palette images are read by index, not by colour. A grey file saved as RGB is read by its grey value.

    Raises:
        InputError: JPEG, a value without a stated class (with its pixel count), colour where values are stated or the reverse.
    """
    if path.suffix.lower() not in MAP_SUFFIXES:
        raise InputError(f"labels in a {path.suffix} file", where=path, expected=" ".join(MAP_SUFFIXES), mend="export the labels as PNG")
    values_HW, colour = _values(path, options, by_index=True)
    if colour != label_map.colour:
        raise InputError(
            "a colour label file, mapped by value" if colour else "a grey label file, mapped by colour",
            where=path,
            expected="colours of the form #RRGGBB=CLASS" if colour else "VALUE=CLASS",
            mend=f"--label-map '{_listed(values_HW, colour, '=CLASS,').rstrip(',')}'",
        )
    classes_HW = np.full(values_HW.shape, 255, np.uint8)
    for value, number in label_map.classes.items():
        classes_HW[values_HW == value] = number
    if (unknown_HW := classes_HW == 255).any():
        values, counts = np.unique(values_HW[unknown_HW], return_counts=True)
        found = ", ".join(f"{_shown(v, colour)} ({n} pixels)" for v, n in zip(values[:8], counts[:8], strict=True))
        raise InputError(
            f"label values without a class: {found}" + (f" and {len(values) - 8} more" if len(values) > 8 else ""),
            where=path,
            expected=f"only the stated values {', '.join(_shown(v, colour) for v in label_map.classes)}",
            mend=f"add e.g. {_shown(values[0], colour)}=background to --label-map",
        )
    return classes_HW


def read_mask(path: Path, options: ReadOptions) -> np.ndarray:
    """A mask as bool: above half of its largest value, so 0/1, 0/255 and JPEG's ringing are all read right."""
    values_HW, colour = _values(path, options, by_index=False)
    if colour:
        values_HW = np.maximum.reduce([values_HW >> 16, (values_HW >> 8) & 255, values_HW & 255])
    return values_HW > values_HW.max() / 2


def circle_mask(size_HW: tuple[int, int], x_px: float, y_px: float, diameter_px: float) -> np.ndarray:
    """The disc of one row of --onh-circles: pixels whose centre lies within it."""
    rows_H1, columns_1W = np.ogrid[: size_HW[0], : size_HW[1]]
    return (columns_1W - x_px) ** 2 + (rows_H1 - y_px) ** 2 <= (diameter_px / 2) ** 2


def over_disc(labels_HW: np.ndarray, disc_HW: np.ndarray) -> np.ndarray:
    """Add the optic nerve head; vessels stay on top, because they cross the disc."""
    return np.where(disc_HW & ~np.isin(labels_HW, VESSELS), np.uint8(LABELS["onh"]), labels_HW)


def _values(path: Path, options: ReadOptions, *, by_index: bool) -> tuple[np.ndarray, bool]:
    """(H, W) integers: grey values or palette indices, or 0xRRGGBB for true colour; and whether it is colour."""
    with opened(path, options) as image:
        if getattr(image, "n_frames", 1) != 1:
            raise InputError(f"{image.n_frames} frames", where=path, expected="one", mend="save the map alone")
        if image.mode == "P" and not by_index:
            image = image.convert("RGB")
        if image.mode in ("RGBA", "LA", "PA"):
            image = image.convert(image.mode[:-1])  # transparency says nothing about the class
        if image.mode not in ("1", "L", "P", "RGB", "I", "I;16", "I;16L", "I;16B"):
            raise InputError(f"a map of mode {image.mode}", where=path, expected="grey, palette or RGB", mend="export the map as PNG")
        return _grey(np.array(image).astype(np.int64))


def _grey(values: np.ndarray) -> tuple[np.ndarray, bool]:
    if values.ndim == 2:
        return values, False
    if (values == values[..., :1]).all():
        return values[..., 0], False
    return (values[..., 0] << 16) | (values[..., 1] << 8) | values[..., 2], True


def _shown(value: int, colour: bool) -> str:
    return f"#{value:06x}" if colour else str(value)


def _listed(values_HW: np.ndarray, colour: bool, end: str) -> str:
    return "".join(_shown(int(v), colour) + end for v in np.unique(values_HW)[:8])


def pixels_per_class(labels_HW: np.ndarray) -> dict[str, int]:
    """How many pixels each class holds."""
    return {name: int((labels_HW == number).sum()) for name, number in LABELS.items()}
