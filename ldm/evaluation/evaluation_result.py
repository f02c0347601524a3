"""What an evaluation is asked, and the form of what it says."""

from __future__ import annotations

from dataclasses import dataclass, field

from ldm.evaluation.mean_spectra import MeanSpectrumDistance
from ldm.evaluation.ms_ssim import MsSsimFigures
from ldm.evaluation.sets import Images, ImagesOfPeople
from ldm.evaluation.space import SpaceFigures
from ldm.evaluation.spectral import SpectralFigures
from ldm.evaluation.vessels import MorphometryFigure

FORMAT = "retinaforge-evaluation-4"  # a new field of the result has a default, or the format another number


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """
    Attributes:
        against: real split that the synthetic set is compared with; images of held-out people by default.
        limit: at most this many images of each set, evenly spaced; None for all.
        seed: of every subset, pair and resample.
        extractors: names that ldm.evaluation.features.get_extractor knows, each a feature space of its own.
        pairs: for MS-SSIM, of each set.
        batch_size: cubes at once.
        device: of the feature network and of MS-SSIM.
    """

    against: str = "val"
    limit: int | None = None
    seed: int = 0
    extractors: tuple[str, ...] = ("seeded-conv-v1",)
    pairs: int = 1000
    batch_size: int = 8
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """evaluate.json. A figure that could not be had is None, and the part that it stands in says why.

    Attributes:
        reference: real images that the synthetic ones were compared with.
        floor_from: other real images that took their place for the floor; None where there are none.
        floor_is: who their people are, in words: held out of training or, where too few are, half of the training people.
        whitened_by: real images whose features set the units of each feature space; none of their people is in the floor.
        learned: digest of the trained feature encoder, where it was asked for.
        labelled_by: digest of the segmenter that drew the label maps of all sets; None: their own were taken.
        spaces: figures of each feature space, by the name that asks for it.
        disagreements: where the spaces put synthetic and real images in different orders, in words.
        spectra: distances of mean spectra by structure, by the names of `regions.REGIONS`.
        vessels: shape of the vessels, by the names of `vessels.MORPHOMETRY`.
    """

    format: str = FORMAT
    reference: ImagesOfPeople
    synthetic: Images
    floor_from: ImagesOfPeople | None
    config: EvaluateConfig
    learned: str | None
    labelled_by: str | None
    spaces: dict[str, SpaceFigures]
    disagreements: tuple[str, ...]
    spectral: SpectralFigures
    spectra: dict[str, MeanSpectrumDistance]
    ms_ssim: MsSsimFigures
    vessels: dict[str, MorphometryFigure] = field(default_factory=dict)
    floor_is: str = ""
    whitened_by: ImagesOfPeople | None = None
