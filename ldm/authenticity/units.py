"""The units of an audit: descriptors of every image, what is settled of each space, and what is searched.

Legend: N query, M synthetic image, T training image, J nearest person, Q cell, D dimension.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from data_shards.errors import InputError, TryAgain
from data_shards.manifest import read_manifest
from data_shards.reading.dataset import Dataset
from ldm.authenticity.descriptors import Space, Views
from ldm.authenticity.flagged import write_flagged
from ldm.authenticity.near import Near, near
from ldm.comm import Alone
from ldm.evaluation.measurements import Arrays, ImageMeasurements, Measurements, Piece, written
from ldm.evaluation.sets import Part, common_fov, evenly, reflectance
from ldm.kmeans.lloyd import kmeans
from ldm.search import ArrayRows, FileRows, JoinedRows, Rows, Search
from ldm.search.exact import LEAST_GIB

if TYPE_CHECKING:
    from ldm.authenticity.audit import Audit, AuditConfig, AuditResult
    from ldm.authenticity.real_side import RealSide

GROUP = 16384  # images of the set that are compared with one another in a unit
SETTLED_BY = 4096  # training images at most, evenly spaced, for units of distance and cells
VIEWS = ("plain", "mirrored")


class Descriptors(ImageMeasurements):
    """Descriptors of every image of some parts, and of its mirror image, in units. Only pixels that every set shows count.

    Spaces of one source share them.
    """

    def __init__(
        self, real: Dataset, made: Part | None, parts: Sequence[Part], of: dict[str, Space], config: AuditConfig, out: Path | None
    ) -> None:
        self.of_space, self.config = of, config
        fov_HW = common_fov(real, config.train)
        if made is not None:
            fov_HW &= common_fov(made.dataset, made.split)
        self.fov_HW = fov_HW & fov_HW[:, ::-1]  # a mirrored copy is one within a field of view that is its own mirror image
        super().__init__(parts, out)

    def measured(self, piece: Piece) -> Arrays:
        by_source = {space.source: space for space in self.of_space.values()}
        found: dict[str, list[np.ndarray]] = {f"{source}.{view}": [] for source in by_source for view in VIEWS}
        for batch in piece.batches(self.config.batch_size):
            x_BCHW = reflectance(piece.dataset, batch.cubes_BCHW, self.config.device, self.fov_HW)
            for source, space in by_source.items():
                for view, x_BD in zip(VIEWS, space.views(x_BCHW), strict=True):
                    check_finite(x_BD, space, batch.keys, piece)
                    found[f"{source}.{view}"].append(x_BD)
        return {name: np.concatenate(of_batches) for name, of_batches in found.items()}

    def key(self, name: str, view: str = VIEWS[0]) -> str:
        """Of the array that a space's descriptors stand in."""
        return f"{self.of_space[name].source}.{view}"

    def views(self, piece: Piece, name: str) -> Views:
        """Of all images of a shard."""
        arrays = self.arrays(piece.name)
        return arrays[self.key(name)], arrays[self.key(name, VIEWS[1])]

    def streamed(self, parts: Sequence[Part], name: str) -> Rows | None:
        """Descriptors of all images of some parts, which hold whole shards, read from the units as they are asked for; None of no image."""
        pieces = [piece for part in parts for piece in self.pieces_of(part)]
        if self.out is None:
            sources = [ArrayRows(self.arrays(piece.name)[self.key(name)]) for piece in pieces]
        else:
            sources = [FileRows(self.path_of(piece.name), self.key(name)) for piece in pieces]
        return JoinedRows(sources) if sources else None

    def rows(self, part: Part, places: np.ndarray, name: str, view: str = VIEWS[0]) -> np.ndarray:
        """Descriptors of some images, by their ascending places in a part."""
        wanted_N, found = part.sample_N[places], []
        for piece in self.pieces_of(part):
            here_N = np.isin(piece.sample_N, wanted_N)
            if here_N.any():
                found.append(self.arrays(piece.name)[self.key(name, view)][here_N])
        return np.concatenate(found)


def check_finite(x_BD: np.ndarray, space: Space, keys: Sequence[str], piece: Piece) -> None:
    """Raises: InputError: descriptors with NaN or infinite values; it names the image."""
    bad_B = ~np.isfinite(x_BD).all(1)
    if bad_B.any():
        raise InputError(
            f"image {keys[int(bad_B.argmax())]} has no finite descriptor in {space.name}",
            where=piece.dataset.path / piece.shard,
            expected="finite numbers",
            mend="remove the image, or search another space (--space)",
        )


class Settings(Measurements):
    """What is settled of each space before anything is searched: its units of distance, and cells of the training set; a unit a space."""

    def __init__(self, descriptors: Descriptors, train: Part, cells: int, out: Path | None) -> None:
        self.descriptors, self.train, self.cells = descriptors, train, cells
        super().__init__({f"settings-{number}": partial(self.settled, name) for number, name in enumerate(descriptors.of_space)}, out)
        self._of: dict[str, Arrays] = {}

    def settled(self, name: str) -> Arrays:
        places = evenly(len(self.train.sample_N), SETTLED_BY)
        x_TD, arrays = self.descriptors.rows(self.train, places, name).astype(np.float64), {}
        if units := self.descriptors.of_space[name].units:
            found = units(x_TD, np.array(self.train.units())[places])
            arrays = {} if found is None else {"mean_D": found.mean_D, "weight_DD": found.weight_DD}
            x_TD = self._in_units(name, x_TD, arrays)
        cells = min(self.cells, len(np.unique(x_TD, axis=0)))
        found = kmeans(torch.from_numpy(x_TD), np.arange(len(x_TD)), k=cells, comm=Alone(), seed=0)
        return arrays | {"centre_QD": found.codes_KD.numpy()}

    def compared(self, name: str, x_ND: np.ndarray) -> np.ndarray:
        """Descriptors in the units in which distances are taken."""
        return self._in_units(name, x_ND, self._arrays(name))

    def _in_units(self, name: str, x_ND: np.ndarray, arrays: Arrays) -> np.ndarray:
        if "mean_D" not in arrays:
            return x_ND
        x_ND = (x_ND - arrays["mean_D"]) @ arrays["weight_DD"]
        return x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True).clip(1e-12) if self.descriptors.of_space[name].directions else x_ND

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


class ComparedRows(Rows):
    """Descriptors of a space in the units in which distances are taken, converted as they are read."""

    def __init__(self, rows: Rows, settings: Settings, name: str) -> None:
        self.rows, self.settings, self.name = rows, settings, name
        first_1D = settings.compared(name, rows.read(0, 1))
        self.dimension, self.dtype = first_1D.shape[1], first_1D.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.settings.compared(self.name, self.rows.read(start, stop))


class Neighbourhoods(ImageMeasurements):
    """The nearest images of each shard's, in every space: training images, and of synthetic ones also people held out."""

    def __init__(self, audit: RealSide, out: Path | None) -> None:
        self.audit = audit
        self._searches: dict[tuple[str, str], Search | None] = {}
        super().__init__(audit.parts, out)

    def measured(self, piece: Piece) -> Arrays:
        audit, arrays = self.audit, {}
        for name in audit.of_space:
            views = tuple(audit.settings.compared(name, x_ND) for x_ND in audit.descriptors.views(piece, name))
            own_N = None if piece.independent else audit.numbers_of(np.array(piece.dataset.subjects(piece.split))[piece.sample_N])
            found = near(views, self.search("train", name), audit.numbers_of(audit.train_people), own_N=own_N)
            arrays |= {f"{name}.train.{key}": array for key, array in asdict(found).items()}
            arrays[f"{name}.cell_N"] = audit.settings.cell_N(name, views[0])
            if piece.independent:
                found = near(views, self.search("held", name), audit.numbers_of(audit.held_people), k=1)
                arrays |= {f"{name}.held.{key}": array for key, array in asdict(found).items()}
        return arrays

    def search(self, what: str, name: str) -> Search | None:
        """Of all training images, or of all people held out; None of none."""
        if (what, name) not in self._searches:
            parts, config = [self.audit.train] if what == "train" else self.audit.held, self.audit.config
            rows = self.audit.rows(parts, name)
            # what is asked by turns shares the memory
            share = config.memory_gib / (2 * len(self.audit.of_space))
            how = {"backend": config.backend, "device": config.device, "memory_gib": max(share, LEAST_GIB)}
            self._searches[what, name] = None if rows is None else Search(rows, **how)
        return self._searches[what, name]

    def near(self, parts: Sequence[Part], what: str, name: str) -> Near:
        """What was found for the images of some parts."""
        empty = near((np.empty((0, 1)), np.empty((0, 1))), np.empty((0, 1)), np.empty(0, int))
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
                found = near(views, self._search(name, reference), self.groups[reference], own_N=itself_N, k=1)
                index_N = np.where(found.index_N >= 0, found.index_N + self.groups[reference][0], -1)
                arrays |= {
                    f"{name}.{query}.{key}": x
                    for key, x in {**asdict(found), "distance_NJ": found.distance_NJ[:, :1], "index_N": index_N}.items()
                }
        return arrays

    def _search(self, name: str, group: int) -> Search:
        config = self.audit.config
        how = {"backend": config.backend, "device": config.device, "memory_gib": config.memory_gib}
        return Search(self._compared(name, group, VIEWS[0]), **how)

    def _compared(self, name: str, group: int, view: str) -> np.ndarray:
        audit = self.audit
        return audit.settings.compared(name, audit.descriptors.rows(audit.made, self.groups[group], name, view))

    def finish(self) -> AuditResult:
        for dataset in (self.audit.train.dataset, self.audit.made.dataset):
            if read_manifest(dataset.path).digest != dataset.digest:
                raise TryAgain(
                    "the set changed while it was searched", where=dataset.path, mend="the same command again searches what is new"
                )
        result, flagged = self.audit.result()
        if self.audit.path:
            write_flagged(self.audit.path, flagged)
        return written(self.audit.path, result, self.audit.out)

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
