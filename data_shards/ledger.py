"""Who works on what, among any number of processes on any number of hosts: leases, which spare work and do nothing else.

A unit of work is published under a name of its own, the first writer's bytes, and that alone makes a set right. A lease keeps others
from doing the same at the same time. It is a small file with a token, a count and, for people, its holder's name. A hard link makes it,
which one alone can do. Its holder raises the count; who finds the same count for long enough on his own clock takes the lease over. No
clocks are compared, no server is asked, and a lease that two hold by a mishap costs the work of one unit, not a wrong one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from data_shards import durable
from data_shards.errors import RetinaforgeError

if TYPE_CHECKING:
    from typing_extensions import Self

LOGGER = logging.getLogger("retinaforge")
LEASE = ".lease-"
BEAT_S = 5.0
STILL_S = 60.0  # a holder whose count stood still for so long is taken for dead; network file systems show a change within a minute


class Units(ABC):
    """A piece of work in units. Each is published first-writer-wins, and its bytes do not depend on who makes it, nor when.

    Used as a context while units are made.

    Attributes:
        out: where they are published; their leases lie there too.
        names: of the units, as they stand in file names.
    """

    out: Path
    names: Sequence[str]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Finished units stay, whatever happened."""
        return None

    @abstractmethod
    def published(self, number: int) -> bool:
        """Whether a unit is there, whole."""

    def ready(self, number: int) -> bool:
        """Whether what a unit is made from is there, where that is made by other units."""
        return True

    @abstractmethod
    def make(self, number: int) -> None:
        """Make a unit and publish it."""

    def finish(self) -> Any:
        """Make what follows from all units, once they are there; the first who comes writes it."""
        return None

    def size(self, number: int) -> int:
        """How many images a unit holds, for those who watch."""
        return 1

    def complete(self, watch: Callable[[Iterable[int]], Iterable[int]] = iter) -> Any:
        """Make all units and finish them by this process alone.

        Args:
            watch: wraps what passes as images are made: the number of their unit.
        """
        with self:
            for _ in watch(self.by_image(self._made_here())):
                pass
            return self.finish()

    def by_image(self, numbers: Iterable[int]) -> Iterator[int]:
        """Each number of a unit as often as it has images."""
        return (number for number in numbers for _ in range(self.size(number)))

    def _made_here(self) -> Iterator[int]:
        for number in range(len(self.names)):
            try:
                if not self.published(number):
                    self.make(number)
            except RetinaforgeError:
                if not self.published(number):  # by others, meanwhile
                    raise
            yield number


class Ledger:
    """The leases of one piece of work.

    Args:
        folder: where the lease files lie; all who share the work name the same.
        still_s: how long a count stands still until its holder is taken for dead.
        beat_s: how often a holder counts.
    """

    def __init__(self, folder: Path, *, still_s: float = STILL_S, beat_s: float = BEAT_S) -> None:
        self.folder, self.still_s, self.beat_s = folder, still_s, beat_s
        self.seen: dict[str, tuple[bytes, float]] = {}
        self.links = True

    @contextlib.contextmanager
    def lease(self, unit: str) -> Iterator[bool]:
        """Hold the lease of a unit while the block runs; False where another holds it, who seems to be alive.

        Raises:
            InputError, TryAgain: the folder cannot be written.
        """
        path, token = self.folder / f"{LEASE}{unit}", secrets.token_hex(8)
        with durable.explained(path):
            mine = self._taken(path, token)
        if not mine:
            yield False
            return
        ended = threading.Event()
        beating = threading.Thread(target=self._beat, args=(path, token, ended), name=f"lease-{unit}", daemon=True)
        beating.start()
        try:
            yield True
        finally:
            ended.set()
            beating.join()
            if _holder(path) == token:
                path.unlink(missing_ok=True)

    def clear(self, units: Iterable[str]) -> None:
        """Remove the leases of units that are published, whole or begun: who was killed before he gave one back left it."""
        names = set(units)
        entries: list[Path] = []
        with contextlib.suppress(FileNotFoundError):  # another process has finished the work, and given the folder another name
            entries = list(self.folder.iterdir())  # one listing, where asking for each would be one call a unit
        for path in entries:
            before, lease, unit = path.name.partition(LEASE)
            if lease and unit in names and (not before or before.startswith(durable.PART)):  # or what a process killed in _linked left
                path.unlink(missing_ok=True)

    def _taken(self, path: Path, token: str) -> bool:
        now, content = time.monotonic(), _content(path)  # who waits only looks: a file server has to carry out each change
        if content is None:
            return self._linked(path, token)
        before, since = self.seen.get(path.name, (None, now))
        if content != before:
            self.seen[path.name] = (content, now)
            return False
        if now - since < self.still_s:
            return False
        del self.seen[path.name]
        LOGGER.warning("%s: its holder has not counted for %.0f s, so it is taken over", path, now - since)
        with contextlib.suppress(FileNotFoundError):  # the unit is published, and its leases are cleared
            _replace(path, token, 0)
        return _holder(path) == token  # of several who take it over at once, the last stays

    def _linked(self, path: Path, token: str) -> bool:
        """Make the lease, unless there is one."""
        part = durable.part_name(path)
        try:
            part.write_bytes(_mark(token, 0))
            if self.links:
                try:
                    os.link(part, path)
                    return True
                except (FileExistsError, FileNotFoundError):  # there is one; the part of a unit that is published may be swept
                    return False
                except OSError as error:
                    if error.errno not in durable.NO_LINKS:
                        raise
                    self.links = False
                    LOGGER.warning("%s: no hard links here (%s); leases are made by exclusive creation", self.folder, error.strerror)
            try:
                with open(path, "xb") as file:
                    file.write(_mark(token, 0))
                return True
            except FileExistsError:
                return False
        finally:
            part.unlink(missing_ok=True)

    def _beat(self, path: Path, token: str, ended: threading.Event) -> None:
        count = 0
        while not ended.wait(self.beat_s):
            if _holder(path) != token:  # taken over: this process stood still for too long. What it publishes is right all the same
                return
            count += 1
            with contextlib.suppress(OSError):  # a count that is not raised may cost a lease, and no more
                _replace(path, token, count)


def holders(folder: Path) -> dict[str, str]:
    """Who seems to be about which unit, for people: its name, and host:pid of the process. A killed one's lease stays for a while."""
    held = {}
    for path in sorted(folder.glob(f"{LEASE}*")):
        words = (_content(path) or b"").decode(errors="replace").split()
        held[path.name.removeprefix(LEASE)] = words[2] if len(words) > 2 else "a process of another version"
    return held


def _mark(token: str, count: int) -> bytes:
    return f"{token} {count} {socket.gethostname()}:{os.getpid()}\n".encode()


def _replace(path: Path, token: str, count: int) -> None:
    part = durable.part_name(path)
    try:
        part.write_bytes(_mark(token, count))
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def _content(path: Path) -> bytes | None:
    """What a lease says; None where there is none, nothing where it cannot be read: its holder then seems to stand still."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError:
        return b""


def _holder(path: Path) -> str:
    return (_content(path) or b"").partition(b" ")[0].decode(errors="replace")
