"""The maps of one image: labels, optic disc and field of view, as they lie over it.

Legend: C band, H W pixels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_shards import formats
from data_shards.errors import InputError
from data_shards.formats import orientation
from data_shards.importing import geometry, labels, map_files, masks
from data_shards.importing.config import ImportConfig, Item


def labels_of(item: Item, config: ImportConfig, raw: formats.Raw) -> np.ndarray | None:
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


def field_of_view(item: Item, config: ImportConfig, raw: formats.Raw) -> np.ndarray | None:
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
