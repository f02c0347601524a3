"""What is packed: a folder of loose cubes, or a packed dataset, read sample by sample."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

import numpy as np

from data_shards import folder as loose
from data_shards.cube import Cube
from data_shards.errors import InputError
from data_shards.manifest import NAME
from data_shards.packing.splits import Row
from data_shards.reading.dataset import Dataset
from data_shards.stores import is_url


class Read(Protocol):
    """Reads a sample by its key. `stamp` tells whether its file was touched; `packed`: the source is a packed set."""

    packed: bool

    def __call__(self, key: str) -> Cube: ...

    def stamp(self, key: str) -> list[int]: ...


class _FromDataset:
    packed = True

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.row_of = {key: (split, i) for split, info in dataset.splits.items() if info.count for i, key in enumerate(dataset.keys(split))}

    def __call__(self, key: str) -> Cube:
        return self.dataset.cube(*self.row_of[key])

    def stamp(self, key: str) -> list[int]:
        return []  # the dataset's digest names its bytes


class _FromFolder:
    packed = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, key: str) -> Cube:
        cube = loose.read_cube(self.folder, key)
        if cube.data_CHW.dtype != np.uint16:
            raise InputError(
                f"an array of {cube.data_CHW.dtype}",
                where=self.folder / f"{key}.npy",
                expected="uint16 counts, with reflectance = scale * stored + offset; float32 in a set means latents of an autoencoder",
                mend="store np.rint((reflectance - offset) / scale) as uint16, with that scale and offset in KEY.json: 1/65535 and 0 "
                "keep 0 to 1",
            )
        return cube

    def stamp(self, key: str) -> list[int]:
        stamps = []
        for name in (f"{key}.npy", f"{key}.labels.png", f"{key}.fov.png"):
            try:
                seen = (self.folder / name).stat()
                stamps += [seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns]  # a copy may keep the time of its content, not this one
            except FileNotFoundError:
                stamps += [-1, -1, -1]  # maps are optional
        return stamps


def source_of(path: Path | str) -> tuple[list[Row], Read, str]:
    """Each sample's row, how to read one, and what names them all: an import made anew has other metadata.

    Raises:
        InputError: a set of codes, or half a sample.
    """
    if is_url(path) or (path / NAME).exists():
        dataset = Dataset(path)
        dataset.expect("cube", "latent")
        rows = [
            Row(key, subject, split)
            for split, info in dataset.splits.items()
            if info.count
            for key, subject in zip(dataset.keys(split), dataset.subjects(split), strict=True)
        ]
        return rows, _FromDataset(dataset), dataset.digest
    rows, digest = [], hashlib.sha256()
    for key in loose.all_keys_in(path):
        content = loose.content_of(path / f"{key}.json")
        digest.update(hashlib.sha256(content).digest())
        meta = loose.meta_from(content, where=path / f"{key}.json")
        loose.check_key(meta, key, path)
        loose.check_notes(meta, path / f"{key}.json")
        rows.append(Row(key, meta.subject_id, str(meta.notes.get("split", ""))))
    return rows, _FromFolder(path), digest.hexdigest()
