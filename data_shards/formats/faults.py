"""Why a library could not read a file: not that kind of file, a kind that the library does not know, or damaged bytes.

Only the last is exit code 4 and 'copy it again': a whole file that is copied again is still not understood.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import struct
import tokenize
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from data_shards.errors import CorruptData, InputError, RetinaforgeError, TryAgain, command, moved_aside

READ_FAULTS = (  # what the libraries raise, found by flipping and cutting bytes of every format
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    AssertionError,
    SyntaxError,
    ImportError,
    tokenize.TokenError,
    struct.error,
    zlib.error,
)
UNSURE = (TypeError, AttributeError, AssertionError, SyntaxError, tokenize.TokenError)  # a library that lost its way
NOT_SUPPORTED = re.compile(
    r"not (yet )?(supported|implemented|available)|unsupported|imagecodecs|pickle|object arrays|python objects|no appropriate", re.I
)
BUSY = re.compile(r"unable to lock file|resource temporarily unavailable|already open for write", re.I)
LISTED = 20  # names that a command holds; more are fetched all at once
RETRY = (errno.EAGAIN, errno.ESTALE, errno.ETIMEDOUT, errno.EBUSY, errno.EINTR)
CONVERT = "convert it with a program that reads it: uncompressed TIFF, ENVI, HDF5 with gzip, or a plain .npy"
TIFF, JPEG, PNM = (".tif", ".tiff"), (".jpg", ".jpeg"), (".ppm", ".pgm", ".pnm", ".pbm")
KINDS = (  # first bytes, what they are, suffixes of it, how to go on
    (b"CDF\x01", "a netCDF classic file", (), "nccopy -k nc4 IN OUT.nc"),
    (b"CDF\x02", "a netCDF classic file", (), "nccopy -k nc4 IN OUT.nc"),
    (b"CDF\x05", "a netCDF classic file", (), "nccopy -k nc4 IN OUT.nc"),
    (b"\x0e\x03\x13\x01", "an HDF4 file", (), "h4toh5 IN OUT.h5"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", (".h5", ".hdf5", ".he5", ".nc", ".nc4", ".mat"), "name it .h5"),
    (b"MATLAB 5.0", "a MATLAB file", (".mat",), "name it .mat"),
    (b"\x93NUMPY", "a numpy array", (".npy",), "name it .npy"),
    (b"\x89PNG", "a PNG", (".png",), "name it .png"),
    (b"\xff\xd8\xff", "a JPEG", JPEG, "name it .jpg"),
    (b"RIFF", "a WebP or another RIFF file", (), CONVERT),
    (b"GIF8", "a GIF", (".gif",), "name it .gif"),
    (b"II*\0", "a TIFF", TIFF, "name it .tif"),
    (b"MM\0*", "a TIFF", TIFF, "name it .tif"),
    (b"\x1f\x8b", "a gzip archive", (), "gunzip it"),
    (b"PK\x03\x04", "a zip archive", (), "unzip it"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000", (), CONVERT),
    (b"SIMPLE  =", "a FITS file", (), CONVERT),
    *(
        (b"P%d%b" % (kind, blank), "a portable bitmap, grey map or pixmap", PNM, "name it .pnm")
        for kind in range(1, 7)
        for blank in (b"\n", b" ")
    ),
    (b"version https://git-lfs", "a Git LFS pointer in place of the file", (), "git lfs pull"),
    (b"/annex/objects/", "a git-annex pointer in place of the file", (), "git annex get FILE"),
)


def is_absent_link(path: Path) -> bool:
    """A link whose content is not there: pathlib takes it for no file at all, so whoever lists files would lose it."""
    return os.path.islink(path) and not os.path.exists(path)


def refuse_absent_links(paths: Iterable[Path]) -> None:
    """Raises: InputError: links whose content is not there, as git-annex and DataLad leave them where nothing was fetched."""
    if absent := [path for path in paths if is_absent_link(path)]:
        raise _absent(absent)


def _absent(links: Sequence[Path]) -> InputError:
    folder = Path(os.path.commonpath([path.parent for path in links]))
    targets = {str(path.relative_to(folder)): os.readlink(path) for path in links}
    shown = ", ".join(f"{name} -> {target}" for name, target in list(targets.items())[:5])
    if any("annex/objects" in target for target in targets.values()):
        names = shlex.join(targets) if len(targets) <= LISTED else "."
        mend = f"(cd {shlex.quote(str(folder))} && git annex get {names}); of a DataLad dataset: datalad get in place of git annex get"
    else:
        mend = "bring back what they point to (where git-annex or DataLad keeps it: git annex get, datalad get), or move the links away"
    return InputError(
        f"{len(links)} links whose content is absent: {shown}" + (f" and {len(links) - 5} more" if len(links) > 5 else ""),
        where=folder,
        expected="files, or links to files that are there",
        mend=mend,
    )


def unreadable(path: Path, error: BaseException, expected: str) -> RetinaforgeError:
    """The error for a file that may not be opened, that is not understood, or whose bytes are damaged."""
    if isinstance(error, RetinaforgeError):  # one of ours, which is a ValueError too
        return error
    if is_absent_link(path):
        return _absent([path])
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
        mend = command("ls", "-l", path)
        if isinstance(error, IsADirectoryError):
            mend = f"move the folder away, and put the file in its place: {moved_aside(path)}"
        return InputError(f"cannot open: {error.strerror}", where=path, expected="a file that this user may read", mend=mend)
    said = " ".join(str(error).split()) or type(error).__name__
    if BUSY.search(said) or getattr(error, "errno", None) in RETRY:
        return TryAgain(f"cannot be read now: {said}", where=path, expected="a file that nobody writes", mend="the same command later")
    if getattr(error, "errno", None) != errno.EIO and (other := _another_kind(path)):
        kind, mend = other
        return InputError(f"{kind}, named {path.suffix}", where=path, expected=expected, mend=mend)
    if isinstance(error, NotImplementedError | ImportError) or NOT_SUPPORTED.search(said):
        return InputError(f"cannot be read here: {said}", where=path, expected=expected, mend=CONVERT)
    if isinstance(error, UNSURE):
        return InputError(
            f"the library that reads it fails: {type(error).__name__}: {said}",
            where=path,
            expected=expected,
            mend=f"open it with another program; if that reads it, {CONVERT}; if not, it is damaged",
        )
    return CorruptData(f"cannot be read: {said}", where=path, expected=expected, mend="copy the file again from its source")


def _another_kind(path: Path) -> tuple[str, str] | None:
    """What the file is by its first bytes, and how to go on, where it is not what its suffix says."""
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError:
        return None
    suffix = path.suffix.lower()
    for magic, kind, suffixes, mend in KINDS:
        if head.startswith(magic):
            return None if suffix in suffixes else (kind, mend)
    if len(head) > 15 and not any(byte < 9 or byte > 126 or 13 < byte < 32 for byte in head):
        page = re.match(rb"\s*<(!doctype|html|\?xml)", head, re.I)
        return ("a web page", "download the file again: a page came in its place") if page else ("a text file", "give the image itself")
    return None
