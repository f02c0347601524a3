"""Band lists as people write them."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np

from data_shards.errors import InputError
from data_shards.formats.band_centres import in_nm

UNIT = re.compile(r"(nm|um|µm|μm)\b", re.IGNORECASE)  # both ways to write the mu
LIST = re.compile(r"[\d.,;\seE+-]+(nm|um|µm|μm)?", re.IGNORECASE)


def parse_wavelengths(text: str) -> tuple[float, ...]:
    """Band centres in nm from '610,545,465', '0.43,0.56um', 'linspace:380:2500:198' or a text file, '#' for comments.

    A unit behind the last number of a list, or anywhere in the file, holds for all of them.

    A trailing '/1-3,7' leaves out channels, counted from 1: 'linspace:380:2500:224/1-3,108-112,154-166,220-224' is the
    nominal AVIRIS grid without its water-vapour channels.

    Raises:
        InputError: not such a list, no such file, or centres that are not in the unit they are said to be.
    """
    body, _, removed = text.partition("/") if text.startswith("linspace:") else (text, "", "")
    wrong = {
        "where": "--wavelengths",
        "expected": "numbers in nm, linspace:FIRST:LAST:COUNT, a text file, or hdf5:NAME of a data set beside the image",
        "mend": "--wavelengths 610,545,465",
    }
    try:
        unit = ""
        if body.startswith("linspace:"):
            body, unit = _unit_apart(body)
            first, last, count = body.removeprefix("linspace:").split(":")
            if not 0 < int(count) <= 100_000:
                raise InputError(f"{count} bands", **wrong)
            centres = [float(nm) for nm in np.linspace(float(first), float(last), int(count))]
        elif LIST.fullmatch(body):
            body, unit = _unit_apart(body)
            centres = _numbers(body)
        else:
            lines = Path(body).read_text(encoding="utf-8-sig").splitlines()
            body, unit = _unit_apart("\n".join(line.partition("#")[0] for line in lines))
            centres = _numbers(body)
        out = _channels(removed)
    except InputError:
        raise
    except (ValueError, OSError) as error:
        raise InputError(f"wavelengths {text!r}: {error}", **wrong) from error
    if out and max(out) > len(centres):
        raise InputError(f"channel {max(out)} to leave out of {len(centres)}", **wrong)
    centres = [nm for channel, nm in enumerate(centres, 1) if channel not in out]
    if not centres or not all(math.isfinite(nm) and nm > 0 for nm in centres):
        raise InputError(f"wavelengths {text!r}", **wrong)
    return in_nm(centres, unit, "--wavelengths")


def _unit_apart(text: str) -> tuple[str, str]:
    """The text without its unit, and the unit."""
    units = {unit.lower().replace("μ", "µ").replace("um", "µm") for unit in UNIT.findall(text)}
    if len(units) > 1:
        raise ValueError(f"several units: {', '.join(sorted(units))}")
    return UNIT.sub(" ", text).strip(), units.pop() if units else ""


def _numbers(text: str) -> list[float]:
    return [float(word) for word in re.split(r"[,;\s]+", text.strip()) if word]


def _channels(text: str) -> set[int]:
    """'1-3,7' to {1, 2, 3, 7}."""
    channels: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        channels.update(range(int(first), int(last or first) + 1))
    return channels
