"""A folder that several processes fill, and that appears whole. For one writer: `durable.writing_folder`."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from data_shards import durable, locks
from data_shards.errors import InputError, TryAgain

BORDER_S = 600.0  # to wait for who joins, publishes or leaves


class SharedFolder:
    """A folder beside `final` in which any number of processes with one request work, and which `publishing` makes appear there, whole.

    A context: who enters joins what others of the same request work on, or what killed ones left. The last to leave it unpublished, for an
    error that is none of those named at `writing_folder`, removes it.

    Attributes:
        path: the unfinished folder.

    Raises (on entering):
        TryAgain: a process of another request is writing the same place. InputError: the place is taken, or cannot be written.
    """

    def __init__(self, final: Path, request: str) -> None:
        self.final, self.request = final, request
        self.path = final.with_name(f"{durable.PART}{hashlib.sha256(request.encode()).hexdigest()[:8]}-{final.name}")

    def __enter__(self) -> SharedFolder:
        durable.free_place(self.final, InputError, "the place is taken", mend="choose another")
        with durable.explained(self.final):
            durable.make_folder(self.final.parent)
        with self._border():
            durable.free_place(
                self.final, TryAgain, "another process has just written this place", mend="run the same command again: it finds what stands"
            )
            with durable.explained(self.final):
                self._join()
        return self

    @contextlib.contextmanager
    def publishing(self) -> Iterator[bool]:
        """Make the folder appear when the block ends; False where another process has done so. One at a time is within."""
        with self._border():
            mine = not any(self.final.iterdir()) if self.final.is_dir() else True
            yield mine
            if mine:
                durable.publish_folder(self.path, self.final)
                (self.final / durable.REQUEST).unlink(missing_ok=True)
                durable.sweep(self.final)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._border():
            self._presence.release()
            others = _present(self.path)  # also removes what killed ones left to say that they are there
            if self.path.is_dir() and not others:
                durable.leave_unfinished(self.path, error)

    def _border(self) -> contextlib.AbstractContextManager[None]:
        """One at a time joins, publishes or leaves; who writes the place by himself holds the same lock."""
        return durable.claimed(self.final.with_name(f"{durable.LOCK}-{self.final.name}"), "writing this place", patience_s=BORDER_S)

    def _join(self) -> None:
        for left in durable.left_by_writers(self.final):
            ours = (left / durable.REQUEST).is_file() and (left / durable.REQUEST).read_text() == self.request
            if _present(left):
                if not ours:
                    raise TryAgain(
                        "another process is writing this place",
                        where=self.final,
                        expected="processes of one request",
                        mend="wait for it, or end it, and run the same command again",
                    )
                self.path = left
            elif ours:
                self.path = left
                durable.sweep(left)
            else:
                shutil.rmtree(left)
        if not (self.path / durable.REQUEST).exists():
            durable.write_bytes(self.path / durable.REQUEST, self.request.encode())
        presence = locks.take(self.final.with_name(f"{durable.LOCK}-{self.path.name}-{secrets.token_hex(4)}"))
        assert presence, "a fresh name"
        self._presence = presence


def _present(part: Path) -> bool:
    """Whether a live process works in a shared folder."""
    for path in part.parent.glob(f"{durable.LOCK}-{glob.escape(part.name)}-*"):
        lock = locks.take(path)
        if lock is None:
            return True
        lock.release()
    return False
