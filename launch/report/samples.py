"""The images that a reader can open: each band in 256 steps, small enough that the report stays one file.

Legend: N image, C band, H W pixels, h w pixels of the shrunk image.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from data_shards.cube import LABELS
from data_shards.reading.dataset import Dataset
from launch.report import figures as fig

BUDGET = 6_000_000  # counts of all images together, one byte each before a PNG packs them
REGIONS = {"fov": "field of view", "artery": "artery", "vein": "vein", "onh": "optic nerve head"}
CLASSES = tuple(REGIONS.get(name, name) for name in LABELS)
LEAST_PIXELS = 12  # of a structure in an image, for a mean that is more than noise


@dataclass(frozen=True, kw_only=True)
class Opened:
    """An image that can be opened.

    Attributes:
        reflectance_Chw: shrunk.
        labels_hw: classes of LABELS, where the image has any.
        title: what it is, for people.
    """

    reflectance_Chw: np.ndarray
    labels_hw: np.ndarray | None
    title: str


def shrink_by(shape: Sequence[int], images: int) -> int:
    """The whole number that heights and widths are divided by, so that all images keep within BUDGET."""
    C, H, W = shape
    return max(1, math.ceil(math.sqrt(images * C * H * W / BUDGET)))


def shrunk(x_HW: np.ndarray, by: int) -> np.ndarray:
    """Means of by × by pixels along the last two axes; what is left over at the lower and right edge is cut off."""
    *before, H, W = x_HW.shape
    h, w = H // by, W // by
    return x_HW[..., : h * by, : w * by].reshape(*before, h, by, w, by).mean((-3, -1), dtype=np.float32)


class Shelf:
    """Images to be opened, each once, in the order in which they were asked for.

    Args:
        shape: of the cubes.
        images: at most so many will be asked for.
    """

    def __init__(self, shape: Sequence[int], images: int) -> None:
        self.by, self._places, self.images = shrink_by(shape, images), {}, list[Opened]()

    def place(self, dataset: Dataset, split: str, sample: int) -> int | None:
        """Number of an image that stands here."""
        return self._places.get((dataset.digest, split, sample))

    def put(self, dataset: Dataset, split: str, samples: Iterable[int], kind: str) -> list[int]:
        """Numbers of images of a split, which are read where they do not stand here yet. Their titles hold no key: it may name a person."""
        samples = list(samples)
        new = [i for i in samples if self.place(dataset, split, i) is None]
        for i, cube in zip(new, dataset.cubes(split, new), strict=True):
            self._places[dataset.digest, split, i] = len(self.images)
            half = self.by // 2
            _, h, w = (n // k for n, k in zip(cube.data_CHW.shape, (1, self.by, self.by), strict=True))
            labels_hw = None if cube.labels_HW is None else cube.labels_HW[half :: self.by, half :: self.by][:h, :w]
            reflectance_Chw = shrunk(cube.data_CHW, self.by) * np.float32(dataset.scale) + np.float32(dataset.offset)
            self.images.append(Opened(reflectance_Chw=reflectance_Chw, labels_hw=labels_hw, title=f"{kind}: image {i}"))
        return [self._places[dataset.digest, split, i] for i in samples]


def steps(images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """low_C and step_C: reflectance = low + step × count, count 0 to 255, from the least to the largest value of each band."""
    low_C = np.min([x_Chw.min((1, 2)) for x_Chw in images], axis=0).astype(np.float64)
    high_C = np.max([x_Chw.max((1, 2)) for x_Chw in images], axis=0).astype(np.float64)
    return low_C, np.maximum(high_C - low_C, 1e-9) / 255


def strip(x_Chw: np.ndarray, low_C: np.ndarray, step_C: np.ndarray) -> str:
    """All bands as one grey PNG, one below the other; each value is at most half a step off."""
    count_Chw = np.rint((x_Chw - low_C[:, None, None]) / step_C[:, None, None]).clip(0, 255).astype(np.uint8)
    return fig.data_uri(count_Chw.reshape(-1, x_Chw.shape[2]))


def viewer(
    shelf: Shelf,
    wavelengths_nm: Sequence[float],
    rgb: Sequence[int],
    display: fig.Display,
    fov_HW: np.ndarray,
    means: dict[str, np.ndarray],
) -> dict[str, Any]:
    """What report.js opens images from.

    Args:
        means: structure → mean spectrum (C,) of real images.
    """
    low_C, step_C = steps([image.reflectance_Chw for image in shelf.images])
    half, (C, h, w) = shelf.by // 2, shelf.images[0].reflectance_Chw.shape
    return {
        "nm": [float(nm) for nm in wavelengths_nm],
        "low": low_C.tolist(),
        "step": step_C.tolist(),
        "grey_low": (0.8 * display.low_C).tolist(),
        "grey_high": display.high_C.tolist(),
        "shape": [C, h, w],
        "rgb": list(rgb),
        "fov_mask": fig.data_uri(fov_HW[half :: shelf.by, half :: shelf.by][:h, :w].astype(np.uint8)),
        "classes": CLASSES,
        "real_mean": {name: fig.finite(mean_C) for name, mean_C in means.items()},
        "images": [
            {
                "title": image.title,
                "strip": strip(image.reflectance_Chw, low_C, step_C),
                "labels": None if image.labels_hw is None else fig.data_uri(image.labels_hw),
            }
            for image in shelf.images
        ],
    }


def region_spectra(dataset: Dataset, split: str, samples: Iterable[int], fov_HW: np.ndarray) -> dict[str, np.ndarray]:
    """Region → mean spectra (N, C) in reflectance, of the images that show enough of it, within the field of view."""
    spectra: dict[str, list[np.ndarray]] = {}
    for cube in dataset.cubes(split, samples):
        masks = {"field of view": fov_HW}
        if cube.labels_HW is not None:
            masks |= {REGIONS[name]: fov_HW & (cube.labels_HW == value) for name, value in LABELS.items() if name in REGIONS}
        for name, mask_HW in masks.items():
            if mask_HW.sum() >= LEAST_PIXELS:
                spectra.setdefault(name, []).append(cube.data_CHW[:, mask_HW].mean(1) * dataset.scale + dataset.offset)
    return {name: np.stack(means) for name, means in spectra.items()}


THUMB = 40  # pixels of a side


def thumbnails(dataset: Dataset, split: str, samples: Iterable[int], display: fig.Display, rgb: Sequence[int]) -> list[np.ndarray]:
    """False-colour pictures of THUMB × THUMB."""
    small = []
    for cube in dataset.cubes(split, samples):
        by = max(1, min(cube.data_CHW.shape[1:]) // THUMB)
        x_Chw = shrunk(cube.data_CHW[list(rgb)], by) * np.float32(dataset.scale) + np.float32(dataset.offset)
        picture = np.stack([display.grey(x_hw, c) for x_hw, c in zip(x_Chw, rgb, strict=True)], axis=-1)
        small.append(np.asarray(Image.fromarray(picture).resize((THUMB, THUMB), Image.Resampling.BILINEAR)))
    return small


def sheet(tiles: Sequence[np.ndarray], columns: int = 24) -> dict[str, Any]:
    """Thumbnails side by side in one JPEG."""
    rows = math.ceil(len(tiles) / columns)
    picture = np.zeros((rows * THUMB, columns * THUMB, 3), np.uint8)
    for n, tile in enumerate(tiles):
        y, x = divmod(n, columns)
        picture[y * THUMB : (y + 1) * THUMB, x * THUMB : (x + 1) * THUMB] = tile
    Image.fromarray(picture).save(buffer := io.BytesIO(), format="JPEG", quality=82)
    uri = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"side": THUMB, "columns": columns, "sheet": uri}
