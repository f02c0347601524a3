"""A disk that loses power: what of a folder is surely on it, and what else may be there, after a cut at any moment.

POSIX promises the content of a file after its fsync, and the names in a folder after the folder's. All else may be there or not.
Three extremes stand for what may be: nothing else made it; all names made it, but files not flushed are zeros (ext4 and XFS do that);
what was removed is gone, but what was added is not there. (Pillai et al., OSDI 2014, list what file systems do.)
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

EXTREMES = ("nothing else", "names", "removals")
OPERATIONS = ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir", "link")


class Disk:
    """Watches the folder `root`, which stands from the beginning.

    Args:
        moment: called before each operation, when power may go.
    """

    def __init__(self, root: Path, patch: pytest.MonkeyPatch, moment: Callable[[], None] = lambda: None) -> None:
        self.root, self.moment, self.busy, self.lock = root, moment, False, threading.RLock()
        self.content: dict[int, bytes] = {}  # by inode
        self.names: dict[int, dict[str, int]] = {root.stat().st_ino: {}}
        self.held: list[int] = []  # descriptors, so that no inode number is given to another file
        self.fsync = os.fsync
        for name in OPERATIONS:
            patch.setattr(os, name, self._watched(name, getattr(os, name)))

    def _watched(self, name: str, real: Callable) -> Callable:
        def operation(*args, **kwargs):
            with self.lock:
                if self.busy:
                    return real(*args, **kwargs)
                self.look()
                done = real(*args, **kwargs)
                if name == "fsync":
                    self._flushed(args[0])
                return done

        return operation

    def look(self) -> None:
        """Suppose that power goes now."""
        with self.lock:
            self.busy = True
            try:
                self.moment()
            finally:
                self.busy = False

    def _flushed(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        self.held.append(os.dup(descriptor))
        place = Path(f"/proc/self/fd/{descriptor}")
        if stat.S_ISDIR(status.st_mode):
            self.names[status.st_ino] = _entries(place)
        else:
            self.content[status.st_ino] = place.read_bytes()

    def after_power_loss(self, extreme: str, out: Path) -> None:
        """Lay out below `out` what is found under `root` after a cut now."""
        self._lay_out(self.root, self.root.stat().st_ino, extreme, out)

    def _lay_out(self, now: Path | None, inode: int, extreme: str, out: Path) -> None:
        out.mkdir()
        flushed, present = self.names.get(inode, {}), _entries(now) if now is not None else {}
        entries = {"nothing else": flushed, "names": present, "removals": {k: v for k, v in flushed.items() if k in present}}[extreme]
        for name, child in entries.items():
            place = now / name if now is not None and present.get(name) == child else None
            if child in self.names or (place is not None and place.is_dir()):
                self._lay_out(place, child, extreme, out / name)
            elif place is not None and not place.exists():
                continue
            else:
                zeros = bytes(place.stat().st_size) if place is not None else b""
                (out / name).write_bytes(self.content.get(child, zeros))


def _entries(folder: Path) -> dict[str, int]:
    return {entry.name: entry.inode() for entry in os.scandir(folder)}
