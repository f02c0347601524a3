"""One writer at a time, on any file system.

flock is dropped by the kernel with its process, and where all nodes see it that is enough. But a mount may have none (Lustre without
`-o flock` says ENOSYS, NFS without its lock service ENOLCK), or one that other nodes do not see (`localflock`). So who holds a lock
also counts up in its file. Who finds a count that another machine left, or anybody where there is no flock, watches it on his own
clock, and takes the lock when it stands still: no clocks are compared.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import logging
import os
import secrets
import socket
import threading
import time
from pathlib import Path

LOGGER = logging.getLogger("retinaforge")
BEAT_S = 5.0
STILL_S = 30.0  # a holder that did not count for so long is dead
SETTLE_S = 1.0  # between a write and the look whether somebody wrote over it
NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@functools.cache
def machine() -> str:
    """This machine, and no other that is called the same."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()


class Lock:
    """A lock file that this process holds until `release`, or until it dies."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path, self.fd = path, fd
        self.token, self.count, self._ended = secrets.token_hex(8), 0, threading.Event()
        self._beating = threading.Thread(target=self._beat, name="lock", daemon=True)

    def mark(self) -> bytes:
        """What the file says now: always as many bytes."""
        return f"{machine():64} {self.token} {self.count:012d}\n".encode()

    def write(self) -> None:
        os.pwrite(self.fd, self.mark(), 0)
        os.fsync(self.fd)

    def start(self) -> None:
        self._beating.start()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            self.count += 1
            try:
                self.write()
            except OSError as error:  # what is written meanwhile will say more of it
                LOGGER.debug("%s: %s", self.path, error)

    def release(self) -> None:
        """Let go, and take the file away: nobody has to watch it."""
        self._ended.set()
        if self._beating.ident:
            self._beating.join()
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
        os.close(self.fd)


def take(path: Path) -> Lock | None:
    """The lock of this file, None where somebody alive holds it.

    Raises:
        OSError: the file cannot be opened or written.
    """
    while True:
        try:
            fd, first = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
        except FileExistsError:
            try:
                fd, first = os.open(path, os.O_RDWR), False
            except FileNotFoundError:
                continue  # its holder ended meanwhile
        lock, held = Lock(path, fd), False
        try:
            held = _taken(lock, first=first)
        except OSError:
            if first:
                path.unlink(missing_ok=True)
            raise
        finally:
            if not held:
                os.close(fd)
        if not held:
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(fd).st_ino:
                lock.start()
                return lock
        os.close(fd)  # its holder removed it meanwhile: what we hold has no name any more


def _taken(lock: Lock, *, first: bool) -> bool:
    """Whether nobody alive holds it; then it bears our mark. `first`: this process made the file, which only one can."""
    flock = True
    try:
        fcntl.flock(lock.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_FLOCK:
            raise
        flock = False
    left = b"" if first else _read(lock.path)
    if first or (flock and left.startswith(f"{machine():64}".encode())):  # who left it ran here: the kernel says that he is dead
        lock.write()
        return True
    if left:
        LOGGER.warning("%s: watching for %g s whether its writer is alive", lock.path, STILL_S)
    until = time.monotonic() + (STILL_S if left else SETTLE_S)  # one who just made it has yet to write
    while time.monotonic() < until:
        time.sleep(min(BEAT_S, SETTLE_S) / 4)
        if _read(lock.path) != left:
            return False
    lock.write()
    time.sleep(SETTLE_S)  # two who watched the same count may write at once: the last has it
    return _read(lock.path) == lock.mark()


def _read(path: Path) -> bytes:
    """What the file says, opened anew: network file systems show other nodes' writes then. b'' where it is gone."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
