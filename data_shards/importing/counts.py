"""Values of any dtype to the counts that a dataset stores.

Legend: C band, H W pixels.
"""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import NamedTuple

import numpy as np

from data_shards.errors import InputError
from data_shards.importing.config import ImportConfig
from data_shards.importing.values import STATE_SCALE, Values

COUNTS = {"uint8": (255, 0), "uint16": (65535, 0), "int16": (32767, 32768)}  # dtype: value of reflectance 1, count added to store it
TOP = 65535
FEWEST_STEPS = 256  # fewer steps between the least and the most reflectance of a float image would be seen as bands of grey


class Stored(NamedTuple):
    """What a dataset stores of one image: counts with reflectance = scale * count + offset; `how`: a sentence for the notes."""

    counts_CHW: np.ndarray
    scale: float
    offset: float
    how: str


def to_uint16(data_CHW: np.ndarray, config: ImportConfig, values: Values, where: object, measured_HW: np.ndarray | None = None) -> Stored:
    """Values of any supported dtype to stored counts with reflectance = scale * stored + offset.

    Integers of one scale are kept bit for bit (int16 shifted by 32768); floats, and bands of different scales, are rounded to
    the nearest of 65536 steps over `float_range`, with an error of at most half a step. Pixels that were not measured become
    the count nearest to reflectance 0.

    Raises:
        InputError: another dtype, bands of different scales without a range, values that are not finite, or floats outside the range.
    """
    name = data_CHW.dtype.name
    if name in COUNTS and values.alike:
        top, shift = COUNTS[name]
        scale = values.scale_C[0] if values.scale_C else 1.0 / top
        offset = (values.offset_C[0] if values.offset_C else 0.0) - shift * scale
        counts_CHW = (data_CHW.astype(np.int32) + shift).astype(np.uint16) if shift else data_CHW.astype(np.uint16)
        if measured_HW is not None:
            counts_CHW[:, ~measured_HW] = np.clip(np.rint(-offset / scale), 0, TOP)
        return Stored(counts_CHW, scale, offset, f"exact: stored = {name} value" + (f" + {shift}" if shift else ""))
    if data_CHW.dtype.kind != "f" and not (config.float_range and values.scale_C and data_CHW.dtype.kind in "iu"):
        raise _not_exact(name, values, where)
    return _rounded(data_CHW, config, values, where, measured_HW)


def _rounded(data_CHW: np.ndarray, config: ImportConfig, values: Values, where: object, measured_HW: np.ndarray | None) -> Stored:
    """`to_uint16` of what is not kept bit for bit."""
    low, high = config.range
    scale = (high - low) / TOP
    counts_CHW = np.empty(data_CHW.shape, np.uint16)
    bad, outside, least, most = 0, 0, np.inf, -np.inf
    bands = len(data_CHW)
    affine_C = zip(values.scale_C or (1.0,) * bands, values.offset_C or (0.0,) * bands, strict=True)
    for band_HW, counts_HW, (times, plus) in zip(data_CHW, counts_CHW, affine_C, strict=True):  # float64 of a whole cube may not fit
        values_HW = band_HW.astype(np.float64) * times + plus
        if measured_HW is not None:
            values_HW[~measured_HW] = np.clip(0.0, low, high)
        finite_HW = np.isfinite(values_HW)
        bad += int((~finite_HW).sum())
        values_HW = np.where(finite_HW, values_HW, low if config.nan_as is None else config.nan_as)
        outside += int(((values_HW < low) | (values_HW > high)).sum())
        least, most = min(least, float(values_HW.min())), max(most, float(values_HW.max()))
        counts_HW[...] = np.rint((np.clip(values_HW, low, high) - low) / scale)
    if bad and config.nan_as is None:
        raise InputError(
            f"{bad} values are NaN or infinite",
            where=where,
            expected="finite reflectance",
            mend="--nodata nan (outside the field of view), --nan-as 0, or correct the file",
        )
    if outside:
        raise InputError(
            f"{outside} values outside {low:g} … {high:g}: from {least:.6g} to {most:.6g}",
            where=where,
            expected="reflectance within the stated range",
            mend=f"{_range_for(least, most, config)} if these are reflectances; if they are counts or percent, {STATE_SCALE}",
        )
    if least < most and (most - least) / scale < FEWEST_STEPS:
        raise InputError(
            f"reflectances from {least:.6g} to {most:.6g}: {(most - least) / scale:.2g} of the {TOP} steps from {low:g} to {high:g}",
            where=where,
            expected=f"at least {FEWEST_STEPS} steps between the least and the most",
            mend=f"{range_around(least, most)}, or --full-scale N (reflectance 1)",
        )
    how = f"rounded: {data_CHW.dtype.name} reflectance {low:g} … {high:g} in {TOP} steps, error at most {scale / 2:.3g}"
    if bad:
        how += f"; {bad} values that were not finite set to {config.nan_as:g}"
    return Stored(counts_CHW, scale, low, how)


def _range_for(least: float, most: float, config: ImportConfig) -> str:
    """The range of one image, and of what was stated for the images before it, unless that would be too coarse for this one."""
    low, high = config.float_range or (least, most)
    low, high = min(low, least), max(high, most)
    fine = (most - least) * TOP >= FEWEST_STEPS * (high - low)
    return range_around(low, high) if fine else range_around(least, most)


def range_around(least: float, most: float) -> str:
    """--float-range with round ends around values, hardly wider than they span."""
    span = most - least or abs(most) or 1.0
    step = Decimal(1).scaleb(math.floor(math.log10(span)) - 2)
    low = (Decimal(least) / step).to_integral_value(ROUND_FLOOR) * step
    high = (Decimal(most) / step).to_integral_value(ROUND_CEILING) * step
    low, high = (low, high) if low < high else (low - step, high + step)
    return f"--float-range {_written(low)}:{_written(high)}"


def _written(number: Decimal) -> str:
    """All digits, as an exponent where that is shorter."""
    number = number.normalize() if number else Decimal(0)
    return min(f"{number:f}", f"{number:e}", key=len)


def _not_exact(name: str, values: Values, where: object) -> InputError:
    """Values that no single scale brings to uint16 as they are."""
    if name in COUNTS:
        scales = f"{min(values.scale_C):g} … {max(values.scale_C):g}" if values.scale_C else "1"
        return InputError(
            f"scale or offset that differ by band (scale {scales})",
            where=where,
            expected="one for all bands: a dataset has one",
            mend=f"--float-range LO:HI applies each band's own and rounds to 65536 steps; or for all bands: {STATE_SCALE}",
        )
    return InputError(
        f"values of dtype {name}",
        where=where,
        expected=f"{', '.join(COUNTS)} or floats of reflectance",
        mend="convert the file to uint16 or float32"
        + ("; or --float-range LO:HI applies its scale and rounds to 65536 steps" if values.scale_C else ""),
    )
