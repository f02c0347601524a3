"""What a file says of its own values: every reader lists it as statements, one place (`importing/values.py`) applies them.

A statement that no reader understands is listed as unclear: the import stops until an option states what it may mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_shards.errors import InputError

SCALE, FULL_SCALE, OFFSET, NO_DATA, VALID_MIN, VALID_MAX, BAD_BANDS, UNIT, UNCLEAR_SCALE, UNCLEAR_NO_DATA, UNWRITTEN = KINDS = (
    "scale",  # reflectance = scale * value + offset
    "full scale",  # the value of reflectance 1
    "offset",
    "no-data",  # a pixel that holds it was not measured
    "valid min",  # as is a pixel below it
    "valid max",
    "bad bands",  # one flag a band, 0: bad
    "unit",
    "unclear scale",
    "unclear no-data",
    "unwritten",  # pieces of the array were never written, and read as this value
)

MOST_NAMES = 100
NOT_NUMBERS = ("nan", "1.#qnan", "1.#ind", "1.#snan")  # as C runtimes and GDAL spell it

# attributes of HDF5 and netCDF, and variables beside an image, by their letters and digits alone
DIVIDES_OR_MULTIPLIES = ("scalefactor", "scale", "scalingfactor", "datascalefactor", "reflectancescalefactor", "reflectancescale")
ATTRIBUTES = {
    **dict.fromkeys(("gain", "slope", "multiplicativefactor", "datagain"), SCALE),
    **dict.fromkeys(("quantificationvalue", "fullscale"), FULL_SCALE),
    **dict.fromkeys(("addoffset", "offset", "intercept", "bias", "additivefactor", "dataoffset", "scaleoffset"), OFFSET),
    **dict.fromkeys(
        ("fillvalue", "missingvalue", "dataignorevalue", "ignorevalue", "nodata", "nodatavalue", "datanodatavalue", "nullvalue"), NO_DATA
    ),
    **dict.fromkeys(("bbl", "goodwavelengths", "goodbands"), BAD_BANDS),
    "validmin": VALID_MIN,
    "validmax": VALID_MAX,
    **dict.fromkeys(("unit", "units", "dataunits"), UNIT),
}
MAYBE_SCALE = re.compile(r"scal(e|ing)|gain|multiplier|addoffset|(?:boa|dark|radiance|radio|reflectance|toa|values?)offset")
MAYBE_NO_DATA = re.compile(r"nodata|fillval|ignoreval|missingval|invalidval")
HARMLESS = re.compile(r"err|uncert|desc|grayscale|greyscale|colou?rscale|timescale|map|display|stretch|sensor|detector|camera|autogain")


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One thing that a file says.

    Attributes:
        kind: one of KINDS.
        name: where it stands, in the file's own words: 'data ignore value', 'attribute _FillValue', 'tag 42113'.
        value: as it stands there: text, a number, or several of either.
    """

    kind: str
    name: str
    value: Any

    def numbers(self, where: object, mend: str) -> tuple[float, ...]:
        """The value as numbers.

        Raises:
            InputError: it is no number.
        """
        try:
            return numbers_in(self.value)
        except ValueError as error:
            raise InputError(f"{self.name} = {self.shown}", where=where, expected="a number, or one for each band", mend=mend) from error

    @property
    def shown(self) -> str:
        """The value as short text, for messages and notes."""
        words = words_in(self.value)
        return ", ".join(words[:8]) + (f", … ({len(words)} values)" if len(words) > 8 else "")


def words_in(value: Any) -> list[str]:
    """Text, bytes, a number, or a list or array of them, as words."""
    if isinstance(value, bytes | np.bytes_):
        return words_in(value.decode("utf-8", errors="replace"))
    if isinstance(value, str):
        return [word.strip() for word in value.strip().strip("{}").strip().removesuffix(",").split(",")]
    if isinstance(value, np.ndarray | list | tuple):
        return [word for part in np.asarray(value).ravel().tolist() for word in words_in(part)]
    return [str(value)]


def numbers_in(value: Any) -> tuple[float, ...]:
    """The numbers of a value. NaN may be spelled as C runtimes do.

    Raises:
        ValueError: it holds something else, or nothing.
    """
    words = [word.lower() for word in words_in(value)]
    return tuple(float("nan") if word.lstrip("+-") in NOT_NUMBERS else float(word) for word in words)


def letters_of(name: str) -> str:
    """'Scale_Factor' to 'scalefactor'."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def from_attribute(name: str, value: Any, label: str) -> list[Statement]:
    """The statements of one attribute; none where it does not concern the values.

    CF's `scale_factor` multiplies. The same words in other spellings divide where they are above 1, as observatories use
    them (Scale_Factor = 10000). A `scale_factor` above 1 is unclear: no count means a reflectance above 1.

    Args:
        label: where it stands, for messages.
    """
    letters = letters_of(name)
    if letters == "validrange":
        low_high = words_in(value)
        kinds = (VALID_MIN, VALID_MAX) if len(low_high) == 2 else (UNCLEAR_NO_DATA,)
        return [Statement(kind=kind, name=label, value=v) for kind, v in zip(kinds, low_high, strict=False)]
    if letters in DIVIDES_OR_MULTIPLIES:
        return [Statement(kind=_scale_kind(name, value), name=label, value=value)]
    if kind := ATTRIBUTES.get(letters):
        return [Statement(kind=kind, name=label, value=value)]
    if HARMLESS.search(letters) or not is_numeric(value):
        return []
    if MAYBE_NO_DATA.search(letters):
        return [Statement(kind=UNCLEAR_NO_DATA, name=label, value=value)]
    return [Statement(kind=UNCLEAR_SCALE, name=label, value=value)] if MAYBE_SCALE.search(letters) else []


def _scale_kind(name: str, value: Any) -> str:
    if not is_numeric(value) or max(numbers_in(value)) <= 1:
        return SCALE
    return UNCLEAR_SCALE if name == "scale_factor" else FULL_SCALE


def is_numeric(value: Any) -> bool:
    """Whether a value is a number, numbers, or text of such."""
    try:
        return bool(numbers_in(value))
    except ValueError:
        return False


def not_used(fields: Mapping[str, Any]) -> dict[str, Any]:
    """For the notes: names of attributes or fields that say nothing of the values by their names, as far as we know."""
    names = sorted(name for name, value in fields.items() if not from_attribute(name, value, name))
    return {"not_used": names[:MOST_NAMES]} if names else {}


def unclear(statement: Statement) -> Statement:
    """The same, where it is not certain that it speaks of the image."""
    kinds = {SCALE: UNCLEAR_SCALE, FULL_SCALE: UNCLEAR_SCALE, OFFSET: UNCLEAR_SCALE}
    kinds |= dict.fromkeys((NO_DATA, VALID_MIN, VALID_MAX), UNCLEAR_NO_DATA)
    return Statement(kind=kinds.get(statement.kind, statement.kind), name=statement.name, value=statement.value)


def of_bands(each: Sequence[Iterable[Statement]], where: object) -> tuple[Statement, ...]:
    """Statements of single-band files (or pages) as those of their stack.

    Raises:
        InputError: they differ in what cannot differ by band.
    """
    by_band = [{(s.kind, s.name): s for s in statements} for statements in each]
    stacked = []
    for kind, name in dict.fromkeys(key for band in by_band for key in band):
        one_a_band = [band.get((kind, name)) for band in by_band]
        shown = [s.shown if s else "not stated" for s in one_a_band]
        first = next(s for s in one_a_band if s)
        if len(set(shown)) == 1 or kind == UNWRITTEN:
            stacked.append(first)
        elif kind in (SCALE, OFFSET):
            default = 1.0 if kind == SCALE else 0.0
            values = [s.numbers(where, "--full-scale N --offset X")[0] if s else default for s in one_a_band]
            stacked.append(Statement(kind=kind, name=name, value=values))
        else:
            other = next(i for i, text in enumerate(shown) if text != shown[0])
            raise InputError(
                f"{name}: {shown[0]} in the first band, {shown[other]} in band {other + 1}",
                where=where,
                expected="the same in all bands",
                mend="write the files anew with one value",
            )
    return tuple(stacked)
