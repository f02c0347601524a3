"""The real side of a search for copies: training images and people held out, in every space, and what is settled by them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_shards.errors import InputError, nearest
from data_shards.reading.dataset import Dataset
from ldm.authenticity.descriptors import spaces
from ldm.authenticity.real_people import RealDistances
from ldm.authenticity.units import ComparedRows, Descriptors, Neighbourhoods, Settings
from ldm.authenticity.verdicts import LEAST_IN_CELL
from ldm.evaluation.sets import Part

if TYPE_CHECKING:
    from ldm.authenticity.audit import AuditConfig

MOST_CELLS = 20


class RealSide:
    """Units of the descriptors of all images, of what is settled of each space, and of nearest training images.

    Args:
        out: of the names of the spaces, the folder in which units are published; it may give None: they are kept in memory.
        also: synthetic images that are described and searched, too.
        learned, copies: folders of a trained feature encoder and of a copy-detection head, for the spaces that need them.

    Raises:
        InputError: an empty or unknown split or space; a person on both sides; a rate that is no share.
    """

    def __init__(
        self,
        real: Dataset,
        config: AuditConfig,
        out: Callable[[list[str]], Path | None],
        *,
        also: Part | None = None,
        learned: Path | None = None,
        copies: Path | None = None,
    ) -> None:
        self.config = config
        if not 0 < config.rate < 1:
            raise InputError(f"a false rate of {config.rate:g}", expected="a share between 0 and 1, such as 0.01")
        for name in (config.train, *config.against):
            if name not in real.splits:
                raise InputError(f"unknown split {name!r}", where=real.path, expected=nearest(name, real.splits))
        if config.train in config.against:
            said = f"split {config.train!r} is both trained on and held out"
            raise InputError(said, where=real.path, expected="people held out of training")
        held = config.against or tuple(name for name, info in real.splits.items() if info.count and name != config.train)
        self.train, self.held = Part.of(real, config.train), [Part.of(real, name) for name in held]
        self.parts = [self.train, *self.held, *([also] if also else [])]
        self.train_people, self.held_people = people_of([self.train]), people_of(self.held)
        self.people = np.unique(np.concatenate([self.train_people, self.held_people]))
        if both := sorted(set(self.train_people) & set(self.held_people)):
            raise InputError(
                f"{len(both)} people are in split {config.train!r} and held out, such as {both[0]}",
                where=real.path,
                expected="people who are on one side alone, or the yardstick is as near as a copy",
                mend="retinaforge data pack FOLDER DATASET --splits train=0.7,val=0.2,test=0.1, which splits by person",
            )
        self.of_space = spaces(config.spaces, real, learned=learned, copies=copies, device=config.device)
        self.out = out([space.name for space in self.of_space.values()])
        cells = max(1, min(MOST_CELLS, len(self.held_people) // (2 * LEAST_IN_CELL)))
        self.descriptors = Descriptors(real, also, self.parts, self.of_space, config, self.out and self.out / "descriptors")
        self.settings = Settings(self.descriptors, self.train, cells, self.out and self.out / "settings")
        self.search = Neighbourhoods(self, self.out and self.out / "search")

    def numbers_of(self, names: np.ndarray) -> np.ndarray:
        """Numbers of people."""
        return np.searchsorted(self.people, names)

    def real_distances(self, name: str) -> RealDistances:
        """Of one space."""
        return RealDistances(
            held=self.search.near(self.held, "train", name),
            held_person_N=self.numbers_of(self.held_people),
            train=self.search.near([self.train], "train", name),
            train_person_T=self.numbers_of(self.train_people),
        )

    def rows(self, parts: Sequence[Part], name: str) -> ComparedRows | None:
        """Images of some parts in the units of a space, as they are asked for; None of no image."""
        rows = self.descriptors.streamed(parts, name)
        return None if rows is None else ComparedRows(rows, self.settings, name)


def people_of(parts: Sequence[Part]) -> np.ndarray:
    """Whose the images of some parts are."""
    return np.array([who for part in parts for who in part.units()], dtype=str)
