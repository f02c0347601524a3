"""Splits by subject, never by image: all cubes of one person stand in one split."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_shards.cube import KEY
from data_shards.errors import InputError, command
from data_shards.reading.dataset import Dataset
from data_shards.stores import place_of

LOGGER = logging.getLogger("retinaforge")
SALT = "split-374"  # the splits of every set depend on it
LEAST_PEOPLE = 2  # held out: fewer have no spread
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


def split_words(fractions: dict[str, float]) -> str:
    """The fractions as `--splits` takes them."""
    return ",".join(f"{name}={share}" for name, share in fractions.items())


def check_same_splits(fractions: dict[str, float], standing: Iterable[str], where: str) -> None:
    """Raises: InputError: fractions for other splits than a packed set has: the two sets could not be compared."""
    strange, lacking = sorted(set(fractions) - set(standing)), sorted(set(standing) - set(fractions))
    if not strange and not lacking:
        return
    said = [f"{what} {', '.join(map(repr, names))}" for what, names in (("names", strange), ("leaves out", lacking)) if names]
    mend = f"leave --splits out, and that set's own fractions hold; or name the splits {', '.join(sorted(standing))}"
    if not strange:
        mend = f"--splits {split_words({**fractions, **dict.fromkeys(lacking, 0)})}"
    raise InputError(
        f"--splits {split_words(fractions)} {' and '.join(said)}",
        where=where,
        expected=f"the splits of that set: {', '.join(sorted(standing))}",
        mend=mend,
    )


def split_subjects(
    subjects: Iterable[str], fractions: dict[str, float], seed: int, *, fixed: dict[str, str] | None = None
) -> dict[str, str]:
    """Subject → split. A hash of (seed, subject) gives each a point in [0, 1); the fractions cut it into one interval a split.

    So where a person stands does not depend on who else is there: people who are added move nobody. One thing does move people: a
    split whose interval nobody hit, as happens with few, gets the nearest person of the largest split, and is warned of.

    Args:
        fixed: subject to split, for those who keep the split that they have (of a set packed before).

    Raises:
        InputError: fractions that do not add up to 1, or a split whose share of the people is not one person.
    """
    check_fractions(fractions)
    fixed = fixed or {}
    point_of = {subject: _point(seed, subject) for subject in set(subjects)}
    names = [name for name, share in fractions.items() if share > 0]
    upper = np.cumsum([fractions[name] for name in names])
    upper[-1] = 1.0  # a sum of fractions may fall short of it by rounding
    split_of = {s: fixed.get(s) or names[int(np.searchsorted(upper, at, side="right"))] for s, at in sorted(point_of.items())}
    people = np.rint(np.cumsum([0.0, *fractions.values()]) * len(point_of)).astype(int)
    for name, share_people in zip(fractions, np.diff(people), strict=True):
        if fractions[name] == 0 or name in split_of.values():
            continue
        _check_fillable(name, split_of, fractions, fixed, share_people)
        free_of = {subject: split for subject, split in split_of.items() if subject not in fixed}
        largest = Counter(free_of.values()).most_common(1)[0][0]
        middle = upper[names.index(name)] - fractions[name] / 2
        nearest = min((s for s, split in free_of.items() if split == largest), key=lambda subject: abs(point_of[subject] - middle))
        split_of[nearest] = name
        LOGGER.warning(
            "split %r: none of the %d subjects falls there by its hash, so %r was put there from %r. When people are added, pack with "
            "--splits-from THIS_SET, so that nobody moves",
            *(name, len(point_of), nearest, largest),
        )
    return split_of


def _check_fillable(name: str, split_of: dict[str, str], fractions: dict[str, float], fixed: dict[str, str], share_people: int) -> None:
    """Raises: InputError: an empty split that nobody may be moved to, or whose share of the people is not one person."""
    if not set(split_of) - set(fixed):
        kept = next(iter(split_of.values()), None)
        raise InputError(
            f"split {name!r} would be empty: all {len(split_of)} subjects stand in the set of --splits-from, so nobody is left to divide",
            where=f"fractions {fractions}",
            expected="people that the set does not hold, or no share for this split",
            mend=f"--splits {split_words({n: float(n == kept) for n in fractions})}, which moves nobody; or add people",
        )
    if not share_people:
        raise InputError(
            f"split {name!r} would be empty",
            where=f"{len(split_of)} subjects, fractions {fractions}",
            expected="at least one subject in every split (splits are by subject, never by image)",
            mend="add subjects, or change --splits (of a run: data.splits)",
        )


def held_out_split(real: Dataset) -> str:
    """The split to compare with: people that no model was trained on, where there are any; one with a single person comes last."""
    filled = [name for name, info in real.splits.items() if info.count]
    held_out = [name for name in dict.fromkeys(("val", "test", *filled)) if name in filled and name != "train"]
    return next((name for name in held_out if real.splits[name].subjects >= LEAST_PEOPLE), next(iter(held_out), "train"))


def _point(seed: int, subject: str) -> float:
    """Where in [0, 1) a subject stands."""
    return int.from_bytes(hashlib.sha256(f"{SALT}\0{seed}\0{subject}".encode()).digest()[:8], "big") / 2**64


CORRECT_THE_SPLIT = "correct the column 'split' of the subjects CSV and import again"


def stated_splits(splits_by_subject: Iterable[tuple[str, str]], *, where: object = None, mend: str = CORRECT_THE_SPLIT) -> dict[str, str]:
    """Subject → split, as the samples' own metadata (`notes.split`) states it.

    Raises:
        InputError: a subject that stands in two splits.
    """
    split_of: dict[str, str] = {}
    for subject, split in splits_by_subject:
        if split_of.setdefault(subject, split) != split:
            raise InputError(
                f"subject {subject!r} stands in two splits: {split_of[subject]!r} and {split!r}",
                where=where,
                expected="every cube of one subject in one split",
                mend=mend,
            )
    return split_of


class Row(NamedTuple):
    """A sample, its person, and the split that its metadata state ('': none)."""

    key: str
    subject: str
    split: str


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Where people stand in a set that was packed before, and how the others are divided beside it.

    Attributes:
        split_of: subject to split; empty without such a set.
        shares: the fractions that divide who is new and states no split.
    """

    split_of: Mapping[str, str] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=lambda: SPLITS)
    place: str = ""
    digest: str = ""

    @classmethod
    def of(cls, place: Path | str, splits: Mapping[str, float] | None) -> Kept:
        """Of a packed set; `splits` that are asked for have to be its own.

        Raises:
            InputError: other splits than it has, or a person who stands in two of them.
        """
        before = Dataset(place_of(str(place)))
        split_of = stated_splits(
            ((s, name) for name, info in before.splits.items() if info.count for s in before.subjects(name)),
            where=before.path,
            mend=command("retinaforge", "data", "verify", before.path),
        )
        if splits is not None:
            check_same_splits(splits, before.splits, str(place))
        return cls(split_of=split_of, shares=_shares_of(before), place=str(place), digest=before.digest)

    def check_stated(self, rows: list[Row], source: Path | str, *, packed: bool) -> None:
        """What the samples state and where their people stand in the set that is kept must agree.

        Raises:
            InputError: they do not. A packed source only says where people stood in it: there the set that is kept wins, with a warning.
        """
        moved = [row for row in rows if row.split and self.split_of.get(row.subject, row.split) != row.split]
        if not moved:
            return
        key, subject, split = moved[0]
        said = f"subject {subject!r} (sample {key}): split {split!r} in {source}, {self.split_of[subject]!r} in {self.place}"
        if packed:
            LOGGER.warning("%s; %d samples stand in other splits than in %s: they go where that set has them", said, len(moved), self.place)
            return
        raise InputError(
            said + (f"; and {len(moved) - 1} more samples" if len(moved) > 1 else ""),
            where=source,
            expected="one split for a person in both",
            mend="correct the split of these samples (the column 'split' of the subjects CSV, and import again; or notes.split in "
            "KEY.json); or leave --splits-from out: a set with the samples' own splits, not to be compared with the other",
        )


def divided(rows: list[Row], fractions: dict[str, float] | None, seed: int, kept: Kept) -> dict[str, str]:
    """Subject to split: as kept, else as the samples state it, else by fractions (None: those of the kept).

    Raises:
        InputError: some samples state a split, and others do not; else as split_subjects.
    """
    fixed, shares = dict(kept.split_of), dict(kept.shares)
    new = [row for row in rows if row.subject not in fixed]
    unstated = [row.key for row in new if not row.split]
    if fractions is None and not unstated:
        standing = {row.subject: fixed[row.subject] for row in rows if row.subject in fixed}
        return standing | stated_splits((row.subject, row.split) for row in new)
    if fractions is None and len(unstated) < len(new):
        raise InputError(
            f"{len(new) - len(unstated)} of {len(new)} samples state a split, the others do not",
            where=f"sample {unstated[0]} and {len(unstated) - 1} more",
            expected="a split for all of them, or for none",
            mend=f"fill the column 'split' and import again, or divide all anew: --splits {split_words(shares)}",
        )
    return split_subjects((row.subject for row in rows), fractions or shares, seed, fixed=fixed)


def _shares_of(before: Dataset) -> dict[str, float]:
    """The fractions that divided a packed set; where it was divided otherwise, the shares that its splits have of its people."""
    pack_of = before.manifest.source.get("pack")
    if isinstance(pack_of, dict) and pack_of.get("splits"):
        return pack_of["splits"]
    people = {name: len(before.subjects(name)) for name, info in before.splits.items() if info.count}
    return SPLITS if set(people) == set(SPLITS) else {name: count / sum(people.values()) for name, count in people.items()}
