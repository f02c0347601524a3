"""Whole or absent: every file and folder of this project that must survive a kill is written through here.

The order is always: write beside the final place, fsync the content, rename, fsync the parent folder. A reader
therefore sees the old state or the new one, never a part (Pillai et al., OSDI 2014, on why each step is needed).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shlex
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from data_shards import locks
from data_shards.errors import InputError, Overtaken, RetinaforgeError, TryAgain, command

LOCK = ".writer"  # `.writer-NAME` is held (locks.py) by the process that writes the folder NAME
REQUEST = ".request"  # what the writer of an unfinished folder was asked for
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES)  # what a file system without hard links says
REFUSED = (
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY),
)
FIRST_S = 60.0  # to wait for who publishes the same name
PART = ".part-"  # every unfinished name contains this; readers skip such names, the next writer may delete them


def fsync_path(path: Path) -> None:
    """Flush a file's content, or a folder's list of names, to the device."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(path: Path) -> None:
    """Make a folder and what is missing above it, each flushed into its parent: else a power cut takes all that was written below."""
    if path.is_dir():
        return
    missing = [folder for folder in (path, *path.parents) if not folder.is_dir()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        fsync_path(folder.parent)


def sha256_of(path: Path, chunk_bytes: int = 1 << 20) -> str:
    """Hex sha256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(chunk_bytes):
            digest.update(chunk)
    return digest.hexdigest()


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def canonical_json(value: Any) -> bytes:
    """The one byte string for a JSON value: sorted keys, no spaces, no NaN. Digests are taken over this."""
    return _CANONICAL.encode(value).encode()


def part_name(final: Path) -> Path:
    """A fresh unfinished name beside `final`: on its file system, so that the rename is atomic."""
    return final.with_name(f"{PART}{secrets.token_hex(4)}-{final.name}")


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals into errors that say what to do.

    Raises:
        TryAgain: the disk is full, a quota is reached, or the device failed.
        InputError: the place cannot be written at all.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise TryAgain(
                f"writing failed: {error.strerror}",
                where=path,
                expected="free space on that file system",
                mend=f"{command('df', '-h', path.parent)}; free some space and run the same command again (nothing half written was left)",
            ) from error
        if error.errno in REFUSED:
            raise InputError(
                f"cannot write: {error.strerror}",
                where=path,
                expected="a folder that this user may write to",
                mend=f"{command('ls', '-ld', path.parent)}; choose another place or change its permissions",
            ) from error
        raise


@contextlib.contextmanager
def writing(final: Path, *, keep_first: bool = False, private: bool = False) -> Iterator[BinaryIO]:
    """Open `final` for binary writing; it appears, whole, when the block ends, and not at all when it raises.

    Args:
        final: the file to publish; its folder is made when absent.
        keep_first: where two writers may be alive, the first to publish wins and the other's bytes are dropped.
        private: nobody else may read it, from its first byte on.
    """
    with explained(final):
        make_folder(final.parent)
        part = part_name(final)
        try:
            with open(part, "wb", opener=_private if private else None) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            _publish(part, final, keep_first)
            fsync_path(final.parent)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def _publish(part: Path, final: Path, keep_first: bool) -> None:
    """Give a file its name; with `keep_first` unless that is taken."""
    try:
        if keep_first:
            _name(part, final)
        else:
            os.replace(part, final)
    except FileNotFoundError as error:  # only what is published is swept, though this node may not see it yet
        mend = "run the same command again"
        raise Overtaken("another process has published this name", where=final, expected="one writer", mend=mend) from error
    part.unlink(missing_ok=True)


def _name(part: Path, final: Path) -> None:
    try:
        with contextlib.suppress(FileExistsError):  # another was first, and its bytes stay
            os.link(part, final)  # unlike rename, link never replaces
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        # a file system without hard links: who holds the lock alone looks and renames
        with claimed(final.with_name(f"{LOCK}-{final.name}"), "publishing this file", patience_s=FIRST_S):
            if not final.exists():
                os.replace(part, final)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def write_bytes(final: Path, content: bytes, *, keep_first: bool = False, private: bool = False) -> None:
    """Publish `content` at `final`."""
    with writing(final, keep_first=keep_first, private=private) as file:
        file.write(content)


def write_changed(final: Path, content: bytes, *, private: bool = False) -> None:
    """Publish `content`, unless it stands there already: what changes nothing writes nothing, and may be asked of a folder that is
    read-only."""
    if not holds(final, content):
        write_bytes(final, content, private=private)


def holds(path: Path, content: bytes) -> bool:
    """Whether a file is there, can be read, and has this content."""
    try:
        return path.read_bytes() == content
    except OSError:
        return False


def readable_json(value: Any) -> bytes:
    """A JSON value for people, keys in the order given."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def write_json(final: Path, value: Any, *, private: bool = False) -> None:
    """Publish a JSON value, readable by people, keys in the order given."""
    write_bytes(final, readable_json(value), private=private)


def publish_folder(part: Path, final: Path) -> None:
    """Rename a finished folder into place: its files, then its own list of names, then the parent's are flushed."""
    with explained(final):
        for root, _, names in os.walk(part):
            for name in names:
                if not name.startswith("."):  # unfinished ones and leases of others, who come and go
                    fsync_path(Path(root) / name)
            fsync_path(Path(root))
        os.rename(part, final)
        fsync_path(final.parent)


@contextlib.contextmanager
def writing_folder(final: Path, *, request: str = "", mendable: tuple[type[Exception], ...] = ()) -> Iterator[Path]:
    """A fresh folder beside `final`, which appears there, whole, when the block ends, and not at all when it raises.

    What killed writers of the same place left is removed. A lock, which the kernel drops with its process, tells them from a live one.

    Args:
        request: what is asked for, in one line. A folder that a killed or interrupted writer of the very same request left is given
            again, with what it holds; the caller knows which of its files are whole (those written through this module are).
            A signal and a store that is away leave it too.
        mendable: faults of one input that somebody mends, behind which finished work is as good as before; they leave it too.

    Raises:
        TryAgain: another process is writing the same place, or the disk is full. InputError: the place cannot be written.
    """
    free_place(final, InputError, "the place is taken", mend="choose another")
    with explained(final):
        make_folder(final.parent)
    with sole_writer(final):
        free_place(
            final, TryAgain, "another process has just written this place", mend="run the same command again: it finds what stands there"
        )
        part = None
        with explained(final):
            for left in left_by_writers(final):
                if request and part is None and (left / REQUEST).is_file() and (left / REQUEST).read_text() == request:
                    part = left
                    sweep(part)
                else:
                    shutil.rmtree(left)
            if part is None:
                part = part_name(final)
                part.mkdir()
                if request:
                    write_bytes(part / REQUEST, request.encode())
        try:
            yield part
            publish_folder(part, final)
            (final / REQUEST).unlink(missing_ok=True)
        except BaseException as error:
            leave_unfinished(part, error if request else None, mendable)
            raise


def leave_unfinished(part: Path, error: BaseException | None, mendable: tuple[type[Exception], ...] = ()) -> None:
    """Leave an unfinished folder behind, where what is finished in it outlives the error: a signal, a store that is away.

    A full disk gets its space back.
    """
    passing = isinstance(error, TryAgain) and not isinstance(error.__cause__, OSError)
    keep = (passing or isinstance(error, (KeyboardInterrupt, SystemExit, *mendable))) and part.is_dir()
    if keep:
        sweep(part)
    if not keep or os.listdir(part) == [REQUEST]:  # nothing was finished
        shutil.rmtree(part, ignore_errors=True)


def free_place(final: Path, kind: type[RetinaforgeError], what: str, *, mend: str) -> None:
    """Raises: `kind`: a folder that holds something stands at `final`; told before hours of work, not by the rename behind them."""
    with explained(final), contextlib.suppress(FileNotFoundError), os.scandir(final) as entries:
        if any(entries):
            raise kind(what, where=final, expected="a path that does not exist yet", mend=mend)


def left_by_writers(final: Path) -> list[Path]:
    """Unfinished folders of this very place, sorted; `.part-import-a-set` is of `a-set` (or of anybody), not of `set`."""
    name = re.compile(rf"{re.escape(PART)}[0-9a-f]{{8}}-{re.escape(final.name)}")
    return sorted(path for path in final.parent.iterdir() if name.fullmatch(path.name) and path.is_dir() and not path.is_symlink())


def sole_writer(final: Path) -> contextlib.AbstractContextManager[None]:
    """Hold a lock beside `final` while a block runs, as `claimed`."""
    return claimed(final.with_name(f"{LOCK}-{final.name}"), "writing this place")


@contextlib.contextmanager
def claimed(path: Path, doing: str, *, patience_s: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path` while the block runs. The kernel drops the lock with its process, however that ends.

    Args:
        patience_s: so long to wait for its holder to end.

    Raises:
        TryAgain: a live process holds it. InputError: the place cannot be written.
    """
    with explained(path):
        make_folder(path.parent)
        until = time.monotonic() + patience_s
        while (lock := locks.take(path)) is None and time.monotonic() < until:
            time.sleep(0.5)
    if lock is None:
        raise TryAgain(
            f"another process is {doing}",
            where=path.parent,
            expected="one at a time",
            mend=f"wait for it, or end it (fuser {shlex.quote(str(path))}), and run the same command again",
        )
    try:
        yield
    finally:
        lock.release()


def sweep(folder: Path) -> None:
    """Remove what a killed writer left unfinished in `folder`. Only for the one owner of the folder."""
    for left in folder.glob(f"{PART}*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


def sweep_published(folder: Path) -> None:
    """Remove unfinished files whose name is published since: of killed writers, or of ones who write the same once more."""
    for left in folder.glob(f"{PART}*"):
        if (folder / left.name.removeprefix(PART).partition("-")[2]).exists():
            left.unlink(missing_ok=True)
