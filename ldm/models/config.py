"""What can be set of networks, objective and sampler. Loads nothing but this: a configuration is read and checked without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from data_shards.errors import InputError, nearest

MULTIPLES = {4: (1, 2, 2), 8: (1, 2, 2, 4), 16: (1, 2, 2, 4, 4)}
"""By compression: the width of each level of the autoencoder, in `channels`."""
SAMPLERS: dict[str, tuple[str, ...]] = {
    "ddim": ("epsilon", "v"),
    "dpm++": ("epsilon", "v"),
    "unipc": ("epsilon", "v"),
    "flow-euler": ("flow",),
    "flow-heun": ("flow",),
}
"""Which objectives each solves; sampler.py builds them."""


@dataclass(frozen=True, kw_only=True)
class VQGANConfig:
    """Attributes:
    bands: C, taken from the dataset when 0.
    compression: H / h; 4, 8 or 16.
    latent_channels: D. A large D tends to collapse: the health gate before diffusion says so.
    channels: width of the first level; a multiple of `norm_groups`.
    layers: residual blocks a level.
    """

    bands: int = 0
    compression: Literal[4, 8, 16] = 8
    latent_channels: int = 8
    channels: int = 64
    layers: int = 2
    norm_groups: int = 32

    def __post_init__(self) -> None:
        if self.compression not in MULTIPLES:
            raise InputError(f"compression {self.compression}", expected=f"one of {sorted(MULTIPLES)}")
        if min(self.latent_channels, self.channels, self.layers, self.norm_groups) < 1 or self.bands < 0:
            raise InputError(
                f"latent_channels {self.latent_channels}, channels {self.channels}, layers {self.layers}, norm_groups {self.norm_groups}",
                expected="1 or more of each",
            )
        if self.channels % self.norm_groups:
            raise InputError(f"channels {self.channels}", expected=f"a multiple of norm_groups ({self.norm_groups})")


MOST_CODES = 1 << 16  # that indices of 16 bits tell apart


def check_codes(*, quantise: bool, codes: int) -> None:
    """Raises: InputError: images of which codes cannot be kept."""
    if not quantise:
        raise InputError(
            "sample.payload=codes with sample.quantise=false", expected="quantise=true: latents that are decoded as they are have no codes"
        )
    if codes > MOST_CODES:
        raise InputError(
            f"sample.payload=codes with a codebook of {codes} codes",
            expected=f"at most {MOST_CODES}: an index has 16 bits",
            mend="sample.payload=cube",
        )


@dataclass(frozen=True, kw_only=True)
class CodebookConfig:
    """Attributes:
    codes: K.
    kind: how codes come to be: 'ema' by k-means and exponential averages (EMACodebook); 'simvq' by a learned map of fixed vectors, 'fsq'
        by rounding (other_codebooks.py). The last two know no k-means.
    levels: of 'fsq': steps of each latent channel, 3 or more; their product is `codes`.
    gradient: what reaches the encoder through the rounding: 'straight_through' the decoder's gradient as it is, 'rotation' turned and
        scaled as the latent is to its code (Fifty et al. 2024); near the origin that is a large factor, which engine.clip bounds.
    kmeans: when k-means sets the codes anew: at the start of the first epoch, of every epoch, or never.
    kmeans_vectors: latents drawn for it, over all ranks.
    start: a file of `retinaforge codebook fit` to begin with; empty: random codes, and k-means draws its own.
    warmup_epochs: epochs in which latents pass unquantised, so that the encoder learns what to say before it learns to
        say it in K words; the first k-means comes after them.
    decay: of the EMA, per optimizer step (van den Oord et al. 2017, appendix A.1).
    commitment: weight of ‖h − sg(z_q)‖².
    dead_below: a code whose EMA share is below this fraction of an even share is revived; 0 turns revival off.
    """

    codes: int = 1024
    kind: Literal["ema", "simvq", "fsq"] = "ema"
    levels: tuple[int, ...] = ()
    gradient: Literal["straight_through", "rotation"] = "straight_through"
    start: str = ""
    kmeans: Literal["first", "every_epoch", "never"] = "every_epoch"
    kmeans_vectors: int = 65536
    kmeans_iterations: int = 10
    warmup_epochs: int = 0
    decay: float = 0.99
    commitment: float = 0.25
    dead_below: float = 0.02

    def __post_init__(self) -> None:
        if self.codes < 2 or not 0 <= self.decay < 1 or not 0 <= self.dead_below < 1 or self.kmeans_iterations < 1:
            raise InputError(
                f"codes {self.codes}, decay {self.decay}, dead_below {self.dead_below}, kmeans_iterations {self.kmeans_iterations}",
                expected="codes ≥ 2, decay and dead_below in [0, 1), kmeans_iterations ≥ 1",
            )
        if self.kmeans != "never" and self.kmeans_vectors < self.codes:
            raise InputError(f"kmeans_vectors {self.kmeans_vectors}", expected=f"at least as many as codes ({self.codes})")
        if self.kind != "ema" and (self.kmeans != "never" or self.start):
            raise InputError(
                f"kind {self.kind!r} with kmeans {self.kmeans!r}" + (f" and start {self.start!r}" if self.start else ""),
                expected="kmeans=never and no start: its codes are not means of latents",
            )
        steps = math.prod(self.levels) if self.levels else 0
        if (self.kind == "fsq") != bool(self.levels) or (self.levels and (min(self.levels) < 3 or steps != self.codes)):
            raise InputError(
                f"kind {self.kind!r} with levels {list(self.levels)} and {self.codes} codes",
                expected="levels for 'fsq' alone, each 3 or more, whose product is codes",
                mend="for example kind=fsq levels=[8,5,5,5] codes=1000, with four latent channels",
            )
        if self.kind == "fsq" and self.gradient != "straight_through":
            raise InputError(f"gradient {self.gradient!r} with kind 'fsq'", expected="straight_through, which rounding by channel has")
        if self.kind == "fsq" and self.warmup_epochs:
            raise InputError(
                f"warmup_epochs {self.warmup_epochs} with kind 'fsq'",
                expected="0: latents that pass as they are would learn to lie where the bounds then cut them off",
            )


@dataclass(frozen=True, kw_only=True)
class FeatureEncoderConfig:
    """A residual network whose pooled levels are the features of a cube.

    Attributes:
        bands: C, taken from the dataset when 0.
        channels: width of the spectra and of the first level; each further level has twice as many. A multiple of `norm_groups`.
        levels: each halves height and width.
        layers: residual blocks a level.
        dimension: D, of the features; at most 256, as a Fréchet distance wants many more images than dimensions.
    """

    kind: ClassVar[str] = "residual-conv"

    bands: int = 0
    channels: int = 32
    levels: int = 5
    layers: int = 1
    dimension: int = 128
    norm_groups: int = 8

    def __post_init__(self) -> None:
        if min(self.channels, self.levels, self.layers, self.norm_groups) < 1 or self.bands < 0 or not 2 <= self.dimension <= 256:
            raise InputError(
                f"channels {self.channels}, levels {self.levels}, layers {self.layers}, norm_groups {self.norm_groups}, "
                f"dimension {self.dimension}",
                expected="1 or more of each, dimension 2 to 256",
            )
        if self.channels % self.norm_groups:
            raise InputError(f"channels {self.channels}", expected=f"a multiple of norm_groups ({self.norm_groups})")


@dataclass(frozen=True, kw_only=True)
class CopyEncoderConfig:
    """A network whose pooled levels hardly change when a cube is turned or mirrored.

    Attributes:
        bands: C, taken from the dataset when 0.
        side: cubes are first made smaller by whole factors, to this many pixels of the shorter side or somewhat more; 0: not.
        channels: width of the spectra and of the first level; the further levels have twice as many.
        levels: each but the first halves height and width.
        dimension: D, of the embedding: few, for what varies little between photographs adds chance alone.
    """

    kind: ClassVar[str] = "symmetric-conv"

    bands: int = 0
    side: int = 32
    channels: int = 64
    levels: int = 4
    dimension: int = 16

    def __post_init__(self) -> None:
        if min(self.channels, self.levels) < 1 or min(self.bands, self.side) < 0 or not 2 <= self.dimension <= 256:
            raise InputError(
                f"side {self.side}, channels {self.channels}, levels {self.levels}, dimension {self.dimension}",
                expected="side 0 or more, 1 or more of each other, dimension 2 to 256",
            )


@dataclass(frozen=True, kw_only=True)
class PatchGANConfig:
    """Attributes:
    bands: C, taken from the dataset when 0.
    channels: width of the first layer, doubled at each of `layers` strided layers up to eightfold.
    """

    bands: int = 0
    channels: int = 64
    layers: int = 3

    def __post_init__(self) -> None:
        if min(self.channels, self.layers) < 1 or any(w % min(8, w) for w in (2 * self.channels, 4 * self.channels)):
            raise InputError(f"channels {self.channels}, layers {self.layers}", expected="channels a multiple of 4, layers at least 1")

    @property
    def least_pixels(self) -> int:
        """Height and width that leave one patch: each strided layer halves, and the last two convolutions take a pixel each."""
        return 3 << self.layers


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Attributes:
    latent_channels: D, taken from the autoencoder when 0.
    channels: base width; the three levels are 1, 2 and 4 times as wide.
    layers: residual blocks a level.
    attention: levels with self-attention, 0 the finest.
    attention_head_dim: channels of an attention head; where the narrowest level with attention has fewer, or does not divide by it,
        the next smaller number that divides it.
    """

    kind: ClassVar[str] = "unet"
    latent_channels: int = 0
    channels: int = 128
    layers: int = 2
    attention: tuple[int, ...] = (1, 2)
    attention_head_dim: int = 64

    def __post_init__(self) -> None:
        if self.channels < 1 or self.channels % 8 or self.channels % min(32, self.channels) or self.layers < 1:
            raise InputError(
                f"channels {self.channels}, layers {self.layers}",
                expected="channels a multiple of 32 (or 8, 16, 24), layers at least 1",
            )
        if not set(self.attention) <= {0, 1, 2}:
            raise InputError(f"attention {self.attention}", expected="levels of 0, 1, 2")
        if self.attention_head_dim < 1:
            raise InputError(f"attention_head_dim {self.attention_head_dim}", expected="1 or more channels a head, such as 64")

    @property
    def head_channels(self) -> int:
        """Channels of a head as built. The middle, as wide as the coarsest level, always attends; each level divides the next."""
        narrowest = self.channels * 2 ** min((*self.attention, 2))
        return next(n for n in range(min(self.attention_head_dim, narrowest), 0, -1) if narrowest % n == 0)


@dataclass(frozen=True, kw_only=True)
class SegmenterConfig:
    """Attributes:
    bands: C, taken from the dataset when 0.
    channels: width of the two finest of the five levels; the coarser ones are 2, 4 and 8 times as wide.
    """

    bands: int = 0
    channels: int = 32

    def __post_init__(self) -> None:
        if self.bands < 0 or self.channels < 2 or self.channels % 2:
            raise InputError(f"bands {self.bands}, channels {self.channels}", expected="bands 0 or more, channels an even number from 2 on")


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Attributes:
    target: 'epsilon' on the linear schedule (Ho et al. 2020); 'v' (Salimans and Ho 2022) on the cosine one (Nichol and Dhariwal 2021);
        'flow': linear path and velocity (Lipman et al. 2023).
    times: of 'flow': 'logit-normal' (Esser et al. 2024, eq. 19), which trains most in the middle of the path, or 'uniform'.
    """

    target: Literal["epsilon", "v", "flow"] = "flow"
    times: Literal["logit-normal", "uniform"] = "logit-normal"

    def __post_init__(self) -> None:
        if self.times == "uniform" and self.target != "flow":
            raise InputError(f"times 'uniform' with target {self.target!r}", expected="target 'flow': the others have 1,000 even times")


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """Attributes:
    name: one of SAMPLERS; 'auto' takes 'flow-heun' or 'dpm++', as the objective asks.
    steps: of the solver; a Heun step but the last calls the denoiser twice.
    shift: of the flow solvers' times (Esser et al. 2024, eq. 23): above 1 more steps where there is much noise, below 1 where there is
        little.
    sigma_min: noise level from which the flow solvers' last step goes to 0, before the shift; 1/steps makes all steps of one length.
    cache_every: the denoiser's deep features are computed at every so many-th step and used again at those between (feature_cache.py);
        1: at every step.
    """

    name: str = "auto"
    steps: int = 30
    shift: float = 1.0
    sigma_min: float = 0.001
    cache_every: int = 1

    def __post_init__(self) -> None:
        if self.name != "auto" and self.name not in SAMPLERS:
            raise InputError(f"unknown sampler {self.name!r}", expected=nearest(self.name, SAMPLERS))
        if self.steps < 1:
            raise InputError(f"{self.steps} steps", where="sampler.steps", expected="at least 1")
        if not 0.01 <= self.shift <= 100:  # far beyond, times fall on each other
            raise InputError(f"shift {self.shift}", where="sampler.shift", expected="a number from 0.01 to 100, such as 3")
        if not 0 < self.sigma_min < 1:
            raise InputError(f"sigma_min {self.sigma_min}", where="sampler.sigma_min", expected="a noise level between 0 and 1")
        if self.cache_every < 1:
            raise InputError(f"cache_every {self.cache_every}", where="sampler.cache_every", expected="at least 1, which caches nothing")

    def solver(self, target: str) -> str:
        """The sampler for an objective.

        Raises:
            InputError: one that does not solve it, or that has no setting which is not the default.
        """
        name = self.name if self.name != "auto" else ("flow-heun" if target == "flow" else "dpm++")
        if target not in SAMPLERS[name]:
            fitting = [n for n, targets in SAMPLERS.items() if target in targets]
            raise InputError(f"sampler {name!r} does not solve objective {target!r}", expected=f"one of {', '.join(fitting)}")
        if target != "flow" and (self.shift, self.sigma_min) != (SamplerConfig.shift, SamplerConfig.sigma_min):
            raise InputError(
                f"sampler {name!r} with shift {self.shift:g} and sigma_min {self.sigma_min:g}",
                expected=f"{SamplerConfig.shift:g} and {SamplerConfig.sigma_min:g}: the flow solvers alone have them. The others space "
                "their steps evenly in the time of training, the last to 0",
                mend=f"diffusion.sampler='{{name: {name}, steps: {self.steps}}}' sets them back",
            )
        return name


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """How trained networks compute where they are only used.

    Attributes:
        precision: 'fp32'; 'bf16', weights and all but the last layers, which give the numbers that are kept; 'auto': what a set was
            begun with, else bf16 on a GPU that has it and fp32 elsewhere.
        compile: torch.compile on the blocks of the networks.
    """

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False
