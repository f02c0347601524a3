"""A folder that is one cube: one single-band image for each wavelength, which the file names give."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np

from data_shards.errors import InputError
from data_shards.formats import declared
from data_shards.formats.band_centres import in_nm
from data_shards.formats.faults import refuse_absent_links
from data_shards.formats.photographs import read_photograph
from data_shards.formats.raw import Raw, ReadOptions, check_size, is_litter
from data_shards.formats.tiff import read_tiff

BAND_READERS = {".tif": read_tiff, ".tiff": read_tiff, ".png": read_photograph}  # JPEG is left out: it is not the camera's data
WITH_UNIT = re.compile(r"(?<!\d)(?<!\d[.p])(\d{3,4}(?:[.p]\d+)?)[ _-]?nm", re.IGNORECASE)
UNIT = re.compile(r"\d[ _-]?nm", re.IGNORECASE)
BARE = re.compile(r"(?<!\d)(\d{3,4})(?!\d)")


def wavelength_nm(path: Path) -> float:
    """The wavelength in a file name: '…555nm…', or, where no number has a unit, the only one of three or four digits.

    Raises:
        InputError: none or several.
    """
    numbers = (WITH_UNIT if UNIT.search(path.stem) else BARE).findall(path.stem)
    if len(numbers) != 1:
        raise InputError(
            f"{len(numbers)} wavelengths in the name {path.name!r}",
            where=path,
            expected="one, such as 555nm, apart from other digits",
            mend="rename the file",
        )
    return float(numbers[0].lower().replace("p", "."))


def read_band_folder(folder: Path, options: ReadOptions) -> Raw:
    """All bands of one cube, by rising wavelength.

    Raises:
        InputError: no images, two of one wavelength, or images of different size, dtype or more than one band.
    """
    files = band_files(folder)
    if not files:
        raise InputError("no single-band images here", where=folder, expected="TIFF or PNG, one for each wavelength")
    first, bands, said, tags = None, [], [], {}
    for _, path in files:
        raw = BAND_READERS[path.suffix.lower()](path, options)
        band_1HW = raw.data_CHW
        said.append(raw.said)
        first = band_1HW if first is None else first
        tags.setdefault(raw.orientation, path.name)
        if band_1HW.shape != (1, *first.shape[1:]) or band_1HW.dtype != first.dtype:
            raise InputError(
                f"an image of shape {band_1HW.shape}, {band_1HW.dtype}",
                where=path,
                expected=f"one band, size and dtype as in {files[0][1].name}: {first.shape[1:]}, {first.dtype}",
            )
        check_size((len(files), *first.shape[1:]), options, folder)
        bands.append(band_1HW)
    if len(tags) > 1:
        raise InputError(
            "bands with different orientation tags: " + ", ".join(f"{tag} in {name}" for tag, name in tags.items()),
            where=folder,
            expected="one orientation for all bands",
            mend="turn the images upright and save them without the tag",
        )
    return Raw(
        data_CHW=np.concatenate(bands),
        wavelengths_nm=in_nm([nm for nm, _ in files], "nm", folder, mend="name the files by their wavelength, as 555nm"),
        orientation=next(iter(tags)),
        said=declared.of_bands(said, folder),
        facts={"band_files": [path.name for _, path in files]},
    )


def band_files(folder: Path) -> list[tuple[float, Path]]:
    """(wavelength, file) of one cube's folder, by rising wavelength; two files of one wavelength are refused."""
    images = [path for path in folder.iterdir() if path.suffix.lower() in BAND_READERS and not is_litter(path, folder)]
    refuse_absent_links(sorted(images))
    files = sorted((wavelength_nm(path), path) for path in images)
    for (a_nm, a), (b_nm, b) in itertools.pairwise(files):
        if a_nm == b_nm:
            raise InputError(f"two images of {a_nm:g} nm: {a.name} and {b.name}", where=folder, expected="one image for each wavelength")
    return files
