"""Evaluate a synthetic set against real images it was not made from, every figure beside its real-against-real floor.

Legend: N image, P pair, B batch, C band, H W pixels, D feature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from data_shards.errors import InputError
from data_shards.reading.batch import Batch
from data_shards.reading.dataset import Dataset
from ldm.checkpoints.segmenter import Segmenter
from ldm.evaluation import ms_ssim, spectral
from ldm.evaluation.evaluation_result import FORMAT, EvaluateConfig, EvaluationResult
from ldm.evaluation.features import Extractor, SeededConv, SomeBands, get_extractor
from ldm.evaluation.learned import Learned
from ldm.evaluation.mean_spectra import MeanSpectra, MeanSpectrumDistance, distances
from ldm.evaluation.measurements import Arrays, ImageMeasurements, Piece, beside, requested, written
from ldm.evaluation.regions import RegionSums
from ldm.evaluation.sets import Part, Watch, check_comparable, common_fov, real_parts, reflectance
from ldm.evaluation.space import SpaceFigures, disagreements, space_figures
from ldm.evaluation.spectral import SpectralFigures
from ldm.evaluation.vessels import MORPHOMETRY, morphometry, morphometry_figures
from ldm.evaluation.whitening import Whitening, whitening
from ldm.generation.decode import stream_of
from ldm.spectra import REGIONS, band_edges

COPIES_WIN = "no people held out: a set of copies would come nearest to the training images"
FLOOR_TRAINED_ON = "the encoder was trained on the floor's people"
TAUGHT = "the generator was trained on it: a loss that lowers its distances says nothing of the images"
PAIRS_A_UNIT = 32
TRIPLET_KERNELS = 8  # of each level of the seeded network on three bands: d = 64
Sums = TypeVar("Sums", bound=RegionSums)


class Evaluation(ImageMeasurements):
    """An evaluation in units: features and histograms of each shard, and MS-SSIM of some pairs at a time; `result` merges them.

    Args:
        path: file for the result, beside which the units lie; None: they are kept in memory.
        also: further images of which features are wanted.
        learned: folder of the run's trained feature encoder, for the extractor 'learned'.
        labeller: draws the label maps of all sets, so that one hand drew them; None: their own are taken.
        taught_by: digests of the feature encoders that the generator's losses looked at, beside those that the synthetic set names.

    Raises:
        InputError: sets that cannot be compared, or whose cubes are not those that the labeller was trained on; an empty or unknown split.
    """

    def __init__(
        self,
        real: Dataset,
        synthetic: Dataset,
        config: EvaluateConfig,
        path: Path | None = None,
        also: Sequence[Part] = (),
        *,
        learned: Path | None = None,
        labeller: Segmenter | None = None,
        taught_by: Sequence[str] = (),
    ) -> None:
        split = check_comparable(real, synthetic)
        if config.limit is not None and config.limit < 2:
            raise InputError(f"limit {config.limit}", expected="at least 2 images of each set")
        if not config.extractors or len(set(config.extractors)) < len(config.extractors):
            raise InputError(f"extractors {', '.join(config.extractors) or 'none'}", expected="one feature space at least, each once")
        for dataset in (real, synthetic) if labeller is not None else ():
            labeller.check(dataset.path, wavelengths_nm=dataset.wavelengths_nm, scale=dataset.scale, offset=dataset.offset)
        self.real, self.config, self.path, self.labeller = real, config, path, labeller
        people = real_parts(real, config.against, config.limit)
        generated = Part.of(synthetic, split, config.limit, independent=True)
        compared = {"real": people.reference, "synthetic": generated, "floor": people.floor}
        self.parts = {name: part for name, part in compared.items() if part is not None}
        self.whitened_by, self.floor_is = people.whitened_by, people.floor_is
        self.floor_trained_on = "floor" in self.parts and self.parts["floor"].split == "train"
        about = {"wavelengths_nm": tuple(real.wavelengths_nm), "learned": learned, "device": config.device}
        self.spaces = {name: get_extractor(name, real.stats, **about) for name in config.extractors}
        teachers = {*taught_by, *synthetic.manifest.source.get("taught_by", ())}
        for extractor in self.spaces.values():
            if isinstance(extractor, Learned) and extractor.digest in teachers:
                extractor.refused = TAUGHT
        self.judges = {name: extractor for name, extractor in self.spaces.items() if not extractor.refused}
        self.triplets = triplets_of(real) if any(isinstance(judge, SeededConv) for judge in self.judges.values()) else {}
        self.edges_CE = band_edges(real.stats)
        self.range, self.window = ms_ssim.data_range(real.stats), ms_ssim.window_for(*real.shape[1:])
        sets = [(part.dataset.digest, part.split, len(part.sample_N)) for part in (*self.parts.values(), *also)]
        request = {
            "format": FORMAT,
            "extractors": [extractor.name for extractor in self.judges.values()],
            "labeller": labeller and labeller.digest,
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
        compared = {name: part for name, part in self.parts.items() if piece.holds(part)}
        sums: dict[tuple[str, str], RegionSums] = {("histograms", name): self._histograms(part) for name, part in compared.items()}
        sums |= {("spectra", name): self._spectra(part) for name, part in compared.items()}
        unit_of = {name: dict(zip(part.sample_N.tolist(), part.unit_N().tolist(), strict=True)) for name, part in compared.items()}
        features: dict[str, list[np.ndarray]] = {name: [] for name in (*self.judges, *self.triplets)}
        shapes: list[np.ndarray] = []
        for batch in piece.batches(self.config.batch_size):
            reflectance_BCHW = reflectance(piece.dataset, batch.cubes_BCHW, self.config.device, self.fov_HW)
            for name, extractor in (*self.judges.items(), *self.triplets.items()):
                features[name].append(extractor(reflectance_BCHW).numpy())
            labels = self._labels(batch) if compared else [None] * len(batch.keys)
            for b, (sample, labels_HW) in enumerate(zip(batch.sample_B.tolist(), labels, strict=True)):
                for (_, name), of_part in sums.items():
                    if (unit := unit_of[name].get(sample)) is not None:
                        of_part.add(batch.cubes_BCHW[b].numpy(), unit=unit, fov_HW=self.fov_HW, labels_HW=labels_HW)
                unlabelled = labels_HW is None
                shapes.append(np.full(len(MORPHOMETRY), np.nan) if unlabelled else morphometry(labels_HW, self.fov_HW))
        arrays = {f"features.{name}": np.concatenate(found) for name, found in features.items()}
        for (kind, name), of_part in sums.items():
            arrays |= {f"{kind}.{name}.{key}": array for key, array in of_part.arrays().items()}
        return {**arrays, "vessels_NM": np.stack(shapes)}

    def _labels(self, batch: Batch) -> list[np.ndarray | None]:
        """Label maps of a batch, drawn by the labeller where there is one; None of an image that has none of its own."""
        if self.labeller is not None:
            return list(self.labeller(batch.cubes_BCHW, torch.from_numpy(self.fov_HW)).cpu().numpy())
        if batch.labels_BHW is None:
            return [None] * len(batch.keys)
        return [labels_HW if known else None for labels_HW, known in zip(batch.labels_BHW.numpy(), batch.labelled_B, strict=True)]

    def features(self, part: Part, space: str) -> np.ndarray:
        """Features (N, D) of a part, of a judge or of three bands."""
        return self.of(part, f"features.{space}")

    def whitening(self, space: str, by: Part | None = None) -> Whitening | None:
        """The whitening by the features of training people: all, or those whom the floor leaves; or of another part."""
        features_ND = self.features(by or self.whitened_by, space)
        return whitening(features_ND) if np.isfinite(features_ND).all() else None

    def compared_features(self, space: str) -> dict[str, np.ndarray]:
        """Features of the sets compared, by their names."""
        return {name: self.features(part, space) for name, part in self.parts.items()}

    def histograms(self, name: str) -> spectral.BandHistograms:
        """Of one of the sets compared."""
        return self._merged("histograms", name, self._histograms(self.parts[name]))

    def mean_spectra(self, name: str) -> MeanSpectra:
        """Of one of the sets compared."""
        return self._merged("spectra", name, self._spectra(self.parts[name]))

    def _merged(self, kind: str, name: str, sums: Sums) -> Sums:
        for piece in self.pieces_of(self.parts[name]):
            sums.merge(**under(f"{kind}.{name}.", self.arrays(piece.name)))
        return sums

    def pair_mean(self, name: str) -> ms_ssim.PairMean:
        """MS-SSIM over the pairs of one of the sets compared."""
        if self.window is None or name not in self.parts or not len(self.pairs[name]):
            return ms_ssim.PairMean()
        units, values_PC = self.parts[name].units(), np.concatenate([self.arrays(chunk)["values_PC"] for chunk in self._chunks(name)])
        return ms_ssim.pair_mean(values_PC, [(units[i], units[j]) for i, j in self.pairs[name]])

    def result(self) -> EvaluationResult:
        """All metrics, of units that are all there."""
        reference, floor = self.parts["real"], self.parts.get("floor")
        spaces = {name: self._space(name, extractor) for name, extractor in self.spaces.items()}
        return EvaluationResult(
            reference=reference.described(),
            synthetic=self.parts["synthetic"].described(),
            floor_from=floor.described() if floor else None,
            floor_is=self.floor_is,
            whitened_by=self.whitened_by.described(),
            config=self.config,
            learned=next((extractor.digest for extractor in self.spaces.values() if isinstance(extractor, Learned)), None),
            labelled_by=self.labeller and self.labeller.digest,
            spaces=spaces,
            disagreements=disagreements(spaces),
            spectral=self._spectral(),
            spectra=self._mean_spectra(),
            ms_ssim=ms_ssim.ms_ssim_figures(
                *(self.pair_mean(name) for name in ("real", "synthetic", "floor")), range_=self.range, window=self.window
            ),
            vessels=morphometry_figures(
                {name: self.of(part, "vessels_NM") for name, part in self._labelled().items()},
                {name: part.units() for name, part in self._labelled().items()},
                seed=self.config.seed,
            ),
        )

    def size(self, number: int) -> int:
        return super().size(number) if self.names[number] in self.pieces else PAIRS_A_UNIT

    def finish(self) -> EvaluationResult:
        return written(self.path, self.result(), self.out)

    def _space(self, name: str, extractor: Extractor) -> SpaceFigures:
        judged = name in self.judges
        triplets = self.triplets if judged and isinstance(extractor, SeededConv) else {}
        return space_figures(
            self.compared_features(name) if judged else {},
            {name: np.unique(part.units(), return_inverse=True)[1] for name, part in self.parts.items()},
            self.whitening(name) if judged else None,
            extractor,
            triplets={bands: (self.compared_features(bands), self.whitening(bands)) for bands in triplets},
            reason=unfit_reference(self.parts["real"]),
            no_floor=FLOOR_TRAINED_ON if self.floor_trained_on and isinstance(extractor, Learned) else None,
            seed=self.config.seed,
        )

    def _labelled(self, region: str = "") -> dict[str, Part]:
        """The sets compared by what their label maps say of a region: without a floor of people on whom the labeller was trained."""
        unfit = self.labeller is not None and self.floor_trained_on and region != "fov"
        return {name: part for name, part in self.parts.items() if not (unfit and name == "floor")}

    def _mean_spectra(self) -> dict[str, MeanSpectrumDistance]:
        if self.parts["real"].split == "train":
            return dict.fromkeys(REGIONS, MeanSpectrumDistance(reason=COPIES_WIN))
        sets = {name: self.mean_spectra(name) for name in self.parts}
        return {
            region: distances({name: sets[name] for name in self._labelled(region)}, region, seed=self.config.seed) for region in REGIONS
        }

    def _spectral(self) -> SpectralFigures:
        """No band is compared with the training split: copies would win."""
        if self.parts["real"].split == "train":
            regions = dict.fromkeys(REGIONS, spectral.RegionDistance(reason=COPIES_WIN))
        else:
            histograms = {name: self.histograms(name) for name in self.parts}
            of_region = {region: {name: histograms[name] for name in self._labelled(region)} for region in REGIONS}
            regions = {region: spectral.region_distance(sets, region, seed=self.config.seed) for region, sets in of_region.items()}
        return SpectralFigures(
            wavelengths_nm=tuple(self.real.wavelengths_nm),
            bins=self.edges_CE.shape[1] + 1,
            fov_pixels=int(self.fov_HW.sum()),
            **regions,
        )

    def _histograms(self, part: Part) -> spectral.BandHistograms:
        return spectral.BandHistograms(self.edges_CE, scale=part.dataset.scale, offset=part.dataset.offset)

    def _spectra(self, part: Part) -> MeanSpectra:
        return MeanSpectra(len(self.real.wavelengths_nm), scale=part.dataset.scale, offset=part.dataset.offset)

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
            a, b = (reflectance(part.dataset, cubes_BCHW, self.config.device, self.fov_HW) for cubes_BCHW in sides)
            values.append(ms_ssim.ms_ssim_of_pairs(a, b, range_=self.range, window=self.window, by_band=True))
        return {"values_PC": np.concatenate(values)}


def under(prefix: str, arrays: Mapping[str, np.ndarray]) -> Arrays:
    """The arrays whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def triplets_of(real: Dataset) -> dict[str, SomeBands]:
    """The seeded network on neighbouring bands, three at a time or as near to it as their number allows; none of fewer than six bands."""
    bands_nm = real.wavelengths_nm
    if len(bands_nm) < 6:
        return {}
    groups = np.array_split(np.argsort(bands_nm), len(bands_nm) // 3)
    return {f"{bands_nm[group[0]]:g}–{bands_nm[group[-1]]:g} nm": SomeBands(real.stats, group, kernels=TRIPLET_KERNELS) for group in groups}


def unfit_reference(part: Part) -> str | None:
    """Why no distance to these real images is a mark of quality; None where it is one."""
    if part.split == "train":
        return COPIES_WIN
    people = len(set(part.units()))
    if people < 2:
        return f"images of one person alone in split {part.split!r}: a spread needs at least 2 people"
    return None


def evaluate(
    real: Dataset,
    synthetic: Dataset,
    config: EvaluateConfig,
    watch: Watch = iter,
    *,
    learned: Path | None = None,
    labeller: Segmenter | None = None,
) -> EvaluationResult:
    """All metrics, by this process alone; `learned` and `labeller` as `Evaluation` takes them.

    Raises:
        InputError: as `Evaluation` does. CorruptData: damaged shards.
    """
    return Evaluation(real, synthetic, config, learned=learned, labeller=labeller).complete(watch)
