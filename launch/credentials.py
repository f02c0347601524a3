"""Passwords that stand in a configuration's URLs: starred in all that others may read, kept beside it for its user alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_shards.errors import STARS, InputError, without_credentials

CREDENTIALS = "credentials.json"
"""Beside a run.yaml, of mode 0600: what the starred places of datasets stand for. Absent where none is starred."""


def concealed(tree: Any, hidden: dict[str, str] | None = None) -> Any:
    """A tree of plain values, credentials in its keys and values starred.

    Args:
        hidden: is told what each starred text was.
    """
    if isinstance(tree, dict):
        return {concealed(key, hidden): concealed(value, hidden) for key, value in tree.items()}
    if isinstance(tree, list):
        return [concealed(value, hidden) for value in tree]
    if not isinstance(tree, str) or (starred := without_credentials(tree)) == tree:
        return tree
    if hidden is not None:
        hidden[starred] = tree
    return starred


def revealed(tree: Any, path: Path) -> Any:
    """The inverse, by the credentials beside the file that the tree was read from.

    Raises:
        InputError: a text is starred, and what it stands for is not there or not ours to read.
    """
    if isinstance(tree, dict):
        return {revealed(key, path): revealed(value, path) for key, value in tree.items()}
    if isinstance(tree, list):
        return [revealed(value, path) for value in tree]
    if not isinstance(tree, str) or "://" not in tree or STARS not in tree:
        return tree
    beside = path.with_name(CREDENTIALS)
    try:
        return json.loads(beside.read_bytes())[tree]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{tree}: what the stars stand for is not known",
            where=beside,
            expected="the private file that was written with the configuration, readable by you",
            mend="give the URL anew: data.dataset=URL, or vqgan.mix={URL: WEIGHT}",
        ) from error
