"""Band lists as people write them."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np

from data_shards.errors import InputError

MAX_NM = 1e6  # 1 mm: beyond it the unit was not nm


def parse_wavelengths(text: str) -> tuple[float, ...]:
    """Band centres in nm from '610,545,465', 'linspace:380:2500:198' or a text file with numbers, '#' for comments.

    A trailing '/1-3,7' leaves out channels, counted from 1: 'linspace:380:2500:224/1-3,108-112,154-166,220-224' is the
    nominal AVIRIS grid without its water-vapour channels.

    Raises:
        InputError: not such a list, no such file, or centres that are not positive finite nm.
    """
    body, _, removed = text.partition("/") if text.startswith("linspace:") else (text, "", "")
    wrong = {
        "where": "--wavelengths",
        "expected": "numbers in nm, linspace:FIRST:LAST:COUNT or a text file",
        "mend": "--wavelengths 610,545,465",
    }
    try:
        if body.startswith("linspace:"):
            first, last, count = body.removeprefix("linspace:").split(":")
            if not 0 < int(count) <= 100_000:
                raise InputError(f"{count} bands", **wrong)
            centres = [float(nm) for nm in np.linspace(float(first), float(last), int(count))]
        elif re.fullmatch(r"[\d.,\seE+-]+", body):
            centres = _numbers(body)
        else:
            lines = Path(body).read_text(encoding="utf-8-sig").splitlines()
            centres = _numbers("\n".join(line.partition("#")[0] for line in lines))
        out = _channels(removed)
    except InputError:
        raise
    except (ValueError, OSError) as error:
        raise InputError(f"wavelengths {text!r}: {error}", **wrong) from error
    if out and max(out) > len(centres):
        raise InputError(f"channel {max(out)} to leave out of {len(centres)}", **wrong)
    centres = [nm for channel, nm in enumerate(centres, 1) if channel not in out]
    if not centres or not all(math.isfinite(nm) and 0 < nm < MAX_NM for nm in centres):
        raise InputError(f"wavelengths {text!r}", **wrong)
    return tuple(round(nm, 6) for nm in centres)


def _numbers(text: str) -> list[float]:
    return [float(word) for word in re.split(r"[,;\s]+", text.strip()) if word]


def _channels(text: str) -> set[int]:
    """'1-3,7' to {1, 2, 3, 7}."""
    channels: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        channels.update(range(int(first), int(last or first) + 1))
    return channels
