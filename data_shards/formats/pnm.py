"""Portable bitmaps, grey maps and pixmaps (.pbm .pgm .ppm .pnm): Netpbm's P1 to P6, values as they stand in the file.

Not through Pillow, which scales what has another maximum than 255 and cuts colour of 16 bits to 8.
Legend: C band, H W pixels.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np

from data_shards.errors import InputError
from data_shards.formats.declared import FULL_SCALE, Statement
from data_shards.formats.faults import READ_FAULTS, unreadable
from data_shards.formats.photographs import RGB_NM
from data_shards.formats.raw import Raw, ReadOptions, check_size

SUFFIXES = (".ppm", ".pgm", ".pnm", ".pbm")
CHANNELS = {b"P1": 1, b"P2": 1, b"P3": 3, b"P4": 1, b"P5": 1, b"P6": 3}
BLANK = rb"(?:\s|#[^\r\n]*[\r\n])+"
NUMBER = BLANK + rb"(\d{1,9})"
HEADER = re.compile(rb"(P[1-6])" + NUMBER + NUMBER)
HEADER_BYTES = 1 << 16  # comments included


def read_pnm(path: Path, options: ReadOptions) -> Raw:
    """A grey or colour image; its own maximum means reflectance 1.

    Raises:
        InputError: a bitmap of black and white, too many values, several images in one file. CorruptData: not such a file, or cut short.
    """
    values_HWC, top = pnm_values(path, options)
    if top == 1:
        raise InputError(
            "a bitmap of black and white", where=path, expected="grey or colour", mend="give it as a map: --labels, --onh, --fov"
        )
    colour = values_HWC.shape[2] == 3
    return Raw(
        data_CHW=values_HWC.transpose(2, 0, 1),
        wavelengths_nm=RGB_NM if colour else None,
        nominal=colour,
        said=(Statement(kind=FULL_SCALE, name="maximum", value=top),),
    )


def pnm_values(path: Path, options: ReadOptions) -> tuple[np.ndarray, int]:
    """Pixels (H, W, 1 or 3) as uint8, or as uint16 where the maximum is above 255, and that maximum (bitmaps: 0 black, 1 white).

    Raises: see `read_pnm`.
    """
    try:
        content = path.read_bytes()
        if not (header := HEADER.match(content[:HEADER_BYTES])):
            raise ValueError("no header of a portable bitmap, grey map or pixmap")
        kind, width, height = header[1], int(header[2]), int(header[3])
        shape = (height, width, CHANNELS[kind])
        check_size(shape, options, path)
        if kind in (b"P1", b"P4"):
            top, end = 1, header.end()
        else:
            maximum = re.compile(NUMBER).match(content, header.end())
            if not maximum or not 0 < int(maximum[1]) < 65536:
                raise ValueError("no maximum between 1 and 65535 in the header")
            top, end = int(maximum[1]), maximum.end()
        values = _plain(kind, content[end:]) if kind in (b"P1", b"P2", b"P3") else _packed(kind, content[end + 1 :], shape, top)
        if values.size > np.prod(shape):
            raise InputError(
                "more than one image", where=path, expected="one in a file", mend=f"pnmsplit {shlex.quote(path.name)} part%d.pnm"
            )
        if values.size < np.prod(shape) or values.max() > top:
            raise ValueError(f"{values.size} values up to {values.max(initial=0)} for {height}x{width} pixels with the maximum {top}")
        values = 1 - values if kind in (b"P1", b"P4") else values  # in these 1 is ink
        return values.astype(np.uint16 if top > 255 else np.uint8).reshape(shape), top
    except READ_FAULTS as error:
        raise unreadable(path, error, "a whole portable bitmap, grey map or pixmap (P1 to P6)") from error


def _plain(kind: bytes, text: bytes) -> np.ndarray:
    """Values written as digits; those of a bitmap may follow each other without a space."""
    text = re.sub(rb"#[^\r\n]*", b" ", text)
    return np.array(re.findall(rb"[01]" if kind == b"P1" else rb"\d{1,9}", text), dtype=np.int64)


def _packed(kind: bytes, body: bytes, shape: tuple[int, int, int], top: int) -> np.ndarray:
    """Values as bytes; 16 bits with the high byte first, bitmaps in rows of whole bytes."""
    if kind != b"P4":
        itemsize = 2 if top > 255 else 1
        return np.frombuffer(body[: len(body) // itemsize * itemsize], ">u2" if itemsize == 2 else np.uint8)
    width = shape[1]
    rows = np.frombuffer(body[: len(body) // -(-width // 8) * -(-width // 8)], np.uint8).reshape(-1, -(-width // 8))
    return np.unpackbits(rows, axis=1)[:, :width]
