"""Evaluate a synthetic set against real images it was not made from, every figure beside its real-against-real floor.

Legend: N image, P pair, B batch, C band, H W pixels, D feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.errors import InputError
from data_shards.reading.dataset import Dataset
from data_shards.reading.stream import CubeStream
from ldm.evaluation import frechet, ms_ssim, spectral
from ldm.evaluation.features import Extractor, get_extractor
from ldm.evaluation.measurements import Arrays, ImageMeasurements, Piece, beside, written
from ldm.evaluation.sets import Part, Watch, check_comparable, common_fov, evenly, real_parts, reflectance
from ldm.evaluation.whitening import Whitening, whitening

FRECHET_KEYS = (
    *("value", "value_at_floor_n", "floor", "infinity", "infinity_standard_error", "infinity_floor", "infinity_floor_standard_error"),
    *("kid", "kid_interval", "kid_subset", "kid_floor", "kid_floor_interval", "kid_floor_subset"),
)
FLOORS = tuple(f"floor_{name}" for name in ("kl_C", "js_C", "kl_mean", "kl_interval", "js_mean", "js_interval"))
COPIES_WIN = "no people held out: a set of copies would come nearest to the training images"
PARTS = ("real", "synthetic", "floor")
PAIRS_A_UNIT = 32
WHITENED_BY = 4096  # training images at most, evenly spaced
FORMAT = "retinaforge-evaluation-2"


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """
    Attributes:
        against: real split that the synthetic set is compared with; images of held-out people by default.
        limit: at most this many images of each set, evenly spaced; None for all.
        seed: of every subset, pair and resample.
        extractor: a name of ldm.evaluation.features.EXTRACTORS.
        pairs: for MS-SSIM, of each set.
        batch_size: cubes at once.
        device: of the feature network and of MS-SSIM.
    """

    against: str = "val"
    limit: int | None = None
    seed: int = 0
    extractor: str = "seeded-conv-v1"
    pairs: int = 100
    batch_size: int = 8
    device: str = "cpu"


class Evaluation(ImageMeasurements):
    """An evaluation in units: features and histograms of each shard, and MS-SSIM of some pairs at a time; `result` merges them.

    Args:
        path: file for the result, beside which the units lie; None: they are kept in memory.
        also: further images of which features are wanted.

    Raises:
        InputError: sets that cannot be compared, an empty or unknown split.
    """

    def __init__(
        self, real: Dataset, synthetic: Dataset, config: EvaluateConfig, path: Path | None = None, also: Sequence[Part] = ()
    ) -> None:
        split = check_comparable(real, synthetic)
        if config.limit is not None and config.limit < 2:
            raise InputError(f"limit {config.limit}", expected="at least 2 images of each set")
        self.real, self.config, self.path = real, config, path
        reference, floor = real_parts(real, config.against, config.limit)
        generated = Part(dataset=synthetic, split=split, sample_N=evenly(synthetic.count(split), config.limit), independent=True)
        compared = {"real": reference, "synthetic": generated, "floor": floor}
        self.parts = {name: part for name, part in compared.items() if part is not None}
        train = real.stats.split
        self.whitened_by = Part(dataset=real, split=train, sample_N=evenly(real.count(train), WHITENED_BY))
        self.extractor, self.edges_CE = get_extractor(config.extractor, real.stats), spectral.band_edges(real.stats)
        self.range, self.window = ms_ssim.data_range(real.stats), ms_ssim.window_for(*real.shape[1:])
        sets = [(part.dataset.digest, part.split, len(part.sample_N)) for part in (*self.parts.values(), *also)]
        request = {"format": FORMAT, "extractor": self.extractor.name, "sets": sets, "config": asdict(config)}
        super().__init__([*self.parts.values(), self.whitened_by, *also], beside(path, request))
        self.pairs = {name: ms_ssim.draw_pairs(part.units(), config.pairs, seed=config.seed) for name, part in self.parts.items()}
        for name in self.pairs if self.window is not None else ():
            self.add({chunk: partial(self._pair_values, name, n) for n, chunk in enumerate(self._chunks(name))})

    @cached_property
    def fov_HW(self) -> np.ndarray:
        """The field of view of all images."""
        known = self.real.stats.split in self.real.splits
        return common_fov(self.real, self.real.stats.split if known else self.config.against)

    def measured(self, piece: Piece) -> Arrays:
        features, histograms = [], {name: self._histograms(part) for name, part in self.parts.items() if piece.holds(part)}
        unit_of = {
            name: dict(zip(self.parts[name].sample_N.tolist(), self.parts[name].unit_N().tolist(), strict=True)) for name in histograms
        }
        for batch in piece.batches(self.config.batch_size):
            features.append(self.extractor(reflectance(piece.dataset, batch.cubes_BCHW, self.config.device)).numpy())
            for b, sample in enumerate(batch.sample_B.tolist()):
                for name, histogram in histograms.items():
                    if (unit := unit_of[name].get(sample)) is not None:
                        labels_HW = None if batch.labels_BHW is None else batch.labels_BHW[b].numpy()
                        histogram.add(batch.cubes_BCHW[b].numpy(), unit=unit, fov_HW=self.fov_HW, labels_HW=labels_HW)
        counted = {f"{name}.{key}": array for name, histogram in histograms.items() for key, array in histogram.arrays().items()}
        return {"features_ND": np.concatenate(features), **counted}

    def features(self, part: Part) -> np.ndarray:
        """Features (N, D) of a part."""
        return self.of(part, "features_ND")

    def whitening(self) -> Whitening | None:
        """The whitening by the features of the training split, of which the real set's statistics are."""
        return whitening(self.features(self.whitened_by))

    def histograms(self, name: str) -> spectral.BandHistograms:
        """Of one of the sets compared."""
        merged = self._histograms(self.parts[name])
        for piece in self.pieces_of(self.parts[name]):
            arrays = self.arrays(piece.name)
            merged.merge(arrays[f"{name}.unit_U"], arrays[f"{name}.counts_URCK"])
        return merged

    def pair_mean(self, name: str) -> ms_ssim.PairMean | None:
        """MS-SSIM over the pairs of one of the sets compared; None where it has none."""
        if self.window is None or name not in self.parts or not len(self.pairs[name]):
            return None
        units, values_P = self.parts[name].units(), np.concatenate([self.arrays(chunk)["values_P"] for chunk in self._chunks(name)])
        return ms_ssim.pair_mean(values_P, [(units[i], units[j]) for i, j in self.pairs[name]], seed=self.config.seed)

    def result(self) -> dict[str, Any]:
        """All metrics, of units that are all there; see `evaluate`."""
        reference, floor, seed = self.parts["real"], self.parts.get("floor"), self.config.seed
        features = {name: self.features(part) for name, part in self.parts.items()}
        histograms = {name: self.histograms(name) for name in self.parts}
        bands = {"wavelengths_nm": list(self.real.wavelengths_nm), "bins": self.edges_CE.shape[1] + 1, "fov_pixels": int(self.fov_HW.sum())}
        return {
            "format": FORMAT,
            "reference": reference.described(),
            "synthetic": self.parts["synthetic"].described(),
            "floor_from": floor and floor.described(),
            "config": asdict(self.config),
            "frechet": frechet_figures(reference, features, self.whitening(), self.extractor, seed),
            "spectral": bands | spectral_figures(histograms, seed, reason=COPIES_WIN if reference.split == "train" else None),
            "ms_ssim": ms_ssim_figures({name: self.pair_mean(name) for name in PARTS}, self.range, self.window),
        }

    def size(self, number: int) -> int:
        return super().size(number) if self.names[number] in self.pieces else PAIRS_A_UNIT

    def finish(self) -> dict[str, Any]:
        return written(self.path, self.result(), self.out)

    def _histograms(self, part: Part) -> spectral.BandHistograms:
        return spectral.BandHistograms(self.edges_CE, scale=part.dataset.scale, offset=part.dataset.offset)

    def _chunks(self, name: str) -> list[str]:
        """Names of the units of a set's pairs."""
        return [f"pairs-{name}-{n:03d}" for n in range(-(-len(self.pairs[name]) // PAIRS_A_UNIT))]

    def _pair_values(self, name: str, number: int) -> Arrays:
        """MS-SSIM of some seeded pairs of images of different people, or of two synthetic ones."""
        part, at_once = self.parts[name], max(1, self.config.batch_size // 2)
        pairs_P2 = self.pairs[name][number * PAIRS_A_UNIT : (number + 1) * PAIRS_A_UNIT]
        stream, values = CubeStream(part.dataset, part.split, batch_size=1), []
        for start in range(0, len(pairs_P2), at_once):
            sides = (stream.read(part.sample_N[pairs_P2[start : start + at_once, side]]).cubes_BCHW for side in (0, 1))
            a, b = (reflectance(part.dataset, cubes_BCHW, self.config.device) for cubes_BCHW in sides)
            values.append(ms_ssim.ms_ssim_of_pairs(a, b, range_=self.range, window=self.window))
        return {"values_P": np.concatenate(values)}


def unfit_reference(part: Part) -> str | None:
    """Why no distance to these real images is a mark of quality; None where it is one."""
    if part.split == "train":
        return COPIES_WIN
    people = len(set(part.units()))
    if people < 2:
        return f"images of one person alone in split {part.split!r}: a spread needs at least 2 people"
    return None


def frechet_figures(
    reference: Part, features: dict[str, np.ndarray], white: Whitening | None, extractor: Extractor, seed: int
) -> dict[str, Any]:
    """The `frechet` part of the result; see `evaluate`.

    Args:
        features: of 'real', 'synthetic' and, where there is one, 'floor', as the extractor gives them.
    """
    result: dict[str, Any] = {
        "extractor": extractor.name,
        "d": extractor.dimension,
        "effective_rank": white and white.effective_rank,
        "effective_rank_whitened": white and white.effective_rank_whitened,
        "n_real": len(features["real"]),
        "people_real": len(set(reference.units())),
        "n_synthetic": len(features["synthetic"]),
        "reason": unfit_reference(reference) or (None if white else "the training images do not differ in their features"),
    }
    if result["reason"] is None and len(features["synthetic"]) < 2:
        result["reason"] = "a synthetic set of one image has no spread"
    if result["reason"]:
        return result | dict.fromkeys(FRECHET_KEYS) | {"n_floor": 0}
    white_ND = {name: white(x_ND) for name, x_ND in features.items()}
    reference_ND, synthetic_ND, floor_ND = white_ND["real"], white_ND["synthetic"], white_ND.get("floor")
    if floor_ND is not None and len(floor_ND) < 2:
        floor_ND = None
    result["value"] = frechet.frechet_distance(reference_ND, synthetic_ND)
    for name, other_ND in (("", synthetic_ND), ("_floor", floor_ND)):
        infinity = None if other_ND is None else frechet.frechet_infinity(reference_ND, other_ND, seed=seed)
        result[f"infinity{name}"] = None if infinity is None else infinity.value
        result[f"infinity{name}_standard_error"] = None if infinity is None else infinity.standard_error
        kid = None if other_ND is None else frechet.kid_with_interval(*frechet.conditioned(reference_ND, other_ND), seed=seed)
        result[f"kid{name}"] = None if kid is None else kid.value
        result[f"kid{name}_interval"] = None if kid is None else kid.interval
        result[f"kid{name}_subset"] = None if kid is None else kid.subset
    n_floor = 0 if floor_ND is None else min(len(synthetic_ND), len(floor_ND))
    result["n_floor"] = n_floor
    result["floor"] = frechet.frechet_at(reference_ND, floor_ND, n_floor, seed=seed) if n_floor else None
    result["value_at_floor_n"] = frechet.frechet_at(reference_ND, synthetic_ND, n_floor, seed=seed) if n_floor else None
    return result


def spectral_figures(histograms: dict[str, spectral.BandHistograms], seed: int, *, reason: str | None) -> dict[str, Any]:
    """The `spectral` part of the result; see `evaluate`.

    Args:
        histograms: of 'real', 'synthetic' and, where there is one, 'floor'.
        reason: why nothing shall be compared, if so.
    """
    if reason:
        left_out = {**asdict(spectral.SpectralDistance(reason=reason)), **dict.fromkeys(FLOORS)}
        return dict.fromkeys(spectral.REGIONS, left_out)
    reference, synthetic, floor = histograms["real"], histograms["synthetic"], histograms.get("floor")
    result = {}
    for region in spectral.REGIONS:
        real_UCK = reference.counts_UCK(region)
        figures = asdict(spectral.spectral_distance(real_UCK, synthetic.counts_UCK(region), seed=seed))
        if region != "fov" and not synthetic.labelled:
            figures["reason"] = "the synthetic set has no labels" if reference.labelled else "neither set has labels"
        below = None if floor is None else spectral.spectral_distance(real_UCK, floor.counts_UCK(region), seed=seed)
        figures |= {name: below and getattr(below, name.removeprefix("floor_")) for name in FLOORS}
        result[region] = figures
    return result


def ms_ssim_figures(means: dict[str, ms_ssim.PairMean | None], range_: float, window: int | None) -> dict[str, Any]:
    """The `ms_ssim` part of the result; see `evaluate`.

    Args:
        means: of 'real', 'synthetic' and 'floor'.
    """
    result: dict[str, Any] = {
        "window": window,
        "sigma_px": ms_ssim.SIGMA_PX,
        "levels": ms_ssim.LEVELS,
        "data_range": range_,
        "reason": None,
    }
    if window is None:
        result["reason"] = "images of 32 pixels or less have no five levels"
    elif missing := [name for name in ("real", "synthetic") if means[name] is None]:
        result["reason"] = f"no two images of different people in the {' and the '.join(missing)} set"
    for name, mean in means.items():
        result |= {name: mean and mean.mean, f"{name}_interval": mean and mean.interval, f"pairs_{name}": mean.pairs if mean else 0}
    for name, other in (("difference", "synthetic"), ("difference_floor", "floor")):
        both = means["real"] and means[other] and ms_ssim.difference(means[other], means["real"])
        result[name], result[f"{name}_interval"] = both or (None, None)
    return result


def evaluate(real: Dataset, synthetic: Dataset, config: EvaluateConfig, watch: Watch = iter) -> dict[str, Any]:
    """All metrics, as a JSON value without NaN. A figure that could not be had is None, with a `reason` beside it.

    Keys:
        format, reference, synthetic, floor_from: what was compared (path, digest, split, n, subjects).
        config: EvaluateConfig.
        frechet: on features whitened by the training split's (ldm/evaluation/whitening.py): `value` (synthetic to reference), `floor`
            (n_floor other real images to reference), `value_at_floor_n` (what compares with the floor when n_floor < n_synthetic),
            `infinity` (FID∞; None below 40 images), `kid`, `kid_interval`, `kid_subset`, the same with `_floor`; `n_real`,
            `people_real`, `n_synthetic`, `n_floor`, `d`, `extractor`, `effective_rank` of the training features as they are and
            `effective_rank_whitened`; `reason`.
        spectral: {fov | artery | vein | onh: `kl_C`, `js_C` (nats, each band), `kl_mean`, `kl_interval`, `js_mean`,
            `js_interval`, the same with `floor_`, `pixels_*`, `units_*`, `reason`}, and `wavelengths_nm`, `bins`, `fov_pixels`.
        ms_ssim: `real`, `synthetic`, `floor` (mean of pairs), `difference`, `difference_floor`, each with `_interval`
            (of differences: signed); `pairs_*`, `window`, `sigma_px`, `levels`, `data_range`, `reason`.

    Raises:
        InputError: sets that cannot be compared, an empty or unknown split. CorruptData: damaged shards.
    """
    return Evaluation(real, synthetic, config).complete(watch)
