"""PNG, JPEG, GIF and BMP through Pillow."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from data_shards.errors import InputError
from data_shards.formats import orientation
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


def orientation_of(image: Image.Image, path: Path) -> int:
    """The tag. To be asked before pixels are: Pillow turns a TIFF, and forgets its tag, as it loads; to find a PNG's it loads.

    Raises:
        InputError: an uncompressed TIFF whose rows and columns change places: Pillow reads its rows by the wrong length.
    """
    tag = orientation.known(image.getexif().get(orientation.TAG))
    if image.format == "TIFF" and orientation.STEPS[tag][2] and image.tile and image.tile[0][0] == "raw":
        raise InputError(
            f"an uncompressed TIFF with orientation tag {tag}, which cannot be read here",
            where=path,
            expected="an upright image, or compression LZW or deflate",
            mend="turn the image and save it as PNG",
        )
    return tag


def check_depth(image: Image.Image, path: Path) -> bool:
    """Whether an image holds 16 bits a channel. To be asked before anything else.

    Raises:
        InputError: it does, in colour or with transparency: Pillow would cut them to 8.
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
    return deep


def _transparent(path: Path) -> InputError:
    return InputError("an image with transparent pixels", where=path, expected="opaque pixels", mend="flatten the image")


def _transparent_value(image: Image.Image) -> np.ndarray | None:
    """The grey value or colour that PNG's chunk tRNS (or a grey GIF) makes transparent. To be asked before pixels are loaded.

    Pillow spreads grey of 2 and 4 bits over 0 to 255, and leaves the value of the chunk as it is.
    """
    if image.mode == "P" or (key := image.info.get("transparency")) is None:
        return None
    bits = str(image.tile[0][3]).partition(";")[2]
    return np.array(key) * (255 // (2 ** int(bits) - 1) if image.mode == "L" and bits in ("1", "2", "4") else 1)


def image_array(image: Image.Image, path: Path) -> tuple[np.ndarray, int]:
    """Pixels of the open frame, turned upright as its tag says: (H, W) or (H, W, 3), in the file's own depth; and that tag.

    Raises:
        InputError: a mode without a plain meaning as bands, a 16-bit colour PNG, or transparency that is in use.
    """
    deep, key = check_depth(image, path), _transparent_value(image)
    tag = orientation_of(image, path)
    if key is not None and (np.atleast_3d(np.array(image)) == key).all(axis=-1).any():
        raise _transparent(path)
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if image.mode in ("RGBA", "LA"):
        if image.getchannel("A").getextrema() != (255, 255):
            raise _transparent(path)
        image = image.convert(image.mode[:-1])
    if image.mode not in ("L", "RGB", "I;16", "I;16L", "I;16B") and not (image.mode == "I" and deep):
        raise InputError(f"pixels of mode {image.mode}", where=path, expected="8- or 16-bit grey or 8-bit RGB", mend="convert the image")
    array = np.array(ImageOps.exif_transpose(image))
    return array.astype(np.uint16 if deep else array.dtype.newbyteorder("=")), tag  # older Pillow opens 16-bit grey as 32-bit "I"


def read_photograph(path: Path, options: ReadOptions) -> Raw:
    """A grey or colour photograph.

    Raises:
        InputError, CorruptData: see `opened` and `image_array`.
    """
    with opened(path, options) as image:
        if getattr(image, "n_frames", 1) != 1:
            raise InputError(f"{image.n_frames} frames", where=path, expected="one", mend="for a stack of bands use a multi-page TIFF")
        array, tag = image_array(image, path)
    turned = {"orientation": tag, "facts": {"exif": "turned upright"} if tag != orientation.UPRIGHT else {}}
    if array.ndim == 2:
        return Raw(data_CHW=array[None], **turned)
    return Raw(data_CHW=array.transpose(2, 0, 1), wavelengths_nm=RGB_NM, nominal=True, **turned)
