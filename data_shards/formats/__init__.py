"""Image formats of others. To add one: a reader `(path, ReadOptions) -> Raw` in a file of its own, and a line in READERS."""

from __future__ import annotations

from pathlib import Path

from data_shards.errors import InputError, nearest
from data_shards.formats.arrays import read_hdf5, read_mat, read_npy
from data_shards.formats.band_folder import band_files, read_band_folder
from data_shards.formats.envi import envi_files, read_envi
from data_shards.formats.other_kinds import conversion_of
from data_shards.formats.photographs import read_photograph
from data_shards.formats.pnm import read_pnm
from data_shards.formats.raw import MAX_VALUES, Raw, ReadOptions
from data_shards.formats.tiff import read_tiff

__all__ = ["MAX_VALUES", "READERS", "Raw", "ReadOptions", "files_of", "read"]

READERS = {
    ".tif": read_tiff,
    ".tiff": read_tiff,
    ".png": read_photograph,
    ".jpg": read_photograph,
    ".jpeg": read_photograph,
    ".bmp": read_photograph,
    ".gif": read_photograph,
    ".ppm": read_pnm,
    ".pgm": read_pnm,
    ".pnm": read_pnm,
    ".hdr": read_envi,
    ".h5": read_hdf5,
    ".hdf5": read_hdf5,
    ".he5": read_hdf5,
    ".nc": read_hdf5,
    ".nc4": read_hdf5,
    ".mat": read_mat,
    ".npy": read_npy,
}


TAKES = {  # which options mean something to which reader; the others are refused rather than left unheard
    read_tiff: ("axes",),
    read_npy: ("axes", "reshape_HW", "pixel_order"),
    read_hdf5: ("axes", "reshape_HW", "pixel_order", "variable", "centres"),
    read_mat: ("axes", "reshape_HW", "pixel_order", "variable", "centres"),
}


OPTIONS = {
    "variable": "--variable",
    "axes": "--axes",
    "reshape_HW": "--reshape",
    "pixel_order": "--pixel-order",
    "centres": "--wavelengths hdf5:NAME",
}


def read(path: Path, options: ReadOptions | None = None) -> Raw:
    """Read one image: a file by its suffix, or a folder of single-band images.

    Raises:
        InputError: no such file, an unknown suffix, or what the reader refuses. CorruptData: unreadable bytes.
    """
    if path.is_dir():
        return read_band_folder(path, options or ReadOptions())
    if path.suffix.lower() not in READERS:
        raise InputError(
            f"no reader for {path.suffix or 'a file without suffix'!r}",
            where=path,
            expected=nearest(path.suffix.lower(), READERS),
            mend=conversion_of([path]),
        )
    reader, options = READERS[path.suffix.lower()], options or ReadOptions()
    for name, option in OPTIONS.items():
        if getattr(options, name) and name not in TAKES.get(reader, ()):
            raise InputError(
                f"{option} means nothing for a {path.suffix} file", where=path, expected="no such option", mend=f"leave {option} out"
            )
    return reader(path, options)


def files_of(path: Path) -> list[Path]:
    """Every file whose bytes make up one image: for the record and for telling whether it changed."""
    if path.is_dir():
        return [file for _, file in band_files(path)]
    if path.suffix.lower() == ".hdr":
        return envi_files(path)
    return [path]
