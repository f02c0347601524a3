"""Evaluate a synthetic set against real images it was not made from, every figure beside its real-against-real floor.

Legend: N image, P pair, B batch, C band, H W pixels, D feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from data_shards.errors import InputError
from data_shards.reading.dataset import Dataset
from ldm.evaluation import ms_ssim, spectral
from ldm.evaluation.features import get_extractor
from ldm.evaluation.frechet import FrechetFigures, frechet_figures
from ldm.evaluation.measurements import Arrays, ImageMeasurements, Piece, beside, requested, written
from ldm.evaluation.ms_ssim import MsSsimFigures
from ldm.evaluation.sets import Images, ImagesOfPeople, Part, Watch, check_comparable, common_fov, evenly, real_parts, reflectance
from ldm.evaluation.spectral import SpectralFigures
from ldm.evaluation.whitening import Whitening, whitening
from ldm.generation.decode import stream_of

COPIES_WIN = "no people held out: a set of copies would come nearest to the training images"
PAIRS_A_UNIT = 32
WHITENED_BY = 4096  # training images at most, evenly spaced
FORMAT = "retinaforge-evaluation-2"  # a new field of the result has a default, or the format another number


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


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """evaluate.json. A figure that could not be had is None, and the part that it stands in says why.

    Attributes:
        reference: real images that the synthetic ones were compared with.
        floor_from: other real images that took their place for the floor; None where there are none.
    """

    format: str = FORMAT
    reference: ImagesOfPeople
    synthetic: Images
    floor_from: ImagesOfPeople | None
    config: EvaluateConfig
    frechet: FrechetFigures
    spectral: SpectralFigures
    ms_ssim: MsSsimFigures


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
        self.extractor = get_extractor(config.extractor, real.stats, wavelengths_nm=real.wavelengths_nm, device=config.device)
        self.edges_CE = spectral.band_edges(real.stats)
        self.range, self.window = ms_ssim.data_range(real.stats), ms_ssim.window_for(*real.shape[1:])
        sets = [(part.dataset.digest, part.split, len(part.sample_N)) for part in (*self.parts.values(), *also)]
        request = {
            "format": FORMAT,
            "extractor": self.extractor.name,
            "sets": sets,
            "config": requested(config),
        }
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

    def pair_mean(self, name: str) -> ms_ssim.PairMean:
        """MS-SSIM over the pairs of one of the sets compared."""
        if self.window is None or name not in self.parts or not len(self.pairs[name]):
            return ms_ssim.PairMean()
        units, values_P = self.parts[name].units(), np.concatenate([self.arrays(chunk)["values_P"] for chunk in self._chunks(name)])
        return ms_ssim.pair_mean(values_P, [(units[i], units[j]) for i, j in self.pairs[name]], seed=self.config.seed)

    def result(self) -> EvaluationResult:
        """All metrics, of units that are all there."""
        reference, floor = self.parts["real"], self.parts.get("floor")
        return EvaluationResult(
            reference=reference.described(),
            synthetic=self.parts["synthetic"].described(),
            floor_from=floor.described() if floor else None,
            config=self.config,
            frechet=frechet_figures(
                {name: self.features(part) for name, part in self.parts.items()},
                self.whitening(),
                self.extractor,
                people=len(set(reference.units())),
                reason=unfit_reference(reference),
                seed=self.config.seed,
            ),
            spectral=self._spectral(),
            ms_ssim=ms_ssim.ms_ssim_figures(
                *(self.pair_mean(name) for name in ("real", "synthetic", "floor")), range_=self.range, window=self.window
            ),
        )

    def size(self, number: int) -> int:
        return super().size(number) if self.names[number] in self.pieces else PAIRS_A_UNIT

    def finish(self) -> EvaluationResult:
        return written(self.path, self.result(), self.out)

    def _spectral(self) -> SpectralFigures:
        """No band is compared with the training split: copies would win."""
        if self.parts["real"].split == "train":
            regions = dict.fromkeys(spectral.REGIONS, spectral.RegionDistance(reason=COPIES_WIN))
        else:
            histograms = {name: self.histograms(name) for name in self.parts}
            regions = {region: spectral.region_distance(histograms, region, seed=self.config.seed) for region in spectral.REGIONS}
        return SpectralFigures(
            wavelengths_nm=tuple(self.real.wavelengths_nm),
            bins=self.edges_CE.shape[1] + 1,
            fov_pixels=int(self.fov_HW.sum()),
            **regions,
        )

    def _histograms(self, part: Part) -> spectral.BandHistograms:
        return spectral.BandHistograms(self.edges_CE, scale=part.dataset.scale, offset=part.dataset.offset)

    def _chunks(self, name: str) -> list[str]:
        """Names of the units of a set's pairs."""
        return [f"pairs-{name}-{n:03d}" for n in range(-(-len(self.pairs[name]) // PAIRS_A_UNIT))]

    def _pair_values(self, name: str, number: int) -> Arrays:
        """MS-SSIM of some seeded pairs of images of different people, or of two synthetic ones."""
        part, at_once = self.parts[name], max(1, self.config.batch_size // 2)
        pairs_P2 = self.pairs[name][number * PAIRS_A_UNIT : (number + 1) * PAIRS_A_UNIT]
        stream, values = stream_of(part.dataset, part.split, batch_size=1), []
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


def evaluate(real: Dataset, synthetic: Dataset, config: EvaluateConfig, watch: Watch = iter) -> EvaluationResult:
    """All metrics, by this process alone.

    Raises:
        InputError: sets that cannot be compared, an empty or unknown split. CorruptData: damaged shards.
    """
    return Evaluation(real, synthetic, config).complete(watch)
