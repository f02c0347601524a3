"""Which codec suits this machine's storage: each one's size, and how fast cubes come from a cold disk and from the page cache.

Legend: C band, H W pixels.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_shards.codecs import CODECS, get_codec
from data_shards.cube import Cube
from data_shards.dataset import Dataset
from data_shards.durable import explained
from data_shards.errors import InputError
from data_shards.pack import write_dataset
from data_shards.ring import page_aligned


@dataclass(frozen=True, kw_only=True)
class CodecSpeed:
    """Of one codec on this machine.

    Attributes:
        compression: size of the set in `raw` over its size in this codec.
        cold_s, warm_s: samples a second, read, checked and decoded by so many threads, from the disk and from the page cache.
        encode_s: samples a second that one thread encodes.
    """

    codec: str
    compression: float
    cold_s: float
    warm_s: float
    encode_s: float


def compare_codecs(cubes: list[Cube], folder: Path, *, threads: int = 2, max_error: int = 0, seconds: float = 2.0) -> Iterator[CodecSpeed]:
    """Write the cubes in every codec to a fresh folder in `folder`, read them back for some seconds, and clear up.

    Args:
        cubes: a few dozen megabytes at least, of the kind that will be stored.
        max_error: also try `near` with this bound.

    Raises:
        InputError: no cube, or the folder cannot be written. TryAgain: the disk is full.
    """
    if not cubes:
        raise InputError("no cube to try", expected="a set or a folder of cubes that is not empty")
    with explained(folder):
        place = Path(tempfile.mkdtemp(prefix=".bench-", dir=folder))
    raw_bytes = 0
    try:
        for codec in ("raw", *(name for name in CODECS if name != "near" or max_error)):
            bound = max_error if codec == "near" else 0
            try:
                get_codec(codec, bound)
            except InputError:
                continue  # its library is not installed here
            began = time.perf_counter()
            write_dataset(place / codec, {"train": cubes}, codec=codec, max_error=bound, source={})
            encode_s = len(cubes) / (time.perf_counter() - began)
            dataset = Dataset(place / codec)
            stored = sum(entry.bytes for entry in dataset.manifest.shards)
            raw_bytes = raw_bytes or stored
            yield CodecSpeed(
                codec=codec if codec != "near" else f"near {bound}",
                compression=raw_bytes / stored,
                cold_s=_rate(dataset, threads, seconds, cold=True),
                warm_s=_rate(dataset, threads, seconds, cold=False),
                encode_s=encode_s,
            )
            shutil.rmtree(place / codec)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _rate(dataset: Dataset, threads: int, seconds: float, *, cold: bool) -> float:
    """Samples a second over whole rounds of the set, until `seconds` have passed."""
    count, nbytes, dtype = dataset.count("train"), int(np.prod(dataset.shape)), dataset.manifest.dtype
    slots = [page_aligned(nbytes * np.dtype(dtype).itemsize).view(dtype).reshape(dataset.shape) for _ in range(threads)]

    def read(thread: int) -> None:
        for i in range(thread, count, threads):
            shard, row = dataset.locate("train", i)
            shard.array_into(row, slots[thread])

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
