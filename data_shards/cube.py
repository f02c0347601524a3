"""The cube: one hyperspectral image of one eye, bands first, with all that must travel with it.

Legend: C band, H W pixels.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_shards.errors import InputError

LABELS = {"background": 0, "artery": 1, "vein": 2, "onh": 3}
"""Classes of a label map: `onh` is the optic nerve head."""

BANDS_16_NM = (900, 875, 845, 815, 785, 755, 730, 700, 670, 640, 610, 585, 555, 525, 495, 465)
"""The default band list; it contains the six bands named by the reference work (900, 815, 730, 640, 555, 465 nm)."""

PAYLOADS = ("cube", "latent", "codes")
"""What the array of a sample is: stored counts, latents of an autoencoder, or indices into its codebook. So its member is named."""

KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,62}")  # no dot: WebDataset ends the key at the first one; 63 bytes fit the index
NAME_BYTES = 64  # of a key or a subject in the index


@dataclass(frozen=True, kw_only=True)
class CubeMeta:
    """What `KEY.json` holds.

    Attributes:
        key: name of the sample, unique in its dataset.
        wavelengths_nm: centre of each band, length C.
        scale, offset: reflectance = scale * stored + offset.
        subject_id: the person; splits keep all cubes of one person together.
        eye: 'OD' (right), 'OS' (left) or '' (not known).
        acquired: ISO date or a visit number as text, '' when not known.
        notes: anything else worth keeping (source file, resizing, biomarker), JSON types only.
    """

    key: str
    wavelengths_nm: tuple[float, ...]
    scale: float
    offset: float = 0.0
    subject_id: str
    eye: str = ""
    acquired: str = ""
    notes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not KEY.fullmatch(self.key):
            raise InputError(
                f"sample key {self.key!r} is not allowed",
                expected="letters, digits, '_' and '-', at most 63, no dot, not beginning with '-'",
                mend="rename the file",
            )
        if self.eye not in ("OD", "OS", ""):
            raise InputError(f"eye {self.eye!r}", where=self.key, expected="'OD', 'OS' or '' (not known)")
        if not isinstance(self.subject_id, str) or not self.subject_id:
            raise InputError(f"subject_id {self.subject_id!r}", where=self.key, expected="a name, as text, for splits by person")
        if len(self.subject_id.encode(errors="surrogatepass")) > NAME_BYTES or re.search("[\0\ud800-\udfff]", self.subject_id):
            raise InputError(
                f"subject_id {self.subject_id[:80]!r}",
                where=self.key,
                expected=f"a text of at most {NAME_BYTES} bytes in UTF-8: it stands in the index",
                mend="give this person a shorter subject_id in all samples",
            )
        if not isinstance(self.notes, dict):
            raise InputError(f"notes {self.notes!r}", where=self.key, expected="an object of names and values")
        if not np.isfinite(self.wavelengths_nm).all():
            raise InputError(f"wavelengths {self.wavelengths_nm}", where=self.key, expected="finite numbers, in nm")
        if not (np.isfinite(self.scale) and self.scale > 0 and np.isfinite(self.offset)):
            raise InputError(f"scale {self.scale}, offset {self.offset}", where=self.key, expected="finite, scale above 0")


dtype_name = functools.cache(lambda dtype: dtype.name)
"""'uint16' or 'float32': numpy works the name out each time, which of a small image takes as long as its checksum."""


@dataclass(frozen=True, kw_only=True)
class Cube:
    """One sample in memory.

    Attributes:
        data_CHW: uint16 (latents: float32), bands first.
        meta: see CubeMeta.
        labels_HW: uint8 of the classes in LABELS, or None.
        fov_HW: bool, True inside the field of view, or None.
        codes: the array is no image, but indices into an autoencoder's codebook, (1, h, w).
    """

    data_CHW: np.ndarray
    meta: CubeMeta
    labels_HW: np.ndarray | None = None
    fov_HW: np.ndarray | None = None
    codes: bool = False

    def __post_init__(self) -> None:
        check_cube(self)


def check_cube(cube: Cube) -> None:
    """Refuse what a cube may not be.

    Raises:
        InputError: wrong rank, dtype, band count, label size, label value, or values that are not finite.
    """
    data_CHW, where = cube.data_CHW, cube.meta.key
    if data_CHW.ndim != 3 or 0 in data_CHW.shape:
        raise InputError(f"array of shape {data_CHW.shape}", where=where, expected="(bands, height, width), none of them 0")
    if data_CHW.dtype not in (np.dtype("uint16"), np.dtype("float32")):
        raise InputError(
            f"array of dtype {data_CHW.dtype}", where=where, expected="uint16 (latents: float32)", mend="retinaforge data import --help"
        )
    if len(cube.meta.wavelengths_nm) != len(data_CHW):
        raise InputError(
            f"{len(data_CHW)} bands in the array, {len(cube.meta.wavelengths_nm)} wavelengths in its metadata",
            where=where,
            expected="one wavelength for each band",
        )
    if data_CHW.dtype.kind == "f" and not np.isfinite(data_CHW).all():
        raise InputError(f"{int((~np.isfinite(data_CHW)).sum())} values are NaN or infinite", where=where, expected="finite values")
    for name, map_HW in (("labels", cube.labels_HW), ("fov", cube.fov_HW)):
        if map_HW is not None and map_HW.shape != data_CHW.shape[1:]:
            raise InputError(f"{name} of size {map_HW.shape}", where=where, expected=f"the cube's own size {data_CHW.shape[1:]}")
    if cube.labels_HW is not None and (cube.labels_HW.dtype != np.uint8 or cube.labels_HW.max() > max(LABELS.values())):
        raise InputError(
            f"labels of dtype {cube.labels_HW.dtype} with values up to {cube.labels_HW.max()}", where=where, expected=f"uint8, {LABELS}"
        )
    if cube.fov_HW is not None and cube.fov_HW.dtype != np.bool_:
        raise InputError(f"field-of-view mask of dtype {cube.fov_HW.dtype}", where=where, expected="bool")


def same_kind(cube: Cube, first: Cube) -> None:
    """Raises: InputError: a cube of another shape, dtype, band list or affine map than the first of its dataset."""

    def kind(c: Cube) -> tuple[Any, ...]:
        return c.data_CHW.shape, c.data_CHW.dtype, c.meta.wavelengths_nm, c.meta.scale, c.meta.offset

    if kind(cube) == kind(first):
        return
    for name, a, b in zip(("shape", "dtype", "wavelengths_nm", "scale", "offset"), kind(cube), kind(first), strict=True):
        if a != b:
            raise InputError(
                f"{name} {a}",
                where=cube.meta.key,
                expected=f"{b}, as in {first.meta.key}: one dataset has one {name}",
                mend="retinaforge data import with --resize, --crop or --wavelengths, or pack into two datasets",
            )


def reflectance(data_CHW: np.ndarray, meta: CubeMeta) -> np.ndarray:
    """Stored counts to reflectance, float32: scale * stored + offset."""
    return data_CHW.astype(np.float32) * np.float32(meta.scale) + np.float32(meta.offset)
