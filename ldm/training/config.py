"""What can be set of a training. Loads nothing but this: a configuration is read and checked without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from data_shards.errors import InputError, nearest

TRACKERS = ("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb")
"""Those that Accelerate knows."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Attributes:
    mode: 'auto' takes what the launcher started: 'single' for one process, 'ddp' for several, the stage that a DeepSpeed
        configuration of `accelerate launch` names. 'zero1', 'zero2', 'zero3' (Rajbhandari et al. 2020) under any launcher.
    precision: 'fp32'; 'bf16'; 'fp16' with a dynamic loss scale. Autocast over fp32 weights, but under ZeRO the weights that are
        computed with are bf16 or fp16 themselves, beside fp32 ones that are stepped.
    offload: under ZeRO, keep optimizer states ('optimizer'), under ZeRO-3 also weights ('parameters'), in the memory of the host.
    ds_config: a DeepSpeed JSON of your own; 'auto' and what it leaves out are filled in from here.
    accumulation: micro batches an optimizer step.
    clip: largest gradient norm of each model; 0 turns clipping off.
    activation_checkpointing: compute residual blocks again in the backward pass instead of keeping what is inside them.
    compile: torch.compile on the networks.
    channels_last: memory format of weights and cubes. On an H200 in bf16 the U-Net gained up to 5 %, the VQ-GAN lost 30 %.
    timeout_minutes: a collective that takes longer ends the run with an error instead of hanging.
    hang_seconds: a rank that stays so long in one phase of a step while others wait for it is given up: all end with its name, exit
        code 75. A file server may stall for a minute or two. More is allowed where steps take long: five times the longest phase so
        far; and timeout_minutes where a library may compile: in the first steps, and wherever other networks begin to take part.
    tracker: Accelerate's log_with ('tensorboard', 'wandb', 'mlflow', …) or 'none'.
    """

    mode: Literal["auto", "single", "ddp", "zero1", "zero2", "zero3"] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    offload: Literal["none", "optimizer", "parameters"] = "none"
    ds_config: str = ""
    accumulation: int = 1
    clip: float = 1.0
    activation_checkpointing: bool = False
    compile: bool = False
    channels_last: bool = False
    timeout_minutes: float = 10.0
    hang_seconds: float = 300.0
    tracker: str = "tensorboard"

    def __post_init__(self) -> None:
        if not (self.accumulation >= 1 and self.clip >= 0 and self.timeout_minutes > 0 and self.hang_seconds > 0):
            raise InputError(
                f"accumulation {self.accumulation}, clip {self.clip}, timeout_minutes {self.timeout_minutes}, "
                f"hang_seconds {self.hang_seconds}",
                where="engine",
                expected="accumulation ≥ 1, clip ≥ 0, timeout_minutes > 0, hang_seconds > 0",
            )
        if self.tracker not in ("none", *TRACKERS):
            raise InputError(
                f"unknown tracker {self.tracker!r}", where="engine.tracker", expected=nearest(self.tracker, ("none", *TRACKERS))
            )
        if self.mode in ("single", "ddp") and (self.ds_config or self.offload != "none"):
            raise InputError(
                f"mode {self.mode!r} with {'a ds_config' if self.ds_config else f'offload {self.offload!r}'}",
                where="engine",
                expected="'zero1', 'zero2' or 'zero3'",
                mend="engine.mode=zero2",
            )
        if self.offload == "parameters" and self.mode not in ("auto", "zero3"):
            raise InputError(f"offload 'parameters' with mode {self.mode!r}", where="engine", expected="'zero3'", mend="engine.mode=zero3")


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Lengths are in samples, so that they mean the same at any batch size and world.

    Attributes:
        samples: to see in all.
        batch: global batch: micro batch × accumulation × world.
        epoch_samples: length of an epoch (k-means of the codebook, usage by epoch); 0: as many samples as the split has.
        checkpoint_every, log_every: in samples.
        keep: newest checkpoints to keep; the one of the lowest validation loss is kept beside them, once all that the run has takes part.
        validate_samples: of the split 'val', judged at each checkpoint interval and at the end; 0 for none.
        background: write checkpoints beside the training, from a copy; costs a copy of the state in the host's memory.
        profile: write a Chrome trace of three early steps beside the log.
        max_bad_steps: non-finite steps in a row before the run goes back to its last checkpoint (once), then fails.
        seed: of the order, the noise and the initial weights.
    """

    samples: int = 100_000
    batch: int = 8
    epoch_samples: int = 0
    checkpoint_every: int = 2000
    log_every: int = 80
    keep: int = 2
    validate_samples: int = 64
    background: bool = True
    profile: bool = False
    max_bad_steps: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.samples, self.batch, self.checkpoint_every, self.log_every, self.max_bad_steps) < 1:
            raise InputError(
                "a length below 1", where="loop", expected="samples, batch, checkpoint_every, log_every, max_bad_steps at least 1"
            )
        if min(self.validate_samples, self.epoch_samples) < 0:
            raise InputError(
                f"validate_samples {self.validate_samples}, epoch_samples {self.epoch_samples}", where="loop", expected="0 or more of each"
            )


@dataclass(frozen=True, kw_only=True)
class EMAConfig:
    """Attributes:
    halflife_samples: after so many samples an old weight counts half; 0 turns the average off.
    rampup: the half-life is at most this share of the samples seen, so that the start is forgotten (Karras et al. 2024).
    """

    halflife_samples: float = 2000.0
    rampup: float = 0.1

    def __post_init__(self) -> None:
        if not (self.halflife_samples >= 0 and self.rampup > 0):
            raise InputError(
                f"halflife_samples {self.halflife_samples}, rampup {self.rampup}", where="ema", expected="at least 0, and above 0"
            )


@dataclass(frozen=True, kw_only=True)
class VQGANLossConfig:
    """Attributes:
    l1, gradient, spectral_angle: weights of the reconstruction terms. L1 forgives what few pixels show; the gradient
        difference does not, and brings thin vessels back sooner.
    gan: scale of the adaptive weight; 0 trains without a discriminator.
    feature_matching: weight relative to the generator's hinge term, under the same adaptive weight.
    gan_start_samples: the discriminator joins after so many samples; an earlier start lets it win before the
        reconstruction is any good.
    perceptual: weight of the distance in the maps of the run's own feature encoder, which is trained before; 0: none is needed.
    equivariance: share of the steps that scale and turn the latents, and ask that they decode to the cubes scaled and turned alike
        (Kouzelis et al. 2025): a latent space of which a denoiser has less to learn.
    r1: weight of the approximate R1 penalty: the discriminator shall say the same of a real cube and of one with a little noise
        (Lin et al. 2025, eq. 3).
    """

    l1: float = 1.0
    gradient: float = 10.0
    spectral_angle: float = 1.0
    gan: float = 0.5
    feature_matching: float = 1.0
    gan_start_samples: int = 10_000
    perceptual: float = 0.0
    equivariance: float = 0.0
    r1: float = 0.0

    def __post_init__(self) -> None:
        if min(vars(self).values()) < 0 or self.equivariance > 1:
            raise InputError(
                "a weight below 0, or a share above 1",
                where="vqgan.loss",
                expected="weights and gan_start_samples at least 0, equivariance at most 1",
            )


@dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """How two views of a cube differ: by what one camera does from one visit to the next, so that spectra keep their meaning.

    Attributes:
        shift: furthest shift along each axis, as a share of height and width; what comes in is black, as outside the field of view.
        mirror: mirror half of them top to bottom, and of square ones turn half by 90°. Never left to right alone: see views.py.
        gain: furthest factor on all bands, as a natural logarithm, either way.
        tilt: furthest change of the spectrum's slope and of its bend, as a natural logarithm at the last band.
        noise: deviation of the noise of light, as a share of the band's mean, at that mean; drawn from 0 up to it.
    """

    shift: float = 0.08
    mirror: bool = True
    gain: float = 0.08
    tilt: float = 0.03
    noise: float = 0.02

    def __post_init__(self) -> None:
        if not (0 <= self.shift < 0.5 and self.gain >= 0 and self.tilt >= 0 and self.noise >= 0):
            raise InputError(
                f"shift {self.shift}, gain {self.gain}, tilt {self.tilt}, noise {self.noise}",
                where="features.views",
                expected="a shift from 0 to below 0.5, the others 0 or more",
            )


@dataclass(frozen=True, kw_only=True)
class CopyViewsConfig:
    """What is done to a photograph, that its copies are known by the same embedding.

    Attributes:
        turn: by any angle up to this share of a whole turn, about the middle of the image.
        mirror: half of them.
        zoom: least side that is cut out, from any place, and enlarged to the whole, as a share of the image's.
        shift: furthest shift along each axis, as a share of height and width; what comes in is black.
        gain, tilt, noise: as in ViewsConfig.
        blur: largest deviation of a Gaussian, as a share of the height.
        rounding: largest step that counts are rounded to, as a share of the mean of the brightest band.
    """

    turn: float = 1.0
    mirror: bool = True
    zoom: float = 0.65
    shift: float = 0.1
    gain: float = 0.12
    tilt: float = 0.03
    noise: float = 0.05
    blur: float = 0.01
    rounding: float = 0.01

    def __post_init__(self) -> None:
        in_range = 0 <= self.turn <= 1 and 0 < self.zoom <= 1 and 0 <= self.shift < 0.5
        if not in_range or min(self.gain, self.tilt, self.noise, self.blur, self.rounding) < 0:
            raise InputError(
                ", ".join(f"{name} {value}" for name, value in vars(self).items()),
                where="copies.views",
                expected="turn from 0 to 1, zoom above 0 up to 1, shift from 0 to below 0.5, the others 0 or more",
            )


@dataclass(frozen=True, kw_only=True)
class InfoNCEConfig:
    """Attributes:
    temperature: that half of the squared distances is divided by (Chen et al. 2020, eq. 1, with distances in place of cosines). Where
        embeddings are in units of how copies vary, at 2 the loss is that of the likelihood of a normal distribution.
    spread: weight of the entropy's regulariser (Pizzi et al. 2022, eq. 3 and 4).
    """

    temperature: float = 4.0
    spread: float = 0.0

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and self.spread >= 0):
            raise InputError(
                f"temperature {self.temperature}, spread {self.spread}", where="copies.loss", expected="above 0, and at least 0"
            )


@dataclass(frozen=True, kw_only=True)
class VICRegConfig:
    """Attributes:
    invariance, variance, covariance: weights λ, μ and ν of the three terms (Bardes et al. 2022, eq. 6).
    """

    invariance: float = 25.0
    variance: float = 25.0
    covariance: float = 1.0

    def __post_init__(self) -> None:
        if min(self.invariance, self.variance, self.covariance) < 0:
            raise InputError("a weight below 0", where="features.loss", expected="weights at least 0")
