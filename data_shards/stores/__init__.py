"""Where the files of a packed dataset lie: a local or network folder, or any URL that fsspec knows.

Files of a dataset never change, so all that is needed is to open one by name and to read ranges of it. A refusal is told at
once; what may pass (a stalled or broken connection, a stale handle) is tried again with growing pauses (retry.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from data_shards.errors import CorruptData, InputError
from data_shards.stores.cache import Cache, CachedFile
from data_shards.stores.local import LocalStore
from data_shards.stores.remote import RemoteStore

MAX_SMALL_BYTES = 2 << 30  # of a manifest or an index


class File(Protocol):
    """An open file. `read_into` fills `buffer` from `offset` on and returns how many bytes there were: fewer only at the file's end."""

    size: int

    def read_into(self, buffer: memoryview, offset: int) -> int: ...


class Store(Protocol):
    """A folder of files. `open` raises FileNotFoundError where there is none of that name; `sizes` is None where files cannot be listed."""

    def open(self, name: str) -> File: ...

    def sizes(self) -> dict[str, int] | None: ...


def is_url(place: Path | str) -> bool:
    """'s3://bucket/set' is one, 'data/set' is not."""
    return "://" in str(place)


def place_of(text: str) -> Path | str:
    """What a person wrote: a URL stays text, anything else is a path."""
    return text if is_url(text) else Path(text)


def where(place: Path | str, name: str) -> Path | str:
    """A file's full name, for people."""
    return f"{str(place).rstrip('/')}/{name}" if is_url(place) else Path(place) / name


def open_store(place: Path | str) -> Store:
    """The store of a folder or URL.

    Raises:
        InputError: a URL of a kind that is unknown, needs a library that is not installed, or runs programs.
    """
    if str(place).startswith("pipe:"):
        raise InputError("a pipe: URL runs a program", where=place, expected="a folder, or a URL such as s3://bucket/set")
    return RemoteStore(str(place)) if is_url(place) else LocalStore(Path(place))


def open_file(store: Store, name: str, cache: Cache | None = None, sha256: str = "") -> File:
    """A file of a store, through the cache where there is one; `sha256` names its content there."""
    file = store.open(name)
    return CachedFile(file, cache, sha256) if cache and sha256 and isinstance(store, RemoteStore) else file


def read_whole(file: File, where: object) -> bytes:
    """All of a small file.

    Raises:
        CorruptData: it is far too large to be what is looked for.
    """
    if file.size > MAX_SMALL_BYTES:
        raise CorruptData(f"a file of {file.size} bytes", where=where, expected=f"at most {MAX_SMALL_BYTES}")
    content = bytearray(file.size)
    del content[file.read_into(memoryview(content), 0) :]
    return bytes(content)


def fetch(file: File, to: Path, limit: int | None = None, piece_bytes: int = 8 << 20) -> None:
    """Copy a file, or its first `limit` bytes, to this machine, for a while: nothing is flushed."""
    buffer, at, end = memoryview(bytearray(piece_bytes)), 0, file.size if limit is None else min(limit, file.size)
    with open(to, "wb") as out:
        while at < end and (got := file.read_into(buffer[: end - at], at)):
            out.write(buffer[:got])
            at += got
