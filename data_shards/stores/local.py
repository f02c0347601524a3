"""Folders of this machine, and network file systems mounted on it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from data_shards.errors import InputError, command
from data_shards.stores.retry import Transient, retrying

PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.ECONNRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH}
"""What a network file system says while its server is away or fails over. EIO may also be a bad sector: then it stays."""


def _transient(error: OSError) -> Transient:
    return Transient(error.strerror or str(error), lasting=error if error.errno == errno.EIO else None)


class LocalFile:
    """Read by `pread`, never mapped: a mapped file that is cut short under a running job kills the process (SIGBUS).

    Raises (while opening and reading):
        TryAgain: the file system does not answer. OSError: it does, and these bytes cannot be had (EIO after all retries).
    """

    def __init__(self, path: Path) -> None:
        self.path, self.fd = path, -1
        self.fd = retrying(self._open, path)
        self.size = os.fstat(self.fd).st_size

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_RDONLY)
        except PermissionError as error:
            mend = f"{command('ls', '-l', self.path)}; correct its permissions"
            raise InputError("may not be read", where=self.path, mend=mend) from error
        except OSError as error:
            if error.errno in PASSING:
                raise _transient(error) from error
            raise

    def read_into(self, buffer: memoryview, offset: int) -> int:
        def read() -> int:
            done = 0
            try:
                while done < len(buffer):  # one call moves at most 2 GiB, and a network file system may give less than asked
                    got = os.preadv(self.fd, [buffer[done:]], offset + done)
                    if not got:
                        break
                    done += got
            except OSError as error:
                if error.errno not in PASSING:
                    raise
                fresh = self._open()  # a stale handle stays stale
                os.dup2(fresh, self.fd)
                os.close(fresh)
                raise _transient(error) from error
            return done

        return retrying(read, self.path)

    def expect(self, offset: int, size: int) -> None:
        """This range is read soon: let the disk fetch it meanwhile."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.fd, offset, size, os.POSIX_FADV_WILLNEED)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # threads that still read hold a reference: the last one closes. `close` is bound: at the interpreter's end `os` is gone
        if self.fd >= 0:
            close(self.fd)


class LocalStore:
    """A folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, name: str) -> LocalFile:
        return LocalFile(self.folder / name)

    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {entry.name: entry.stat().st_size for entry in os.scandir(self.folder) if entry.is_file()}
