"""What an import was asked for, and one image of it before any pixel is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_shards import formats
from data_shards.errors import InputError
from data_shards.importing import geometry, people
from data_shards.importing.values import Stated


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """One import. Folders may be quoted globs where files are matched with images.

    Attributes:
        source: a file, or a folder of images.
        pattern: glob within `source`.
        per_band: every folder inside `source` (or `source` itself) is one cube, one single-band image for each wavelength.
        read: how to understand the files.
        wavelengths_nm: centre of each band; None takes the file's own, or the nominal ones of a colour camera.
        full_scale: the value that means reflectance 1; None takes the file's own, or the dtype's largest (floats: 1).
        offset, nodata, nodata_any, bad_bands: what holds in place of what the file says of its values, see `values.Stated`.
        float_range: reflectances that the stored 0 and 65535 mean, for floats and what is brought to floats; None: 0 to 1, floats only.
        nan_as: reflectance that takes the place of NaN and infinity; None refuses them.
        labels, onh, fov: folder or glob of label maps, optic-disc masks, field-of-view masks; '' for none.
        label_map: text, see `labels.parse_label_map`.
        onh_values, fov_values: the values inside these masks, see `masks.parse_inside`; '' lets two values speak.
        map_orientation: where a tag turns an image: 'shown' or 'stored', what its maps were drawn on; '' lets the sizes tell.
        onh_circles, onh_columns: CSV of optic discs, and its columns for x, y and diameter in pixels of the source image.
        resize_labels: bring maps of another size to the size of their image, see `geometry.resize_map`.
        match, allow_missing: see `partners.pair`.
        subjects, subject_pattern: see `people.persons_of`.
        geometry: crop, padding, resizing.
    """

    source: Path
    pattern: str = "*"
    per_band: bool = False
    read: formats.ReadOptions = field(default_factory=formats.ReadOptions)
    wavelengths_nm: tuple[float, ...] | None = None
    full_scale: float | None = None
    offset: float | None = None
    nodata: str | None = None
    nodata_any: bool = False
    bad_bands: str | None = None
    float_range: tuple[float, float] | None = None
    nan_as: float | None = None
    labels: str = ""
    label_map: str = ""
    onh: str = ""
    onh_values: str = ""
    fov_values: str = ""
    map_orientation: str = ""
    onh_circles: Path | None = None
    onh_columns: tuple[str, str, str] = ("x", "y", "diameter")
    fov: str = ""
    resize_labels: bool = False
    match: str = ""
    allow_missing: bool = False
    subjects: Path | None = None
    subject_pattern: str = ""
    geometry: geometry.Geometry = field(default_factory=geometry.Geometry)

    def __post_init__(self) -> None:
        low, high = self.range
        if not -np.inf < low < high < np.inf:
            raise InputError(
                f"range {low:g}:{high:g}", where="--float-range", expected="finite, the first below the second", mend="--float-range 0:1"
            )
        _ = self.stated
        if self.nan_as is not None and not low <= self.nan_as <= high:
            raise InputError(
                f"{self.nan_as:g} in place of NaN", where="--nan-as", expected=f"a reflectance within {low:g}:{high:g}", mend="--nan-as 0"
            )

    @property
    def range(self) -> tuple[float, float]:
        """Reflectances that the stored 0 and 65535 mean."""
        return self.float_range or (0.0, 1.0)

    @property
    def stated(self) -> Stated:
        """What replaces the file's own statements.

        Raises:
            InputError: numbers that cannot be.
        """
        return Stated(
            full_scale=self.full_scale, offset=self.offset, nodata=self.nodata, nodata_any=self.nodata_any, bad_bands=self.bad_bands
        )


@dataclass(frozen=True, kw_only=True)
class Item:
    """One image with all that belongs to it, before any pixel is read."""

    key: str
    image: Path
    person: people.Person
    maps: dict[str, Path]
    circle: tuple[float, float, float] | None
