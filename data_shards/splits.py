"""Splits by subject, never by image: all cubes of one person stand in one split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from data_shards.cube import KEY
from data_shards.errors import InputError

SPLITS = {"train": 0.8, "val": 0.1, "test": 0.1}


def check_split_names(names: Iterable[str]) -> None:
    """Raises: InputError: a name that cannot be the beginning of a file's name."""
    if strange := [name for name in names if not KEY.fullmatch(name)]:
        raise InputError(
            f"split name {strange[0]!r} is not allowed", expected="letters, digits, '_' and '-': it becomes a file name", mend="--splits …"
        )


def check_fractions(fractions: dict[str, float]) -> None:
    """Refuse fractions that do not divide a whole.

    Raises:
        InputError: none at all, one below 0, a sum that is not 1.
    """
    if not fractions or not abs(sum(fractions.values()) - 1) <= 1e-6 or min(fractions.values()) < 0:
        raise InputError(
            f"split fractions {fractions}", expected="none below 0, adding up to 1", mend="--splits train=0.8,val=0.1,test=0.1"
        )


def split_subjects(subjects: Iterable[str], fractions: dict[str, float], seed: int) -> dict[str, str]:
    """Subject → split. Subjects are ranked by a hash of (seed, subject) and cut at the fractions, each split rounded to the nearest.

    Raises:
        InputError: fractions that do not add up to 1, or a split that would be empty.
    """
    check_fractions(fractions)
    ranked = sorted(set(subjects), key=lambda s: hashlib.sha256(f"{seed}\0{s}".encode()).digest())
    cuts = np.rint(np.cumsum([0.0, *fractions.values()]) * len(ranked)).astype(int)
    split_of = {s: name for name, a, b in zip(fractions, cuts, cuts[1:], strict=False) for s in ranked[a:b]}
    empty = [name for name, share in fractions.items() if share > 0 and name not in split_of.values()]
    if empty:
        raise InputError(
            f"split {empty[0]!r} would be empty",
            where=f"{len(ranked)} subjects, fractions {fractions}",
            expected="at least one subject in every split (splits are by subject, never by image)",
            mend="add subjects, or change --splits",
        )
    return split_of


def stated_splits(splits_by_subject: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Subject → split, as the samples' own metadata (`notes.split`) states it.

    Raises:
        InputError: a subject that stands in two splits.
    """
    split_of: dict[str, str] = {}
    for subject, split in splits_by_subject:
        if split_of.setdefault(subject, split) != split:
            raise InputError(
                f"subject {subject!r} stands in two splits: {split_of[subject]!r} and {split!r}",
                expected="every cube of one subject in one split",
                mend="correct the column 'split' of the subjects CSV and import again",
            )
    return split_of
