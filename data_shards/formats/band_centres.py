"""Band centres in whatever unit a file or a person states, as nm. Nothing below 100 nm is believed: it is another unit."""

from __future__ import annotations

import re
from collections.abc import Sequence

from data_shards.errors import InputError

LEAST_NM, MOST_NM = 100.0, 100_000.0  # from the far ultraviolet to 0.1 mm
NM_PER_UNIT = {
    **dict.fromkeys(("nm", "nanometer", "nanometers", "nanometre", "nanometres", "nanom"), 1.0),
    **dict.fromkeys(("um", "µm", "micrometer", "micrometers", "micrometre", "micrometres", "micron", "microns"), 1000.0),
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), 1e9),
    **dict.fromkeys(("angstrom", "angstroms", "ångström", "ångströms", "å"), 0.1),
}
NOT_LENGTHS = re.compile(r"wavenumber|frequency|energy|cm|hz$|ev$|thz")  # longer or larger is not redder: no length may be guessed
NO_UNIT = ("", "unknown", "none", "n/a")
LISTED = 300  # more centres than this are not printed in a message


def unit_of(text: str) -> str:
    """A unit in one spelling: the Greek mu and the micro sign, in any case, are one."""
    return re.sub(r"[\s.()\[\]]", "", text).lower().replace("μ", "µ")


def in_nm(centres: Sequence[float], unit: str, where: object, *, mend: str = "--wavelengths {list}") -> tuple[float, ...]:
    """Band centres in nm; without a unit they must look like nm.

    Args:
        unit: as the file spells it, '' where it states none.
        mend: what to type; {list} stands for the centres in nm, as they probably are.

    Raises:
        InputError: an unknown unit, or centres that are none of this unit, with the centres in nm ready to paste.
    """
    stated = unit_of(unit)
    factor = 1.0 if stated in NO_UNIT else NM_PER_UNIT.get(stated)
    nm = [round(float(centre) * factor, 6) for centre in centres] if factor else []
    if nm and all(LEAST_NM <= value <= MOST_NM for value in nm):
        return tuple(nm)
    shown = f"wavelengths {centres[0]:g} … {centres[-1]:g} in unit {unit or 'not stated'!r}" if len(centres) else "no wavelengths"
    raise InputError(
        shown,
        where=where,
        expected=f"{LEAST_NM:g} to {MOST_NM:g} nm, or a unit that says otherwise (nm, um)",
        mend="--wavelengths LIST, in nm" if NOT_LENGTHS.search(stated) or _are_counted(centres) else _likely(centres, mend),
    )


def _are_counted(centres: Sequence[float]) -> bool:
    """Numbers of bands in place of their centres: 1, 2, 3 …"""
    return len(centres) > 1 and list(centres) in (list(range(len(centres))), list(range(1, len(centres) + 1)))


def _likely(centres: Sequence[float], mend: str) -> str:
    """The same centres in the unit that they look like."""
    for name, factor in (("nm", 1.0), ("µm", 1000.0), ("m", 1e9)):
        nm = [float(centre) * factor for centre in centres]
        if nm and all(LEAST_NM <= value <= MOST_NM for value in nm):
            if len(nm) > LISTED:
                return f"these look like {name}: state them in nm in a text file, or with their unit behind each number: --wavelengths FILE"
            return f"these look like {name}: " + mend.format(list=",".join(f"{round(value, 6):.10g}" for value in nm))
    return "--wavelengths LIST, in nm"
