"""What a file says of its values, or a person in its place: bands that are left out, no-data, scale and offset to reflectance.

Legend: C band.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from data_shards.errors import InputError
from data_shards.formats import declared
from data_shards.formats.declared import Statement, numbers_in

UNITS = {  # unit: what a value of it is as reflectance; '' also for counts, which say nothing of it
    **dict.fromkeys(("", "1", "none", "unitless", "dimensionless", "reflectance", "reflectanceunits", "ratio", "fraction", "na"), 1.0),
    **dict.fromkeys(("count", "counts", "dn", "digitalnumber", "digitalnumbers", "digitalcounts", "adu"), 1.0),
    **dict.fromkeys(("%", "percent", "percentage", "reflectance%", "percentreflectance", "%reflectance"), 0.01),
}
STATE_SCALE = "--full-scale N (the value of reflectance 1), with --offset X if the value 0 means reflectance X"
STATE_NO_DATA = "--nodata VALUE, or --nodata none if every value was measured"
STATE_BAD_BANDS = "--bad-bands 1-3,7 (counted from 1), or --bad-bands none to keep all"


@dataclass(frozen=True, kw_only=True)
class Stated:
    """What options say in place of the file; None leaves the word to the file.

    Attributes:
        full_scale: the value that means reflectance 1. offset: reflectance of the value 0.
        nodata: values of pixels that were not measured, 'nan' among them, or 'none'.
        nodata_any: a pixel that lacks one band lies outside the field of view.
        bad_bands: bands to leave out, counted from 1, as '1-3,7', or 'none'.
    """

    full_scale: float | None = None
    offset: float | None = None
    nodata: str | None = None
    nodata_any: bool = False
    bad_bands: str | None = None

    def __post_init__(self) -> None:
        if self.full_scale is not None and not 0 < self.full_scale < np.inf:
            raise InputError(f"full scale {self.full_scale:g}", where="--full-scale", expected="finite, above 0", mend="--full-scale 4095")
        if self.offset is not None and not np.isfinite(self.offset):
            raise InputError(f"offset {self.offset:g}", where="--offset", expected="finite", mend="--offset -0.1")
        if self.nodata is not None and self.nodata != "none":
            Statement(kind=declared.NO_DATA, name="--nodata", value=self.nodata).numbers("--nodata", STATE_NO_DATA)
        if self.bad_bands is not None:
            _listed_bands(self.bad_bands)


@dataclass(frozen=True, kw_only=True)
class Values:
    """How the values of one image are to be read.

    Attributes:
        kept: the bands that stay, counted from 0.
        scale_C, offset_C: reflectance = scale * value + offset for each band that stays; None: nothing is said of it.
        nodata: values of pixels that were not measured.
        valid: smallest and largest value that was measured.
        words: what was done, for the notes.
    """

    kept: tuple[int, ...] = ()
    scale_C: tuple[float, ...] | None = None
    offset_C: tuple[float, ...] | None = None
    nodata: tuple[float, ...] = ()
    valid: tuple[float, float] = (-np.inf, np.inf)
    words: dict[str, object] = field(default_factory=dict)

    @property
    def alike(self) -> bool:
        """Whether all bands have one scale and one offset."""
        return len(set(self.scale_C or ())) <= 1 and len(set(self.offset_C or ())) <= 1


def understood(said: Sequence[Statement], stated: Stated, bands: int, where: object) -> Values:
    """The file's statements and the person's in one: what the person states replaces the file's of that kind.

    Raises:
        InputError: statements that contradict each other, fit no band, or that nobody understands, until an option states what holds.
    """
    kept, words = _kept_bands(said, stated, bands, where)
    scale_C, offset_C = _affine(said, stated, bands, where)
    nodata, valid = _no_data(said, stated, where)
    values = Values(kept=kept, scale_C=_picked(scale_C, kept), offset_C=_picked(offset_C, kept), nodata=nodata, valid=valid, words=words)
    if not all(0 < scale < np.inf for scale in values.scale_C or ()) or not np.isfinite(values.offset_C or ()).all():
        raise InputError(
            f"scale {_span(values.scale_C)}, offset {_span(values.offset_C)}",
            where=where,
            expected="finite, the scale above 0",
            mend=STATE_SCALE,
        )
    return values


def _picked(values_C: tuple[float, ...] | None, kept: tuple[int, ...]) -> tuple[float, ...] | None:
    return None if values_C is None else tuple(values_C[band] for band in kept)


def _of(said: Sequence[Statement], *kinds: str) -> list[Statement]:
    return [statement for statement in said if statement.kind in kinds]


def _listed_bands(text: str) -> set[int]:
    """'1-3,7' to {0, 1, 2, 6}; 'none' to nothing."""
    bands: set[int] = set()
    for part in [] if text == "none" else text.split(","):
        match = re.fullmatch(r"\s*([1-9]\d{0,5})(?:-([1-9]\d{0,5}))?\s*", part)
        if not match:
            raise InputError(f"{part!r} in a list of bands", where="--bad-bands", expected="numbers from 1", mend=STATE_BAD_BANDS)
        bands.update(range(int(match[1]) - 1, int(match[2] or match[1])))
    return bands


def _kept_bands(said: Sequence[Statement], stated: Stated, bands: int, where: object) -> tuple[tuple[int, ...], dict[str, object]]:
    bad, by = set(), "--bad-bands"
    if stated.bad_bands is not None:
        bad = _listed_bands(stated.bad_bands)
        if bad and max(bad) >= bands:
            raise InputError(f"band {max(bad) + 1} of {bands}", where=where, expected="bands of the file", mend=STATE_BAD_BANDS)
    else:
        for statement in _of(said, declared.BAD_BANDS):
            flags, by = statement.numbers(where, STATE_BAD_BANDS), statement.name
            if len(flags) != bands:
                raise InputError(
                    f"{statement.name}: {len(flags)} flags for {bands} bands", where=where, expected="one a band", mend=STATE_BAD_BANDS
                )
            bad |= {band for band, flag in enumerate(flags) if flag == 0}
    kept = tuple(band for band in range(bands) if band not in bad)
    if not kept:
        raise InputError(f"all {bands} bands are bad by {by}", where=where, expected="a band to keep", mend=STATE_BAD_BANDS)
    return kept, {"bands_left_out": {"bands_from_1": sorted(band + 1 for band in bad), "by": by}} if bad else {}


def _affine(
    said: Sequence[Statement], stated: Stated, bands: int, where: object
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Scale and offset of every band of the file; None where nothing is said."""
    offset_C = None if stated.offset is not None else _by_band(_of(said, declared.OFFSET), bands, where)
    if offset_C and not any(offset_C):
        offset_C = None
    if stated.full_scale is not None:
        return _stated_affine(stated, offset_C, bands, where)
    for statement in _of(said, declared.UNCLEAR_SCALE):
        if not _says_nothing(statement):
            raise InputError(
                f"{statement.name} = {statement.shown}, and how it turns values into reflectance is not clear",
                where=where,
                expected="a statement that has one meaning",
                mend=STATE_SCALE,
            )
    scale_C, ones_C = (_by_band(_of(said, kind), bands, where) for kind in (declared.SCALE, declared.FULL_SCALE))
    divided_C = None if ones_C is None else tuple(1 / one if one else np.inf for one in ones_C)
    # a scale of 1 is what programs write that have nothing to say: a count is no reflectance
    scale_C, divided_C = (None if values_C and set(values_C) == {1.0} else values_C for values_C in (scale_C, divided_C))
    if scale_C and divided_C and scale_C != divided_C:
        raise InputError(
            f"scale {_span(scale_C)}, and another statement that makes it {_span(divided_C)}",
            where=where,
            expected="one scale",
            mend=STATE_SCALE,
        )
    if offset_C and (divided_C or not scale_C):
        raise InputError(
            f"offset {_span(offset_C)} " + ("and a value that means reflectance 1: which comes first?" if divided_C else "without a scale"),
            where=where,
            expected="scale and offset: reflectance = scale * value + offset",
            mend=STATE_SCALE,
        )
    factor = _unit_factor(said, where)
    scale_C = scale_C or divided_C or ((1.0,) * bands if factor != 1 else None)
    scale_C = scale_C and tuple(scale * factor for scale in scale_C)
    if stated.offset is not None:
        return scale_C, (stated.offset,) * bands
    return scale_C, offset_C and tuple(offset * factor for offset in offset_C)


def _stated_affine(
    stated: Stated, offset_C: tuple[float, ...] | None, bands: int, where: object
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """--full-scale replaces whatever the file says of scale and unit; an offset of the file is not dropped with them."""
    if offset_C:
        raise InputError(
            f"--full-scale stated, and the file's own offset {_span(offset_C)} left open",
            where=where,
            expected="both or neither",
            mend=STATE_SCALE,
        )
    return (1 / stated.full_scale,) * bands, (stated.offset or 0.0,) * bands


def _says_nothing(statement: Statement) -> bool:
    """A scale of 1, an offset of 0: as programs write that have nothing to say."""
    try:
        return set(numbers_in(statement.value)) <= {0.0, 1.0}
    except ValueError:
        return False


def _unit_factor(said: Sequence[Statement], where: object) -> float:
    """What a value of the file's unit is as reflectance."""
    for statement in _of(said, declared.UNIT):
        unit = re.sub(r"[\s._()\[\]-]", "", str(declared.words_in(statement.value)[0])).lower()
        if unit not in UNITS:
            raise InputError(
                f"values in {statement.shown} ({statement.name})",
                where=where,
                expected="reflectance, %, or counts",
                mend="calibrate them; or say which value counts as reflectance 1: --full-scale N",
            )
        if UNITS[unit] != 1:
            return UNITS[unit]
    return 1.0


def _by_band(statements: Sequence[Statement], bands: int, where: object) -> tuple[float, ...] | None:
    """One value a band of statements of one kind, which must agree."""
    agreed_C = None
    for statement in statements:
        values = statement.numbers(where, STATE_SCALE)
        if len(values) not in (1, bands):
            raise InputError(
                f"{statement.name}: {len(values)} values for {bands} bands", where=where, expected="one, or one a band", mend=STATE_SCALE
            )
        values = values * bands if len(values) == 1 else values
        if agreed_C and agreed_C != values:
            raise InputError(
                f"{statement.name} = {statement.shown}, and another {statement.kind} of {_span(agreed_C)}",
                where=where,
                expected=f"one {statement.kind}",
                mend=STATE_SCALE,
            )
        agreed_C = values
    return agreed_C


def _no_data(said: Sequence[Statement], stated: Stated, where: object) -> tuple[tuple[float, ...], tuple[float, float]]:
    """The values that are no-data, and the valid range."""
    values, valid = _no_data_of_file(said, where) if stated.nodata is None else ((), (-np.inf, np.inf))
    if stated.nodata not in (None, "none"):
        values = numbers_in(stated.nodata)
    for statement in _of(said, declared.UNWRITTEN):
        (fill,) = statement.numbers(where, STATE_NO_DATA)
        outside = fill < valid[0] or fill > valid[1]
        if not outside and not any(value == fill or (np.isnan(value) and np.isnan(fill)) for value in values):
            raise InputError(
                f"{statement.name} were never written, and read as {fill:g}: the acquisition or the copy was interrupted",
                where=where,
                expected=f"a file that was written to its end, or {fill:g} declared as no-data",
                mend=f"copy the file again, or leave it out; if every pixel of {fill:g} counts as not measured: --nodata {fill:g}",
            )
    return values, valid


def _no_data_of_file(said: Sequence[Statement], where: object) -> tuple[tuple[float, ...], tuple[float, float]]:
    if unclear := _of(said, declared.UNCLEAR_NO_DATA):
        raise InputError(
            f"{unclear[0].name} = {unclear[0].shown}, and which pixels it takes out is not clear",
            where=where,
            expected="a statement that has one meaning",
            mend=STATE_NO_DATA,
        )
    values = [value for statement in _of(said, declared.NO_DATA) for value in statement.numbers(where, STATE_NO_DATA)]
    low = [v for statement in _of(said, declared.VALID_MIN) for v in statement.numbers(where, STATE_NO_DATA)]
    high = [v for statement in _of(said, declared.VALID_MAX) for v in statement.numbers(where, STATE_NO_DATA)]
    return tuple(dict.fromkeys(values)), (max(low, default=-np.inf), min(high, default=np.inf))


def _span(values_C: Sequence[float] | None) -> str:
    """The values of all bands in short."""
    values = sorted(set(values_C or ()))
    if not values:
        return "not stated"
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} … {values[-1]:g} by band"
