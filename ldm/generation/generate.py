"""Bulk generation into shards. Shard k holds images [k·n, (k+1)·n), whoever writes it; image i is a function of (seed, i).

A shard is published first-writer-wins, so any number of processes, restarted at any time, make the same set once. A set may grow: a larger
count makes the missing shards. The last shard of a set that fills none has a name of its own, synthetic-000001.first2.tar, so that the
whole one, made later, takes nothing from those who read the smaller set.
Legend: B batch, C band, H W pixels, D latent channel.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_shards import durable
from data_shards.errors import CorruptData, InputError, moved_aside
from data_shards.ledger import Units
from data_shards.manifest import NAME, Manifest, read_manifest, write_manifest
from data_shards.packing.units import Unit, merged, read_unit, write_unit
from data_shards.reading.reader import Shard
from data_shards.shards.index import index_path, open_index
from ldm.generation.images import EARLIER, Generator

if TYPE_CHECKING:
    from typing_extensions import Self

SPLIT = "synthetic"
REQUEST = "request.json"
BEFORE = {"noise": EARLIER, "gate": None}  # of sets that do not state it
PATIENCE_S = 60.0  # to wait for another task that writes the manifest


class SyntheticSet(Units):
    """A set in units: its shards, of which any number of processes make those that are not there. `finish` writes dataset.json over them.

    Args:
        generator: of its images. So many at a time, up to its `batch`, as leave the fewest places empty; each shard states it. A set that
            an earlier version began goes on with the noise and gate of that version.
        out: folder of the set.
        count, shard: images of the set, and of a shard.

    Raises:
        InputError: counts out of range; `out` holds a set of another request, or a larger one.
    """

    def __init__(self, generator: Generator, out: Path, *, count: int, shard: int) -> None:
        if min(count, shard) < 1:
            raise InputError(f"count {count}, shard {shard}", expected="at least 1 of each")
        self.out, self.count, self.shard = out, count, shard
        self.request, self.batch_before = _agreed(out, request_for(generator, shard))
        self.generator = replace(
            generator,
            batch=evenly_filled(generator.batch, shard),
            noise=self.request["noise"],
            gate=generator.gate if self.request["gate"] else None,
        )
        self.done = _standing(out, count)
        self.paths = [] if self.done else [out / shard_name(number, shard, count) for number in range(-(-count // shard))]
        self.names = [path.stem for path in self.paths]
        _check_whole(self.paths, shard, count)  # before hours of work, and once more of what others left meanwhile

    def __enter__(self) -> Self:
        """Write down what is asked for; the first does, and all others must ask for images of the same kind."""
        with durable.explained(self.out / REQUEST):
            durable.write_bytes(self.out / REQUEST, durable.canonical_json(self.request), keep_first=True)
        _agreed(self.out, self.request)
        return self

    def published(self, number: int) -> bool:
        """Whether a shard is there, with what it leaves for the manifest."""
        return read_unit(self.paths[number]) is not None

    def make(self, number: int) -> None:
        """Make a shard, or complete what a killed process left of it."""
        ids = np.arange(number * self.shard, min((number + 1) * self.shard, self.count))
        write_unit(self.paths[number], SPLIT, self.generator.images(ids))

    def size(self, number: int) -> int:
        return min(self.shard, self.count - number * self.shard)

    def finish(self) -> Manifest:
        """Write dataset.json over the shards, which are all there.

        Raises:
            InputError: who was asked for more images has finished a larger set meanwhile.
        """
        if self.done:
            return self.done
        _check_whole(self.paths, self.shard, self.count)
        units = [read_unit(path) for path in self.paths]
        assert all(units), "a shard is missing"
        batches = sorted({_batch(self.out, unit, self.batch_before) for unit in units})
        refused = sum((Counter(unit.refused) for unit in units), Counter())
        made_in = {"batch": batches[0] if len(batches) == 1 else batches, "refused": dict(sorted(refused.items()))}
        source = {"sample": {"count": self.count, **self.request, **made_in}}
        manifest = merged(units, [SPLIT], source)
        with durable.claimed(self.out / ".finishing", "finishing a set", patience_s=PATIENCE_S):  # nobody writes between look and write
            if done := _standing(self.out, self.count):
                return done
            write_manifest(self.out, manifest)
        durable.sweep_published(self.out)
        return manifest


def request_for(generator: Generator, shard: int) -> dict[str, Any]:
    """What decides what a shard holds."""
    autoencoder, denoiser, sampler = generator.autoencoder, generator.denoiser, generator.sampler
    return {
        "shard": shard,
        "seed": generator.seed,
        "sampler": sampler.name,
        "steps": sampler.steps,
        "quantise": generator.quantise,
        "noise": generator.noise,
        "gate": generator.gate and generator.gate.bounds,
        "dataset": autoencoder.data["digest"],
        "autoencoder": autoencoder.digest,
        "denoiser": denoiser.digest,
    }


def evenly_filled(batch: int, shard: int) -> int:
    """The largest batch, up to the one asked for, that fills a shard with the fewest empty places."""
    return -(-shard // -(-shard // batch))


def generate_set(
    generator: Generator, out: Path, *, count: int, shard: int, watch: Callable[[Iterable[int]], Iterable[int]] = iter
) -> Manifest:
    """A whole set by this process alone; as SyntheticSet otherwise."""
    return SyntheticSet(generator, out, count=count, shard=shard).complete(watch)


def _batch(out: Path, unit: Unit, before: int | None) -> int | None:
    """The batch that a shard states; of a set that was begun when it was part of the request, that one."""
    notes = unit.notes
    if notes is None:  # an earlier version's record, which leaves them to the shard
        notes = json.loads(Shard(out, unit.entry).named(0, "json")).get("notes", {})
    return notes.get("batch", before)


def shard_name(number: int, shard: int, count: int) -> str:
    """Name of a shard of a set: `.first3` where it holds only the first three of its images, for the set ends there."""
    images_here = min(shard, count - number * shard)
    return f"{SPLIT}-{number:06d}{'' if images_here == shard else f'.first{images_here}'}.tar"


def request_of(out: Path) -> dict[str, Any]:
    """What the set in this folder, whole or not, was asked for; {} where there is none."""
    if (out / REQUEST).exists():
        return json.loads((out / REQUEST).read_text())
    return read_manifest(out).source.get("sample", {}) if (out / NAME).exists() else {}


def superseded(out: Path) -> list[str]:
    """Ends of smaller sets in the folder of a whole one, which its manifest names no more."""
    named = {entry.name for entry in read_manifest(out).shards}
    return sorted(path.name for path in out.glob(f"{SPLIT}-*.first*.tar") if path.name not in named)


def _agreed(out: Path, request: dict[str, Any]) -> tuple[dict[str, Any], int | None]:
    """The request of the set that stands here, or else this one. How many images is no part of it, nor the batch; noise and gate
    are those of the version that began the set.

    Returns:
        The request, and the batch of shards that do not state theirs: of a set that was begun when it was part of the request.

    Raises:
        InputError: images of another kind stand here.
    """
    if not (out / REQUEST).exists():
        return request, None
    standing = {**BEFORE, **json.loads((out / REQUEST).read_bytes())}
    request = request | {key: value for key, value in BEFORE.items() if standing[key] == value}
    batch, _ = standing.pop("batch", None), standing.pop("count", None)
    if differing := [f"{key} {standing.get(key)}" for key in request if standing.get(key) != request[key]]:
        raise InputError(
            f"a set of another request stands here ({', '.join(differing)})",
            where=out,
            expected="the same request; its count may grow, its batch may change",
            mend=f"another run folder: run=runs/NAME, or {moved_aside(out)}",
        )
    return request, batch


def _standing(out: Path, count: int) -> Manifest | None:
    """The finished set, where it has this many images; None where there is none, or a smaller one.

    Raises:
        InputError: it has more.
    """
    done = read_manifest(out) if (out / NAME).exists() else None
    check_count(out, count, done)
    return done if done and done.splits[SPLIT]["count"] == count else None


def check_count(out: Path, count: int, done: Manifest | None) -> None:
    """Refuse to make a finished set smaller.

    Raises:
        InputError: as said.
    """
    if done and done.splits[SPLIT]["count"] > count:
        stands = done.splits[SPLIT]["count"]
        raise InputError(
            f"sample.count={count}, and a set of {stands} images stands",
            where=out,
            expected=f"{stands} or more: a set may grow, not shrink",
            mend=f"sample.count={stands}, or another run folder: run=runs/NAME",
        )


def _check_whole(paths: list[Path], shard: int, count: int) -> None:
    """Raises: InputError: a finished shard that holds another number of images than its name says, as an earlier version left them."""
    for number, path in enumerate(paths):
        images_here = min(shard, count - number * shard)
        if (found := _images_in(path)) not in (None, images_here):
            raise InputError(
                f"{found} images in a shard that shall hold {images_here}",
                where=path,
                expected="a whole shard: the set was begun by a version whose sets could not grow",
                mend="another run folder: run=runs/NAME",
            )


def _images_in(shard: Path) -> int | None:
    """How many images a finished shard holds; its index, which is far larger, is opened where there is no record. None: no such shard."""
    with contextlib.suppress(CorruptData):  # said when the shard is looked at to be finished
        if unit := read_unit(shard):
            return unit.entry.count
    return len(open_index(index_path(shard))) if index_path(shard).exists() else None
