"""What 'near' means in an audit: descriptors of images, and the nearest of them.

Legend: N query, M reference, K neighbour, D dimension, B batch, C band, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ldm.search import nearest_neighbours


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """The nearest reference image of each query, over the query as it is and mirrored."""

    distance_N: np.ndarray
    index_N: np.ndarray
    mirrored_N: np.ndarray


def nearest_of(
    query_ND: np.ndarray,
    mirrored_ND: np.ndarray,
    reference_MD: np.ndarray,
    backend: str,
    *,
    not_in: tuple[np.ndarray, np.ndarray] | None = None,
) -> Nearest:
    """Nearest reference image of each query.

    Args:
        query_ND, mirrored_ND: the queries as they are, and mirrored left to right.
        not_in: groups (N,) and (M,): a reference of the query's own group does not count (the person's other images;
            the image itself). A query with no reference of another group has distance infinity and index -1.
    """
    k = 1 if not_in is None else int(np.unique(not_in[1], return_counts=True)[1].max()) + 1
    k = min(k, len(reference_MD))
    best: list[tuple[np.ndarray, np.ndarray]] = []
    for view_ND in (query_ND, mirrored_ND):
        distance_NK, index_NK = nearest_neighbours(view_ND, reference_MD, k, backend=backend)
        if not_in is not None:
            distance_NK[not_in[1][index_NK] == not_in[0][:, None]] = np.inf
        first_N = distance_NK.argmin(1)[:, None]
        best.append((np.take_along_axis(distance_NK, first_N, 1)[:, 0], np.take_along_axis(index_NK, first_N, 1)[:, 0]))
    (plain_N, plain_index_N), (mirrored_N, mirrored_index_N) = best
    turned_N = mirrored_N < plain_N
    distance_N = np.where(turned_N, mirrored_N, plain_N)
    index_N = np.where(np.isinf(distance_N), -1, np.where(turned_N, mirrored_index_N, plain_index_N))
    return Nearest(distance_N=distance_N, index_N=index_N, mirrored_N=turned_N)


def grid_side(bands: int, most: int = 4096) -> int:
    """Cells a side of the pooled descriptor: as many as keep it within `most` numbers, from 4 to 32 (16 for 16 bands)."""
    return max(4, min(32, math.isqrt(most // bands)))


def pooled_descriptor(standardised_BCHW: torch.Tensor) -> torch.Tensor:
    """(B, D) float32: each band's area means over a grid. Divided by √D, so that distances are root mean squares in standardised units.

    A copy stays near under noise, compression and small shifts. A mirrored copy is found by asking for the mirrored
    image too; a rotated, cropped or strongly recoloured one is not found.
    """
    side = grid_side(standardised_BCHW.shape[1])
    flat_BD = F.adaptive_avg_pool2d(standardised_BCHW.float(), side).flatten(1)
    return flat_BD / math.sqrt(flat_BD.shape[1])


def contrast_descriptor(standardised_BCHW: torch.Tensor) -> torch.Tensor:
    """The pooled descriptor with each band's mean taken out and the cube's deviation set to 1.

    Blind to one gain for all bands and to an offset of each: a copy that was only made brighter or darker still has
    distance about 0. Distances run from 0 (same) over √2 (unrelated) to 2 (negative). A constant cube is all 0.
    """
    x_BCN = F.adaptive_avg_pool2d(standardised_BCHW.float(), grid_side(standardised_BCHW.shape[1])).flatten(2)
    x_BD = (x_BCN - x_BCN.mean(2, keepdim=True)).flatten(1)
    return x_BD / x_BD.norm(dim=1, keepdim=True).clamp(min=1e-12)


def mirrored(descriptor_BD: np.ndarray, bands: int) -> np.ndarray:
    """The descriptors of the images mirrored left to right, by which the cells of a row change places."""
    side = grid_side(bands)
    return np.ascontiguousarray(descriptor_BD.reshape(-1, bands, side, side)[..., ::-1]).reshape(descriptor_BD.shape)


DESCRIPTORS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "pooled": pooled_descriptor,
    "contrast": contrast_descriptor,
}
"""What 'near' means in the audit; each takes standardised cubes (B, C, H, W) on any device and gives (B, D)."""
