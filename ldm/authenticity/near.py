"""The nearest training images of each query, over its views, and how far its nearest people lie.

Legend: N query, M reference, K neighbour, J nearest person, D dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ldm.authenticity.descriptors import Views
from ldm.authenticity.ratio import NEIGHBOURS, people_near
from ldm.search import Search


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
    views: Views, reference: Search | np.ndarray, person_M: np.ndarray, *, own_N: np.ndarray | None = None, k: int = NEIGHBOURS
) -> Near:
    """Nearest references over the query as it is and mirrored.

    Args:
        reference: rows (M, D), or a search of them, which may be asked again.
        person_M: number of each reference's person.
        own_N: the query's own person, whose images do not count.
        k: references to look at.
    """
    if not len(person_M):
        nothing_N1 = np.full((len(views[0]), 1), -1)
        return Near(
            distance_NJ=people_near(np.full(nothing_N1.shape, np.inf), nothing_N1),
            index_N=nothing_N1[:, 0],
            mirrored_N=nothing_N1[:, 0] >= 0,
        )
    search = reference if isinstance(reference, Search) else Search(reference)
    groups, k = None if own_N is None else (own_N, person_M), min(k, len(person_M))
    found = [search.nearest(view_ND, k, not_in=groups) for view_ND in views]
    distance_NK, index_NK = (np.concatenate(arrays, axis=1) for arrays in zip(*found, strict=True))
    mirrored_NK = np.repeat(np.arange(2 * k)[None] >= k, len(distance_NK), axis=0)
    order_NK = np.argsort(distance_NK, axis=1, kind="stable")
    distance_NK, index_NK, mirrored_NK = (np.take_along_axis(x_NK, order_NK, 1) for x_NK in (distance_NK, index_NK, mirrored_NK))
    there_N = np.isfinite(distance_NK[:, 0])
    return Near(
        distance_NJ=people_near(distance_NK, person_M[index_NK]),
        index_N=np.where(there_N, index_NK[:, 0], -1),
        mirrored_N=mirrored_NK[:, 0] & there_N,
    )
