"""Caching latents: every cube of a dataset through the encoder once, before quantisation, into shards of the same format.

Diffusion then trains without the autoencoder in memory; its per-channel mean and deviation stand in the manifest.
Legend: D latent channel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

from data_shards.cube import Cube, CubeMeta
from data_shards.errors import InputError, moved_aside
from data_shards.manifest import NAME, Manifest, read_manifest
from data_shards.packing.pack import write_dataset
from data_shards.reading.batch import Batch
from data_shards.reading.dataset import Dataset
from data_shards.reading.stream import CubeStream
from ldm.checkpoints.trained import Autoencoder

Watch = Callable[[Iterable[Batch]], Iterable[Batch]]


def encode_dataset(dataset: Dataset, autoencoder: Autoencoder, out: Path, *, batch: int = 16, watch: Watch = iter) -> Manifest:
    """Write the latents of all splits to `out`; done already by the same autoencoder, nothing is written.

    Raises:
        InputError: bands or size do not fit the autoencoder; `out` holds other latents; latents are not finite.
    """
    source = {"encode": {"dataset": dataset.digest, "autoencoder": autoencoder.digest}}
    if (out / NAME).exists() and (done := read_manifest(out)).source == source:
        return done
    if out.exists():
        raise InputError("other latents stand here", where=out, expected="a path that does not exist yet", mend=moved_aside(out))
    if tuple(dataset.wavelengths_nm) != tuple(autoencoder.data["wavelengths_nm"]):
        raise InputError(
            f"bands {dataset.wavelengths_nm} nm",
            where=dataset.path,
            expected=f"those of the autoencoder: {autoencoder.data['wavelengths_nm']} nm",
        )
    splits = [name for name, info in dataset.splits.items() if info.count]
    return write_dataset(out, {name: _latents(dataset, name, autoencoder, batch, watch) for name in splits}, source=source)


@torch.no_grad()
def _latents(dataset: Dataset, split: str, autoencoder: Autoencoder, batch: int, watch: Watch) -> Iterator[Cube]:
    device = autoencoder.normaliser.mean_C11.device
    for part in watch(CubeStream(dataset, split, batch_size=batch, maps=True).once()):
        fov_BHW = part.fov_BHW.to(device) if part.fov_BHW is not None else None
        h_BDHW = autoencoder.vqgan.encode(autoencoder.normaliser(part.cubes_BCHW.to(device), fov_BHW)).float().cpu().numpy()
        for key, subject, h_DHW in zip(part.keys, part.subjects, h_BDHW, strict=True):
            # a latent has channels, not bands: their numbers stand where wavelengths would
            meta = CubeMeta(key=key, wavelengths_nm=tuple(map(float, range(len(h_DHW)))), scale=1.0, subject_id=subject)
            yield Cube(data_CHW=h_DHW, meta=meta)
