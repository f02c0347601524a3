"""One shard: a plain WebDataset tar. Writing it, and scanning it for its index.

Legend: N samples of the shard, M kinds of member.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path, PurePosixPath

import numpy as np
from crc32c import crc32c

from data_shards import durable
from data_shards.cube import KEY, Cube
from data_shards.errors import CorruptData, InputError, RetinaforgeError
from data_shards.folder import check_key, meta_bytes, meta_from, png_bytes
from data_shards.shards import payload
from data_shards.shards.codecs import Encoding
from data_shards.shards.index import ShardIndex, index_bytes, index_path

MAX_MEMBER_BYTES = (4 << 30) - 1
MEND = "copy or write the shard again"
PICKLES = ("pkl", "pickle", "pyd", "pt", "pth", "joblib", "dill")


def members_of(cube: Cube, encoding: Encoding, stem: str) -> list[tuple[str, bytes]]:
    """The tar members of one sample: metadata first, so that a sequential reader knows what follows."""
    array = payload.encode(cube.data_CHW, encoding)
    members = [("json", meta_bytes(cube.meta, cube.data_CHW)), (f"{stem}.{encoding.codec}", array)]
    if cube.labels_HW is not None:
        members.append(("labels.png", png_bytes(cube.labels_HW)))
    if cube.fov_HW is not None:
        members.append(("fov.png", png_bytes(cube.fov_HW)))
    return members


def write_shard(shard: Path, cubes: Iterable[Cube], encoding: Encoding = Encoding(), *, stem: str = "cube") -> ShardIndex:
    """Write a tar and its index, each whole or absent. The same cubes give the same bytes, whenever and by whom written."""
    write_tar(shard, cubes, encoding, stem=stem)
    return write_index(shard)


def write_tar(shard: Path, cubes: Iterable[Cube], encoding: Encoding = Encoding(), *, stem: str = "cube", keep_first: bool = False) -> bool:
    """Write a tar, whole or absent. With `keep_first`, another writer's stands; returns whether it is this one that stands there."""
    with durable.writing(shard, keep_first=keep_first) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for cube in cubes:
            for member, content in members_of(cube, encoding, stem):
                info = tarfile.TarInfo(f"{cube.meta.key}.{member}")  # mtime, uid and gid stay 0
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        written = os.fstat(file.fileno()).st_ino
    return os.stat(shard).st_ino == written


def write_index(shard: Path) -> ShardIndex:
    """Write the index of the tar that stands there."""
    index = scan_shard(shard)
    durable.write_bytes(index_path(shard), index_bytes(index))
    return index


def scan_shard(shard: Path) -> ShardIndex:
    """Index a shard by reading it once: ours, or one that stock webdataset wrote.

    Raises:
        CorruptData: the tar ends early or its headers are damaged, or an array is not of its stated shape.
        InputError: unsafe member names, a pickle, a sample without array or metadata, samples of mixed dtype.
    """
    samples: dict[str, _Sample] = {}
    for name, offset, content in tar_members(shard):
        key, _, member = name.partition(".")
        sample = samples.setdefault(key, _Sample(key, f"{shard.name}: sample {key}"))
        if member in sample.members:
            raise InputError(f"member {name!r} stands twice", where=shard, expected="unique names", mend="write the shard again")
        sample.members[member] = (offset, len(content), crc32c(content))
        if member == "json":
            meta = meta_from(content, where=sample.where, key=key)
            check_key(meta, key, sample.where)
            sample.meta, sample.subject = content, meta.subject_id
        elif payload.codec_of(member):
            if sample.array:
                raise InputError(f"two arrays, {sample.array} and {member}", where=sample.where, expected="one KEY.cube.<codec>")
            sample.array = member
            sample.measure(content)
        if sample.waiting and sample.meta:  # others may write the array before its metadata
            sample.measure(sample.waiting)
    return _index_of(shard, list(samples.values()))


class _Sample:
    """What is known of one sample while its shard is scanned."""

    def __init__(self, key: str, where: str) -> None:
        self.key, self.where = key, where
        self.members: dict[str, tuple[int, int, int]] = {}
        self.meta, self.subject, self.array, self.waiting = b"", "", "", b""
        self.shape: tuple[int, ...] = ()
        self.dtype, self.blocks, self.block_crcs = "", None, ()

    def measure(self, content: bytes) -> None:
        """Shape and blocks of the array; where its metadata is still to come, the array is kept for then."""
        codec = payload.codec_of(self.array)
        if codec == "npy":
            self.shape, self.dtype = payload.npy_header(content, self.where)
        elif not self.meta:
            self.waiting = content
            return
        else:
            self.shape, self.dtype = stated_array(json.loads(self.meta), self.key, self.where)
        self.waiting = b""
        if len(self.shape) == 3 and 0 not in self.shape:
            self.blocks = payload.blocks_of(content, codec, self.shape, self.dtype, self.where)
            view = memoryview(content)
            self.block_crcs = [crc32c(view[a:b]) for a, b in pairwise(self.blocks.edges_K1)]


def stated_array(fields: dict[str, object], key: str, where: str) -> tuple[tuple[int, ...], str]:
    """Shape and dtype of an array, as the sample's metadata states them.

    Raises:
        InputError: absent, not sensible, or larger than an array may be.
    """
    shape, dtype = fields.get("shape"), fields.get("dtype")
    sound = isinstance(shape, list) and all(isinstance(n, int) and n > 0 for n in shape) and dtype in ("uint16", "float32")
    if not sound or np.dtype(dtype).itemsize * int(np.prod(shape, dtype=object)) > payload.MAX_ARRAY_BYTES:
        raise InputError(
            f"bare bytes of shape {shape!r} and dtype {dtype!r}",
            where=where,
            expected=f"'shape' (a list) and 'dtype' (uint16 or float32) in {key}.json, below 4 GiB",
        )
    return tuple(shape), dtype


def check_member(name: str, shard: object) -> str:
    """A member's name without its folders, where it is safe.

    Raises:
        InputError: an absolute name or one with '..', a pickle, a key that is not allowed.
    """
    path = PurePosixPath(name)
    if name.startswith("/") or ".." in path.parts:
        raise InputError(f"unsafe member {name!r}", where=shard, expected="relative names")
    if path.name.rpartition(".")[2].lower() in PICKLES:
        raise InputError(
            f"member {name!r} is a pickle, which may run code when read",
            where=shard,
            expected="arrays as .npy or raw, metadata as .json",
            mend="write the shard again without it",
        )
    if not KEY.fullmatch(path.name.partition(".")[0]):
        raise InputError(f"sample key {path.name.partition('.')[0]!r} is not allowed", where=shard, expected="letters, digits, '_', '-'")
    return path.name


def regular_members(tar: tarfile.TarFile, shard: object) -> Iterator[tuple[tarfile.TarInfo, str, bytes]]:
    """Header, name without folders, and content of each regular member; names are checked before content is touched."""
    for info in tar:
        if info.isdir():
            continue
        if not info.isreg() or info.issparse() or info.size > MAX_MEMBER_BYTES:
            raise InputError(f"unsafe member {info.name!r}", where=shard, expected="regular files, below 4 GiB")
        name = check_member(info.name, shard)
        content = tar.extractfile(info).read()
        if len(content) != info.size:
            raise CorruptData(f"the shard ends inside member {info.name!r}", where=shard, mend=MEND)
        yield info, name, content
        tar.members = []  # tarfile would keep them all


def check_end(block: bytes, offset: int, shard: object) -> None:
    """tarfile takes a damaged header, or a cut at a member's border, for the end; the true end is a block of zeros.

    Raises:
        CorruptData: `block`, at the offset where tarfile ended, is another.
    """
    if block != bytes(tarfile.BLOCKSIZE):
        raise CorruptData(f"the tar breaks off at byte {offset}: cut short, or a damaged header", where=shard, mend=MEND)


def tar_members(shard: Path) -> Iterator[tuple[str, int, bytes]]:
    """(name, offset, content) of each regular member."""
    try:
        with tarfile.open(shard, "r:") as tar:
            yield from ((name, info.offset_data, content) for info, name, content in regular_members(tar, shard))
        with open(shard, "rb") as file:
            file.seek(tar.offset)
            check_end(file.read(tarfile.BLOCKSIZE), tar.offset, shard)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise CorruptData(f"not a whole tar: {error}", where=shard, expected="a plain, uncompressed tar", mend=MEND) from error
    except ValueError as error:  # tarfile's, of a header with sizes that cannot be
        if isinstance(error, RetinaforgeError):
            raise
        raise CorruptData(f"a damaged header: {error}", where=shard, mend=MEND) from error


def _index_of(shard: Path, samples: list[_Sample]) -> ShardIndex:
    members = tuple(sorted({member for sample in samples for member in sample.members}))
    table_NM3 = np.zeros((len(samples), len(members), 3), np.uint64)
    for i, sample in enumerate(samples):
        if not sample.meta or not sample.array:
            raise InputError(f"members {sorted(sample.members)}", where=sample.where, expected="KEY.json and one KEY.cube.<codec>")
        for m, member in enumerate(members):
            table_NM3[i, m] = sample.members.get(member, (0, 0, 0))
    shapes, dtypes = {sample.shape for sample in samples}, {sample.dtype for sample in samples}
    if len(dtypes) > 1 or any(len(shape) != 3 or 0 in shape for shape in shapes):
        raise InputError(f"dtypes {sorted(dtypes)}, shapes {shapes}", where=shard, expected="one dtype, (bands, height, width)")
    layouts = {sample.blocks.layout for sample in samples}
    one = layouts.pop() if len(layouts) == 1 else None
    return ShardIndex(
        shard=shard.name,
        shard_bytes=shard.stat().st_size,
        sha256=durable.sha256_of(shard),
        dtype=dtypes.pop() if dtypes else "uint16",
        members=members,
        keys=[sample.key for sample in samples],
        subjects=[sample.subject for sample in samples],
        shape_N3=np.array([sample.shape for sample in samples], np.uint32).reshape(-1, 3),
        offset_NM=table_NM3[..., 0],
        size_NM=table_NM3[..., 1],
        crc_NM=table_NM3[..., 2].astype(np.uint32),
        block=one and one.block,
        edge_NK1=np.array([sample.blocks.edges_K1 for sample in samples] if one else np.zeros((len(samples), 0)), np.uint32),
        block_crc_NK=np.array([sample.block_crcs for sample in samples] if one else np.zeros((len(samples), 0)), np.uint32),
    )
