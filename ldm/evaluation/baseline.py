"""The set that samples have to beat: cubes decoded from white noise of the latents' own per-channel mean and deviation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_shards import durable
from data_shards.cube import Cube, CubeMeta
from data_shards.ledger import Units
from data_shards.manifest import NAME, read_manifest
from data_shards.packing.units import merged, publish_manifest, read_unit, write_unit
from ldm.checkpoints.trained import Autoencoder, Denoiser
from ldm.models.noise import GAUSSIAN_LATENTS, normal_at

REQUEST = "request.json"
SPLIT = "synthetic"
PATIENCE_S = 60.0  # to wait for another process that looks whether the set is an old one


class GaussianLatents(Units):
    """The set in units, a shard each.

    A set of an earlier state of the denoiser, or of another number, is removed first: it can always be made again.

    Args:
        out: folder of the set.
        count, shard: images of the set, and of a shard.
    """

    def __init__(
        self, autoencoder: Autoencoder, denoiser: Denoiser, out: Path, *, count: int, shard: int, seed: int, batch: int, quantise: bool
    ) -> None:
        self.autoencoder, self.denoiser, self.out = autoencoder, denoiser, out
        self.count, self.shard, self.seed, self.batch, self.quantise = count, shard, seed, batch, quantise
        self.source = {"baseline": denoiser.digest, "seed": seed, "quantise": quantise, "count": count, "batch": batch}
        with durable.claimed(out.with_name(f".claim-{out.name}"), "beginning a baseline", patience_s=PATIENCE_S):
            if out.exists() and asked_of(out) != self.source:
                shutil.rmtree(out)
            self.whole = (out / NAME).exists()
            if not self.whole:
                durable.write_bytes(out / REQUEST, durable.canonical_json(self.source), keep_first=True)
        self.names = [] if self.whole else [f"{SPLIT}-{number:06d}" for number in range(-(-count // shard))]

    def published(self, number: int) -> bool:
        """Whether a shard is there, with what it leaves for the manifest."""
        return read_unit(self._path(number)) is not None

    def make(self, number: int) -> None:
        """Make a shard."""
        write_unit(self._path(number), SPLIT, self._cubes(number))

    def size(self, number: int) -> int:
        return min(self.shard, self.count - number * self.shard)

    def finish(self) -> None:
        """Write dataset.json over the shards, which are all there."""
        if not self.whole:
            units = [read_unit(self._path(number)) for number in range(len(self.names))]
            publish_manifest(self.out, merged(units, [SPLIT], self.source))

    def _path(self, number: int) -> Path:
        return self.out / f"{self.names[number]}.tar"

    def _cubes(self, number: int) -> Iterator[Cube]:
        data, device = self.autoencoder.data, self.denoiser.normaliser.mean_C11.device
        kind = {"wavelengths_nm": tuple(data["wavelengths_nm"]), "scale": data["scale"], "offset": data["offset"]}
        first, end = number * self.shard, min((number + 1) * self.shard, self.count)
        for start in range(first, end, self.batch):
            ids = np.arange(start, min(start + self.batch, end))
            noise = normal_at(self.seed, ids, self.denoiser.latent_shape, GAUSSIAN_LATENTS, device=device)
            stored_BCHW = self.autoencoder.decode(self.denoiser.normaliser.latents(noise), quantise=self.quantise).cpu().numpy()
            for i, stored_CHW in zip(ids, stored_BCHW, strict=True):
                meta = CubeMeta(key=f"{i:09d}", subject_id="gaussian-latents", **kind)
                yield Cube(data_CHW=stored_CHW, meta=meta, fov_HW=self.autoencoder.fov_HW.cpu().numpy())


def asked_of(out: Path) -> dict[str, Any]:
    """What the set in this folder, whole or not, was asked for; {} where that is not to be seen."""
    if (out / NAME).exists():
        return read_manifest(out).source
    return json.loads((out / REQUEST).read_bytes()) if (out / REQUEST).exists() else {}
