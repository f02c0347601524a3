"""One shard: a plain WebDataset tar. What is in it, and its index, found as it is written or by a scan.

Legend: N samples of the shard, M kinds of member.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath

import numpy as np
from crc32c import crc32c

from data_shards import durable
from data_shards.cube import KEY, Cube, dtype_name
from data_shards.errors import CorruptData, InputError, RetinaforgeError
from data_shards.folder import check_key, meta_bytes, meta_from, png_bytes
from data_shards.shards import payload
from data_shards.shards.checksum import of_concatenation
from data_shards.shards.codecs import STORED, Encoding
from data_shards.shards.index import ShardIndex, index_bytes, index_path

MAX_MEMBER_BYTES = (4 << 30) - 1
CRC_ONCE_BYTES = 4 << 20  # of a payload from which on its checksum is better put together from those of its blocks than taken
MEND = "copy or write the shard again"
PICKLES = ("pkl", "pickle", "pyd", "pt", "pth", "joblib", "dill")


@dataclass(frozen=True)
class Member:
    """One file of a sample in the tar."""

    name: str
    content: bytes | memoryview
    crc32c: int


def members_of(cube: Cube, encoding: Encoding, stem: str) -> list[tuple[str, bytes | memoryview]]:
    """The tar members of one sample: metadata first, so that a sequential reader knows what follows."""
    array = payload.encode(cube.data_CHW, encoding)
    members = [("json", meta_bytes(cube.meta, cube.data_CHW)), (f"{stem}.{encoding.codec}", array)]
    if cube.labels_HW is not None:
        members.append(("labels.png", png_bytes(cube.labels_HW)))
    if cube.fov_HW is not None:
        members.append(("fov.png", png_bytes(cube.fov_HW)))
    return members


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
    samples: dict[str, Sample] = {}
    for name, offset, content in tar_members(shard):
        key, _, member = name.partition(".")
        sample = samples.setdefault(key, Sample(key, f"{shard.name}: sample {key}"))
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
    return index_of(shard.name, shard.stat().st_size, durable.sha256_of(shard), list(samples.values()))


class Sample:
    """What is known of one sample while its shard is written or scanned."""

    def __init__(self, key: str, where: str) -> None:
        self.key, self.where = key, where
        self.members: dict[str, tuple[int, int, int]] = {}
        self.meta, self.subject, self.array, self.waiting = b"", "", "", b""
        self.shape: tuple[int, ...] = ()
        self.dtype, self.blocks, self.block_crcs = "", None, ()

    @classmethod
    def of(cls, cube: Cube, shard: Path) -> Sample:
        """One that is to be written."""
        sample = cls(cube.meta.key, f"{shard.name}: sample {cube.meta.key}")
        sample.subject, sample.shape, sample.dtype = cube.meta.subject_id, cube.data_CHW.shape, dtype_name(cube.data_CHW.dtype)
        return sample

    def looked_at(self, name: str, content: bytes | memoryview) -> Member:
        """A member of this sample, its checksum taken, and of an array those of its blocks."""
        if name == "json":
            self.meta = content
        elif codec := payload.codec_of(name):
            self.array = name
            self.find_blocks(content, codec)
            once = codec in STORED and len(content) >= CRC_ONCE_BYTES
            return Member(name, content, self._crc_of_blocks(content) if once else crc32c(content))
        return Member(name, content, crc32c(content))

    def place(self, member: Member, offset: int) -> None:
        """Where its content begins."""
        self.members[member.name] = (offset, len(member.content), member.crc32c)

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
            self.find_blocks(content, codec)

    def find_blocks(self, content: bytes | memoryview, codec: str) -> None:
        """The blocks of the array, and their checksums."""
        self.blocks, view = payload.blocks_of(content, codec, self.shape, self.dtype, self.where), memoryview(content)
        self.block_crcs = [crc32c(view[a:b]) for a, b in pairwise(self.blocks.edges_K1)]

    def _crc_of_blocks(self, content: bytes | memoryview) -> int:
        """The checksum of a payload, from that of what stands before its blocks and theirs."""
        edges_K1 = self.blocks.edges_K1
        sizes = tuple(b - a for a, b in pairwise([0, *edges_K1]))
        return of_concatenation([crc32c(memoryview(content)[: edges_K1[0]]), *self.block_crcs], sizes)


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


def index_of(shard: str, nbytes: int, sha256: str, samples: list[Sample]) -> ShardIndex:
    """The index of a shard that holds these samples.

    Raises:
        InputError: a sample without array or metadata, several dtypes.
    """
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
        shard=shard,
        shard_bytes=nbytes,
        sha256=sha256,
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
