"""PNG, JPEG, GIF and BMP through Pillow."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from data_shards.errors import InputError
from data_shards.formats.raw import READ_FAULTS, Raw, ReadOptions, check_size, unreadable

RGB_NM = (610.0, 545.0, 465.0)  # nominal centres of a colour camera's red, green and blue; every camera differs
PILLOW_FORMATS = ["PNG", "JPEG", "GIF", "BMP", "TIFF"]  # a short list: Pillow knows dozens, some of which start programs (EPS)


@contextlib.contextmanager
def opened(path: Path, options: ReadOptions) -> Iterator[Image.Image]:
    """Open an image, with Pillow's limits and complaints turned into errors of ours.

    Raises:
        InputError: too many pixels. CorruptData: not an image, or cut short.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is checked before any pixel is decoded
            image = Image.open(path, formats=PILLOW_FORMATS)
        with image:
            check_size((image.height, image.width, len(image.getbands())), options, path)
            yield image
    except Image.DecompressionBombError as error:
        raise InputError(
            f"too many pixels for Pillow: {error}",
            where=path,
            expected=f"at most {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels",
            mend="if the file is to be trusted, convert it to an uncompressed TIFF",
        ) from error
    except InputError:
        raise
    except READ_FAULTS as error:
        raise unreadable(path, error, "a whole " + path.suffix.lstrip(".").upper() + " image") from error


def image_array(image: Image.Image, path: Path) -> np.ndarray:
    """Pixels of the open frame, turned upright as its EXIF tag says: (H, W) or (H, W, 3), in the file's own depth.

    Raises:
        InputError: a mode without a plain meaning as bands, a 16-bit colour PNG, or transparency that is in use.
    """
    if not image.tile:  # Pillow empties it on loading; only here does it tell 16-bit colour from 8-bit
        raise unreadable(path, ValueError("no pixels"), "an image with pixels")
    deep = any("16" in str(tile[3] if isinstance(tile[3], str) else tile[3][0]) for tile in image.tile if tile[3])
    if deep and not image.mode.startswith("I"):
        raise InputError(
            "a colour PNG of 16 bits a channel: Pillow would cut it to 8 bits",
            where=path,
            expected="8-bit colour, 16-bit grey, or a TIFF",
            mend="convert it to a 16-bit TIFF",
        )
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if image.mode in ("RGBA", "LA"):
        if image.getchannel("A").getextrema() != (255, 255):
            raise InputError("an image with transparent pixels", where=path, expected="opaque pixels", mend="flatten the image")
        image = image.convert(image.mode[:-1])
    if image.mode not in ("L", "RGB", "I;16", "I;16L", "I;16B") and not (image.mode == "I" and deep):
        raise InputError(f"pixels of mode {image.mode}", where=path, expected="8- or 16-bit grey or 8-bit RGB", mend="convert the image")
    array = np.array(ImageOps.exif_transpose(image))
    return array.astype(np.uint16 if deep else array.dtype.newbyteorder("="))  # older Pillow opens 16-bit grey as 32-bit "I"


def read_photograph(path: Path, options: ReadOptions) -> Raw:
    """A grey or colour photograph.

    Raises:
        InputError, CorruptData: see `opened` and `image_array`.
    """
    with opened(path, options) as image:
        if getattr(image, "n_frames", 1) != 1:
            raise InputError(f"{image.n_frames} frames", where=path, expected="one", mend="for a stack of bands use a multi-page TIFF")
        array = image_array(image, path)
        turned = image.getexif().get(0x0112, 1) != 1
    facts = {"exif": "turned upright"} if turned else {}
    if array.ndim == 2:
        return Raw(data_CHW=array[None], facts=facts)
    return Raw(data_CHW=array.transpose(2, 0, 1), wavelengths_nm=RGB_NM, nominal=True, facts=facts)
