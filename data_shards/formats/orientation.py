"""Orientation tags (TIFF and EXIF tag 274): pixels as they are stored, and as they are to be shown.

Legend: H W pixels.
"""

from __future__ import annotations

import numpy as np

TAG = 0x0112
UPRIGHT = 1
STEPS = {  # tag: (reverse the rows, reverse the columns, then let rows and columns change places); TIFF 6.0, page 36
    1: (False, False, False),
    2: (False, True, False),
    3: (True, True, False),
    4: (True, False, False),
    5: (False, False, True),
    6: (True, False, True),
    7: (True, True, True),
    8: (False, True, True),
}


def known(tag: object) -> int:
    """The tag where it is one of the eight; else 1, as every viewer takes it."""
    return tag if tag in STEPS else UPRIGHT


def upright(stored_HW: np.ndarray, tag: int) -> np.ndarray:
    """Stored rows and columns (the last two axes) as the tag wants them shown."""
    rows, columns, swap = STEPS[tag]
    turned_HW = stored_HW[..., :: -1 if rows else 1, :: -1 if columns else 1]
    return np.swapaxes(turned_HW, -1, -2) if swap else turned_HW
