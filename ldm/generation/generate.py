"""Bulk generation into shards. Shard k holds images [k·n, (k+1)·n), whoever writes it; image i is a function of (seed, i).

A shard is published first-writer-wins, so any number of processes, restarted at any time, make the same set once. A set may grow: a larger
count makes the missing shards. The last shard of a set that fills none has a name of its own, synthetic-000001.first2.tar, so that the
whole one, made later, takes nothing from those who read the smaller set.
Legend: B batch, C band, H W pixels, D latent channel.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from data_shards import durable
from data_shards.cube import Cube
from data_shards.errors import InputError
from data_shards.folder import png_bytes
from data_shards.ledger import Units
from data_shards.manifest import Manifest, read_manifest, write_manifest
from data_shards.packing.units import Unit, merged, read_unit, write_unit
from data_shards.reading.reader import Shard
from ldm.checkpoints.trained import Autoencoder, Denoiser
from ldm.generation.images import Generator
from ldm.generation.standing import REQUEST, SPLIT, agreed, check_same, check_sizes, check_whole, finishing, standing_set
from ldm.models import striped
from ldm.models.inference import stated
from ldm.speed import out_of_memory

if TYPE_CHECKING:
    from typing_extensions import Self

LOGGER = logging.getLogger("retinaforge")


class ImageSet(Units):
    """A set of images by number, in units: its shards, of which any number of processes make those that are not there. `finish` writes
    dataset.json over them.

    Args:
        request: what decides what a shard holds.
        out: folder of the set.
        count, shard: images of the set, and of a shard.
        beside: what else the manifest says of where the set came from.

    Raises:
        InputError: counts out of range; `out` holds a set of another request, or a larger one.
    """

    def __init__(self, request: dict[str, Any], out: Path, *, count: int, shard: int, beside: dict[str, Any] | None = None) -> None:
        if min(count, shard) < 1:
            raise InputError(f"count {count}, shard {shard}", expected="at least 1 of each")
        self.out, self.count, self.shard, self.beside = out, count, shard, beside or {}
        self.request, self.batch_before = agreed(out, request)
        self.done = standing_set(out, count)
        self.paths = [] if self.done else [out / shard_name(number, shard, count) for number in range(-(-count // shard))]
        self.names = [path.stem for path in self.paths]
        check_whole(self.paths, shard, count)  # before hours of work, and once more of what others left meanwhile

    def __enter__(self) -> Self:
        """Write down what is asked for; the first does, and all others must ask for images of the same kind."""
        if not (self.done or (self.out / REQUEST).exists()):
            durable.write_bytes(self.out / REQUEST, durable.canonical_json(self.request), keep_first=True)
        agreed(self.out, self.request)
        return self

    @abstractmethod
    def images(self, ids: np.ndarray) -> Iterator[Cube]:
        """The images with these numbers, as the set holds them; a generator, which is closed when no more are wanted."""

    def published(self, number: int) -> bool:
        """Whether a shard is there, with what it leaves for the manifest."""
        return read_unit(self.paths[number]) is not None

    def make(self, number: int) -> None:
        """Make a shard, or complete what a killed process left of it."""
        ids = np.arange(number * self.shard, min((number + 1) * self.shard, self.count))
        with closing(self.images(ids)) as cubes:  # whatever happens, no more are made
            write_unit(self.paths[number], SPLIT, cubes)

    def size(self, number: int) -> int:
        return min(self.shard, self.count - number * self.shard)

    def finish(self) -> Manifest:
        """Write dataset.json over the shards, which are all there.

        Raises:
            InputError: who was asked for more images has finished a larger set meanwhile. CorruptData: a finished set lacks a shard.
        """
        if self.done:
            check_sizes(self.out, self.done)
            return self.done
        check_whole(self.paths, self.shard, self.count)
        units = [read_unit(path) for path in self.paths]
        assert all(units), "a shard is missing"
        batches = sorted({_batch(self.out, unit, self.batch_before) for unit in units})
        refused = sum((Counter(unit.refused) for unit in units), Counter())
        made_in = {"batch": batches[0] if len(batches) == 1 else batches, "refused": dict(sorted(refused.items()))}
        source = {"sample": {"count": self.count, **self.request, **made_in}, **self.beside}
        manifest = merged(units, [SPLIT], source)
        with finishing(self.out):  # nobody writes between look and write
            if done := standing_set(self.out, self.count):
                return done
            check_same(self.out, [unit.entry for unit in units])
            write_manifest(self.out, manifest)
            durable.sweep_published(self.out)  # before another may write: what it writes stands beside what is published, too
        return manifest


class SyntheticSet(ImageSet):
    """A set of generated images.

    Args:
        generator: of its images. So many at a time, up to its `batch`, as leave the fewest places empty; each shard states it. A set that
            an earlier version began goes on with the noise, the gate and the rounding of that version; one begun without labels, without.
    """

    def __init__(self, generator: Generator, out: Path, *, count: int, shard: int) -> None:
        beside: dict[str, Any] = {"decoder": decoder_of(generator.autoencoder)} if generator.payload == "codes" else {}
        if teachers := taught_by(generator.autoencoder, generator.denoiser, generator.guide):
            beside["taught_by"] = teachers
        super().__init__(request_for(generator, shard), out, count=count, shard=shard, beside=beside)
        self.generator = replace(
            generator,
            batch=evenly_filled(generator.batch, min(shard, count)),
            noise=self.request["noise"],
            gate=generator.gate if self.request["gate"] else None,
            straight_through=self.request["straight_through"],
            segmenter=generator.segmenter if self.request["segmenter"] else None,
        )

    def images(self, ids: np.ndarray) -> Iterator[Cube]:
        return self.generator.images(ids)

    def make(self, number: int) -> None:
        """Make a shard, or complete what a killed process left of it. What the device's memory does not bear is begun anew with half
        as many images at a time, and so are the shards after it.

        Raises:
            InputError: it does not bear a single one.
        """
        while True:
            try:
                with self.generator.speed.shard(self.size(number)):
                    return super().make(number)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                self.generator = halved(self.generator, min(self.shard, self.count), error)
            gc.collect()  # the traceback held tensors of the batch that failed
            torch.cuda.empty_cache()


def request_for(generator: Generator, shard: int) -> dict[str, Any]:
    """What decides what a shard holds."""
    autoencoder, denoiser, sampler = generator.autoencoder, generator.denoiser, generator.sampler
    return {
        "shard": shard,
        "seed": generator.seed,
        "sampler": sampler.name,
        "steps": sampler.steps,
        "shift": sampler.shift,
        "sigma_min": sampler.sigma_min,
        "cache_every": sampler.cache_every,
        "quantise": generator.quantise,
        "payload": generator.payload,
        "straight_through": generator.straight_through,
        "noise": generator.noise,
        "gate": generator.gate and generator.gate.bounds,
        "inference": stated(denoiser.inference),
        "stripes": striped.rows_of(*autoencoder.fov_HW.shape),
        "dataset": autoencoder.data["digest"],
        "autoencoder": autoencoder.digest,
        "denoiser": denoiser.digest,
        "guide": generator.guide and generator.guide.digest,
        "guidance": generator.guidance,
        "segmenter": generator.segmenter and generator.segmenter.digest,
    }


def taught_by(*networks: Autoencoder | Denoiser | None) -> list[str]:
    """Digests of the feature encoders that their losses looked at: no judges of what these networks make."""
    return sorted({network.taught_by for network in networks if network is not None and network.taught_by})


def decoder_of(autoencoder: Autoencoder) -> dict[str, Any]:
    """What decodes a set of codes, and to what; in batches of the shape that each image states."""
    data = autoencoder.data
    kept = {key: data[key] for key in ("wavelengths_nm", "scale", "offset")}
    fov_HW = autoencoder.fov_HW.cpu().numpy()
    return {
        "autoencoder": autoencoder.digest,
        "precision": autoencoder.inference.precision,
        "codes": len(autoencoder.codebook.codes_KD),
        "shape": [len(data["wavelengths_nm"]), *fov_HW.shape],
        **kept,
        "fov": {"pixels": int(fov_HW.sum()), "sha256": hashlib.sha256(png_bytes(fov_HW)).hexdigest()},
    }


def evenly_filled(batch: int, shard: int) -> int:
    """The largest batch, up to the one asked for, that fills a shard with the fewest empty places."""
    return -(-shard // -(-shard // batch))


def halved(generator: Generator, shard: int, error: RuntimeError) -> Generator:
    """With half as many images at a time, or fewer.

    Raises:
        InputError: one at a time was too much.
    """
    if generator.batch == 1:
        raise InputError(
            f"no memory for a single image ({str(error).splitlines()[0]})",
            expected="a device with more free memory",
            mend="end what else runs on it, or take a larger one; in a fresh run folder inference.precision=bf16 takes half as much",
        ) from error
    batch = evenly_filled(generator.batch // 2, shard)
    LOGGER.warning("no memory for %d images at a time; going on with %d", generator.batch, batch)
    return replace(generator, batch=batch)


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


def superseded(out: Path) -> list[str]:
    """Ends of smaller sets in the folder of a whole one, which its manifest names no more."""
    named = {entry.name for entry in read_manifest(out).shards}
    return sorted(path.name for path in out.glob(f"{SPLIT}-*.first*.tar") if path.name not in named)
