"""Bulk generation into shards. Shard k holds images [k·n, (k+1)·n), whoever writes it; image i is a function of (seed, i).

A shard is published first-writer-wins, so any number of tasks, restarted at any time, make the same set once.
Legend: B batch, C band, H W pixels, D latent channel.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from data_shards import durable
from data_shards.cube import Cube, CubeMeta
from data_shards.dataset import Dataset
from data_shards.errors import InputError
from data_shards.index import index_bytes, index_path, open_index
from data_shards.manifest import NAME, Manifest, read_manifest, write_manifest
from data_shards.pack import band_stats, describe, entry_of
from data_shards.reader import Shard
from data_shards.shard import scan_shard, write_shard
from ldm.diffusion import normal_at
from ldm.sampler import SamplerConfig, scheduler_for, solve
from ldm.trained import Autoencoder, Denoiser

SPLIT = "synthetic"
REQUEST = "request.json"


def latents_of(denoiser: Denoiser, ids: np.ndarray, *, seed: int, sampler: SamplerConfig) -> Tensor:
    """Latents of the images with these numbers, (B, D, h, w), in the autoencoder's units."""
    device = denoiser.normaliser.mean_C11.device
    noise = normal_at(seed, ids, denoiser.latent_shape).to(device)
    z_BDHW = solve(denoiser.net, noise, scheduler_for(sampler, denoiser.objective.target), sampler.steps)
    return denoiser.normaliser.reflectance(z_BDHW)


def images(
    autoencoder: Autoencoder, denoiser: Denoiser, ids: np.ndarray, *, seed: int, sampler: SamplerConfig, batch: int, quantise: bool
) -> Iterator[Cube]:
    """The images with these numbers, one cube after the other."""
    data = autoencoder.data
    for part in np.array_split(ids, max(1, -(-len(ids) // batch))):
        stored_BCHW = autoencoder.decode(latents_of(denoiser, part, seed=seed, sampler=sampler), quantise=quantise).cpu().numpy()
        for i, stored_CHW in zip(part, stored_BCHW, strict=True):
            meta = CubeMeta(
                key=f"{i:09d}",
                wavelengths_nm=tuple(data["wavelengths_nm"]),
                scale=data["scale"],
                offset=data["offset"],
                subject_id="synthetic",
                notes={"image": int(i), "seed": seed},
            )
            yield Cube(data_CHW=stored_CHW, meta=meta, fov_HW=autoencoder.fov_HW.cpu().numpy())


def generate_set(
    autoencoder: Autoencoder,
    denoiser: Denoiser,
    out: Path,
    *,
    count: int,
    shard: int,
    seed: int,
    sampler: SamplerConfig,
    batch: int = 16,
    quantise: bool = True,
    task: tuple[int, int] = (1, 1),
    watch: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Manifest | None:
    """Make this task's shards of a set; the task that finds all shards there writes dataset.json.

    Args:
        task: (k, n), k from 1: shards k-1, k-1+n, …

    Returns:
        The manifest when the set is whole, else None: other tasks still have shards to make.

    Raises:
        InputError: counts or task out of range; a sampler that does not solve the denoiser's objective; a denoiser trained on
        another autoencoder's latents; `out` holds a set of another request.
    """
    k, n = task
    if min(count, shard, batch) < 1 or not 1 <= k <= n:
        raise InputError(
            f"count {count}, shard {shard}, batch {batch}, task {k}/{n}",
            expected="count, shard and batch at least 1, task k/n with 1 ≤ k ≤ n",
        )
    if denoiser.autoencoder != autoencoder.digest:
        raise InputError(
            "the denoiser was trained on the latents of another autoencoder",
            expected=f"autoencoder {denoiser.autoencoder[:12]}, this one is {autoencoder.digest[:12]}",
            mend="retinaforge encode PRESET, then retinaforge train diffusion PRESET, with a fresh run folder",
        )
    scheduler_for(sampler, denoiser.objective.target)  # refuses before anything is written
    models = {"dataset": autoencoder.data["digest"], "autoencoder": autoencoder.digest, "denoiser": denoiser.digest}
    # the batch is part of the request: how a convolution rounds depends on it
    plan = {
        "count": count,
        "shard": shard,
        "seed": seed,
        "sampler": sampler.name,
        "steps": sampler.steps,
        "batch": batch,
        "quantise": quantise,
    }
    _claim(out, {**plan, **models})
    if (out / NAME).exists():
        return read_manifest(out)
    numbers = range(-(-count // shard))
    for number in watch(numbers[k - 1 :: n]):
        path = out / f"{SPLIT}-{number:06d}.tar"
        if not path.exists():
            ids = np.arange(number * shard, min((number + 1) * shard, count))
            made = images(autoencoder, denoiser, ids, seed=seed, sampler=sampler, batch=batch, quantise=quantise)
            write_shard(path, made, keep_first=True)
        elif not index_path(path).exists():  # killed between the two
            durable.write_bytes(index_path(path), index_bytes(scan_shard(path)))
    paths = [out / f"{SPLIT}-{number:06d}.tar" for number in numbers]
    return _finish(out, paths, {**plan, **models}) if all(index_path(p).exists() for p in paths) else None


def _claim(out: Path, request: dict[str, Any]) -> None:
    """The first task writes the request; all others must ask for the same set."""
    durable.write_bytes(out / REQUEST, durable.canonical_json(request), keep_first=True)
    standing = json.loads((out / REQUEST).read_text())
    if standing != request:
        differing = ", ".join(f"{key} {standing.get(key)}" for key in request if standing.get(key) != request[key])
        raise InputError(
            f"a set of another request stands here ({differing})",
            where=out,
            expected="the same request",
            mend=f"another run folder: run=runs/NAME, or rm -r {out}",
        )


def _finish(out: Path, paths: list[Path], request: dict[str, Any]) -> Manifest:
    entries = [entry_of(path, open_index(index_path(path)), SPLIT) for path in paths]
    first = Shard(out, entries[0]).cube(0)
    sizes = {SPLIT: {"count": sum(e.count for e in entries), "subjects": 1}}
    draft = describe(first, shards=entries, splits=sizes, stats=None, source={"sample": request})
    manifest = describe(first, shards=entries, splits=sizes, stats=band_stats(Dataset(out, draft)), source={"sample": request})
    write_manifest(out, manifest)
    return manifest
