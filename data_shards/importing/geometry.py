"""Crop, pad and resize a cube together with its labels and its field of view, in that order, and say so in words.

Legend: C band, H W pixels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from PIL import Image
from skimage.transform import resize_local_mean

from data_shards.cube import LABELS
from data_shards.errors import InputError
from data_shards.vessel_lines import centre_lines, with_lines

SIZE = re.compile(r"(\d+)x(\d+)")
WINDOW = re.compile(r"(\d+):(\d+),(\d+):(\d+)")


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """What is done to every image; '' and False leave it alone.

    Attributes:
        crop: 'y0:y1,x0:x1' (ends left out), 'center:HxW', or 'fov' (the box around the field of view).
        pad_square: pad the shorter side with 0 on both ends; the padding lies outside the field of view.
        resize: 'HxW', or 'H' with the width in proportion.
    """

    crop: str = ""
    pad_square: bool = False
    resize: str = ""

    def __post_init__(self) -> None:
        if self.crop not in ("", "fov") and not WINDOW.fullmatch(self.crop) and not SIZE.fullmatch(self.crop.removeprefix("center:")):
            raise InputError(
                f"crop {self.crop!r}", where="--crop", expected="y0:y1,x0:x1 or center:HxW or fov", mend="--crop center:560x560"
            )
        if self.resize and not SIZE.fullmatch(self.resize) and not self.resize.isdecimal():
            raise InputError(f"size {self.resize!r}", where="--resize", expected="HxW or H", mend="--resize 512x512")


def parse_size(text: str, where: str) -> tuple[int, int]:
    """'HxW' to (H, W), both above 0."""
    match = SIZE.fullmatch(text)
    if not match or "0" in (match[1].strip("0") or "0", match[2].strip("0") or "0"):
        raise InputError(f"size {text!r}", where=where, expected="HxW, both above 0", mend=f"{where} 512x512")
    return int(match[1]), int(match[2])


@dataclass(frozen=True, kw_only=True)
class Planes:
    """An image and the maps that lie over it, all of one size."""

    data_CHW: np.ndarray
    labels_HW: np.ndarray | None = None
    fov_HW: np.ndarray | None = None

    def each(self, image_step, map_step) -> Planes:
        """The same step on all: `image_step` on the image, `map_step` on both maps."""
        maps = [None if map_HW is None else map_step(map_HW) for map_HW in (self.labels_HW, self.fov_HW)]
        return Planes(data_CHW=image_step(self.data_CHW), labels_HW=maps[0], fov_HW=maps[1])


def apply(geometry: Geometry, planes: Planes, where: object) -> tuple[Planes, list[str]]:
    """Crop, pad, resize.

    Returns: the new planes, and what was done in words and numbers, for the sample's notes.

    Raises:
        InputError: a crop that leaves the image, a crop to a field of view that is not there, a size of 0.
    """
    done = []
    if geometry.crop:
        rows, columns = _window(geometry.crop, planes, where)
        planes = planes.each(lambda data_CHW: data_CHW[:, rows, columns], lambda map_HW: map_HW[rows, columns])
        done.append(f"crop {rows.start}:{rows.stop},{columns.start}:{columns.stop}")
    height, width = planes.data_CHW.shape[1:]
    if geometry.pad_square and height != width:
        if planes.fov_HW is None:
            planes = Planes(data_CHW=planes.data_CHW, labels_HW=planes.labels_HW, fov_HW=np.ones((height, width), bool))
        side = max(height, width)
        (top, bottom), (left, right) = pads = [((side - n) // 2, side - n - (side - n) // 2) for n in (height, width)]
        planes = planes.each(lambda data_CHW: np.pad(data_CHW, [(0, 0), *pads]), lambda map_HW: np.pad(map_HW, pads))
        done.append(f"pad {top} above, {bottom} below, {left} left, {right} right with 0")
    if geometry.resize:
        height, width = planes.data_CHW.shape[1:]
        if geometry.resize.isdecimal():
            size_HW = parse_size(f"{geometry.resize}x{max(1, round(width * int(geometry.resize) / height))}", "--resize")
        else:
            size_HW = parse_size(geometry.resize, "--resize")
        if size_HW != (height, width):
            method = "area mean" if size_HW[0] <= height and size_HW[1] <= width else "bilinear"
            maps = "nearest pixel" if size_HW[0] >= height and size_HW[1] >= width else "larger share, vessels whole"
            planes = planes.each(lambda data_CHW: resize_image(data_CHW, size_HW), lambda map_HW: resize_map(map_HW, size_HW))
            done.append(f"resize {height}x{width} to {size_HW[0]}x{size_HW[1]}: image by {method}, maps by {maps}")
    return planes, done


def _window(crop: str, planes: Planes, where: object) -> tuple[slice, slice]:
    """The rows and columns that a crop keeps."""
    height, width = planes.data_CHW.shape[1:]
    if crop == "fov":
        if planes.fov_HW is None:
            raise InputError("no field of view to crop to", where=where, expected="a mask for every image", mend="--fov DIR")
        rows, columns = np.flatnonzero(planes.fov_HW.any(axis=1)), np.flatnonzero(planes.fov_HW.any(axis=0))
        return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
    if match := WINDOW.fullmatch(crop):
        y0, y1, x0, x1 = map(int, match.groups())
    else:
        rows_kept, columns_kept = parse_size(crop.removeprefix("center:"), "--crop center:")
        y0, x0 = (height - rows_kept) // 2, (width - columns_kept) // 2
        y1, x1 = y0 + rows_kept, x0 + columns_kept
    if not (0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width):
        raise InputError(
            f"crop {crop} of an image of {height}x{width}", where=where, expected="a window inside the image", mend="--crop fov"
        )
    return slice(y0, y1), slice(x0, x1)


def resize_image(data_CHW: np.ndarray, size_HW: tuple[int, int]) -> np.ndarray:
    """Shrink by area mean (pixels partly covered count by their share), enlarge by bilinear interpolation; dtype is kept.

    Area by scikit-image: Pillow's BOX takes a pixel whole or not at all (on noise in 0..1, 29 to 7 columns, 0.02 off on average).
    Bilinear, not bicubic: it cannot overshoot, so no value leaves the range of the image. Integers are rounded.
    """
    height, width = data_CHW.shape[1:]
    bands = [band_HW.astype(np.float32) for band_HW in data_CHW]
    if size_HW[0] <= height and size_HW[1] <= width:
        resized_CHW = np.stack([resize_local_mean(band_HW, size_HW, preserve_range=True) for band_HW in bands])
    else:
        resized_CHW = np.stack([np.array(Image.fromarray(band_HW).resize(size_HW[::-1], Image.Resampling.BILINEAR)) for band_HW in bands])
    return resized_CHW.astype(data_CHW.dtype) if data_CHW.dtype.kind == "f" else np.rint(resized_CHW).astype(data_CHW.dtype)


def resize_map(map_HW: np.ndarray, size_HW: tuple[int, int]) -> np.ndarray:
    """Labels or a mask at another size: enlarged by nearest pixel, shrunk by `shrunk_labels` or by the half of a pixel."""
    larger_HW = tuple(max(old, new) for old, new in zip(map_HW.shape, size_HW, strict=True))
    if larger_HW != map_HW.shape:
        image = Image.fromarray(map_HW.astype(np.uint8)).resize(larger_HW[::-1], Image.Resampling.NEAREST)
        map_HW = np.array(image).astype(map_HW.dtype)
    if larger_HW == size_HW:
        return map_HW
    return _share(map_HW, size_HW) >= 0.5 if map_HW.dtype == bool else shrunk_labels(map_HW, size_HW)


def shrunk_labels(labels_HW: np.ndarray, size_HW: tuple[int, int]) -> np.ndarray:
    """Labels at a smaller size: the larger share of a pixel decides, and a vessel stays one line however thin it is.

    Half a pixel makes a vessel, as it does in the phantom's own labels; so does a vessel's centre line. Where arteries and veins
    meet in a pixel, the larger share has it.
    """
    share = {name: _share(labels_HW == number, size_HW) for name, number in LABELS.items()}
    half_HW = share["artery"] + share["vein"] >= 0.5
    lines_HW = np.zeros(size_HW, bool)
    rows, columns = centre_lines(labels_HW)
    lines_HW[rows * size_HW[0] // labels_HW.shape[0], columns * size_HW[1] // labels_HW.shape[1]] = True
    shrunk_HW = np.where(share["onh"] > share["background"], LABELS["onh"], LABELS["background"])
    kind_HW = np.where(share["artery"] > share["vein"], LABELS["artery"], LABELS["vein"])
    return np.where(with_lines(half_HW, lines_HW), kind_HW, shrunk_HW).astype(np.uint8)


def _share(inside_HW: np.ndarray, size_HW: tuple[int, int]) -> np.ndarray:
    """How much of each pixel of a smaller raster lies inside, from 0 to 1."""
    return resize_local_mean(inside_HW.astype(np.float32), size_HW, preserve_range=True)
