"""One image of others, with its maps and its person, to one cube.

Legend: C band, H W pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from pathlib import Path
from typing import Any

import numpy as np

from data_shards import formats
from data_shards.cube import Cube, CubeMeta
from data_shards.errors import InputError
from data_shards.formats import orientation
from data_shards.formats.raw import axes_with_bands
from data_shards.importing import geometry, labels, map_files, masks, partners
from data_shards.importing.values import STATE_SCALE, Stated, Values, measured, no_data_note, understood

COUNTS = {"uint8": (255, 0), "uint16": (65535, 0), "int16": (32767, 32768)}  # dtype: value of reflectance 1, count added to store it
TOP = 65535
FEWEST_STEPS = 256  # fewer steps between the least and the most reflectance of a float image would be seen as bands of grey


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
        subjects, subject_pattern: see `partners.people`.
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
    person: partners.Person
    maps: dict[str, Path]
    circle: tuple[float, float, float] | None


def to_uint16(
    data_CHW: np.ndarray, config: ImportConfig, values: Values, where: object, measured_HW: np.ndarray | None = None
) -> tuple[np.ndarray, float, float, str]:
    """Values of any supported dtype to stored counts with reflectance = scale * stored + offset.

    Integers of one scale are kept bit for bit (int16 shifted by 32768); floats, and bands of different scales, are rounded to
    the nearest of 65536 steps over `float_range`, with an error of at most half a step. Pixels that were not measured become
    the count nearest to reflectance 0.

    Returns: stored uint16 (C, H, W), scale, offset, and a sentence for the notes.

    Raises:
        InputError: another dtype, bands of different scales without a range, values that are not finite, or floats outside the range.
    """
    name = data_CHW.dtype.name
    if name in COUNTS and values.alike:
        top, shift = COUNTS[name]
        scale = values.scale_C[0] if values.scale_C else 1.0 / top
        offset = values.offset_C[0] if values.offset_C else 0.0
        stored_CHW = data_CHW.astype(np.uint16) if not shift else (data_CHW.astype(np.int32) + shift).astype(np.uint16)
        stored = _without_pixels(stored_CHW, scale, offset - shift * scale if shift else offset, measured_HW)
        return *stored, f"exact: stored = {name} value" + (f" + {shift}" if shift else "")
    if data_CHW.dtype.kind != "f" and not (config.float_range and values.scale_C and data_CHW.dtype.kind in "iu"):
        raise _not_exact(name, values, where)
    low, high = config.range
    scale = (high - low) / TOP
    stored_CHW = np.empty(data_CHW.shape, np.uint16)
    bad, outside, least, most = 0, 0, np.inf, -np.inf
    bands = len(data_CHW)
    affine_C = zip(values.scale_C or (1.0,) * bands, values.offset_C or (0.0,) * bands, strict=True)
    for band_HW, stored_HW, (times, plus) in zip(data_CHW, stored_CHW, affine_C, strict=True):  # float64 of a whole cube may not fit
        values_HW = band_HW.astype(np.float64) * times + plus
        if measured_HW is not None:
            values_HW[~measured_HW] = np.clip(0.0, low, high)
        finite_HW = np.isfinite(values_HW)
        bad += int((~finite_HW).sum())
        values_HW = np.where(finite_HW, values_HW, low if config.nan_as is None else config.nan_as)
        outside += int(((values_HW < low) | (values_HW > high)).sum())
        least, most = min(least, float(values_HW.min())), max(most, float(values_HW.max()))
        stored_HW[...] = np.rint((np.clip(values_HW, low, high) - low) / scale)
    if bad and config.nan_as is None:
        raise InputError(
            f"{bad} values are NaN or infinite",
            where=where,
            expected="finite reflectance",
            mend="--nodata nan (outside the field of view), --nan-as 0, or correct the file",
        )
    if outside:
        raise InputError(
            f"{outside} values outside {low:g} … {high:g}: from {least:.6g} to {most:.6g}",
            where=where,
            expected="reflectance within the stated range",
            mend=f"{_range_for(least, most, config)} if these are reflectances; if they are counts or percent, {STATE_SCALE}",
        )
    if least < most and (most - least) / scale < FEWEST_STEPS:
        raise InputError(
            f"reflectances from {least:.6g} to {most:.6g}: {(most - least) / scale:.2g} of the {TOP} steps from {low:g} to {high:g}",
            where=where,
            expected=f"at least {FEWEST_STEPS} steps between the least and the most",
            mend=f"{range_around(least, most)}, or --full-scale N (reflectance 1)",
        )
    note = f"rounded: {name} reflectance {low:g} … {high:g} in {TOP} steps, error at most {scale / 2:.3g}"
    return stored_CHW, scale, low, note + (f"; {bad} values that were not finite set to {config.nan_as:g}" if bad else "")


def _range_for(least: float, most: float, config: ImportConfig) -> str:
    """The range of one image, and of what was stated for the images before it, unless that would be too coarse for this one."""
    low, high = config.float_range or (least, most)
    low, high = min(low, least), max(high, most)
    fine = (most - least) * TOP >= FEWEST_STEPS * (high - low)
    return range_around(low, high) if fine else range_around(least, most)


def range_around(least: float, most: float) -> str:
    """--float-range with round ends around values, hardly wider than they span."""
    span = most - least or abs(most) or 1.0
    step = Decimal(1).scaleb(math.floor(math.log10(span)) - 2)
    low = (Decimal(least) / step).to_integral_value(ROUND_FLOOR) * step
    high = (Decimal(most) / step).to_integral_value(ROUND_CEILING) * step
    low, high = (low, high) if low < high else (low - step, high + step)
    return f"--float-range {_written(low)}:{_written(high)}"


def _written(number: Decimal) -> str:
    """All digits, as an exponent where that is shorter."""
    number = number.normalize() if number else Decimal(0)
    return min(f"{number:f}", f"{number:e}", key=len)


def _without_pixels(stored_CHW: np.ndarray, scale: float, offset: float, measured_HW: np.ndarray | None) -> tuple[np.ndarray, float, float]:
    """The same, with the count nearest to reflectance 0 where nothing was measured."""
    if measured_HW is not None:
        stored_CHW[:, ~measured_HW] = np.clip(np.rint(-offset / scale), 0, TOP)
    return stored_CHW, scale, offset


def _not_exact(name: str, values: Values, where: object) -> InputError:
    """Values that no single scale brings to uint16 as they are."""
    if name in COUNTS:
        scales = f"{min(values.scale_C):g} … {max(values.scale_C):g}" if values.scale_C else "1"
        return InputError(
            f"scale or offset that differ by band (scale {scales})",
            where=where,
            expected="one for all bands: a dataset has one",
            mend=f"--float-range LO:HI applies each band's own and rounds to 65536 steps; or for all bands: {STATE_SCALE}",
        )
    return InputError(
        f"values of dtype {name}",
        where=where,
        expected=f"{', '.join(COUNTS)} or floats of reflectance",
        mend="convert the file to uint16 or float32"
        + ("; or --float-range LO:HI applies its scale and rounds to 65536 steps" if values.scale_C else ""),
    )


def make_cube(item: Item, config: ImportConfig, hashes: dict[str, str], digest: str) -> Cube:
    """Read one image and its maps and make the cube.

    Args:
        hashes: file name to sha256 of everything read for it.
        digest: identity of this sample under this configuration; kept in its notes.

    Raises:
        InputError, CorruptData: from the readers, or wrong band counts, sizes, values.
    """
    read = replace(config.read, own_wavelengths=config.wavelengths_nm is None)
    raw = formats.read(item.image, read)
    values = understood(raw.said, config.stated, len(raw.data_CHW), item.image)
    wavelengths_nm = _wavelengths_nm(raw, config, values, item.image)
    data_CHW = raw.data_CHW if len(values.kept) == len(raw.data_CHW) else raw.data_CHW[list(values.kept)]
    source_HW = measured(data_CHW, values, config.stated, item.image)
    fov_HW = _seen(_fov(item, config, raw), source_HW, item.image)
    planes = geometry.Planes(data_CHW=_blanked(data_CHW, source_HW), labels_HW=_labels(item, config, raw), fov_HW=fov_HW)
    planes, operations, measured_HW = _shaped(config, planes, source_HW, item.image)
    stored_CHW, scale, offset, how = to_uint16(planes.data_CHW, config, values, item.image, measured_HW)
    if planes.data_CHW.dtype.kind != "f" and any(step.startswith("resize") for step in operations):
        how = how.replace("exact", "rounded to whole counts by the resizing")
    notes: dict[str, Any] = {
        "import": digest,
        "source": item.image.name,
        "sha256": hashes,
        "original_shape": list(raw.data_CHW.shape),
        "operations": operations,
        "stored": how,
        "wavelengths": "nominal"
        if raw.nominal and config.wavelengths_nm is None
        else "stated"
        if config.wavelengths_nm
        else "from the file",
        **({"reader": raw.facts} if raw.facts else {}),
        **({"declared": {statement.name: statement.shown for statement in raw.said}} if raw.said else {}),
        **values.words,
        **no_data_note(values, source_HW),
        **{role: file.name for role, file in item.maps.items()},
        **({"onh_circle_px": list(item.circle)} if item.circle else {}),
        **({"label_map": config.label_map} if "labels" in item.maps else {}),
        **({"label_order": "vessels over optic disc"} if "onh" in item.maps or item.circle else {}),
        **({"split": item.person.split} if item.person.split else {}),
        **({"subject": item.person.extra} if item.person.extra else {}),
        "shape": list(stored_CHW.shape),
        **({"label_pixels": labels.pixels_per_class(planes.labels_HW)} if planes.labels_HW is not None else {}),
    }
    meta = CubeMeta(
        key=item.key,
        wavelengths_nm=tuple(float(w) for w in wavelengths_nm),
        scale=scale,
        offset=offset,
        subject_id=item.person.subject_id,
        eye=item.person.eye,
        acquired=item.person.acquired,
        notes=notes,
    )
    return Cube(data_CHW=np.ascontiguousarray(stored_CHW), meta=meta, labels_HW=planes.labels_HW, fov_HW=planes.fov_HW)


def _wavelengths_nm(raw: formats.Raw, config: ImportConfig, values: Values, where: Path) -> tuple[float, ...]:
    """One centre for each band that is kept: as stated, else as the file gives them.

    Raises:
        InputError: there are none, or as many as neither the file nor the bands that are kept.
    """
    stated_nm = config.wavelengths_nm or raw.wavelengths_nm
    bands, height, width = raw.data_CHW.shape
    read_as = f"{bands} bands ({bands}x{height}x{width} as bands x rows x columns)"
    if stated_nm is None:
        fewest = min(raw.data_CHW.shape)
        orders = axes_with_bands(raw.data_CHW.shape, raw.axes_assumed, fewest) if raw.axes_assumed and fewest < bands else []
        raise InputError(
            f"{bands} bands of unknown wavelength" + (f", {read_as.partition(' (')[2].rstrip(')')}" if orders else ""),
            where=where,
            expected="a wavelength for each band" + (f"; {raw.hint}" if raw.hint else ""),
            mend=(f"if it has {fewest} bands: --axes {orders[0]}; and " if orders else "") + _some_centres(fewest if orders else bands),
        )
    orders = axes_with_bands(raw.data_CHW.shape, raw.axes_assumed, len(stated_nm)) if raw.axes_assumed else []
    if len(stated_nm) == bands and len(orders) > 1:
        raise InputError(
            f"{len(orders)} axes of {bands}, any of which may hold the bands ({bands}x{height}x{width} if it is bands x rows x columns)",
            where=where,
            expected="the order of the axes, stated",
            mend=f"--axes {' or --axes '.join(orders)}",
        )
    if len(stated_nm) == bands:
        return tuple(stated_nm[band] for band in values.kept)
    if len(stated_nm) == len(values.kept):
        return tuple(stated_nm)
    left_out = f", {bands - len(values.kept)} of them left out" if len(values.kept) < bands else ""
    raise InputError(
        f"{read_as}{left_out}, {len(stated_nm)} wavelengths",
        where=where,
        expected="one wavelength for each band",
        mend=f"--axes {' or --axes '.join(orders)}, the order by which there are {len(stated_nm)} bands"
        if orders
        else ("" if config.wavelengths_nm else "state them in place of the file's own: ") + _some_centres(bands),
    )


def _some_centres(bands: int) -> str:
    """The option that states so many centres."""
    several = f"--wavelengths with {bands} centres in nm (a list, a file, or linspace:FIRST:LAST:{bands})"
    return "--wavelengths 610,545,465" if bands == 3 else several


def _blanked(data_CHW: np.ndarray, measured_HW: np.ndarray | None) -> np.ndarray:
    """The values with 0 where nothing was measured, so that resizing meets no -9999 and no NaN."""
    return data_CHW if measured_HW is None else np.where(measured_HW, data_CHW, np.zeros((), data_CHW.dtype))


def _seen(fov_HW: np.ndarray | None, measured_HW: np.ndarray | None, where: Path) -> np.ndarray | None:
    """The field of view without the pixels that were not measured."""
    if measured_HW is None:
        return fov_HW
    seen_HW = measured_HW if fov_HW is None else fov_HW & measured_HW
    if not seen_HW.any():
        raise InputError(
            "no pixel of the field of view was measured",
            where=where,
            expected="a mask that lies over the image",
            mend="check --fov; or --nodata none",
        )
    return seen_HW


def _shaped(
    config: ImportConfig, planes: geometry.Planes, measured_HW: np.ndarray | None, where: Path
) -> tuple[geometry.Planes, list[str], np.ndarray | None]:
    """Crop, pad, resize; and the pixels of the result that only measured ones went into, None where that is all of them.

    A pixel that a resize mixes from measured and other ones is a wrong value: it leaves the field of view, too.
    """
    shaped, operations = geometry.apply(config.geometry, planes, where)
    if measured_HW is None:
        return shaped, operations, None
    share = geometry.Planes(data_CHW=measured_HW[None].astype(np.float32), fov_HW=planes.fov_HW)
    measured_HW = geometry.apply(config.geometry, share, where)[0].data_CHW[0] > 1 - 1e-4
    if measured_HW.all():
        return shaped, operations, None
    return replace(shaped, fov_HW=_seen(shaped.fov_HW, measured_HW, where)), operations, measured_HW


def _labels(item: Item, config: ImportConfig, raw: formats.Raw) -> np.ndarray | None:
    """The label map with the optic nerve head under the vessels, or None where nothing is known of this image."""
    size_HW = raw.data_CHW.shape[1:]
    labels_HW = None
    if "labels" in item.maps:
        file = map_files.read_map(item.maps["labels"], config.read)
        labels_HW = _over_image(labels.classes_of(file, labels.parse_label_map(config.label_map)), file, raw, config)
    elif not config.labels and (item.circle or "onh" in item.maps):
        labels_HW = np.zeros(size_HW, np.uint8)
    if labels_HW is None:
        return None
    if "onh" in item.maps:
        labels_HW = labels.over_disc(labels_HW, _mask(item, "onh", config.onh_values, config, raw))
    if item.circle:
        labels_HW = labels.over_disc(labels_HW, _disc(item, config, raw))
    return labels_HW


def _fov(item: Item, config: ImportConfig, raw: formats.Raw) -> np.ndarray | None:
    """The field of view, never empty."""
    if "fov" not in item.maps:
        return None
    fov_HW = _mask(item, "fov", config.fov_values, config, raw)
    if not fov_HW.any():
        raise InputError(
            "an empty field of view", where=item.maps["fov"], expected="some pixels inside", mend="check the file, or leave --fov out"
        )
    return fov_HW


def _mask(item: Item, role: str, values: str, config: ImportConfig, raw: formats.Raw) -> np.ndarray:
    """The pixels inside one of the image's masks."""
    file = map_files.read_map(item.maps[role], config.read)
    inside = masks.parse_inside(values, f"--{role}-values") if values else None
    return _over_image(masks.mask_of(file, role, inside, labels_free=not config.labels), file, raw, config)


def _disc(item: Item, config: ImportConfig, raw: formats.Raw) -> np.ndarray:
    """The disc of a row of --onh-circles, which must lie in its image and leave most of it free."""
    drawn_on_HW = raw.data_CHW.shape[1:]
    stored = raw.orientation != orientation.UPRIGHT and _drawn_on(config, item.image, raw, None) == "stored"
    if stored and orientation.STEPS[raw.orientation][2]:
        drawn_on_HW = drawn_on_HW[::-1]
    disc_HW = labels.circle_mask(drawn_on_HW, *item.circle)
    if not 0 < disc_HW.mean() <= masks.LARGEST_DISC:
        height, width = drawn_on_HW
        raise InputError(
            f"an optic disc of x, y, diameter {', '.join(f'{v:g}' for v in item.circle)}: {disc_HW.mean():.0%} of {height}x{width} pixels",
            where=config.onh_circles,
            expected=f"above 0 and at most {masks.LARGEST_DISC:.0%}, in pixels of {item.image.name}",
            mend="--onh-columns X,Y,DIAMETER (the names of the columns), or masks: --onh DIR",
        )
    return orientation.upright(disc_HW, raw.orientation) if stored else disc_HW


def _drawn_on(config: ImportConfig, where: Path, raw: formats.Raw, map_HW: np.ndarray | None) -> str:
    """Whether a map without a tag of its own lies over the image as it is 'shown' or as it is 'stored', where a tag turns it.

    Raises:
        InputError: neither the sizes nor --map-orientation tell.
    """
    if config.map_orientation:
        return config.map_orientation
    shown_HW = raw.data_CHW.shape[1:]
    sizes_differ = orientation.STEPS[raw.orientation][2] and shown_HW[0] != shown_HW[1]
    if sizes_differ and map_HW is not None and map_HW.shape in (shown_HW, shown_HW[::-1]):
        return "shown" if map_HW.shape == shown_HW else "stored"
    raise InputError(
        f"the image is turned by its orientation tag {raw.orientation}, and nothing says whether this was drawn on it before or after",
        where=where,
        expected="a map whose size tells, or whose own tag turns it; or a statement",
        mend="--map-orientation shown (drawn as viewers show the image) or --map-orientation stored (as the file holds it)",
    )


def _over_image(map_HW: np.ndarray, file: map_files.MapFile, raw: formats.Raw, config: ImportConfig) -> np.ndarray:
    """A map turned as its image is, and of its size."""
    size_HW = raw.data_CHW.shape[1:]
    turned_HW = np.ascontiguousarray(orientation.upright(map_HW, raw.orientation))
    has_own_tag = file.orientation != orientation.UPRIGHT
    if not has_own_tag and not np.array_equal(turned_HW, map_HW) and _drawn_on(config, file.path, raw, map_HW) == "stored":
        map_HW = turned_HW
    if map_HW.shape == size_HW:
        return map_HW
    if not config.resize_labels:
        raise InputError(
            f"a map of {map_HW.shape[0]}x{map_HW.shape[1]} pixels",
            where=file.path,
            expected=f"the size of its image, {size_HW[0]}x{size_HW[1]}",
            mend="--resize-labels, if it shows the same field; otherwise check the pairs",
        )
    return geometry.resize_map(map_HW, size_HW)
