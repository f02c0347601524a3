"""Pieces of remote files on a disk of this node, shared by its ranks and bounded in size.

A piece is named by the sha256 of the file that it comes from, so a file that was replaced is never mixed with the old one. It
appears by a rename, whoever comes first; nothing is flushed to the device: a piece lost or damaged by a power cut fails its
checksum and is read from the store again. The pieces used longest ago go first. The folder that a person names may hold
anything else, so pieces lie in a folder of their own in it, and nothing that is not named as a piece is ever touched.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from data_shards.errors import InputError

LOGGER = logging.getLogger("retinaforge")
PIECE_BYTES = 4 << 20
PIECES = "retinaforge-pieces"
PART = ".part-"
SHELF = re.compile(r"[0-9a-f]{2}")
PIECE = re.compile(rf"({PART}[0-9a-f]{{8}}-)?([0-9a-f]{{64}})-[0-9]+")
STALE_S = 3600.0  # an unfinished piece this old was left by a process that died


class _File(Protocol):
    size: int

    def read_into(self, buffer: memoryview, offset: int) -> int: ...


class Cache:
    """Pieces in a folder of their own below `folder`.

    Args:
        folder: on a local disk; what others keep there stays.
        limit_bytes: what all pieces together may hold; each process may overshoot by a 32nd before it looks again.

    Raises:
        InputError: the limit is below one piece.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder / PIECES, limit_bytes
        self.hits = self.misses = self._added = 0
        self._lock, self.broken = threading.Lock(), ""
        if limit_bytes < PIECE_BYTES:
            raise InputError(f"a cache of {limit_bytes} bytes", where=folder, expected=f"at least {PIECE_BYTES}, one piece")

    def prepare(self) -> None:
        """Make the folder and bring what it holds within the limit: before the first file that is read through it.

        Raises:
            InputError: the folder cannot be made or written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._evict()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                self._give_up(error)
                return
            raise InputError(
                f"cannot make the cache: {error.strerror}", where=self.folder, mend="choose another folder: data.cache=…"
            ) from error

    def read_into(self, name: str, size: int, buffer: memoryview, offset: int) -> bool:
        """Fill `buffer` from a piece of that size, or say that it is not there."""
        if self.broken:
            return False  # what it holds can no longer be corrected
        try:
            fd = os.open(self.folder / name[:2] / name, os.O_RDONLY)
        except OSError:
            self.misses += 1
            return False
        try:
            hit = os.fstat(fd).st_size == size and os.preadv(fd, [buffer], offset) == len(buffer)
            with contextlib.suppress(OSError):  # another user's piece serves as well
                os.utime(fd)
        except OSError:
            hit = False
        finally:
            os.close(fd)
        self.hits, self.misses = self.hits + hit, self.misses + (not hit)
        return hit

    def put(self, name: str, content: memoryview) -> None:
        """Keep a piece. A disk that is full or fails ends caching, not the run."""
        if self.broken:
            return
        path = self.folder / name[:2] / name
        part = path.with_name(f"{PART}{secrets.token_hex(4)}-{name}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(content)
            os.replace(part, path)
            with self._lock:
                self._added += len(content)
                due = self._added > self.limit_bytes // 32
            if due:
                self._evict()
        except OSError as error:
            self._give_up(error)
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)

    def drop(self, name: str) -> None:
        """Forget a piece that does not hold what it should."""
        try:
            (self.folder / name[:2] / name).unlink(missing_ok=True)
        except OSError as error:
            self.broken = error.strerror or str(error)

    def _give_up(self, error: OSError) -> None:
        self.broken = error.strerror or str(error)
        LOGGER.warning("%s: %s; going on without this cache", self.folder, self.broken)

    def _evict(self) -> None:
        """Remove the pieces used longest ago until nine tenths of the limit are left. One process of the node at a time."""
        with self._lock:
            self._added = 0
        with open(self.folder / ".lock", "ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            except OSError as error:  # a file system without locks: two that evict at once remove more than they had to, no more
                LOGGER.debug("%s: %s", self.folder, error)
            pieces = []
            for entry, seen in self._own():
                if not entry.name.startswith(PART):
                    pieces.append((seen.st_mtime, seen.st_size, entry.path))
                elif seen.st_mtime < time.time() - STALE_S:
                    _remove(entry.path)
            held = sum(size for _, size, _ in pieces)
            for _, size, path in sorted(pieces) if held > self.limit_bytes else ():
                if held <= self.limit_bytes * 9 // 10:
                    break
                _remove(path)
                held -= size

    def _own(self) -> Iterator[tuple[os.DirEntry[str], os.stat_result]]:
        """Files that are named as this cache names pieces, where it puts them. Others may remove them meanwhile."""
        for shelf in os.scandir(self.folder):
            if not SHELF.fullmatch(shelf.name) or not shelf.is_dir(follow_symlinks=False):
                continue
            with contextlib.suppress(OSError):  # a folder that went, or that this user may not list
                for entry in os.scandir(shelf):
                    named = PIECE.fullmatch(entry.name)
                    if named and named[2].startswith(shelf.name) and entry.is_file(follow_symlinks=False):
                        with contextlib.suppress(FileNotFoundError):
                            yield entry, entry.stat(follow_symlinks=False)


def _remove(path: str) -> None:
    """Another process, or another user whose piece it is, may have the last word."""
    with contextlib.suppress(FileNotFoundError, PermissionError):
        os.unlink(path)


class CachedFile:
    """A remote file read through a cache, whole pieces at a time."""

    def __init__(self, file: _File, cache: Cache, sha256: str) -> None:
        self.file, self.cache, self.sha256, self.size = file, cache, sha256, file.size

    def read_into(self, buffer: memoryview, offset: int) -> int:
        end, done = min(self.size, offset + len(buffer)), offset
        if self.cache.broken:
            return self.file.read_into(buffer, offset)
        while done < end:
            p = done // PIECE_BYTES
            start, size = p * PIECE_BYTES, min(PIECE_BYTES, self.size - p * PIECE_BYTES)
            wanted = buffer[done - offset : min(end, start + size) - offset]
            if not self.cache.read_into(self._name(p), size, wanted, done - start):
                content = memoryview(bytearray(size))
                if self.file.read_into(content, start) != size:
                    return done - offset
                self.cache.put(self._name(p), content)
                wanted[:] = content[done - start : done - start + len(wanted)]
            done += len(wanted)
        return max(0, end - offset)

    def forget(self, offset: int, size: int) -> None:
        """Drop the pieces under a range: what they gave was not what the index says."""
        for p in range(offset // PIECE_BYTES, (offset + max(size, 1) - 1) // PIECE_BYTES + 1):
            self.cache.drop(self._name(p))

    def _name(self, p: int) -> str:
        return f"{self.sha256}-{p}"
