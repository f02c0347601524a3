"""Which pixels were measured: those that hold no no-data value and lie within the valid range.

Legend: C band, H W pixels.
"""

from __future__ import annotations

import numpy as np

from data_shards.errors import InputError
from data_shards.importing.values import STATE_NO_DATA, Stated, Values

LARGE = 1e6  # no-data values from here on are written with few digits (1e20, -3.40282e+38)


def measured(data_CHW: np.ndarray, values: Values, stated: Stated, where: object) -> np.ndarray | None:
    """The pixels (H, W) that were measured, None where all were.

    Raises:
        InputError: no-data in some bands of a pixel alone, in every pixel, or as a bit pattern that the dtype shows as another value.
    """
    if not values.nodata and values.valid == (-np.inf, np.inf):
        return None
    _refuse_wrapped(data_CHW, values, where)
    lacks_C, every_HW, some_HW = [], np.ones(data_CHW.shape[1:], bool), np.zeros(data_CHW.shape[1:], bool)
    for band_HW in data_CHW:
        lacks_HW = _lacks(band_HW, values)
        lacks_C.append(int(lacks_HW.sum()))
        every_HW &= lacks_HW
        some_HW |= lacks_HW
    if (torn := int((some_HW & ~every_HW).sum())) and not stated.nodata_any:
        raise _torn(torn, lacks_C, every_HW.size, values, where)
    if some_HW.all():
        raise InputError(
            f"no pixel that was measured: {_words(values)} everywhere", where=where, expected="an image", mend=f"check it; {STATE_NO_DATA}"
        )
    return ~some_HW if some_HW.any() else None


def _lacks(band_HW: np.ndarray, values: Values) -> np.ndarray:
    """Where a band holds no-data or lies outside the valid range."""
    lacks_HW = np.zeros(band_HW.shape, bool)
    for value in values.nodata:
        lacks_HW |= _equal(band_HW, value)
    low, high = values.valid
    if np.isfinite(low):
        lacks_HW |= band_HW < low
    if np.isfinite(high):
        lacks_HW |= band_HW > high
    return lacks_HW


def _equal(band_HW: np.ndarray, value: float) -> np.ndarray:
    """Where a band holds the value, as its dtype holds it."""
    if band_HW.dtype.kind == "f":
        if np.isnan(value):
            return np.isnan(band_HW)
        if abs(value) >= LARGE:
            return np.isclose(band_HW.astype(np.float64), value, rtol=1e-5, atol=0)
        return band_HW == band_HW.dtype.type(value)
    if band_HW.dtype.kind not in "iu" or not float(value).is_integer():
        return np.zeros(band_HW.shape, bool)
    limits = np.iinfo(band_HW.dtype)
    return band_HW == int(value) if limits.min <= value <= limits.max else np.zeros(band_HW.shape, bool)


def _refuse_wrapped(data_CHW: np.ndarray, values: Values, where: object) -> None:
    """-9999 in uint16 is read as 55537: the same bits, another sign."""
    if data_CHW.dtype.kind not in "iu":
        return
    limits, bits = np.iinfo(data_CHW.dtype), np.iinfo(data_CHW.dtype).bits
    for value in values.nodata:
        if not float(value).is_integer() or limits.min <= value <= limits.max or not -(2 ** (bits - 1)) <= value < 2**bits:
            continue
        twin = int(value) + 2**bits if value < 0 else int(value) - 2**bits
        if pixels := int((data_CHW == twin).all(axis=0).sum()):
            raise InputError(
                f"no-data {value:g}, which {data_CHW.dtype} cannot hold; {pixels} pixels hold {twin}, the same bits",
                where=where,
                expected="a no-data value of the file's own dtype",
                mend=f"--nodata {twin}, or --nodata none if these are measured values",
            )


def _torn(torn: int, lacks_C: list[int], pixels: int, values: Values, where: object) -> InputError:
    most = sorted(range(len(lacks_C)), key=lambda band: -lacks_C[band])[:4]
    counts = ", ".join(f"band {band + 1}: {lacks_C[band]}" for band in sorted(most))
    empty = [values.kept[band] + 1 for band, lacks in enumerate(lacks_C) if lacks == pixels]
    out = f"--bad-bands {','.join(map(str, empty))} to leave out the bands that hold nothing else; " if empty else ""
    return InputError(
        f"{torn} of {pixels} pixels lack some bands and not all ({_words(values)}; {counts}; fewest: {min(lacks_C)})",
        where=where,
        expected="no-data in all bands of a pixel, or in none",
        mend=f"{out}--nodata-any to put such pixels outside the field of view, or --nodata none to take the value for a measured one",
    )


def _words(values: Values) -> str:
    words = [f"no-data {', '.join(f'{value:g}' for value in values.nodata)}"] if values.nodata else []
    if values.valid != (-np.inf, np.inf):
        words.append(f"valid {values.valid[0]:g} … {values.valid[1]:g}")
    return ", ".join(words)


def no_data_note(values: Values, measured_HW: np.ndarray | None) -> dict[str, object]:
    """For the sample's notes: what counted as no-data, and how many pixels of the source held it."""
    if not values.nodata and values.valid == (-np.inf, np.inf):
        return {}
    return {"no_data": {"rule": _words(values), "pixels": 0 if measured_HW is None else int((~measured_HW).sum())}}
