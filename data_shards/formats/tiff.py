"""TIFF photographs and multi-page stacks (pages = bands) through tifffile, with Pillow for the codecs tifffile lacks."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tifffile

from data_shards.errors import InputError
from data_shards.formats import orientation, tiff_tags
from data_shards.formats.faults import READ_FAULTS, unreadable
from data_shards.formats.photographs import RGB_NM, image_array, opened
from data_shards.formats.raw import Raw, ReadOptions, bands_first, check_numeric, check_size

LOST_PAGES = re.compile(r"TiffPages @|failed to reshape")  # tifffile only logs it when the chain of pages breaks off
PILLOW_CODECS = ("LZW", "JPEG", "OJPEG", "PACKBITS", "DEFLATE", "ADOBE_DEFLATE", "CCITTRLE", "CCITTFAX3", "CCITTFAX4")
PHOTOMETRIC = ("MINISBLACK", "RGB")  # what may be read value by value; palettes and YCbCr go through Pillow


def read_tiff(path: Path, options: ReadOptions) -> Raw:
    """A TIFF: grey, colour, many samples a pixel, or many pages.

    Raises:
        InputError: several images of different kinds in one file, pages turned in different ways, a compression nobody here can
            undo, or axes that are not bands, rows and columns. CorruptData: not a TIFF, or cut short.
    """
    try:
        with _complaints() as said, tifffile.TiffFile(path) as tiff:
            if not len(tiff.pages):
                raise unreadable(path, ValueError("no page where the header points to the first"), "a whole TIFF")
            series, page = tiff.series, tiff.pages.first
            if len(series) != 1:
                _check_stack(series, path)
            tag = _orientation(tiff, path)
            check_size(series[0].shape if len(series) == 1 else (len(series), *series[0].shape), options, path)
            check_numeric(series[0].dtype, path)
            colour = page.photometric.name if hasattr(page.photometric, "name") else str(page.photometric)
            array, axes, is_upright = _values(tiff, colour, path, options)
            tags = tiff_tags.gathered(tiff)
            with_alpha = colour == "RGB" and page.samplesperpixel == 4
            if lost := [text for text in said if LOST_PAGES.search(text)]:
                raise unreadable(path, ValueError(f"pages are missing ({lost[0]})"), "a whole TIFF")
    except READ_FAULTS as error:
        raise unreadable(path, error, "a whole TIFF") from error
    if options.axes and tag != orientation.UPRIGHT:
        raise InputError(
            f"--axes {options.axes} and orientation tag {tag}",
            where=path,
            expected="one of them: the tag turns the rows and columns of a page",
            mend="save it without the tag",
        )
    data_CHW = _bands_first(array, axes, options, path)
    if not is_upright:
        data_CHW = np.ascontiguousarray(orientation.upright(data_CHW, tag))
    if with_alpha and len(data_CHW) == 4:
        data_CHW = _opaque(data_CHW, path)
    said, centres_nm, unused = tiff_tags.said_in(tags, len(data_CHW), path, options)
    is_rgb = colour in ("RGB", "YCBCR", "PALETTE") and len(data_CHW) == 3
    nominal = is_rgb and not centres_nm
    facts = {"exif": "turned upright"} if tag != orientation.UPRIGHT else {}
    return Raw(
        data_CHW=data_CHW,
        wavelengths_nm=RGB_NM if nominal else centres_nm,
        nominal=nominal,
        orientation=tag,
        axes_assumed="" if options.axes or "S" in axes or len(data_CHW) == 1 else "CHW",
        said=said,
        facts={**facts, **unused},
    )


def _opaque(data_4HW: np.ndarray, path: Path) -> np.ndarray:
    """Red, green and blue.

    Raises:
        InputError: pixels that the fourth channel makes transparent.
    """
    alpha_HW = data_4HW[3]
    opaque = np.iinfo(alpha_HW.dtype).max if alpha_HW.dtype.kind in "ui" else max(1.0, alpha_HW.max())
    if (alpha_HW != opaque).any():
        raise InputError("an image with transparent pixels", where=path, expected="opaque pixels", mend="flatten the image")
    return data_4HW[:3]


def _check_stack(series: Sequence[tifffile.TiffPageSeries], path: Path) -> None:
    """Pages that were written one after the other, which tifffile takes for images of their own, are one stack if they are alike.

    Raises:
        InputError: they are not: of different size or kind, previews, masks, or stacks themselves.
    """
    kinds = {(image.shape, image.dtype, image.keyframe.photometric) for image in series}
    aside = any(image.keyframe.is_reduced or image.keyframe.is_mask for image in series)
    if len(kinds) == 1 and not aside and all(len(image.pages) == 1 for image in series):
        return
    shown = dict.fromkeys(
        f"{'x'.join(map(str, image.shape))} {image.dtype} on {len(image.pages)} page{'s' * (len(image.pages) > 1)}" for image in series
    )
    raise InputError(
        f"{len(series)} images in one TIFF that are not the pages of one stack: {', '.join(list(shown)[:5])}",
        where=path,
        expected="one image, or pages of one size and dtype",
        mend="save the wanted image alone (a preview, a mask or another scene may be in the way)",
    )


def _orientation(tiff: tifffile.TiffFile, path: Path) -> int:
    """The one orientation tag of all pages that have one; many writers give it to the first alone.

    Raises:
        InputError: pages that are turned in different ways.
    """
    stated = [page.tags.valueof(orientation.TAG) for page in tiff_tags.whole_pages(tiff)]
    tags = sorted({orientation.known(tag) for tag in stated if tag is not None})
    if len(tags) > 1:
        raise InputError(
            f"pages with the orientation tags {', '.join(map(str, tags))}",
            where=path,
            expected="one orientation for all bands",
            mend="save every band as a file of its own, in a folder for --per-band",
        )
    return tags[0] if tags else orientation.UPRIGHT


@contextlib.contextmanager
def _complaints() -> Iterator[list[str]]:
    """What tifffile logs meanwhile, instead of on the user's terminal."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("tifffile")
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)


def _values(tiff: tifffile.TiffFile, colour: str, path: Path, options: ReadOptions) -> tuple[np.ndarray, str, bool]:
    """The pixels, tifffile's names for their axes (Y X, S samples, anything else pages), and whether they are turned upright already."""
    series = tiff.series[0]
    if colour in PHOTOMETRIC:
        try:
            if len(tiff.series) > 1:
                return np.stack([image.asarray() for image in tiff.series]), "Q" + series.axes, False
            return series.asarray(), series.axes, False
        except (ValueError, ImportError) as error:
            if isinstance(error, ValueError) and "imagecodecs" not in str(error):
                raise
            page = tiff.pages.first
            if page.compression.name not in PILLOW_CODECS or (page.bitspersample > 8 and page.samplesperpixel > 1):
                raise InputError(
                    f"compression {page.compression.name} ({page.bitspersample} bits, {page.samplesperpixel} a pixel) cannot be undone",
                    where=path,
                    expected="no compression, or deflate",
                    mend="pip install imagecodecs",
                ) from error
    elif colour not in ("PALETTE", "YCBCR"):
        raise InputError(
            f"photometric interpretation {colour}", where=path, expected="grey (0 is black), RGB or palette", mend="convert it"
        )
    with opened(path, options) as image:
        frames = []
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            frames.append(image_array(image, path)[0])
    axes = "YX" + "S" * (frames[0].ndim - 2)
    return (np.stack(frames), "Q" + axes, True) if len(frames) > 1 else (frames[0], axes, True)


def _bands_first(array: np.ndarray, axes: str, options: ReadOptions, path: Path) -> np.ndarray:
    """tifffile's axes to (C, H, W): the one axis that is neither Y nor X and longer than 1 holds the bands."""
    if options.axes:
        return bands_first(np.squeeze(array), options, path, default_axes="CHW")
    keep = [i for i, axis in enumerate(axes) if axis in "YX" or array.shape[i] > 1]
    array, axes = array.reshape([array.shape[i] for i in keep]), "".join(axes[i] for i in keep)
    others = [axis for axis in axes if axis not in "YX"]
    if len(others) > 1 or not {"Y", "X"} <= set(axes):
        raise InputError(
            f"a TIFF with axes {axes} and shape {array.shape}",
            where=path,
            expected="rows, columns, and one axis of bands (pages or samples)",
            mend="save one image a file, or single-band pages",
        )
    stated = "".join({"Y": "H", "X": "W"}.get(axis, "C") for axis in axes)
    return bands_first(array, ReadOptions(axes=stated), path, default_axes="CHW")
