"""The nearest training images of each query, over its views, and how far its nearest people lie.

Legend: N query, M reference, K neighbour, J nearest person, D dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ldm.authenticity.descriptors import Views
from ldm.authenticity.ratio import NEIGHBOURS, people_near
from ldm.search import nearest_neighbours


@dataclass(frozen=True, kw_only=True)
class Near:
    """
    Attributes:
        distance_NJ: to the nearest people, each by their nearest image; infinite where there are fewer.
        index_N: the nearest image; -1 where none counts. mirrored_N: of the mirrored query.
    """

    distance_NJ: np.ndarray
    index_N: np.ndarray
    mirrored_N: np.ndarray

    @property
    def distance_N(self) -> np.ndarray:
        """To the nearest image."""
        return self.distance_NJ[:, 0]


def near(
    views: Views, reference_MD: np.ndarray, person_M: np.ndarray, backend: str, *, own_N: np.ndarray | None = None, k: int = NEIGHBOURS
) -> Near:
    """Nearest references over the query as it is and mirrored.

    Args:
        person_M: number of each reference's person.
        own_N: the query's own person, whose images do not count.
        k: references to look at, besides the query's own.
    """
    if not len(reference_MD):
        nothing_N = np.full(len(views[0]), -1)
        return Near(
            distance_NJ=people_near(np.full((len(views[0]), 1), np.inf), nothing_N[:, None]), index_N=nothing_N, mirrored_N=nothing_N >= 0
        )
    own = int(np.bincount(person_M).max()) if own_N is not None else 0
    found = [nearest_neighbours(view_ND, reference_MD, min(k + own, len(reference_MD)), backend=backend) for view_ND in views]
    distance_NK, index_NK = (np.concatenate(arrays, axis=1) for arrays in zip(*found, strict=True))
    mirrored_NK = np.arange(distance_NK.shape[1])[None].repeat(len(distance_NK), 0) >= found[0][0].shape[1]
    if own_N is not None:
        distance_NK = np.where(person_M[index_NK] == own_N[:, None], np.inf, distance_NK)
    order_NK = np.argsort(distance_NK, axis=1, kind="stable")
    distance_NK, index_NK, mirrored_NK = (np.take_along_axis(x_NK, order_NK, 1) for x_NK in (distance_NK, index_NK, mirrored_NK))
    there_N = np.isfinite(distance_NK[:, 0])
    return Near(
        distance_NJ=people_near(distance_NK, person_M[index_NK]),
        index_N=np.where(there_N, index_NK[:, 0], -1),
        mirrored_N=mirrored_NK[:, 0] & there_N,
    )
