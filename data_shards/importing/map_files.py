"""Map files of others, label maps and masks alike, as the values that they hold; what the values mean is said elsewhere.

Legend: H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ImageOps

from data_shards.errors import InputError
from data_shards.formats import orientation, pnm
from data_shards.formats.photographs import check_depth, opened, orientation_of
from data_shards.formats.raw import ReadOptions

EXACT_SUFFIXES = (".png", ".gif", ".tif", ".tiff", ".bmp", *pnm.SUFFIXES)  # JPEG changes values: never for labels
SUFFIXES = (*EXACT_SUFFIXES, ".jpg", ".jpeg")
JPEG_TINT = 24  # grey that JPEG stored as colour comes back with channels so far apart
LISTED = 8  # so many values a message shows


@dataclass(frozen=True, kw_only=True)
class MapFile:
    """One map file, turned upright.

    Attributes:
        values_HW: grey values or palette indices, or 0xRRGGBB where `colour`.
        colour: the file is in colour, and no palette says so by index.
        palette: (index, RGB) where the values are indices.
        lossy: JPEG made it, so values near an edge are not what was drawn.
        orientation: the file's own tag, by which it was turned.
    """

    path: Path
    values_HW: np.ndarray
    colour: bool = False
    palette: np.ndarray | None = None
    lossy: bool = False
    orientation: int = orientation.UPRIGHT

    def rgb(self, value: int) -> tuple[int, int, int]:
        """The colour in which a value is shown."""
        if self.palette is not None:
            return tuple(int(v) for v in self.palette[value]) if value < len(self.palette) else (0, 0, 0)
        return (value >> 16, value >> 8 & 255, value & 255) if self.colour else (value,) * 3

    def shown(self, value: int) -> str:
        """A value as --label-map takes it."""
        return f"#{value:06x}" if self.colour else str(value)

    def counted(self, where_HW: np.ndarray | None = None) -> str:
        """'0 (4000 pixels), 255 (400 pixels)': the values, or those of some pixels."""
        values, counts = np.unique(self.values_HW if where_HW is None else self.values_HW[where_HW], return_counts=True)
        named = ", ".join(f"{self.shown(int(v))} ({n} pixels)" for v, n in zip(values[:LISTED], counts, strict=False))
        return named + (f" and {len(values) - LISTED} more" if len(values) > LISTED else "")


def read_map(path: Path, options: ReadOptions) -> MapFile:
    """One map file. Palettes give their indices; grey that was saved as RGB gives its grey value.

    Where only transparency was drawn, in one colour, it is the map.

    Raises:
        InputError: several frames, a mode without plain values, transparency that tells pixels of one colour apart.
        CorruptData: not an image, or cut short.
    """
    if path.suffix.lower() in pnm.SUFFIXES:
        values_HWC, _ = pnm.pnm_values(path, options)
        values_HW, colour = _one_value(values_HWC)
        return MapFile(path=path, values_HW=values_HW, colour=colour)
    with opened(path, options) as image:
        if getattr(image, "n_frames", 1) != 1:
            raise InputError(f"{image.n_frames} frames", where=path, expected="one", mend="save the map alone")
        check_depth(image, path)
        tag = orientation_of(image, path)
        lossy = image.format in ("JPEG", "MPO") or image.info.get("compression") == "jpeg"
        image = ImageOps.exif_transpose(image)
        if image.mode == "P":
            palette = np.array(image.getpalette("RGB")).reshape(-1, 3)
            return MapFile(path=path, values_HW=np.array(image).astype(np.int64), palette=palette, orientation=tag)
        alpha_HW = np.array(image.getchannel("A")).astype(np.int64) if image.mode in ("RGBA", "LA") else None
        image = image.convert(image.mode[:-1]) if alpha_HW is not None else image
        if image.mode not in ("1", "L", "RGB", "I", "I;16", "I;16L", "I;16B"):
            raise InputError(f"a map of mode {image.mode}", where=path, expected="grey, palette or RGB", mend="export the map as PNG")
        values_HWC = np.atleast_3d(np.array(image))
    if lossy and (np.ptp(values_HWC, axis=-1) <= JPEG_TINT).all():
        values_HWC = values_HWC[..., :1]
    values_HW, colour = _one_value(values_HWC)
    if alpha_HW is not None and alpha_HW.min() != alpha_HW.max():
        if values_HW.min() == values_HW.max():
            values_HW, colour = alpha_HW, False
        else:
            _check_transparency(values_HW, alpha_HW, path)
    return MapFile(path=path, values_HW=values_HW, colour=colour, lossy=lossy, orientation=tag)


def _one_value(values_HWC: np.ndarray) -> tuple[np.ndarray, bool]:
    """One integer for each pixel, and whether it is a colour."""
    values_HWC = values_HWC.astype(np.int64)
    if (values_HWC == values_HWC[..., :1]).all():
        return values_HWC[..., 0], False
    return (values_HWC[..., 0] << 16) | (values_HWC[..., 1] << 8) | values_HWC[..., 2], True


def _check_transparency(values_HW: np.ndarray, alpha_HW: np.ndarray, path: Path) -> None:
    """Colours decide, unless one of them is drawn both transparent and not."""
    pairs = np.unique((values_HW << 8) | alpha_HW)
    if len(np.unique(pairs >> 8)) < len(pairs):
        raise InputError(
            "pixels of one colour that differ in transparency",
            where=path,
            expected="a map whose colours alone tell its classes apart",
            mend="flatten it on a colour that no class has, and save it as PNG",
        )
