"""The one typed configuration tree; launch/tree.py reads and writes it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from data_shards.errors import InputError
from data_shards.packing.splits import check_fractions
from data_shards.phantom.persons import PhantomConfig
from data_shards.reading.config import ReadConfig
from data_shards.shards.codecs import Encoding
from ldm.models.config import (
    CodebookConfig,
    CopyEncoderConfig,
    FeatureEncoderConfig,
    InferenceConfig,
    ObjectiveConfig,
    PatchGANConfig,
    SamplerConfig,
    SegmenterConfig,
    UNetConfig,
    VQGANConfig,
    check_codes,
)
from ldm.schedules import OptimizerConfig
from ldm.training.config import (
    CopyViewsConfig,
    EMAConfig,
    EngineConfig,
    InfoNCEConfig,
    LoopConfig,
    VICRegConfig,
    ViewsConfig,
    VQGANLossConfig,
)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Attributes:
    dataset: a packed dataset; empty: phantoms are made from `phantom` and packed into the run folder.
    subjects, visits: of the phantoms; two eyes each.
    splits: fractions by subject.
    codec, max_error, tile: how the shards packed from phantoms are encoded (data_shards/codecs: Encoding).
    workers: of making and packing phantoms.
    read: how shards are read.
    cache: a folder on a local disk for pieces of a dataset at a URL, shared by the ranks of a node; empty: none. Other files there stay.
    cache_gib: what it may hold.
    """

    dataset: str = ""
    phantom: PhantomConfig = field(default_factory=PhantomConfig)
    subjects: int = 60
    visits: int = 2
    splits: dict[str, float] = field(default_factory=lambda: {"train": 0.8, "val": 0.1, "test": 0.1})
    codec: str = "raw"
    max_error: int = 0
    tile: int = 0
    workers: int = 2
    read: ReadConfig = field(default_factory=ReadConfig)
    cache: str = ""
    cache_gib: float = 100.0

    def __post_init__(self) -> None:
        check_fractions(self.splits)
        if min(self.subjects, self.visits, self.workers) < 1:
            raise InputError(f"subjects {self.subjects}, visits {self.visits}, workers {self.workers}", expected="1 or more of each")
        Encoding(self.codec, self.max_error, self.tile)
        if not 0 < self.cache_gib < math.inf:
            raise InputError(f"data.cache_gib = {self.cache_gib}", expected="a size above 0, in GiB")


@dataclass(frozen=True, kw_only=True)
class VQGANStage:
    """Everything that trains the autoencoder.

    Attributes:
        mix: further packed sets of the same kind, and how many samples of each come for one of the run's own dataset. Statistics,
            validation, encoding and all that follows stay with the run's own.
        crop: side of the square crops that it is trained on, a new place each epoch; 0: whole cubes.
        flip: mirror half of them.
        ema: of the autoencoder's weights; with a half-life of 0 those of the last step are used.
    """

    model: VQGANConfig = field(default_factory=VQGANConfig)
    codebook: CodebookConfig = field(default_factory=CodebookConfig)
    discriminator: PatchGANConfig = field(default_factory=PatchGANConfig)
    loss: VQGANLossConfig = field(default_factory=VQGANLossConfig)
    ema: EMAConfig = field(default_factory=lambda: EMAConfig(halflife_samples=0))
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    mix: dict[str, float] = field(default_factory=dict)
    crop: int = 0
    flip: bool = True

    def __post_init__(self) -> None:
        if self.codebook.levels and len(self.codebook.levels) != self.model.latent_channels:
            levels = list(self.codebook.levels)
            raise InputError(
                f"vqgan.codebook.levels = {levels} for {self.model.latent_channels} latent channels",
                expected="one a channel",
                mend=f"vqgan.model.latent_channels={len(levels)}",
            )
        if self.crop < 0 or self.crop % self.model.compression:
            raise InputError(f"vqgan.crop = {self.crop}", expected=f"0, or a multiple of {self.model.compression}, the compression")


@dataclass(frozen=True, kw_only=True)
class DiffusionStage:
    """Everything that trains the denoiser on cached latents.

    Attributes:
        flip: train on mirrored cubes, too, of which `encode` then writes latents as well. A right eye becomes a left one by it.
        alignment: weight of the distance between the denoiser's middle and the maps that the run's feature encoder makes of the cube; the
            encoder is trained before. 0: none, and no cube is read.
    """

    model: UNetConfig = field(default_factory=UNetConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=3e-4, decay="cosine"))
    loop: LoopConfig = field(default_factory=LoopConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    flip: bool = False
    alignment: float = 0.0
    sampler: SamplerConfig = field(default_factory=SamplerConfig)

    def __post_init__(self) -> None:
        if not self.alignment >= 0:
            raise InputError(f"diffusion.alignment = {self.alignment}", expected="a weight from 0")
        self.sampler.solver(self.objective.target)  # refuses a sampler of the other family


def check_part(stage: str, loop: LoopConfig, engine: EngineConfig) -> None:
    """Raises: InputError: micro batches too small for a loss that compares the images in them."""
    if loop.batch // engine.accumulation < 4:
        raise InputError(
            f"{stage}.loop.batch {loop.batch} in {engine.accumulation} parts",
            expected="4 or more in each, of all ranks together: how features vary is measured within it",
            mend=f"{stage}.engine.accumulation=1",
        )


@dataclass(frozen=True, kw_only=True)
class FeaturesStage:
    """Everything that trains the feature encoder, in whose features sets of images are compared."""

    model: FeatureEncoderConfig = field(default_factory=FeatureEncoderConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    loss: VICRegConfig = field(default_factory=VICRegConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-3, decay="cosine", warmup_samples=1000))
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(samples=100_000, batch=32, checkpoint_every=3200, log_every=320))
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        check_part("features", self.loop, self.engine)


@dataclass(frozen=True, kw_only=True)
class CopiesStage:
    """Everything that trains the copy-detection head, by whose embedding the audit knows a training image that was turned or cut.

    Attributes:
        begin_samples: training images at most, evenly spaced, by whose views the last layer is set before it is trained.
    """

    model: CopyEncoderConfig = field(default_factory=CopyEncoderConfig)
    views: CopyViewsConfig = field(default_factory=CopyViewsConfig)
    begin_samples: int = 1024
    loss: InfoNCEConfig = field(default_factory=InfoNCEConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-6, decay="cosine", warmup_samples=1000))
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(samples=3200, batch=64, checkpoint_every=3200, log_every=320))
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        check_part("copies", self.loop, self.engine)


@dataclass(frozen=True, kw_only=True)
class SegmenterStage:
    """Everything that trains the segmenter on the label maps of the run's dataset; without any it is left out.

    Attributes:
        crop: side of the square crops that it is trained on, a new place each epoch; 0: whole cubes.
    """

    model: SegmenterConfig = field(default_factory=SegmenterConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=2e-3, decay="cosine"))
    loop: LoopConfig = field(default_factory=LoopConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    crop: int = 0


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Attributes:
    count: images to generate.
    shard: images a shard.
    batch: images at a time; 0: as many as the memory bears, up to 64. What does not fit after all is tried with half as many.
    seed: of the noise; image i starts from the noise of (seed, i).
    quantise: decode the nearest codes, as the decoder was trained; False decodes the latents as they are.
    payload: 'cube' stores pixels, 'codes' the indices of the codes that the decoder makes the same pixels of (docs/bulk.md).
    gate: share of honest images that may be refused for their mean spectrum, which training images bound; 0: no look at spectra. What is
        refused, also for values that are not finite or out of range, is made again as the next attempt at its number.
    copies: share of honest images that may be refused as copies of training images, which people held out bound; 0: no copy is looked for.
    guide: folder of another training of a denoiser on the same latents, one that is worse: shorter, or of a smaller network. Images are
        led away from what it makes of them (autoguidance: Karras et al. 2024, "Guiding a diffusion model with a bad version of itself",
        eq. 3), which takes both denoisers at each step; empty: none.
    guidance: how far: 1 not at all, 2 by as much again as the two denoisers differ.
    licence: of the set, for its card.
    labels: give each cube the label map that the run's segmenter predicts, where it has one; sets of codes have none.
    """

    count: int = 256
    shard: int = 64
    batch: int = 16
    seed: int = 0
    quantise: bool = True
    payload: Literal["cube", "codes"] = "cube"
    gate: float = 0.01
    copies: float = 0.0
    guide: str = ""
    guidance: float = 2.0
    licence: str = ""
    labels: bool = True

    def __post_init__(self) -> None:
        if min(self.count, self.shard) < 1 or self.batch < 0:
            expected = "1 or more of each; batch 0: as many as the memory bears"
            raise InputError(f"count {self.count}, shard {self.shard}, batch {self.batch}", expected=expected)
        if not 1 <= self.guidance < math.inf:
            raise InputError(f"sample.guidance = {self.guidance}", expected="a factor from 1 on, such as 2")
        for name in ("gate", "copies"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"sample.{name} = {getattr(self, name)}", expected="a share from 0 up to, but not, 1, such as 0.01")


@dataclass(frozen=True, kw_only=True)
class EvaluateStage:
    """How the set is judged; another judgement may be asked for at any time.

    Attributes:
        extractors: feature spaces, by the names of ldm.evaluation.features; two at least, for one alone decides nothing.
        pairs: of images of each set, for MS-SSIM.
    """

    extractors: tuple[str, ...] = ("seeded-conv-v1", "learned")
    pairs: int = 1000

    def __post_init__(self) -> None:
        if not self.extractors or len(set(self.extractors)) < len(self.extractors):
            raise InputError(f"evaluate.extractors = {list(self.extractors)}", expected="one feature space at least, each once")
        if self.pairs < 2:
            raise InputError(f"evaluate.pairs = {self.pairs}", expected="2 or more")


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run, from cubes to report."""

    run: str = "runs/demo"
    data: DataConfig = field(default_factory=DataConfig)
    segmenter: SegmenterStage = field(default_factory=SegmenterStage)
    vqgan: VQGANStage = field(default_factory=VQGANStage)
    diffusion: DiffusionStage = field(default_factory=DiffusionStage)
    features: FeaturesStage = field(default_factory=FeaturesStage)
    copies: CopiesStage = field(default_factory=CopiesStage)
    sample: SampleConfig = field(default_factory=SampleConfig)
    evaluate: EvaluateStage = field(default_factory=EvaluateStage)
    inference: InferenceConfig = field(default_factory=InferenceConfig)

    def __post_init__(self) -> None:
        if self.sample.payload == "codes":
            check_codes(quantise=self.sample.quantise, codes=self.vqgan.codebook.codes)
