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
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from data_shards import durable
from data_shards.cube import Cube
from data_shards.errors import CorruptData, InputError, command, moved_aside
from data_shards.folder import png_bytes
from data_shards.ledger import Units
from data_shards.manifest import NAME, Manifest, read_manifest, write_manifest
from data_shards.packing.units import Unit, merged, read_request, read_unit, record_path, write_unit
from data_shards.reading.reader import Shard
from data_shards.shards.index import index_path, open_index
from ldm.checkpoints.trained import Autoencoder
from ldm.generation.images import EARLIER, Generator
from ldm.models.config import SamplerConfig
from ldm.models.inference import FP32, stated

if TYPE_CHECKING:
    from typing_extensions import Self

LOGGER = logging.getLogger("retinaforge")
SPLIT = "synthetic"
REQUEST = "request.json"
KEPT_BEFORE = {"noise": EARLIER, "gate": None, "straight_through": True}  # of sets that do not state it; they go on with it
BEFORE = {
    **KEPT_BEFORE,
    "payload": "cube",
    "inference": stated(FP32),
    **{name: getattr(SamplerConfig, name) for name in ("shift", "sigma_min", "cache_every")},
}
PATIENCE_S = 60.0  # to wait for another task that writes the manifest


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
        self.request, self.batch_before = _agreed(out, request)
        self.done = _standing(out, count)
        self.paths = [] if self.done else [out / shard_name(number, shard, count) for number in range(-(-count // shard))]
        self.names = [path.stem for path in self.paths]
        _check_whole(self.paths, shard, count)  # before hours of work, and once more of what others left meanwhile

    def __enter__(self) -> Self:
        """Write down what is asked for; the first does, and all others must ask for images of the same kind."""
        if not (self.done or (self.out / REQUEST).exists()):
            durable.write_bytes(self.out / REQUEST, durable.canonical_json(self.request), keep_first=True)
        _agreed(self.out, self.request)
        return self

    @abstractmethod
    def images(self, ids: np.ndarray) -> Iterator[Cube]:
        """The images with these numbers, as the set holds them."""

    def published(self, number: int) -> bool:
        """Whether a shard is there, with what it leaves for the manifest."""
        return read_unit(self.paths[number]) is not None

    def make(self, number: int) -> None:
        """Make a shard, or complete what a killed process left of it."""
        write_unit(self.paths[number], SPLIT, self.images(np.arange(number * self.shard, min((number + 1) * self.shard, self.count))))

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
        _check_whole(self.paths, self.shard, self.count)
        units = [read_unit(path) for path in self.paths]
        assert all(units), "a shard is missing"
        batches = sorted({_batch(self.out, unit, self.batch_before) for unit in units})
        refused = sum((Counter(unit.refused) for unit in units), Counter())
        made_in = {"batch": batches[0] if len(batches) == 1 else batches, "refused": dict(sorted(refused.items()))}
        source = {"sample": {"count": self.count, **self.request, **made_in}, **self.beside}
        manifest = merged(units, [SPLIT], source)
        with durable.claimed(self.out / ".finishing", "finishing a set", patience_s=PATIENCE_S):  # nobody writes between look and write
            if done := _standing(self.out, self.count):
                return done
            write_manifest(self.out, manifest)
        durable.sweep_published(self.out)
        return manifest


class SyntheticSet(ImageSet):
    """A set of generated images.

    Args:
        generator: of its images. So many at a time, up to its `batch`, as leave the fewest places empty; each shard states it. A set that
            an earlier version began goes on with the noise, the gate and the rounding of that version.
    """

    def __init__(self, generator: Generator, out: Path, *, count: int, shard: int) -> None:
        beside = {"decoder": decoder_of(generator.autoencoder)} if generator.payload == "codes" else None
        super().__init__(request_for(generator, shard), out, count=count, shard=shard, beside=beside)
        self.generator = replace(
            generator,
            batch=evenly_filled(generator.batch, shard),
            noise=self.request["noise"],
            gate=generator.gate if self.request["gate"] else None,
            straight_through=self.request["straight_through"],
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
                return super().make(number)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                self.generator = halved(self.generator, self.shard, error)
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
        "dataset": autoencoder.data["digest"],
        "autoencoder": autoencoder.digest,
        "denoiser": denoiser.digest,
    }


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


def out_of_memory(error: RuntimeError) -> bool:
    """Whether a GPU, or the host, had no memory left for a tensor."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


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
    return json.loads(Shard(out, unit.entry).named(0, "json")).get("notes", {}).get("batch", before)


def shard_name(number: int, shard: int, count: int) -> str:
    """Name of a shard of a set: `.first3` where it holds only the first three of its images, for the set ends there."""
    images_here = min(shard, count - number * shard)
    return f"{SPLIT}-{number:06d}{'' if images_here == shard else f'.first{images_here}'}.tar"


def request_of(out: Path) -> dict[str, Any]:
    """What the set in this folder, whole or not, was asked for; {} where there is none."""
    if (request := read_request(out / REQUEST)) is not None:
        return {**BEFORE, **request}
    return {**BEFORE, **read_manifest(out).source.get("sample", {})} if (out / NAME).exists() else {}


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
    if (written := read_request(out / REQUEST)) is None:
        return request, None
    standing = {**BEFORE, **written}
    request = request | {key: value for key, value in KEPT_BEFORE.items() if key in request and key not in written}
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
        InputError: it has more. CorruptData: what says so is damaged.
    """
    try:
        done = read_manifest(out) if (out / NAME).exists() else None
    except CorruptData as error:
        mend = f"{command('rm', out / NAME)}, and the same command again makes it anew of what each shard left"
        raise CorruptData(error.what, where=error.where, mend=mend) from error
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


def check_sizes(out: Path, done: Manifest) -> None:
    """Refuse to call a set finished whose shards are not all there; their bytes are for `data verify`.

    Raises:
        CorruptData: a shard is gone, or has another size than was written.
    """
    for entry in done.shards:
        shard = out / entry.name
        found = shard.stat().st_size if shard.exists() else 0
        if found != entry.bytes:
            made_of = (out / NAME, shard, index_path(shard), record_path(shard))
            raise CorruptData(
                f"{entry.name} of a finished set {f'has {found} bytes' if found else 'is gone'}",
                where=out,
                expected=f"{entry.bytes} bytes, as {NAME} says",
                mend=f"copy it back; or {command('rm', '-f', *made_of)}, and the same command again makes it anew",
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
    """How many images a finished shard holds; None where there is none, or where its index is damaged, as its record will tell."""
    if not index_path(shard).exists():
        return None
    try:
        return len(open_index(index_path(shard)))
    except CorruptData:
        return None
