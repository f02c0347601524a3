"""A double of the file system, for bulk.py and its tests: what another node's cache may show of a folder."""

from __future__ import annotations

import builtins
import errno
import io
import os
import time
from pathlib import Path
from typing import Any


class StaleView:
    """A double of the file system as another node's cache shows it: names that others made stay unseen for a while.

    It stands before the calls by which this process looks: stat, open for reading, and listings. A name that this process made, has
    seen before, or was told of by a failing link, is there: those are what network file systems revalidate.
    """

    def __init__(self, folder: Path, late_s: float) -> None:
        self.folder, self.late_s, self.now = str(folder), late_s, time.time  # the clock of the file system, before this one is put wrong
        self.known: set[str] = set()
        self.hidden = 0
        self.stat, self.open, self.os_open, self.scandir = os.stat, builtins.open, os.open, os.scandir
        self.link, self.replace, self.listdir = os.link, os.replace, os.listdir

    def __enter__(self) -> StaleView:
        os.stat, os.open, os.scandir, os.listdir = self._stat, self._os_open, self._scandir, self._listdir
        os.link, os.replace = self._link, self._replace
        builtins.open = io.open = self._open
        return self

    def __exit__(self, *error: object) -> None:
        os.stat, os.open, os.scandir, os.listdir = self.stat, self.os_open, self.scandir, self.listdir
        os.link, os.replace = self.link, self.replace
        builtins.open = io.open = self.open

    def _unseen(self, path: Any) -> bool:
        if isinstance(path, int) or not (name := os.fspath(path)).startswith(self.folder + os.sep) or name in self.known:
            return False
        try:
            made_s = self.stat(name).st_ctime  # of its link to this name, which is when it was published
        except OSError:
            return False
        if self.now() - made_s < self.late_s:
            self.hidden += 1
            return True
        self.known.add(name)
        return False

    def _look(self, path: Any) -> None:
        if self._unseen(path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))

    def _stat(self, path: Any, **how: Any) -> os.stat_result:
        self._look(path)
        return self.stat(path, **how)

    def _open(self, path: Any, mode: str = "r", *words: Any, **how: Any) -> Any:
        if "r" in mode and "+" not in mode:
            self._look(path)
        elif not isinstance(path, int):
            self.known.add(os.fspath(path))
        return self.open(path, mode, *words, **how)

    def _os_open(self, path: Any, flags: int, *words: Any, **how: Any) -> int:
        if not flags & os.O_CREAT:
            self._look(path)
        return self.os_open(path, flags, *words, **how)

    def _scandir(self, path: Any = ".") -> Any:
        return _Entries([entry for entry in self.scandir(path) if not self._unseen(entry.path)])

    def _listdir(self, path: Any = ".") -> list[str]:
        return [entry.name for entry in self._scandir(path)]

    def _link(self, part: Any, final: Any) -> None:
        self.known.add(os.fspath(final))  # whether it was first or not: the server has answered
        self.link(part, final)

    def _replace(self, part: Any, final: Any) -> None:
        self.replace(part, final)
        self.known.add(os.fspath(final))


class _Entries(list):
    """As os.scandir gives them."""

    def __enter__(self) -> _Entries:
        return self

    def __exit__(self, *error: object) -> None:
        return None
