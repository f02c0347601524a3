"""Search a synthetic set for copies of its training images, with the distances between real people as the yardstick.

What it can show: that images, or their mirror images, are training images, and that a set as a whole lies nearer to its training people
than chance puts it. Nobody is named without one of the two. What it cannot show: that a set is safe. Sets that pass distance tests still
leak who was trained on (Yao et al. 2025, arXiv:2505.01524); an attack on the model stands beside it (ldm/authenticity/membership.py).

The work is in units, which any number of processes share. Those of a shard hang on its bytes alone: a set that grew is searched where it
is new.

Legend: M synthetic image, N held-out image, T training image, J nearest person, Q cell, D dimension.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
import torch

from data_shards.errors import InputError, nearest
from data_shards.ledger import Units
from data_shards.reading.dataset import Dataset
from ldm.authenticity.audit_result import SpaceVerdicts
from ldm.authenticity.descriptors import Space, Views, spaces
from ldm.authenticity.judged import Evidence
from ldm.authenticity.near import Near, near
from ldm.authenticity.space_figures import space_verdicts
from ldm.authenticity.verdicts import LEAST_IN_CELL, RATE
from ldm.comm import Alone
from ldm.evaluation.measurements import Arrays, ImageMeasurements, Measurements, Piece, beside, requested, written
from ldm.evaluation.sets import Images, ImagesOfPeople, Part, Watch, check_comparable, common_fov, evenly, reflectance
from ldm.evaluation.whitening import Whitening, whitening
from ldm.kmeans.lloyd import kmeans

FORMAT = "retinaforge-audit-3"  # a new field of the result has a default, or the format another number
CAVEAT = (
    "Distances find copies that are near in the spaces searched, mirrored ones too. They do not show that no patient can be recognised: "
    "sets that pass them still leak who was trained on. Blurred images are nearer to everything: look at the pairs."
)
GROUP = 16384  # images of the set that are compared with one another in a unit
SETTLED_BY = 4096  # training images at most, evenly spaced, for whitening and cells
MOST_CELLS = 20


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
        batch_size, device: of the pass over the images.
    """

    train: str = "train"
    against: tuple[str, ...] = ()
    spaces: tuple[str, ...] = ("pooled", "contrast")
    rate: float = RATE
    limit: int | None = None
    closest: int = 12
    backend: str = "auto"
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


class Descriptors(ImageMeasurements):
    """Descriptors of every image of some parts, and of its mirror image, in units. Only pixels that every set shows count."""

    def __init__(
        self, real: Dataset, made: Part, parts: Sequence[Part], of: dict[str, Space], config: AuditConfig, out: Path | None
    ) -> None:
        self.of_space, self.config = of, config
        fov_HW = common_fov(real, config.train) & common_fov(made.dataset, made.split)
        self.fov_HW = fov_HW & fov_HW[:, ::-1]  # a mirrored copy is one within a field of view that is its own mirror image
        super().__init__(parts, out)

    def measured(self, piece: Piece) -> Arrays:
        found: dict[str, list[np.ndarray]] = {f"{name}.{view}": [] for name in self.of_space for view in VIEWS}
        for batch in piece.batches(self.config.batch_size):
            x_BCHW = reflectance(piece.dataset, batch.cubes_BCHW, self.config.device, self.fov_HW)
            for name, space in self.of_space.items():
                for view, x_BD in zip(VIEWS, space.views(x_BCHW), strict=True):
                    found[f"{name}.{view}"].append(x_BD)
        return {name: np.concatenate(of_batches) for name, of_batches in found.items()}

    def views(self, piece: Piece, name: str) -> Views:
        """Of all images of a shard."""
        arrays = self.arrays(piece.name)
        return arrays[f"{name}.{VIEWS[0]}"], arrays[f"{name}.{VIEWS[1]}"]

    def rows(self, part: Part, places: np.ndarray, key: str) -> np.ndarray:
        """An array of some images, by their ascending places in a part."""
        wanted_N, found = part.sample_N[places], []
        for piece in self.pieces_of(part):
            here_N = np.isin(piece.sample_N, wanted_N)
            if here_N.any():
                found.append(self.arrays(piece.name)[key][here_N])
        return np.concatenate(found)


VIEWS = ("plain", "mirrored")


class Settings(Measurements):
    """What is settled of each space before anything is searched: its units of distance, and cells of the training set; a unit a space."""

    def __init__(self, descriptors: Descriptors, train: Part, cells: int, out: Path | None) -> None:
        self.descriptors, self.train, self.cells = descriptors, train, cells
        super().__init__({f"settings-{number}": partial(self.settled, name) for number, name in enumerate(descriptors.of_space)}, out)
        self._of: dict[str, tuple[Whitening | None, np.ndarray]] = {}

    def settled(self, name: str) -> Arrays:
        places = evenly(len(self.train.sample_N), SETTLED_BY)
        x_TD, arrays = self.descriptors.rows(self.train, places, f"{name}.{VIEWS[0]}").astype(np.float64), {}
        white = whitening(x_TD) if self.descriptors.of_space[name].whitened else None
        if white is not None:
            arrays, x_TD = {"mean_D": white.mean_D, "weight_DD": white.weight_DD}, white(x_TD)
        cells = min(self.cells, len(np.unique(x_TD, axis=0)))
        found = kmeans(torch.from_numpy(x_TD), np.arange(len(x_TD)), k=cells, comm=Alone(), seed=0)
        return arrays | {"centre_QD": found.codes_KD.numpy()}

    def compared(self, name: str, x_ND: np.ndarray) -> np.ndarray:
        """Descriptors in the units in which distances are taken."""
        arrays = self._arrays(name)
        return (x_ND - arrays["mean_D"]) @ arrays["weight_DD"] if "mean_D" in arrays else x_ND

    def cell_N(self, name: str, compared_ND: np.ndarray) -> np.ndarray:
        """The cell of the training set that each image lies in."""
        centre_QD = self._arrays(name)["centre_QD"].astype(np.float64)
        return (
            ((compared_ND[:, None].astype(np.float64) - centre_QD) ** 2).sum(2).argmin(1)
            if len(centre_QD) > 1
            else np.zeros(len(compared_ND), int)
        )

    def _arrays(self, name: str) -> Arrays:
        if name not in self._of:
            self._of[name] = self.arrays(self.names[list(self.descriptors.of_space).index(name)])
        return self._of[name]


class Search(ImageMeasurements):
    """The nearest images of each shard's, in every space: training images, and of synthetic ones also people held out."""

    def __init__(self, audit: Audit, out: Path | None) -> None:
        self.audit = audit
        self._references: dict[tuple[str, str], np.ndarray] = {}
        super().__init__(audit.parts, out)

    def measured(self, piece: Piece) -> Arrays:
        audit, arrays = self.audit, {}
        for name in audit.of_space:
            views = tuple(audit.settings.compared(name, x_ND) for x_ND in audit.descriptors.views(piece, name))
            own_N = None if piece.independent else audit.numbers_of(np.array(piece.dataset.subjects(piece.split))[piece.sample_N])
            found = near(views, self.reference("train", name), audit.numbers_of(audit.train_people), audit.config.backend, own_N=own_N)
            arrays |= {f"{name}.train.{key}": array for key, array in asdict(found).items()}
            arrays[f"{name}.cell_N"] = audit.settings.cell_N(name, views[0])
            if piece.independent:
                found = near(views, self.reference("held", name), audit.numbers_of(audit.held_people), audit.config.backend, k=1)
                arrays |= {f"{name}.held.{key}": array for key, array in asdict(found).items()}
        return arrays

    def reference(self, what: str, name: str) -> np.ndarray:
        """All images that are searched in."""
        if (what, name) not in self._references:
            parts = [self.audit.train] if what == "train" else self.audit.held
            found = [self.audit.descriptors.of(part, f"{name}.{VIEWS[0]}") for part in parts]
            x_ND = np.concatenate(found) if found else np.empty((0, self.audit.of_space[name].dimension), np.float32)
            self._references[what, name] = self.audit.settings.compared(name, x_ND)
        return self._references[what, name]

    def near(self, parts: Sequence[Part], what: str, name: str) -> Near:
        """What was found for the images of some parts."""
        empty = near((np.empty((0, 1)), np.empty((0, 1))), np.empty((0, 1)), np.empty(0, int), "torch")
        return Near(
            **{
                field.name: np.concatenate([getattr(empty, field.name), *(self.of(part, f"{name}.{what}.{field.name}") for part in parts)])
                for field in fields(Near)
            }
        )


class Repeats(Measurements):
    """Of each synthetic image the nearest other one of the set: a unit for two groups of images, so that of a set that grew only the pairs
    with a new image are searched. They come last, and are finished by the result of all."""

    def __init__(self, audit: Audit, out: Path | None) -> None:
        self.audit = audit
        self.groups = [np.arange(start, min(start + GROUP, audit.images)) for start in range(0, audit.images, GROUP)]
        content = [self._content(group) for group in self.groups]
        pairs = [(a, b) for b in range(len(self.groups)) for a in range(b + 1)]
        self.pairs = {f"repeats-{content[a]}-{content[b]}": (a, b) for a, b in pairs}
        super().__init__({name: partial(self.searched, *pair) for name, pair in self.pairs.items()}, out)

    def _content(self, group: np.ndarray) -> str:
        made = self.audit.made
        shards = [
            f"{piece.sha256} {piece.sample_N.tolist()}"
            for piece in self.audit.descriptors.pieces_of(made)
            if np.isin(piece.sample_N, made.sample_N[group]).any()
        ]
        return hashlib.sha256("\n".join([str(group[0]), str(len(group)), *shards]).encode()).hexdigest()[:12]

    def size(self, number: int) -> int:
        a, b = self.pairs[self.names[number]]
        return len(self.groups[b]) if a == b else 0

    def searched(self, a: int, b: int) -> Arrays:
        arrays: Arrays = {}
        for name in self.audit.of_space:
            for query, reference in {(a, b), (b, a)}:
                views = tuple(self._compared(name, query, view) for view in VIEWS)
                itself_N = self.groups[query] if a == b else None
                found = near(
                    views, self._compared(name, reference, VIEWS[0]), self.groups[reference], self.audit.config.backend, own_N=itself_N, k=1
                )
                index_N = np.where(found.index_N >= 0, found.index_N + self.groups[reference][0], -1)
                arrays |= {
                    f"{name}.{query}.{key}": x
                    for key, x in {**asdict(found), "distance_NJ": found.distance_NJ[:, :1], "index_N": index_N}.items()
                }
        return arrays

    def _compared(self, name: str, group: int, view: str) -> np.ndarray:
        audit = self.audit
        return audit.settings.compared(name, audit.descriptors.rows(audit.made, self.groups[group], f"{name}.{view}"))

    def finish(self) -> AuditResult:
        return written(self.audit.path, self.audit.result(), self.audit.out)

    def near(self, name: str) -> Near:
        """Of the whole set."""
        found: list[list[np.ndarray]] = [[], [], []]
        for group in range(len(self.groups)):
            with_others = [self.arrays(unit) for unit, pair in self.pairs.items() if group in pair]
            distance_NG, index_NG, mirrored_NG = (
                np.stack([arrays[f"{name}.{group}.{key}"].reshape(len(self.groups[group])) for arrays in with_others], axis=1)
                for key in ("distance_NJ", "index_N", "mirrored_N")
            )
            best_N1 = np.lexsort((index_NG, distance_NG), axis=1)[:, :1]
            for all_of, x_NG in zip(found, (distance_NG, index_NG, mirrored_NG), strict=True):
                all_of.append(np.take_along_axis(x_NG, best_N1, 1)[:, 0])
        distance_N, index_N, mirrored_N = map(np.concatenate, found)
        return Near(distance_NJ=distance_N[:, None], index_N=index_N, mirrored_N=mirrored_N)


class Audit:
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
        split, self.config, self.path = check_comparable(real, synthetic), config, path
        made_from = synthetic.manifest.source.get("sample", {}).get("dataset")
        if made_from not in (None, real.digest):
            raise InputError(
                f"made by models trained on dataset {made_from[:12]}",
                where=synthetic.path,
                expected=f"{real.digest[:12]}, that of {real.path}: copies are copies of the training set",
            )
        if not 0 < config.rate < 1:
            raise InputError(f"a false rate of {config.rate:g}", expected="a share between 0 and 1, such as 0.01")
        for name in (config.train, *config.against):
            if name not in real.splits:
                raise InputError(f"unknown split {name!r}", where=real.path, expected=nearest(name, real.splits))
        if config.train in config.against:
            raise InputError(
                f"split {config.train!r} is both trained on and held out", where=real.path, expected="people held out of training"
            )
        held = config.against or tuple(name for name, info in real.splits.items() if info.count and name != config.train)
        self.train, self.held = Part.of(real, config.train), [Part.of(real, name) for name in held]
        self.made = Part.of(synthetic, split, config.limit, independent=True)
        self.images, self.parts = len(self.made.sample_N), [self.train, *self.held, self.made]
        if not self.images:
            raise InputError("an empty set", where=synthetic.path, expected="at least one image")
        self.of_space = spaces(config.spaces, real, learned=learned, copies=copies, device=config.device)
        self.train_people, self.held_people = (
            np.array([who for part in parts for who in part.units()]) for parts in ([self.train], self.held)
        )
        self.people = np.unique(np.concatenate([self.train_people, self.held_people.astype(self.train_people.dtype)]))
        if both := sorted(set(self.train_people) & set(self.held_people)):
            raise InputError(
                f"{len(both)} people are in split {config.train!r} and held out, such as {both[0]}",
                where=real.path,
                expected="people who are on one side alone, or the yardstick is as near as a copy",
                mend="retinaforge data pack FOLDER DATASET --splits train=0.7,val=0.2,test=0.1, which splits by person",
            )
        limited = {"images": synthetic.count(split)} if config.limit else {}  # which images they are hangs on how many there are
        request = {
            "format": FORMAT,
            "real": real.digest,
            "config": requested(config),
            "spaces": [space.name for space in self.of_space.values()],
        }
        self.out = beside(path, request | limited)
        self.descriptors = Descriptors(real, self.made, self.parts, self.of_space, config, self.out and self.out / "descriptors")
        few = min(len(self.held_people), self.images)
        self.settings = Settings(
            self.descriptors, self.train, max(1, min(MOST_CELLS, few // (2 * LEAST_IN_CELL))), self.out and self.out / "settings"
        )
        self.search = Search(self, self.out and self.out / "search")
        self.repeats = Repeats(self, self.out and self.out / "repeats")

    def numbers_of(self, names: np.ndarray) -> np.ndarray:
        """Numbers of people."""
        return np.searchsorted(self.people, names)

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
            made=search.near([self.made], "train", name),
            held=search.near(self.held, "train", name),
            held_person_N=self.numbers_of(self.held_people),
            train=search.near([self.train], "train", name),
            train_person_T=self.numbers_of(self.train_people),
            made_held_M=held.distance_N,
            made_held_index_M=held.index_N,
            repeated=repeats,
            made_cell_M=np.concatenate(cell["made"]),
            held_cell_N=np.concatenate([np.empty(0, int), *cell["held"]]),
            rows=partial(self._rows, name),
        )

    def _rows(self, name: str, places: np.ndarray) -> np.ndarray:
        ascending, back = np.unique(places, return_inverse=True)
        return self.settings.compared(name, self.descriptors.rows(self.made, ascending, f"{name}.{VIEWS[0]}"))[back]

    def result(self) -> AuditResult:
        """The judgement, of units that are all there."""
        return AuditResult(
            train=self.train.described(),
            synthetic=self.made.described(),
            held_out=tuple(part.described() for part in self.held),
            config=self.config,
            descriptors={name: space_verdicts(self, name) for name in self.of_space},
        )


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
