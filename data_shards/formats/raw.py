"""What every reader returns, and the steps that several readers share.

Legend: C band, H W pixels, P = H·W pixels in one row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.errors import InputError
from data_shards.formats.declared import Statement
from data_shards.formats.faults import READ_FAULTS, is_absent_link, unreadable

__all__ = [
    "MAX_VALUES",
    "READ_FAULTS",
    "Raw",
    "ReadOptions",
    "bands_first",
    "check_numeric",
    "check_size",
    "the_one",
    "unreadable",
]
MAX_VALUES = 2**30  # 2 GiB as uint16: far above 672 x 672 x 16 (7.2 M), far below what a forged header can claim
LISTED = 8  # so many things a message shows
NO_IMAGE = (  # what a file may hold in place of an image, and how to go on
    ("a link into", "import the file that the link names, in place of this one"),
    ("complex", "save its magnitude, or its real part, as float32"),
    ("struct", "in MATLAB, save its field as a variable of its own: cube = S.FIELD; save('cube.mat', 'cube')"),
    ("cell", "in MATLAB, save its element as a variable of its own: cube = C{1}; save('cube.mat', 'cube')"),
)
LITTER = ("__macosx", "thumbs.db", "desktop.ini")


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How to understand a file that does not say it itself.

    Attributes:
        variable: name of the array inside an HDF5 or MATLAB file; '' takes the only candidate.
        axes: meaning of the array's axes in the order of the file, such as 'HWC', 'CHW', 'HW', 'CP'; '' takes the format's own.
        reshape_HW: size of the image whose pixels stand in one row (axis P), or None.
        pixel_order: 'rows' (C, numpy) or 'columns' (Fortran, MATLAB) for that row of pixels.
        centres: name of the data set or variable that holds the band centres, inside an HDF5 or MATLAB file; '' looks for it.
        own_wavelengths: False where the centres are stated elsewhere, and the file's own are left alone.
        max_values: refuse arrays that hold more values than this, before they are read.
    """

    variable: str = ""
    axes: str = ""
    reshape_HW: tuple[int, int] | None = None
    pixel_order: str = ""
    centres: str = ""
    own_wavelengths: bool = True
    max_values: int = MAX_VALUES


@dataclass(frozen=True, kw_only=True)
class Raw:
    """One image as its file holds it, only turned to bands first.

    Attributes:
        data_CHW: values and dtype of the file.
        wavelengths_nm: band centres where the format gives them, else None.
        nominal: the centres are a convention and not a measurement.
        orientation: the tag of the file by which the reader turned the pixels upright; 1 where it turned nothing.
        said: what the file says of its own values, not yet applied.
        axes_assumed: the order in the file of the axes C, H and W where it is only the format's custom; '' where it was said.
        hint: where the file may give its band centres, for the message that they are missing.
        facts: what the reader decided or found, kept in the sample's notes.
    """

    data_CHW: np.ndarray
    wavelengths_nm: tuple[float, ...] | None = None
    nominal: bool = False
    orientation: int = 1
    said: tuple[Statement, ...] = ()
    axes_assumed: str = ""
    hint: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def is_litter(path: Path, below: Path) -> bool:
    """What systems leave beside images below a folder: hidden files, '._NAME' (what a Mac notes of NAME), caches of previews."""
    names = (part for part in path.relative_to(below).parts if part != "..")
    return any(name.startswith(".") or name.lower() in LITTER for name in names)


def listing(folder: Path, pattern: str) -> list[Path]:
    """Files below a folder that match a glob, sorted, without litter; links whose content is absent are among them.

    `Path.glob` leaves such links out where the last part of the pattern is a plain name.
    """
    above, slash, name = pattern.rpartition("/")
    if name and not any(sign in name for sign in "*?["):
        name = f"[{name[0]}]{name[1:]}"
    matches = folder.glob(f"{above}{slash}{name}")
    return sorted(path for path in matches if not is_litter(path, folder) and (is_absent_link(path) or path.is_file()))


def check_size(shape: tuple[int, ...], options: ReadOptions, path: Path) -> None:
    """Refuse, before anything is read, what would fill the memory.

    Raises:
        InputError: an empty array, or one of more than `max_values` values.
    """
    if not shape or min(shape) < 1:
        raise InputError(f"an empty array of shape {shape}", where=path, expected="at least one value on every axis")
    values = int(np.prod([int(n) for n in shape], dtype=object))
    if values > options.max_values:
        raise InputError(
            f"{values} values ({' x '.join(map(str, shape))})",
            where=path,
            expected=f"at most {options.max_values} values in one file",
            mend=f"if the file is to be trusted: --max-values {values}",
        )


def check_numeric(dtype: np.dtype, path: Path) -> None:
    """Refuse dtypes that are not plain numbers (objects would have to be unpickled)."""
    if dtype.kind not in "buif" or dtype.fields is not None:
        raise InputError(
            f"an array of dtype {dtype}", where=path, expected="plain integers or floats", mend="save the array as uint16 or float32"
        )


def bands_first(array: np.ndarray, options: ReadOptions, path: Path, *, default_axes: str) -> np.ndarray:
    """Turn an array of stated axes to (C, H, W).

    Args:
        array: 2-D or 3-D.
        default_axes: the meaning of three axes in this format when the options do not state one.

    Raises:
        InputError: axes that do not fit the array, or a matrix that does not fit `reshape_HW`.
    """
    if options.reshape_HW is not None:
        return _from_matrix(array, options, path)
    if options.pixel_order:
        raise InputError("--pixel-order without --reshape", where=path, expected="both, for a matrix of spectra", mend="--reshape HxW")
    axes = options.axes.upper() or {2: "HW", 3: default_axes}.get(array.ndim, "")
    if sorted(axes) not in (["C", "H", "W"], ["H", "W"]) or len(axes) != array.ndim:
        raise InputError(
            f"an array of shape {array.shape} with axes {axes or 'not known'!r}",
            where=path,
            expected="one letter for each axis: C bands, H rows, W columns",
            mend="--axes HWC (or CHW, HW); for a matrix of spectra --axes CP --reshape HxW --pixel-order columns",
        )
    if axes in ("HW", "WH"):
        array, axes = array[None], "C" + axes
    return np.transpose(array, [axes.index(axis) for axis in "CHW"])


def axes_with_bands(shape_CHW: tuple[int, ...], axes_read: str, count: int) -> list[str]:
    """The orders of an array's axes by which it has `count` bands, first as it was read; rows always come before columns.

    Args:
        axes_read: the order by which the array became (C, H, W).
    """
    sizes = [shape_CHW["CHW".index(axis)] for axis in axes_read]
    orders = ["HW"[:at] + "C" + "HW"[at:] for at, size in enumerate(sizes) if size == count]
    return sorted(orders, key=lambda order: order != axes_read)


def _from_matrix(array_NN: np.ndarray, options: ReadOptions, path: Path) -> np.ndarray:
    """(C, P) or (P, C) to (C, H, W), in the stated order of pixels."""
    height, width = options.reshape_HW
    if array_NN.ndim != 2:
        raise InputError(f"--reshape on an array of shape {array_NN.shape}", where=path, expected="a matrix of bands x pixels")
    fits = [axes for axes in ("CP", "PC") if array_NN.shape[axes.index("P")] == height * width and options.axes.upper() in ("", axes)]
    if len(fits) != 1:
        raise InputError(
            f"a matrix of shape {array_NN.shape} with axes {options.axes or 'not stated'!r} does not fit --reshape {height}x{width}",
            where=path,
            expected=f"one axis of {height * width} pixels, the other of bands",
            mend="--axes CP (bands x pixels) or --axes PC (pixels x bands)",
        )
    if options.pixel_order not in ("rows", "columns"):
        raise InputError(
            "--reshape without the order of the pixels",
            where=path,
            expected="rows (numpy, C) or columns (MATLAB, Fortran)",
            mend="--pixel-order columns for a matrix that MATLAB made",
        )
    matrix_CP = array_NN if fits == ["CP"] else array_NN.T
    if options.pixel_order == "rows":
        return matrix_CP.reshape(-1, height, width)
    return matrix_CP.reshape(-1, width, height).transpose(0, 2, 1)


def the_one(candidates: dict[str, tuple[int, ...]], options: ReadOptions, path: Path, others: Mapping[str, str]) -> str:
    """The array to read from a file that holds several.

    Args:
        candidates: name to shape of every numeric array.
        others: name of everything else in the file, and what it is.

    Raises:
        InputError: no such name, or none named and no single image-like array.
    """
    arrays = [f"{name} {'x'.join(map(str, shape))}" for name, shape in sorted(candidates.items())]
    listed = ", ".join([*arrays, *(f"{name} ({what})" for name, what in sorted(others.items())[:LISTED])]) or "nothing"
    if options.variable in candidates:
        return options.variable
    mend = "--variable NAME"
    if not candidates:
        mend = next((mend for kind, mend in NO_IMAGE if kind in listed), "give a file that holds the image")
    if options.variable:
        held = others.get(options.variable)
        what = f"{options.variable!r} is {held}" if held else f"no numeric array {options.variable!r}"
        raise InputError(what, where=path, expected=f"an array of numbers; there are: {listed}", mend=mend)
    images = [name for name, shape in candidates.items() if len(shape) == 3] or list(candidates)
    if len(images) != 1:
        what = f"{len(images)} arrays could be the image" if images else "no array of numbers"
        raise InputError(what, where=path, expected=f"{'one image' if images else 'an image'}; there are: {listed}", mend=mend)
    return images[0]
