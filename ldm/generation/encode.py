"""Caching latents: every cube of a dataset through the encoder once, before quantisation, into shards of the same format.

Diffusion then trains without the autoencoder in memory; its per-channel mean and deviation stand in the manifest.
Legend: D latent channel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_shards import durable
from data_shards.cube import Cube, CubeMeta
from data_shards.errors import InputError, moved_aside
from data_shards.ledger import Units
from data_shards.manifest import NAME, Manifest, read_manifest
from data_shards.packing.units import merged, publish_manifest, read_request, read_unit, write_unit
from data_shards.reading.dataset import Dataset
from data_shards.reading.stream import CubeStream
from ldm.checkpoints.trained import Autoencoder
from ldm.models import striped
from ldm.models.inference import FP32, as_begun, stated

REQUEST = "request.json"
TRAIN = "train"
MIRRORED = "-m"  # ends the key of the latent of a mirrored cube
LONGEST = 61  # of keys that get it


class LatentSet(Units):
    """The latents of all splits in units: a shard for each shard of cubes. `finish` writes dataset.json over them.

    Args:
        out: folder of the latents.
        batch: cubes at a time; one where frames are so large that they go in stripes.
        flip: of the training split also the latents of the cubes mirrored left to right, as samples of their own: `KEY-m` beside `KEY`.
            An encoder does not give the mirrored latent for them.

    Raises:
        InputError: bands do not fit the autoencoder, or `out` holds something else.
    """

    def __init__(self, dataset: Dataset, autoencoder: Autoencoder, out: Path, *, batch: int = 16, flip: bool = False) -> None:
        dataset.expect("cube")
        self.dataset, self.autoencoder, self.out, self.flip = dataset, autoencoder, out, flip
        self.batch = striped.at_once(batch, *dataset.shape[1:])
        asked = {"dataset": dataset.digest, "autoencoder": autoencoder.digest}
        if autoencoder.inference != FP32:  # what earlier latents had is not stated
            asked["inference"] = stated(autoencoder.inference)
        self.source = {"encode": {**asked, "flip": True} if flip else asked}
        if flip and (long := max(dataset.keys(TRAIN) if TRAIN in dataset.splits else (), key=len, default="")) and len(long) > LONGEST:
            raise InputError(f"key {long!r} with diffusion.flip", where=dataset.path, expected=f"{LONGEST} characters at most: -m is added")
        if tuple(dataset.wavelengths_nm) != tuple(autoencoder.data["wavelengths_nm"]):
            raise InputError(
                f"bands {dataset.wavelengths_nm} nm",
                where=dataset.path,
                expected=f"those of the autoencoder: {autoencoder.data['wavelengths_nm']} nm",
            )
        self.done = _claim(out, self.source)
        self.splits = [name for name, info in dataset.splits.items() if info.count]
        self.shards = [] if self.done else list(_shards(dataset, self.splits))
        self.names = [Path(name).stem for _, name, _ in self.shards]
        self.streams: dict[str, CubeStream] = {}

    def published(self, number: int) -> bool:
        """Whether the latents of a shard are there, with what they leave for the manifest."""
        return read_unit(self._path(number)) is not None

    def make(self, number: int) -> None:
        """Encode a shard.

        Raises:
            InputError: a size that does not fit the autoencoder, latents that are not finite.
        """
        split, _, first_end = self.shards[number]
        write_unit(self._path(number), split, self._latents(split, *first_end))

    def size(self, number: int) -> int:
        first, end = self.shards[number][2]
        return end - first

    def finish(self) -> Manifest:
        """Write dataset.json over the shards, which are all there."""
        if self.done:
            return self.done
        units = [read_unit(self._path(number)) for number in range(len(self.shards))]
        assert all(units), "a shard is missing"
        manifest = merged(units, self.splits, self.source)
        publish_manifest(self.out, manifest)
        return manifest

    def _path(self, number: int) -> Path:
        return self.out / self.shards[number][1]

    @torch.no_grad()
    def _latents(self, split: str, first: int, end: int) -> Iterator[Cube]:
        device = self.autoencoder.normaliser.mean_C11.device
        if split not in self.streams:
            self.streams[split] = CubeStream(self.dataset, split, batch_size=self.batch, maps=True, device=device)
        for batch in self.streams[split].each(np.arange(first, end)):
            x_BCHW = self.autoencoder.normaliser(batch.cubes_BCHW, batch.fov_BHW)
            yield from map(stored_latent, batch.keys, batch.subjects, self._encoded(x_BCHW))
            if self.flip and split == TRAIN:
                yield from map(stored_latent, (key + MIRRORED for key in batch.keys), batch.subjects, self._encoded(x_BCHW.flip(-1)))

    def _encoded(self, x_BCHW: Tensor) -> np.ndarray:
        return striped.encode(self.autoencoder.vqgan, x_BCHW).float().cpu().numpy()


def stored_latent(key: str, subject: str, h_DHW: np.ndarray) -> Cube:
    """A latent as shards hold it, in the format of cubes. It has channels, not bands: their numbers stand where wavelengths would."""
    numbers = tuple(float(d) for d in range(len(h_DHW)))
    return Cube(data_CHW=h_DHW, meta=CubeMeta(key=key, wavelengths_nm=numbers, scale=1.0, subject_id=subject))


def encode_dataset(
    dataset: Dataset,
    autoencoder: Autoencoder,
    out: Path,
    *,
    batch: int = 16,
    flip: bool = False,
    watch: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Manifest:
    """All latents by this process alone; as LatentSet otherwise."""
    return LatentSet(dataset, autoencoder, out, batch=batch, flip=flip).complete(watch)


def asked_of(out: Path) -> dict[str, Any]:
    """What the latents in this folder, whole or not, were asked for: {} where there are none."""
    if (out / NAME).exists():
        return read_manifest(out).source.get("encode", {})
    return (read_request(out / REQUEST) or {}).get("encode", {})


def _shards(dataset: Dataset, splits: list[str]) -> Iterator[tuple[str, str, tuple[int, int]]]:
    """Split, name, and first and last-but-one number within the split of each shard."""
    for split in splits:
        first = 0
        for entry in dataset.manifest.shards:
            if entry.split == split:
                yield split, entry.name, (first, first + entry.count)
                first += entry.count


def _claim(out: Path, source: dict[str, Any]) -> Manifest | None:
    """The first process writes what is asked for; all others must ask for the same. The finished set, where it stands.

    Raises:
        InputError: something else stands there.
    """
    if (out / NAME).exists():
        if (done := read_manifest(out)).source == source:
            return done
        raise _taken(out, done.source, source)
    others = [path for path in out.iterdir() if durable.PART not in path.name] if out.exists() else []  # a part may be another's request
    if others and not (out / REQUEST).exists():
        raise _taken(out, {}, source)
    durable.write_bytes(out / REQUEST, durable.canonical_json(source), keep_first=True)
    if (standing := read_request(out / REQUEST)) != source:
        raise _taken(out, standing, source)
    return None


def _taken(out: Path, standing: dict[str, Any], source: dict[str, Any]) -> InputError:
    theirs, ours = standing.get("encode", {}), source["encode"]
    differing = sorted(key for key in {*theirs, *ours} if theirs.get(key) != ours.get(key))
    words = f" ({', '.join(f'{key} {theirs.get(key)}' for key in differing)})" if theirs else ""
    return InputError(
        f"other latents stand here{words}",
        where=out,
        expected="a path that does not exist yet",
        mend=as_begun(theirs) if differing == ["inference"] else moved_aside(out),
    )
