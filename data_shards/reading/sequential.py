"""Shards that have no index, read from their first byte to their last: in their own order, grouped into samples by webdataset.

The plain way for sets that can be neither indexed nor copied. Nothing tells a flipped bit here; a shard that is cut short, or
damaged in a header, is found where it breaks off. `data index`, or `data pack`, gives checksums, crops, shuffling and resuming in no time.

Legend: C band, H W pixels.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from data_shards import folder as loose
from data_shards import stores
from data_shards.cube import Cube
from data_shards.errors import CorruptData, InputError, RetinaforgeError
from data_shards.shards import payload
from data_shards.shards.shard import MEND, check_end, regular_members, stated_array


class _Bytes(io.RawIOBase):
    """A file of a store, as tarfile reads it: forward."""

    def __init__(self, file: stores.File) -> None:
        self.file, self.at = file, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        got = self.file.read_into(memoryview(buffer).cast("B"), self.at)
        self.at += got
        return got


def read_shard(shard: Path | str) -> Iterator[Cube]:
    """The samples of one shard, a file or a URL, in its order.

    Raises:
        CorruptData: not a plain tar, cut short, a damaged header, or a payload that is not what its metadata says.
        InputError: unsafe member names, a pickle, bad metadata; no such file. TryAgain: the store does not answer.
    """
    from webdataset.tariterators import group_by_keys

    folder, slash, name = str(shard).rpartition("/")
    try:
        file = stores.open_store(folder or slash or ".").open(name)
        if file.size < 1024:
            raise CorruptData("the shard is cut short", where=shard, mend=MEND)
        for sample in group_by_keys(_members(file, shard)):
            yield _cube(sample, shard)
    except FileNotFoundError as error:
        raise InputError("no such shard", where=shard) from error
    except (tarfile.TarError, EOFError, IsADirectoryError) as error:
        raise CorruptData(f"not a whole tar: {error}", where=shard, expected="a plain, uncompressed tar", mend=MEND) from error
    except OSError as error:
        raise CorruptData(f"cannot be read: {error.strerror or error}", where=shard, mend=MEND) from error
    except ValueError as error:
        if isinstance(error, RetinaforgeError):
            raise
        raise CorruptData(f"not a shard of samples: {error}", where=shard, mend=MEND) from error


def _members(file: stores.File, shard: Path | str) -> Iterator[dict[str, Any]]:
    """The files of the tar, as webdataset's readers take them."""
    with tarfile.open(fileobj=io.BufferedReader(_Bytes(file), 1 << 20), mode="r|") as tar:
        for info, _, content in regular_members(tar, shard):
            yield {"fname": info.name, "data": content, "__url__": str(shard)}
        end = bytearray(tarfile.BLOCKSIZE)
        end = end[: file.read_into(memoryview(end), tar.offset)]
        check_end(bytes(end), tar.offset, shard)


def read_shards(shards: Sequence[Path | str]) -> Iterator[Cube]:
    """The samples of all shards, one behind the other."""
    for shard in shards:
        yield from read_shard(shard)


def endless(shards: Sequence[Path | str]) -> Iterator[tuple[int, int, Cube]]:
    """(epoch, number in the epoch, sample), round after round.

    Raises:
        InputError: no shard, or no sample in any of them.
    """
    epoch = 0
    while True:
        number = -1
        for number, cube in enumerate(read_shards(shards)):
            yield epoch, number, cube
        if number < 0:
            raise InputError(
                f"no sample in {len(shards)} shards", where=shards[0] if shards else None, expected="KEY.json and KEY.cube.<codec>"
            )
        epoch += 1


def _cube(sample: dict[str, Any], shard: Path | str) -> Cube:
    key = PurePosixPath(sample["__key__"]).name
    where = f"{shard}: sample {key}"
    arrays = [member for member in sample if payload.codec_of(member)]
    if "json" not in sample or len(arrays) != 1:
        raise InputError(
            f"members {sorted(m for m in sample if not m.startswith('__'))}", where=where, expected="KEY.json and one KEY.cube.<codec>"
        )
    content, codec = sample[arrays[0]], payload.codec_of(arrays[0])
    meta = loose.meta_from(sample["json"], where=where, key=key)
    loose.check_key(meta, key, where)
    shape, dtype = payload.npy_header(content, where) if codec == "npy" else stated_array(json.loads(sample["json"]), key, where)
    if len(shape) != 3 or 0 in shape or dtype not in ("uint16", "float32"):
        raise InputError(f"an array of {dtype} {shape}", where=where, expected="(bands, height, width) of uint16 or float32")
    payload.decode_into(content, codec, out := np.empty(shape, dtype), where)
    labels_HW, fov_HW = loose.maps_from(sample.get("labels.png", b""), sample.get("fov.png", b""), where=where)
    return Cube(data_CHW=out, meta=meta, labels_HW=labels_HW, fov_HW=fov_HW, codes=arrays[0].startswith("codes."))


def plan_of(cubes: Iterable[tuple[int, int, Cube]], rank: int, world: int, consumed: int) -> Iterator[tuple[int, int, int, Cube]]:
    """(position, epoch, number, sample) of one rank, from a global position on; the samples before are read and left."""
    for position, (epoch, number, cube) in enumerate(cubes):
        if position >= consumed and (position - consumed) % world == rank:
            yield position, epoch, number, cube
