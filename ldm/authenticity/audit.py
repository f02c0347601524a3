"""Search a synthetic set for copies of its training images, with the distances between real people as the yardstick.

What it can show: that images, or their mirror images, are training images, and that a set as a whole lies nearer to its training people
than chance puts it. Nobody is named without one of the two. What it cannot show: that a set is safe. Sets that pass distance tests still
leak who was trained on (Yao et al. 2025, arXiv:2505.01524); an attack on the model stands beside it (ldm/authenticity/membership.py).

The work is in units, which any number of processes share. Those of a shard hang on its bytes alone: a set that grew is searched where it
is new.

Legend: M synthetic image, N held-out image, T training image, J nearest person, Q cell, D dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data_shards.errors import InputError
from data_shards.ledger import Units
from data_shards.reading.dataset import Dataset
from ldm.authenticity.audit_result import SpaceVerdicts
from ldm.authenticity.flagged import FlaggedImage
from ldm.authenticity.judged import Evidence
from ldm.authenticity.real_side import RealSide
from ldm.authenticity.space_figures import space_verdicts
from ldm.authenticity.units import Repeats
from ldm.authenticity.verdicts import RATE
from ldm.evaluation.measurements import beside, requested
from ldm.evaluation.sets import Images, ImagesOfPeople, Part, Watch, check_comparable

FORMAT = "retinaforge-audit-3"  # a new field of the result has a default, or the format another number
CAVEAT = (
    "Distances find copies that are near in the spaces searched, mirrored ones too. They do not show that no patient can be recognised: "
    "sets that pass them still leak who was trained on. Blurred images are nearer to everything: look at the pairs."
)


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """
    Attributes:
        train: the split the generator was trained on: what copies would be copies of.
        against: real splits of people held out, whose distances to the training images are the yardstick; empty: all but `train`.
        spaces: that are searched; ldm/authenticity/descriptors.py.
        rate: share of honest images that may lie below the threshold.
        limit: at most this many synthetic images, evenly spaced; None for all. The training set is always searched whole.
        closest: number of closest pairs, and of patients, to list.
        backend: of the search: 'faiss', 'torch' or 'auto'.
        memory_gib: what the search may hold of descriptors and distances; where the training set takes more it is read again and again.
        batch_size, device: of the pass over the images.
    """

    train: str = "train"
    against: tuple[str, ...] = ()
    spaces: tuple[str, ...] = ("pooled", "contrast")
    rate: float = RATE
    limit: int | None = None
    closest: int = 12
    backend: str = "auto"
    memory_gib: float = 4.0
    batch_size: int = 8
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """audit.json: what each space says of a synthetic set, beside real images of people held out.

    Attributes:
        train: images whose copies were looked for.
        held_out: real images of people not trained on, by split; empty: nobody was held out.
        caveat: what the audit cannot show.
        descriptors: verdicts by space.
    """

    format: str = FORMAT
    train: ImagesOfPeople
    synthetic: Images
    held_out: tuple[ImagesOfPeople, ...]
    config: AuditConfig
    caveat: str = CAVEAT
    descriptors: dict[str, SpaceVerdicts]


class Audit(RealSide):
    """An audit: phases of units, each made from what those before left; the last one's are finished by the result.

    Args:
        path: file for the result, beside which the units lie; None: they are kept in memory.
        learned, copies: folders of a trained feature encoder and of a copy-detection head, for the spaces of these names.

    Raises:
        InputError: sets that cannot be compared; an empty or unknown split or space; a person on both sides.
    """

    def __init__(
        self,
        real: Dataset,
        synthetic: Dataset,
        config: AuditConfig,
        path: Path | None = None,
        *,
        learned: Path | None = None,
        copies: Path | None = None,
    ) -> None:
        split, self.path = check_comparable(real, synthetic), path
        made_from = synthetic.manifest.source.get("sample", {}).get("dataset")
        if made_from not in (None, real.digest):
            raise InputError(
                f"made by models trained on dataset {made_from[:12]}",
                where=synthetic.path,
                expected=f"{real.digest[:12]}, that of {real.path}: copies are copies of the training set",
            )
        self.made = Part.of(synthetic, split, config.limit, independent=True)
        self.images = len(self.made.sample_N)
        if not self.images:
            raise InputError("an empty set", where=synthetic.path, expected="at least one image")
        limited = {"images": synthetic.count(split)} if config.limit else {}  # which images they are hangs on how many there are
        request = {"format": FORMAT, "real": real.digest, "config": requested(config), **limited}
        super().__init__(
            real, config, lambda names: beside(path, {**request, "spaces": names}), also=self.made, learned=learned, copies=copies
        )
        self.repeats = Repeats(self, self.out and self.out / "repeats")

    def phases(self) -> Iterator[tuple[str, Callable[[], Units]]]:
        """Title of each phase, and its units."""
        yield "descriptors", lambda: self.descriptors
        yield "settings", lambda: self.settings
        yield "search", lambda: self.search
        yield "repeats", lambda: self.repeats

    def evidence(self, name: str) -> Evidence:
        """All distances of one space."""
        search = self.search
        held, repeats = search.near([self.made], "held", name), self.repeats.near(name)
        cell = {key: [search.of(part, f"{name}.cell_N") for part in parts] for key, parts in (("made", [self.made]), ("held", self.held))}
        return Evidence(
            **vars(self.real_distances(name)),
            made=search.near([self.made], "train", name),
            made_held_M=held.distance_N,
            made_held_index_M=held.index_N,
            repeated=repeats,
            made_cell_M=np.concatenate(cell["made"]),
            held_cell_N=np.concatenate([np.empty(0, int), *cell["held"]]),
            rows=partial(self._rows, name),
            held_own_N=self._to_own(name),
        )

    def _to_own(self, name: str) -> np.ndarray:
        """Distance of each held-out image to the nearest other one of the same person; infinite where there is none."""
        rows, own_N = self.rows(self.held, name), np.full(len(self.held_people), np.inf)
        x_ND = np.empty((0, 1)) if rows is None else rows.read(0, len(rows))
        for who in np.unique(self.held_people):
            of_N = np.flatnonzero(self.held_people == who)
            between = np.linalg.norm(x_ND[of_N, None].astype(np.float64) - x_ND[None, of_N], axis=2)
            np.fill_diagonal(between, np.inf)
            own_N[of_N] = between.min(1)
        return own_N

    def _rows(self, name: str, places: np.ndarray) -> np.ndarray:
        ascending, back = np.unique(places, return_inverse=True)
        return self.settings.compared(name, self.descriptors.rows(self.made, ascending, name))[back]

    def result(self) -> tuple[AuditResult, list[FlaggedImage]]:
        """The judgement, and all images that it flags, of units that are all there."""
        judged = {name: space_verdicts(self, name) for name in self.of_space}
        result = AuditResult(
            train=self.train.described(),
            synthetic=self.made.described(),
            held_out=tuple(part.described() for part in self.held),
            config=self.config,
            descriptors={name: verdicts for name, (verdicts, _) in judged.items()},
        )
        return result, [image for _, flagged in judged.values() for image in flagged]


def audit(
    real: Dataset, synthetic: Dataset, config: AuditConfig, watch: Watch = iter, *, learned: Path | None = None, copies: Path | None = None
) -> AuditResult:
    """Search a set for copies, by this process alone.

    Raises:
        InputError: sets that cannot be compared; an empty or unknown split or space; a person on both sides. CorruptData: damaged shards.
    """
    result = None
    for _, units in Audit(real, synthetic, config, learned=learned, copies=copies).phases():
        result = units().complete(watch)
    return result
