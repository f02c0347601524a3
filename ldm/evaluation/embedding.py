"""Single images in the space of features: how far each lies from real people held out of training, and a map of all in the plane.

Legend: N image, M image of people held out, D feature.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from ldm.evaluation.features import Extractor
from ldm.evaluation.measurements import by_shard
from ldm.evaluation.sets import Part, reflectance
from ldm.search import nearest_neighbours

NEIGHBOURS = 5
LEAST_MAPPED = 12
"""Fewer points than that are no map: the neighbourhoods that t-SNE keeps would be all of them."""


def measured_features(part: Part, units: Path, extractor: str) -> np.ndarray | None:
    """Features (N, D) of a part by an extractor, as an evaluation left them in its units; None where these hold others, or are gone."""
    found = []
    for piece in by_shard([part]):
        path = units / f"{piece.name}.safetensors"
        features_ND = load_file(path).get(f"features.{extractor}") if path.exists() else None
        if features_ND is None or len(features_ND) != len(piece.sample_N):
            return None
        found.append(features_ND)
    return np.concatenate(found)


def computed_features(part: Part, extractor: Extractor, *, fov_HW: np.ndarray, device: str, batch_size: int = 8) -> np.ndarray:
    """Features (N, D) of a part within a field of view, read and computed now."""
    batches = (batch for piece in by_shard([part]) for batch in piece.batches(batch_size))
    return np.concatenate([extractor(reflectance(part.dataset, batch.cubes_BCHW, device, fov_HW)).numpy() for batch in batches])


@dataclass(frozen=True, kw_only=True)
class Distances:
    """Mean distances to the nearest images of people held out of training.

    Attributes:
        synthetic_N: of each synthetic image.
        real_M: of each image held out, to those of other people: what is usual.
        neighbours: how many nearest images the mean is over.
    """

    synthetic_N: np.ndarray
    real_M: np.ndarray
    neighbours: int


def distances(synthetic_ND: np.ndarray, held_out_MD: np.ndarray, people_M: np.ndarray) -> Distances | None:
    """Distances to people held out; None where these are fewer than two, so that nothing says what is usual.

    Never to the images trained on: a copy of one would come out best.
    """
    person, images = np.unique(people_M, return_counts=True)
    if len(person) < 2:
        return None
    k = min(NEIGHBOURS, len(people_M) - int(images.max()))  # of so many others each has a mean
    real_M = np.empty(len(people_M))
    for name in person:
        own_M = people_M == name
        real_M[own_M] = nearest_neighbours(held_out_MD[own_M], held_out_MD[~own_M], k)[0].mean(1)
    return Distances(synthetic_N=nearest_neighbours(synthetic_ND, held_out_MD, k)[0].mean(1), real_M=real_M, neighbours=k)


def plane(features_ND: np.ndarray, seed: int = 0) -> np.ndarray:
    """(N, 2) of t-SNE (van der Maaten and Hinton 2008) begun at the first two principal components; the same on each call.

    Near points had like features. Distances between groups, and the sizes of groups, mean nothing.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    perplexity = min(30.0, (len(features_ND) - 1) / 3)
    with threadpool_limits(1):  # sums in one order
        return TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(features_ND.astype(np.float32))
