"""Any URL that fsspec knows: s3://, gs://, http(s)://, memory:// …

Keys, end points and the like come from where fsspec and its file systems look for them: their own files and environment
variables, such as FSSPEC_S3_ENDPOINT_URL.
"""

from __future__ import annotations

from typing import Any

from data_shards.errors import InputError
from data_shards.stores.retry import Transient, retrying

STALL_S = 60.0  # no answer to one read for so long is taken for a broken connection
PROGRAMMING_ERRORS = (TypeError, ValueError, AttributeError, NameError, LookupError, ImportError, NotImplementedError, AssertionError)
"""Faults of a program, never of a store: told as they are. Each library has classes of its own for trouble; all others are tried again."""


class RemoteStore:
    """A folder at a URL."""

    def __init__(self, url: str, stall_s: float = STALL_S) -> None:
        import fsspec

        self.url, self.stall_s = url.rstrip("/"), stall_s
        try:
            self.fs, self.root = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError, OSError) as error:
            raise InputError(
                f"cannot read this kind of URL: {error}",
                where=url,
                expected="a folder, or a URL that fsspec knows",
                mend="pip install -c constraints.txt s3fs   (or the file system that the message names)",
            ) from error

    def open(self, name: str) -> RemoteFile:
        return RemoteFile(self, name)

    def sizes(self) -> dict[str, int] | None:
        """Bytes of each file; None over HTTP, which has no lists of files."""
        if self.url.startswith("http"):
            return None
        entries = self.call("ls", self.root, detail=True)
        return {entry["name"].rpartition("/")[2]: entry["size"] for entry in entries if entry["type"] == "file"}

    def call(self, method: str, path: str, **options: Any) -> Any:
        """One call of the file system, within the time limit where it has one, tried again while trouble may pass.

        Raises:
            FileNotFoundError: no such file. InputError: access denied. TryAgain: no answer, again and again.
        """
        from fsspec.asyn import sync

        where = f"{self.url}/{path.rpartition('/')[2]}"

        def once() -> Any:
            try:
                if self.fs.async_impl:
                    return sync(self.fs.loop, getattr(self.fs, f"_{method}"), path, timeout=self.stall_s, **options)
                return getattr(self.fs, method)(path, **options)
            except PROGRAMMING_ERRORS:
                raise
            except Exception as caught:
                error = caught  # or its cause
                if isinstance(error, FileNotFoundError):
                    cause = error.__cause__  # fsspec says this of a web server's every trouble
                    absent = isinstance(cause, (FileNotFoundError, KeyError)) or "NoSuchKey" in type(cause).__name__
                    if cause is None or absent or getattr(cause, "status", 0) in (404, 410) or "(404)" in str(cause):
                        raise
                    error = cause
                if isinstance(error, PermissionError) or getattr(error, "status", 0) in (401, 403):
                    raise InputError(
                        f"the store denies access: {error}", where=where, mend="check the keys of this store, and who may read the set"
                    ) from error
                said = f"no answer within {self.stall_s:g} s" if isinstance(error, TimeoutError) else f"{type(error).__name__}: {error}"
                raise Transient(said) from error

        return retrying(once, where)


class RemoteFile:
    """Read by ranges."""

    def __init__(self, store: RemoteStore, name: str) -> None:
        self.store, self.path, self.name = store, f"{store.root}/{name}", name
        size = store.call("info", self.path).get("size")
        if size is None:
            raise InputError("the store does not tell the size of a file", where=f"{store.url}/{name}", expected="Content-Length")
        self.size = int(size)

    def read_into(self, buffer: memoryview, offset: int) -> int:
        wanted = max(0, min(len(buffer), self.size - offset))
        if not wanted:
            return 0

        def read() -> bytes:
            content = self.store.call("cat_file", self.path, start=offset, end=offset + wanted)
            if len(content) > wanted:
                raise InputError(
                    f"asked for {wanted} bytes, got {len(content)}",
                    where=f"{self.store.url}/{self.name}",
                    expected="a server that answers range requests",
                    mend="serve the set by another server, or copy it here",
                )
            if len(content) < wanted:
                raise Transient(f"short read: {len(content)} of {wanted} bytes")
            return content

        content = retrying(read, f"{self.store.url}/{self.name}")
        buffer[:wanted] = content
        return wanted
