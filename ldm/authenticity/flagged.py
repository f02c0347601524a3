"""The table of all images that an audit flags, beside its result.

It stands by itself, for a set of a million images may have thousands of them.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from data_shards import durable
from data_shards.errors import InputError
from data_shards.reading.dataset import Dataset


@dataclass(frozen=True, kw_only=True)
class FlaggedImage:
    """A row of the table of flagged images, audit.flagged.csv.

    Attributes:
        synthetic_key, synthetic_index: which image. space: in which it was flagged.
        why: 'exact', 'near' or 'beyond chance', as in `Flagged`.
        distance: to the training image; train_key, subject: which one, and of whom.
        p_value: that an honest image lies as near, of ranks among the people of the yardstick; None without any.
        mirrored: nearest to the mirror image.
    """

    synthetic_key: str
    synthetic_index: int
    space: str
    why: str
    distance: float
    p_value: float | None
    train_key: str
    subject: str
    mirrored: bool


def flagged_path(path: Path) -> Path:
    """Of the table of flagged images beside a result."""
    return path.with_name(f"{path.stem}.flagged.csv")


def write_flagged(path: Path, flagged: Sequence[FlaggedImage]) -> None:
    """As CSV, with a line of titles, beside the result at `path`."""
    text = io.StringIO()
    table = csv.DictWriter(text, [field.name for field in fields(FlaggedImage)], lineterminator="\n")
    table.writeheader()
    table.writerows(map(asdict, flagged))
    durable.write_bytes(flagged_path(path), text.getvalue().encode())


def flagged_keys(path: Path, synthetic: Dataset, version: str) -> list[str]:
    """Keys of the images of a set that an audit flagged.

    Args:
        path: of its result. version: the format that it must have.

    Raises:
        InputError: no result of this version there, or one of another set, or of a part of this one.
    """
    try:
        told = json.loads(path.read_bytes())
        rows = list(csv.DictReader(flagged_path(path).read_text().splitlines()))
    except (OSError, ValueError) as error:
        raise InputError(
            f"no audit: {error}", where=path, expected="a result of this version", mend="retinaforge audit, of the set"
        ) from error
    if told.get("format") != version or told["synthetic"]["digest"] != synthetic.digest:
        raise InputError("an audit of another set, or of another version", where=path, expected=f"one of {synthetic.path}")
    return sorted({row["synthetic_key"] for row in rows})
