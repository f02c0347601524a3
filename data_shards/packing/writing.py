"""Writing a shard. Its checksums, its index and the sums of its bands are taken from the bytes on their way: nothing is read again.

Three things go on side by side, for each lets go of the interpreter's lock: this thread asks for cubes and writes; others encode arrays,
take their crc32c and count their values; one hashes what is written.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from data_shards import durable
from data_shards.cube import Cube
from data_shards.errors import InputError
from data_shards.packing.statistics import BandAccumulator, BandTally, Histogram, addends
from data_shards.shards.codecs import Encoding
from data_shards.shards.index import ShardIndex, index_bytes, index_path
from data_shards.shards.shard import Member, Sample, index_of, members_of

GROUP_BYTES = 1 << 20  # of small cubes that a thread takes at once: each alone would cost more in handing over than in work
GROUP_CUBES = 256
FLUSH_BYTES = 32 << 20  # after so many the disk is told to begin, so that little is left to wait for at the end
THREADS = 4  # at most
A, B = TypeVar("A"), TypeVar("B")


def write_shard(
    shard: Path,
    cubes: Iterable[Cube],
    encoding: Encoding = Encoding(),
    *,
    stem: str = "cube",
    bands: BandTally | None = None,
    keep_first: bool = False,
) -> ShardIndex | None:
    """Write a tar and its index, each whole or absent. The same cubes give the same bytes, whenever and by whom written.

    Args:
        cubes: of one kind; asked for some ahead of what is written, and not to be changed until all is.
        bands: enters the sums of their bands.
        keep_first: another writer's shard stands.

    Returns:
        The index; None where another's shard stands, which has nothing to do with these cubes.

    Raises:
        InputError: two cubes of one key. TryAgain: disk full.
    """
    with (
        durable.writing(shard, keep_first=keep_first) as file,
        ThreadPoolExecutor(_threads(), thread_name_prefix="encode") as pool,
        ThreadPoolExecutor(1, thread_name_prefix="hash") as hashing,
    ):
        tar, samples, keys = _Tar(file, hashing), [], set()
        for group in in_order(pool, lambda group: _encoded(shard, group, encoding, stem, bands), _groups(cubes), ahead=_threads()):
            for sample, members in zip(group.samples, group.members, strict=True):
                if sample.key in keys:
                    raise InputError(f"sample {sample.key!r} stands twice", where=shard, expected="unique keys")
                keys.add(sample.key)
                for member in members:
                    sample.place(member, tar.add(f"{sample.key}.{member.name}", member.content))
            if bands is not None:
                bands.enter(group.bands)
            tar.handed_on()
            samples += group.samples
        sha256 = tar.end()
        written = os.fstat(file.fileno()).st_ino
    if keep_first and os.stat(shard).st_ino != written:
        return None
    index = index_of(shard.name, tar.size, sha256, samples)
    durable.write_bytes(index_path(shard), index_bytes(index))
    return index


def in_order(pool: Executor, work: Callable[[A], B], items: Iterable[A], *, ahead: int) -> Iterator[B]:
    """The results of `work`, in the order of the items; so many are under way at most, which bounds the memory."""
    waiting: deque[Future[B]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _threads() -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(THREADS, usable)


def _groups(cubes: Iterable[Cube]) -> Iterator[list[Cube]]:
    group: list[Cube] = []
    for cube in cubes:
        group.append(cube)
        if len(group) == GROUP_CUBES or len(group) * cube.data_CHW.nbytes >= GROUP_BYTES:
            yield group
            group = []
    if group:
        yield group


@dataclass(frozen=True)
class _Group:
    """Neighbouring samples, ready to be written."""

    samples: list[Sample]
    members: list[list[Member]]
    bands: list[Histogram] | list[BandAccumulator]


def _encoded(shard: Path, cubes: Sequence[Cube], encoding: Encoding, stem: str, bands: BandTally | None) -> _Group:
    samples = [Sample.of(cube, shard) for cube in cubes]
    members = [
        [sample.looked_at(*member) for member in members_of(cube, encoding, stem)] for sample, cube in zip(samples, cubes, strict=True)
    ]
    return _Group(samples, members, [] if bands is None else addends(cubes))


class _Tar:
    """A tar as `tarfile` writes it in USTAR format; what was written is hashed while more is."""

    def __init__(self, file: BinaryIO, hashing: Executor) -> None:
        self.file, self.hashing, self.size = file, hashing, 0
        self.sha256, self.waiting, self.flushed = hashlib.sha256(), None, 0
        self.chunks: list[bytes | memoryview] = []

    def add(self, name: str, content: bytes | memoryview) -> int:
        """Write a member; where its content begins."""
        header = _header(name.encode(), len(content))
        begin = self.size + len(header)
        self._write(header, content, bytes(-len(content) % tarfile.BLOCKSIZE))
        return begin

    def end(self) -> str:
        """Write what ends a tar; hex sha256 of all."""
        end = self.size + 2 * tarfile.BLOCKSIZE
        self._write(bytes(-(-end // tarfile.RECORDSIZE) * tarfile.RECORDSIZE - self.size))
        self.handed_on()
        self.waiting.result()
        return self.sha256.hexdigest()

    def _write(self, *chunks: bytes | memoryview) -> None:
        self.file.writelines(chunks)
        self.chunks += chunks
        self.size += sum(map(len, chunks))

    def handed_on(self) -> None:
        """Have what was written hashed, once what was written before is."""
        if self.waiting:
            self.waiting.result()
        self.waiting, self.chunks = self.hashing.submit(self._hash, self.chunks), []
        if self.size - self.flushed >= FLUSH_BYTES and hasattr(os, "posix_fadvise"):
            self.file.flush()
            fd, begin, count = self.file.fileno(), self.flushed, self.size - self.flushed
            os.posix_fadvise(fd, begin, count, os.POSIX_FADV_DONTNEED)  # begins to write them out, and waits for nothing
            self.flushed = self.size

    def _hash(self, chunks: list[bytes | memoryview]) -> None:
        for chunk in chunks:
            self.sha256.update(chunk)


_EMPTY = tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT)  # mtime, uid and gid are 0
_NAME, _SIZE, _CHECKSUM = slice(0, 100), slice(124, 136), slice(148, 156)  # POSIX.1-1988, ustar
_REST = sum(_EMPTY[100:124]) + sum(_EMPTY[136:148]) + 8 * ord(" ") + sum(_EMPTY[156:])  # its checksum counts as blanks


def _header(name: bytes, size: int) -> bytes:
    """The header of a regular member: the bytes of `tarfile.TarInfo.tobuf`, in a tenth of its time."""
    assert len(name) <= 100 and size < 8**11, "a key, a member of it, and below 4 GiB"
    header, digits = bytearray(_EMPTY), b"%011o\0" % size
    header[_NAME], header[_SIZE] = name.ljust(100, b"\0"), digits
    header[_CHECKSUM] = b"%06o\0 " % (_REST + sum(name) + sum(digits))
    return bytes(header)
