"""A gate that refuses copies of training images while a set is generated: what it refuses is made again.

Legend: C band, H W pixels.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from data_shards import durable
from data_shards.ledger import Units
from data_shards.reading.dataset import Dataset
from ldm.authenticity.near import near
from ldm.authenticity.ratio import nearness_p_values
from ldm.authenticity.real_people import EXACT_SHARE, real_people
from ldm.authenticity.real_side import RealSide
from ldm.authenticity.units import Neighbourhoods
from ldm.evaluation.sets import reflectance

FORMAT = "retinaforge-copy-bounds-1"
SPACES = ("pooled", "contrast")


@dataclass(frozen=True, kw_only=True)
class SpaceBounds:
    """What decides in a space. Of honest images a share of half of `rate` at most lies below the threshold, and as many are refused for
    how near their nearest person lies.

    Attributes:
        rate: of the space.
        threshold: distance below which an image is refused; None where the people held out bear none at this rate.
        dimension: of the law of the nearest person (ldm/authenticity/ratio.py); None where it could not be had.
        exact: distance within which an image is a training image, but for rounding.
    """

    rate: float
    threshold: float | None
    dimension: float | None
    exact: float


@dataclass(frozen=True, kw_only=True)
class CopyBounds:
    """copy-bounds.json: `spaces` by name, of the people of a dataset (its digest), at a rate for all spaces together."""

    format: str = FORMAT
    dataset: str
    rate: float
    people: int
    spaces: dict[str, SpaceBounds]


class TrainingSide(RealSide):
    """The training images of a run, described, with the bounds that a gate refuses by.

    Args:
        path: file for the bounds, beside which the units stay: the gate searches them.
        rate: share of honest images that may be refused.
    """

    def __init__(self, real: Dataset, path: Path, rate: float, *, device: str) -> None:
        from ldm.authenticity.audit import AuditConfig

        config = AuditConfig(spaces=SPACES, rate=rate, device=device)
        super().__init__(real, config, lambda names: path.with_suffix(".units") / real.digest[:12])
        self.path, self.search = path, Settled(self, self.out and self.out / "search")

    def phases(self) -> list[Units]:
        """In their order."""
        return [self.descriptors, self.settings, self.search]

    def bounds(self) -> CopyBounds:
        """Of units that are all there."""
        rate, found = self.config.rate / len(self.of_space), {}
        for name in self.of_space:
            people = real_people(self.real_distances(name))
            r = people.yardstick.rank(rate / 2)
            threshold = people.yardstick.threshold(r) if r else None
            found[name] = SpaceBounds(rate=rate, threshold=threshold, dimension=people.dimension, exact=EXACT_SHARE * people.scale)
        held = len(np.unique(self.held_people))
        return CopyBounds(dataset=self.train.dataset.digest, rate=self.config.rate, people=held, spaces=found)


class Settled(Neighbourhoods):
    """The search among real people, finished by the bounds."""

    audit: TrainingSide

    def finish(self) -> CopyBounds:
        bounds = self.audit.bounds()
        durable.write_json(self.audit.path, asdict(bounds))
        return bounds


@dataclass(frozen=True, kw_only=True)
class CopyGate:
    """Refuses images that lie too near to training images.

    Attributes:
        side: the training images, described. settled: the bounds.
    """

    side: TrainingSide
    settled: CopyBounds

    @property
    def bounds(self) -> dict[str, object]:
        """What decides, for a set's request."""
        return {"rate": self.settled.rate, "spaces": {name: asdict(space) for name, space in self.settled.spaces.items()}}

    def refuses(self, stored_CHW: np.ndarray) -> bool:
        """Whether an image, by its stored counts, is a copy, or its mirror image is."""
        side, dataset = self.side, self.side.train.dataset
        x_1CHW = reflectance(dataset, torch.from_numpy(stored_CHW)[None], side.config.device, side.descriptors.fov_HW)
        people = side.numbers_of(side.train_people)
        for name, space in side.of_space.items():
            bound = self.settled.spaces[name]
            views = tuple(side.settings.compared(name, view_1D) for view_1D in space.views(x_1CHW))
            found = near(views, side.search.search("train", name), people)
            distance = float(found.distance_N[0])
            if distance <= bound.exact or (bound.threshold is not None and distance < bound.threshold):
                return True
            if nearness_p_values(found.distance_NJ, bound.dimension)[0] <= bound.rate / 2:
                return True
        return False
