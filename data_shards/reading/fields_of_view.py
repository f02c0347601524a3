"""The one field of view that stands for a set: that of generated cubes, and of comparisons. And whether the set's own are like it.

Legend: H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from data_shards.folder import png_map
from data_shards.reading.dataset import Dataset

FOV_SHARE = 0.95
FOV_IMAGES = 256
ALIKE = 0.9  # pixels that two fields of view have in common, over those of either: one camera stays above it
ODD_SHARE = 0.05  # so many images may be unlike the rest before it is said


def common_fov(dataset: Dataset, split: str) -> np.ndarray:
    """Pixels inside the field of view of 95 % of the split's images (256 of them, evenly spaced); every pixel where no image has a mask.

    Synthetic images carry no mask. One mask for all images, real and synthetic alike, keeps the comparison fair.
    """
    inside_HW, seen = np.zeros(dataset.shape[1:]), 0
    for fov_HW in _masks(dataset, split):
        if fov_HW is not None:
            inside_HW += fov_HW
            seen += 1
    return inside_HW >= FOV_SHARE * seen


def unlike(dataset: Dataset, split: str) -> str:
    """A sentence where the images' fields of view differ so much that the common one is none of theirs; else ''."""
    common_HW = common_fov(dataset, split)
    full_HW = np.ones(dataset.shape[1:], bool)
    shares, odd = [], 0
    for fov_HW in _masks(dataset, split):
        fov_HW = full_HW if fov_HW is None else fov_HW
        shares.append(fov_HW.mean())
        odd += (fov_HW & common_HW).sum() < ALIKE * (fov_HW | common_HW).sum()
    if odd <= ODD_SHARE * len(shares):
        return ""
    return (
        f"the fields of view differ, as those of several cameras do: they take {min(shares):.0%} to {max(shares):.0%} of an image, and "
        f"generated cubes get the {common_HW.mean():.0%} that 95 % of them share, unlike {odd} of {len(shares)} images of {split}; "
        "a set for each camera avoids it"
    )


def _masks(dataset: Dataset, split: str) -> Iterator[np.ndarray | None]:
    """The field of view of some images, evenly spaced: the first ones would be those of a few people. None: it has no mask."""
    count = dataset.count(split)
    for i in range(count) if count <= FOV_IMAGES else (k * count // FOV_IMAGES for k in range(FOV_IMAGES)):
        shard, row = dataset.locate(split, i)
        content = shard.named(row, "fov.png")
        yield png_map(content, mask=True, where=f"{shard.path}: sample {shard.index.keys[row]}") if content else None
