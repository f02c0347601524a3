"""ENVI: a text header NAME.hdr beside a flat binary file, interleaved bsq, bil or bip, through the library `spectral`."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from spectral.io import envi
from spectral.io.spyfile import FileNotFoundError as NoHeader

from data_shards.errors import CorruptData, InputError
from data_shards.formats.raw import READ_FAULTS, Raw, ReadOptions, check_numeric, check_size, unreadable

MAX_HEADER_BYTES = 1 << 24
NM_PER_UNIT = {"nanometers": 1.0, "nanometer": 1.0, "nm": 1.0, "micrometers": 1000.0, "micrometer": 1000.0, "microns": 1000.0, "um": 1000.0}


def read_envi(path: Path, options: ReadOptions) -> Raw:
    """The image of one ENVI header; wavelengths and the reflectance scale factor as the header gives them.

    Raises:
        InputError: a spectral library, a complex dtype, wavelengths in an unknown unit, a missing data file.
        CorruptData: a header that cannot be parsed, or a data file shorter than the header says.
    """
    image = _opened(path)
    if not hasattr(image, "nbands"):
        raise InputError("an ENVI spectral library", where=path, expected="an ENVI image", mend="give the header of the image")
    shape_CHW, dtype = (image.nbands, image.nrows, image.ncols), np.dtype(image.dtype)
    check_size(shape_CHW, options, path)
    check_numeric(dtype, path)
    needed = image.offset + int(np.prod(shape_CHW)) * dtype.itemsize
    if (there := Path(image.filename).stat().st_size) < needed:
        raise CorruptData(
            f"{there} bytes", where=image.filename, expected=f"{needed} bytes by {path.name}", mend="copy the file again from its source"
        )
    stored_CHW = image.open_memmap(interleave="bsq")  # .load() would turn every value into float32
    data_CHW = np.array(stored_CHW, dtype=dtype.newbyteorder("="))
    facts = {"interleave": str(image.metadata.get("interleave", "")).lower(), "data_file": Path(image.filename).name}
    if "data ignore value" in image.metadata:
        facts["data_ignore_value"] = str(image.metadata["data ignore value"])
    if bad := [band for band, good in enumerate(image.metadata.get("bbl", ()), 1) if str(good) in ("0", "0.0")]:
        facts["bad_bands_by_header"] = bad  # counted from 1; they are kept
    return Raw(data_CHW=data_CHW, wavelengths_nm=_wavelengths_nm(image, path), full_scale=_full_scale(image.metadata, path), facts=facts)


def envi_files(path: Path) -> list[Path]:
    """The header and its data file."""
    return [path, path.with_name(Path(_opened(path).filename).name)]


def _opened(path: Path) -> envi.BsqFile | envi.BilFile | envi.BipFile | envi.SpectralLibrary:
    if path.stat().st_size > MAX_HEADER_BYTES:
        raise InputError(f"an ENVI header of {path.stat().st_size} bytes", where=path, expected=f"at most {MAX_HEADER_BYTES} bytes of text")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # "names converted to lower case": wanted
            return envi.open(str(path.resolve()))
    except envi.EnviDataFileNotFoundError as error:
        raise InputError(
            "an ENVI header without its data file",
            where=path,
            expected=f"{path.stem}, {path.stem}.img, .dat, .raw or .bsq beside it",
            mend="put the data file beside its header",
        ) from error
    except (envi.EnviException, NoHeader, *READ_FAULTS) as error:
        raise unreadable(path, error, "an ENVI header (first line 'ENVI')") from error


def _wavelengths_nm(image: object, path: Path) -> tuple[float, ...] | None:
    """Band centres in nm. A header without a unit is read as nm where every value is at least 100, never guessed below."""
    centres = image.bands.centers
    if not centres:
        return None
    unit = str(image.bands.band_unit or "").strip().lower()
    factor = NM_PER_UNIT.get(unit, 1.0 if unit in ("", "unknown") and min(centres) >= 100 else None)
    if factor is None:
        raise InputError(
            f"wavelengths {centres[0]} … {centres[-1]} in unit {unit or 'not stated'!r}",
            where=path,
            expected="wavelength units = Nanometers or Micrometers",
            mend="correct the header, or state them: --wavelengths LIST",
        )
    return tuple(round(float(centre) * factor, 6) for centre in centres)


def _full_scale(metadata: dict, path: Path) -> float | None:
    """'reflectance scale factor': the stored value of reflectance 1."""
    text = metadata.get("reflectance scale factor")
    if text is None:
        return None
    if not 0 < float(text) < float("inf"):
        raise InputError(
            f"reflectance scale factor {text}", where=path, expected="finite, above 0", mend="correct the header, or state --full-scale N"
        )
    return float(text)
