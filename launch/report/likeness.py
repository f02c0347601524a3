"""Which synthetic images lie farthest from real people held out of training, and where all of them lie in the plane of features.

Legend: N image, C band, D feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_shards.packing.splits import held_out_split
from data_shards.reading.dataset import Dataset
from launch.report import figures as fig
from launch.report.samples import Shelf, sheet, thumbnails
from launch.run import Run, device
from ldm.evaluation.embedding import LEAST_MAPPED, Distances, computed_features, distances, measured_features, plane
from ldm.evaluation.features import get_extractor
from ldm.evaluation.sets import Part, common_fov
from ldm.evaluation.whitening import whitening

EXTRACTOR = "seeded-conv-v1"
COMPUTED = 512  # images of each set whose features are computed here, where the evaluation's are not at hand
MAPPED = 240  # points of each set


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """Features of three sets of images, whitened by those of the training images.

    Attributes:
        features: what they are, in words.
        parts: 'synthetic', 'held out' and 'train': which images.
        whitened: (N, D) of each.
        distances: of the synthetic images to people held out.
    """

    features: str
    parts: dict[str, Part]
    whitened: dict[str, np.ndarray]
    distances: Distances

    def worst(self, most: int) -> list[tuple[int, float]]:
        """Synthetic images and their distances, the farthest first."""
        distance_N, sample_N = self.distances.synthetic_N, self.parts["synthetic"].sample_N
        return [(int(sample_N[n]), float(distance_N[n])) for n in np.argsort(-distance_N, kind="stable")[:most]]

    @property
    def beyond(self) -> float:
        """Share of the synthetic images that lie farther than 95 % of the real ones do."""
        return float((self.distances.synthetic_N > np.quantile(self.distances.real_M, 0.95)).mean())


def likeness(run: Run, real: Dataset, synthetic: Dataset | None) -> Likeness | str:
    """Features as the evaluation left them, or computed now of at most COMPUTED images a set; a sentence where nothing can be compared."""
    if synthetic is None:
        return "the run has no synthetic images yet"
    held_out, train = held_out_split(real), real.stats.split
    if held_out == train:
        return "nobody was held out of training, and nearness to training images is no mark of quality"
    sets = {"synthetic": (synthetic, "synthetic"), "held out": (real, held_out), "train": (real, train)}
    units = sorted(run.folder.glob("evaluate.units-*"))
    whole = {name: Part.of(*of) for name, of in sets.items()}
    found = {name: measured_features(part, units[0], EXTRACTOR) for name, part in whole.items()} if len(units) == 1 else {}
    extractor, parts, features = get_extractor(EXTRACTOR, real.stats), {}, {}
    for name, part in whole.items():
        parts[name], features[name] = part, found.get(name)
        if features[name] is None:
            parts[name] = Part.of(*sets[name], COMPUTED)
            features[name] = computed_features(parts[name], extractor, fov_HW=common_fov(real, train), device=device())
    by_train = whitening(features["train"])
    if by_train is None:
        return "the training images do not differ in their features"
    whitened = {name: by_train(x_ND) for name, x_ND in features.items()}
    apart = distances(whitened["synthetic"], whitened["held out"], np.array(parts["held out"].units()))
    if apart is None:
        return "images of one person alone were held out of training: nothing says what is usual"
    return Likeness(features=f"{extractor.name}, whitened by the training images", parts=parts, whitened=whitened, distances=apart)


@dataclass(frozen=True, kw_only=True)
class Map:
    """A chart, the thumbnails of its points as report.js reads them, and the number of points of each set."""

    chart: fig.Chart
    thumbs: dict[str, Any]
    points: dict[str, int]


LOOKS = {
    "train": {"color": "#9a9a9a", "size": 5, "symbol": "circle", "opacity": 0.6},
    "held out": {"color": fig.REAL, "size": 9, "symbol": "diamond"},
    "synthetic": {"color": fig.SYNTHETIC, "size": 6, "symbol": "circle"},
}
TITLES = {"train": "real (trained on)", "held out": "real (held out)", "synthetic": "synthetic"}


def map_of(near: Likeness, display: fig.Display, rgb: Sequence[int], shelf: Shelf) -> Map | str:
    """At most MAPPED images of each set in the plane; a sentence where there are too few of them."""
    chosen_N = {name: np.linspace(0, len(x) - 1, min(MAPPED, len(x))).astype(int) for name, x in near.whitened.items()}
    features_ND = np.concatenate([near.whitened[name][chosen_N[name]] for name in LOOKS])
    if len(features_ND) < LEAST_MAPPED:
        return f"{len(features_ND)} images in all: at least {LEAST_MAPPED} make a map"
    xy_N2, traces, pictures = plane(features_ND), [], []
    for name, look in LOOKS.items():
        part, start = near.parts[name], len(pictures)
        samples = part.sample_N[chosen_N[name]].tolist()
        pictures += thumbnails(part.dataset, part.split, samples, display, rgb)
        traces.append(
            {
                "x": fig.finite(xy_N2[start : len(pictures), 0]),
                "y": fig.finite(xy_N2[start : len(pictures), 1]),
                "customdata": [
                    [start + n, f"{TITLES[name]}: image {i}", shelf.place(part.dataset, part.split, i)] for n, i in enumerate(samples)
                ],
                "mode": "markers",
                "marker": look,
                "name": TITLES[name],
                "hovertemplate": "%{customdata[1]}<extra></extra>",
            }
        )
    axes = {"showticklabels": False, "zeroline": False}
    chart = fig.chart(traces, "", "", hovermode="closest", xaxis=axes, yaxis=axes)
    return Map(chart=chart, thumbs=sheet(pictures), points={TITLES[name]: len(chosen_N[name]) for name in LOOKS})
