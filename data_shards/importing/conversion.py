"""One image of others, with its maps and its person, to one cube.

Legend: C band, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_shards import formats
from data_shards.cube import Cube, CubeMeta
from data_shards.errors import InputError
from data_shards.formats.raw import axes_with_bands
from data_shards.importing import geometry, labels
from data_shards.importing.config import ImportConfig, Item
from data_shards.importing.counts import to_uint16
from data_shards.importing.no_data import measured, no_data_note
from data_shards.importing.overlays import field_of_view, labels_of
from data_shards.importing.values import Values, understood


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
    fov_HW = _seen(field_of_view(item, config, raw), source_HW, item.image)
    planes = geometry.Planes(data_CHW=_blanked(data_CHW, source_HW), labels_HW=labels_of(item, config, raw), fov_HW=fov_HW)
    planes, operations, measured_HW = _shaped(config, planes, source_HW, item.image)
    stored = to_uint16(planes.data_CHW, config, values, item.image, measured_HW)
    if planes.data_CHW.dtype.kind != "f" and any(step.startswith("resize") for step in operations):
        stored = stored._replace(how=stored.how.replace("exact", "rounded to whole counts by the resizing"))
    notes = {
        **_origin(item, config, raw),
        **values.words,
        **no_data_note(values, source_HW),
        "import": digest,
        "sha256": hashes,
        "operations": operations,
        "stored": stored.how,
        "shape": list(stored.counts_CHW.shape),
    }
    if planes.labels_HW is not None:
        notes["label_pixels"] = labels.pixels_per_class(planes.labels_HW)
    meta = CubeMeta(
        key=item.key,
        wavelengths_nm=tuple(float(w) for w in wavelengths_nm),
        scale=stored.scale,
        offset=stored.offset,
        subject_id=item.person.subject_id,
        eye=item.person.eye,
        acquired=item.person.acquired,
        notes=notes,
    )
    return Cube(data_CHW=np.ascontiguousarray(stored.counts_CHW), meta=meta, labels_HW=planes.labels_HW, fov_HW=planes.fov_HW)


def _origin(item: Item, config: ImportConfig, raw: formats.Raw) -> dict[str, Any]:
    """For the sample's notes: which files it was made of, what they say, and what was stated of them."""
    nominal = "nominal" if raw.nominal else "from the file"
    optional = {
        "reader": raw.facts,
        "declared": {statement.name: statement.shown for statement in raw.said},
        "onh_circle_px": list(item.circle or ()),
        "label_map": config.label_map if "labels" in item.maps else "",
        "label_order": "vessels over optic disc" if "onh" in item.maps or item.circle else "",
        "split": item.person.split,
        "subject": item.person.extra,
    }
    return {
        "source": item.image.name,
        "original_shape": list(raw.data_CHW.shape),
        "wavelengths": "stated" if config.wavelengths_nm else nominal,
        **{role: file.name for role, file in item.maps.items()},
        **{name: value for name, value in optional.items() if value},
    }


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
        return _each_once([stated_nm[band] for band in values.kept], values.kept, where)
    if len(stated_nm) == len(values.kept):
        return _each_once(stated_nm, values.kept, where)
    left_out = f", {bands - len(values.kept)} of them left out" if len(values.kept) < bands else ""
    raise InputError(
        f"{read_as}{left_out}, {len(stated_nm)} wavelengths",
        where=where,
        expected="one wavelength for each band",
        mend=f"--axes {' or --axes '.join(orders)}, the order by which there are {len(stated_nm)} bands"
        if orders
        else ("" if config.wavelengths_nm else "state them in place of the file's own: ") + _some_centres(bands),
    )


def _each_once(centres_nm: Sequence[float], kept: Sequence[int], where: Path) -> tuple[float, ...]:
    """The centres, of which no two are the same: bands of one centre are most likely a slip of who wrote the list."""
    first: dict[float, int] = {}
    for band, nm in zip(kept, centres_nm, strict=True):
        if (other := first.setdefault(nm, band)) != band:
            raise InputError(
                f"bands {other + 1} and {band + 1} both at {nm:.10g} nm",
                where=where,
                expected="a centre of its own for each band",
                mend=f"state them: {_some_centres(len(kept))}; or leave one out, by its number in the file: --bad-bands {band + 1}",
            )
    return tuple(centres_nm)


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
