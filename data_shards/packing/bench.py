"""Which codec suits this machine's storage: each one's size, and how fast cubes come from a cold disk and from the page cache.

Legend: C band, H W pixels.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from data_shards.cube import Cube
from data_shards.durable import explained
from data_shards.errors import InputError
from data_shards.packing.pack import write_dataset
from data_shards.reading.dataset import Dataset
from data_shards.shards.codecs import CODECS, STORED, Encoding
from data_shards.shards.layout import TILE, Region
from data_shards.shards.payload import encode
from data_shards.shards.scratch import page_aligned


@dataclass(frozen=True, kw_only=True)
class CodecSpeed:
    """Of one encoding on this machine.

    Attributes:
        compression: size of the set in `raw` over its size in this encoding.
        cold_s, warm_s: cubes or crops a second, read, checked and decoded by so many threads, from the disk and from the page cache.
        encode_s: cubes a second that one thread encodes.
    """

    encoding: Encoding
    compression: float
    cold_s: float
    warm_s: float
    encode_s: float


def compare_codecs(
    cubes: list[Cube], folder: Path, *, threads: int = 2, max_error: int = 0, crop: int = 0, seconds: float = 2.0
) -> Iterator[CodecSpeed]:
    """Write the cubes in every codec to a fresh folder in `folder`, read them back for some seconds, and clear up.

    Args:
        cubes: a few dozen megabytes at least, of the kind that will be stored.
        max_error: also try `near` with this bound.
        crop: read square crops of so many pixels, and try each codec in tiles too; 0: whole cubes.

    Raises:
        InputError: no cube, crops larger than they are, or the folder cannot be written. TryAgain: the disk is full.
    """
    if not cubes:
        raise InputError("no cube to try", expected="a set or a folder of cubes that is not empty")
    if crop > min(cubes[0].data_CHW.shape[1:]):
        raise InputError(f"crops of {crop} x {crop}", expected=f"within cubes of {cubes[0].data_CHW.shape}")
    with explained(folder):
        scratch = Path(tempfile.mkdtemp(prefix=".bench-", dir=folder))
    raw_bytes = 0
    try:
        for encoding in _candidates(max_error, in_tiles=crop > 0):
            began = time.perf_counter()
            for cube in cubes:
                encode(cube.data_CHW, encoding)
            encode_s = len(cubes) / (time.perf_counter() - began)
            write_dataset(scratch / "set", {"train": cubes}, **asdict(encoding), source={})
            dataset = Dataset(scratch / "set")
            stored = sum(entry.bytes for entry in dataset.manifest.shards)
            raw_bytes = raw_bytes or stored
            yield CodecSpeed(
                encoding=encoding,
                compression=raw_bytes / stored,
                cold_s=_rate(dataset, threads, crop, seconds, cold=True),
                warm_s=_rate(dataset, threads, crop, seconds, cold=False),
                encode_s=encode_s,
            )
            shutil.rmtree(scratch / "set")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _candidates(max_error: int, *, in_tiles: bool) -> Iterator[Encoding]:
    """`raw` first: the others are compared with it. Without those whose library is not installed here."""
    for codec in ("raw", *(name for name in CODECS if name != "near" or max_error)):
        bound = max_error if codec == "near" else 0
        for tile in (0, TILE) if in_tiles else (0,):
            encoding = Encoding("tiles" if tile and codec in STORED else codec, bound, tile)
            with contextlib.suppress(InputError):
                _ = encoding.coder
                yield encoding


def _rate(dataset: Dataset, threads: int, crop: int, seconds: float, *, cold: bool) -> float:
    """Cubes or crops a second over whole rounds of the set, until `seconds` have passed."""
    count, dtype, (c, h, w) = dataset.count("train"), dataset.manifest.dtype, dataset.shape
    shape, rng = (c, crop or h, crop or w), np.random.default_rng(0)
    slots = [page_aligned(math.prod(shape) * np.dtype(dtype).itemsize).view(dtype).reshape(shape) for _ in range(threads)]
    regions = [
        Region(y, y + shape[1], x, x + shape[2]) for y, x in rng.integers(0, (h - shape[1] + 1, w - shape[2] + 1), (count, 2)).tolist()
    ]

    def read(thread: int) -> None:
        for i in range(thread, count, threads):
            shard, row = dataset.locate("train", i)
            shard.array_into(row, slots[thread], region=regions[i] if crop else None)

    done, spent = 0, 1e-9
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, range(threads)))  # opens files and, where it is wanted, fills the cache
        while not done or spent < seconds:
            if cold:
                for entry in dataset.manifest.shards:
                    with open(dataset.path / entry.name, "rb") as file:
                        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            began = time.perf_counter()
            list(pool.map(read, range(threads)))
            spent, done = spent + time.perf_counter() - began, done + count
    return done / spent
