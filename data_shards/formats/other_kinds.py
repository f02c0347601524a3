"""Files that no reader here knows: what kinds there are in a folder, and how they become ones that are read."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

UNPACKED = {".gz": "gunzip -k", ".bz2": "bunzip2 -k", ".xz": "unxz -k", ".zst": "unzstd"}
ARCHIVES = (".zip", ".tar", ".tgz", ".rar", ".7z")
NIFTI = 'python -c "import nibabel, numpy, sys; numpy.save(sys.argv[2], nibabel.load(sys.argv[1]).get_fdata())"'
DICOM = 'python -c "import pydicom, numpy, sys; numpy.save(sys.argv[2], pydicom.dcmread(sys.argv[1]).pixel_array)"'
ARCHIVE = 'python -c "import numpy, sys; numpy.save(sys.argv[2], numpy.load(sys.argv[1])[sys.argv[3]])"'
CONVERTED = {
    **dict.fromkeys((".nii", ".nii.gz"), f"{NIFTI} FILE FILE.npy, then state --axes"),
    **dict.fromkeys((".dcm", ".dicom"), f"{DICOM} FILE FILE.npy, then state --axes"),
    ".npz": f"{ARCHIVE} FILE FILE.npy NAME",
}


def kind_of(file: Path) -> str:
    """The suffix, with the one before it where the file is packed: '.ppm.gz'."""
    return "".join(file.suffixes[-2:] if file.suffix.lower() in UNPACKED else file.suffixes[-1:]).lower()


def kinds_of(files: Sequence[Path]) -> str:
    """'3 .ppm.gz, 1 without suffix': the most frequent first."""
    return ", ".join(f"{count} {kind or 'without suffix'}" for kind, count in Counter(map(kind_of, files)).most_common(5))


def conversion_of(files: Sequence[Path]) -> str:
    """How the most frequent kind of these files becomes one that is read."""
    kind = Counter(map(kind_of, files)).most_common(1)[0][0]
    example = next(file for file in files if kind_of(file) == kind)
    if kind in CONVERTED:
        return f"convert them first: {CONVERTED[kind]}"
    if example.suffix.lower() in UNPACKED:
        return f"unpack them first: {UNPACKED[example.suffix.lower()]} {shlex.quote(str(example.parent))}/*{example.suffix}"
    if example.suffix.lower() in ARCHIVES:
        return "unpack them first, and name the folder that comes out"
    return "convert them first, to TIFF, PNG, ENVI, HDF5 or .npy"
