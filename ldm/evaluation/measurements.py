"""Measurements in units: what each shard of images leaves, merged in the order of the shards, whoever made them.

Legend: N image, B batch, D feature.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from data_shards import durable
from data_shards.errors import CorruptData, command
from data_shards.ledger import LEASE, Units
from data_shards.reading.batch import Batch
from data_shards.reading.dataset import Dataset
from data_shards.reading.stream import CubeStream
from ldm.evaluation.sets import Part
from ldm.generation.decode import DecodedStream, stream_of

Arrays = dict[str, np.ndarray]
Result = TypeVar("Result")


class Measurements(Units):
    """Units that leave arrays.

    Args:
        makers: of each unit, by its name, what gives its arrays. They must not depend on who makes it, nor when.
        out: the folder in which they are published, NAME.safetensors, the first writer's; None: kept in memory, for one process.
    """

    def __init__(self, makers: Mapping[str, Callable[[], Arrays]], out: Path | None) -> None:
        self.makers, self.out, self.names = dict(makers), out, list(makers)
        self._kept: dict[str, Arrays] = {}

    def add(self, makers: Mapping[str, Callable[[], Arrays]]) -> None:
        """Further units."""
        self.makers |= makers
        self.names += makers

    def __enter__(self) -> Measurements:
        if self.out is not None:
            with durable.explained(self.out):
                durable.make_folder(self.out)
        return self

    def published(self, number: int) -> bool:
        """Whether a unit is there."""
        return self.names[number] in self._kept or (self.out is not None and self.path_of(self.names[number]).exists())

    def make(self, number: int) -> None:
        """Make a unit and publish it."""
        name = self.names[number]
        arrays = {key: np.ascontiguousarray(array) for key, array in self.makers[name]().items()}
        if self.out is None:
            self._kept[name] = arrays
        else:
            durable.write_bytes(self.path_of(name), save(arrays), keep_first=True)

    def arrays(self, name: str) -> Arrays:
        """What a unit left.

        Raises:
            CorruptData: its file was damaged since.
        """
        if self.out is None:
            return self._kept[name]
        try:
            return load(self.path_of(name).read_bytes())
        except SafetensorError as error:
            raise CorruptData(
                f"damaged: {error}",
                where=self.path_of(name),
                expected="what was written there",
                mend=f"{command('rm', self.path_of(name))}, then the same command again: it measures that shard anew",
            ) from error

    def path_of(self, name: str) -> Path:
        """Of a unit's file."""
        return self.out / f"{name}.safetensors"


def requested(config: Any) -> dict[str, Any]:
    """A configuration as a request states it: of several GPUs whichever, for their processes share the units."""
    return {**asdict(config), "device": config.device.partition(":")[0]}


def beside(result: Path | None, request: Any) -> Path | None:
    """Where the units of a result stand: RESULT.units-1a2b3c4d, so that those of another request are not taken for its own."""
    if result is None:
        return None
    return result.with_name(f"{result.stem}.units-{hashlib.sha256(durable.canonical_json(request)).hexdigest()[:8]}")


def written(path: Path | None, result: Result, units: Path | None) -> Result:
    """The result, a dataclass, published where it has a place; units of earlier requests go."""
    if path and units:
        durable.write_json(path, asdict(result))
        earlier = re.compile(rf"{re.escape(path.stem)}\.units-[0-9a-f]{{8}}")
        for other in units.parent.iterdir():
            if earlier.fullmatch(other.name) and other != units and not any(other.rglob(f"{LEASE}*")):  # nobody works there
                shutil.rmtree(other, ignore_errors=True)
    return result


@dataclass(frozen=True, kw_only=True)
class Piece:
    """The images of one shard that some parts hold."""

    dataset: Dataset
    split: str
    shard: str
    sha256: str
    sample_N: np.ndarray
    independent: bool
    streams: dict[tuple[str, str], CubeStream | DecodedStream] = field(repr=False)

    @property
    def name(self) -> str:
        """Of the unit; two sets may have shards of one name. A synthetic set may grow: its shards stay what they were."""
        of = f"made-{self.sha256[:8]}" if self.independent else self.dataset.digest[:8]
        return f"{of}-{Path(self.shard).stem}"

    def holds(self, part: Part) -> bool:
        """Some of the images of a part."""
        same = (self.dataset.digest, self.split) == (part.dataset.digest, part.split)
        return same and bool(np.isin(self.sample_N, part.sample_N).any())

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """The images with their maps, in order; the next are read meanwhile."""
        key = self.dataset.digest, self.split
        if key not in self.streams:
            self.streams[key] = stream_of(self.dataset, self.split, batch_size=batch_size)
        for batch in self.streams[key].each(self.sample_N):  # of codes more at a time than are asked for
            yield from (batch.part(slice(a, a + batch_size)) for a in range(0, len(batch.keys), batch_size))


class ImageMeasurements(Measurements):
    """Measurements of all images of some parts, a unit a shard. An image that stands in several parts is read once."""

    def __init__(self, parts: Sequence[Part], out: Path | None) -> None:
        self.pieces = {piece.name: piece for piece in by_shard(parts)}
        super().__init__({name: partial(self.measured, piece) for name, piece in self.pieces.items()}, out)

    def size(self, number: int) -> int:
        piece = self.pieces.get(self.names[number])
        return 1 if piece is None else len(piece.sample_N)

    @abstractmethod
    def measured(self, piece: Piece) -> Arrays:
        """What the images of a shard leave; arrays by image have them along the first axis."""

    def of(self, part: Part, key: str) -> np.ndarray:
        """An array by image, of all images of a part."""
        pieces = self.pieces_of(part)
        return np.concatenate([self.arrays(piece.name)[key][np.isin(piece.sample_N, part.sample_N)] for piece in pieces])

    def pieces_of(self, part: Part) -> list[Piece]:
        """Those that hold images of a part."""
        return [piece for piece in self.pieces.values() if piece.holds(part)]


def by_shard(parts: Iterable[Part]) -> Iterator[Piece]:
    """The images of all parts, each once, shard by shard."""
    wanted: dict[tuple[str, str], list[Part]] = {}
    for part in parts:
        wanted.setdefault((part.dataset.digest, part.split), []).append(part)
    streams: dict[tuple[str, str], CubeStream | DecodedStream] = {}
    for (_, split), of_split in wanted.items():
        dataset, first = of_split[0].dataset, 0
        sample_N = np.unique(np.concatenate([part.sample_N for part in of_split]))
        for entry in dataset.manifest.shards:
            if entry.split == split:
                here_N = sample_N[(sample_N >= first) & (sample_N < first + entry.count)]
                if len(here_N):
                    yield Piece(
                        dataset=dataset,
                        split=split,
                        shard=entry.name,
                        sha256=entry.sha256,
                        sample_N=here_N,
                        independent=of_split[0].independent,
                        streams=streams,
                    )
                first += entry.count
