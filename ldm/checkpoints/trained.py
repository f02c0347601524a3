"""Trained networks, loaded from the newest checkpoint that verifies. All they need stands in the checkpoint itself."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data_shards.errors import InputError
from data_shards.manifest import BandStats, Manifest
from ldm.checkpoints.commit import COMMIT, Checkpoint
from ldm.checkpoints.store import CheckpointStore, Reader
from ldm.comm import Alone
from ldm.models import striped
from ldm.models.codebook import Codebook
from ldm.models.config import CodebookConfig, CopyEncoderConfig, FeatureEncoderConfig, InferenceConfig, ObjectiveConfig, VQGANConfig
from ldm.models.copy_encoder import CopyEncoder, seen
from ldm.models.denoiser import denoiser_from
from ldm.models.feature_encoder import FeatureEncoder
from ldm.models.inference import FP32, ready
from ldm.models.objective import SCHEDULES
from ldm.models.other_codebooks import codebook_from
from ldm.models.vqgan import VQGAN
from ldm.normalise import CubeNormaliser, LatentNormaliser


@dataclass(frozen=True)
class Autoencoder:
    """VQ-GAN, codebook and normaliser of one checkpoint; `data` says what cubes it was trained on, `fov_HW` what they show.

    Attributes:
        taught_by: digest of the feature encoder whose maps its loss looked at; None: of none.
    """

    vqgan: VQGAN
    codebook: Codebook
    normaliser: CubeNormaliser
    fov_HW: Tensor
    data: dict[str, Any]
    digest: str
    inference: InferenceConfig = FP32
    taught_by: str | None = None

    @cached_property
    def shown_HW(self) -> np.ndarray:
        """`fov_HW` on the host: asked of a GPU for each image it would wait for all that is queued there."""
        return self.fov_HW.cpu().numpy()

    @torch.no_grad()
    def reconstruct(self, stored_BCHW: Tensor, fov_BHW: Tensor | None) -> tuple[Tensor, Tensor]:
        """Stored counts → reconstructed reflectance (0 outside the field of view), code indices."""
        q_BDHW, index_BHW = self.codebook(striped.encode(self.vqgan, self.normaliser(stored_BCHW, fov_BHW)))
        reflectance_BCHW = self.normaliser.reflectance(striped.decode(self.vqgan, q_BDHW))
        return reflectance_BCHW if fov_BHW is None else reflectance_BCHW * fov_BHW[:, None], index_BHW

    @torch.no_grad()
    def decode(self, z_BDHW: Tensor, *, quantise: bool) -> Tensor:
        """Latents → stored counts, uint16; through the nearest codes, as the decoder was trained, or as they are. They are 0 outside
        the training set's field of view; of frames of another size none is known, and nothing is cut off.

        Raises:
            InputError: as they are, of a codebook of kind 'fsq': nothing has brought them near their codes.
        """
        if not quantise and self.codebook.config.kind == "fsq":
            raise InputError(
                "sample.quantise=false with a codebook of kind 'fsq'", expected="true: its latents are not bounded, its codes are"
            )
        return self.decode_codes(self.codes_of(z_BDHW)) if quantise else self._stored(z_BDHW)

    @torch.no_grad()
    def codes_of(self, z_BDHW: Tensor) -> Tensor:
        """Latents → the index of the nearest code of each, (B, h, w)."""
        return self.codebook(z_BDHW)[1]

    @torch.no_grad()
    def decode_codes(self, index_BHW: Tensor) -> Tensor:
        """Indices of codes → stored counts, as `decode` gives them: a function of the indices and of the batch's shape."""
        return self._stored(self.codebook.codes_KD[index_BHW].movedim(-1, 1).contiguous())

    @torch.no_grad()
    def decode_straight_through(self, z_BDHW: Tensor) -> Tensor:
        """As earlier versions decoded the nearest codes q: through h + (q - h), which rounds, and is no function of the indices."""
        return self._stored(self.codebook(z_BDHW)[0])

    def _stored(self, z_BDHW: Tensor) -> Tensor:
        stored_BCHW = self.normaliser.stored(striped.decode(self.vqgan, z_BDHW))
        if stored_BCHW.shape[2:] != self.fov_HW.shape:
            return stored_BCHW
        return (stored_BCHW.int() * self.fov_HW).to(torch.uint16)  # torch multiplies no uint16


@dataclass(frozen=True)
class Denoiser:
    """EMA weights of a denoiser, the latents' normaliser, and the objective it was trained for.

    Attributes:
        taught_by: digest of the feature encoder whose maps its loss looked at; None: of none.
    """

    net: nn.Module
    normaliser: LatentNormaliser
    objective: ObjectiveConfig
    latent_shape: tuple[int, int, int]
    autoencoder: str
    digest: str
    inference: InferenceConfig = FP32
    taught_by: str | None = None


@dataclass(frozen=True)
class TrainedEncoder:
    """Averaged weights of a feature encoder or a copy-detection head, and its normaliser; `data` says what cubes it was trained on."""

    net: FeatureEncoder | CopyEncoder
    normaliser: CubeNormaliser
    data: dict[str, Any]
    digest: str

    @torch.no_grad()
    def features(self, reflectance_BCHW: Tensor) -> Tensor:
        """Reflectance on the encoder's device → (B, D), fp32."""
        counts_BCHW = (reflectance_BCHW - self.normaliser.offset) / self.normaliser.scale
        if isinstance(self.net, CopyEncoder):
            return self.net(seen(counts_BCHW - self.normaliser.log_zero, self.normaliser))
        return self.net(self.normaliser(counts_BCHW))


def describe_data(manifest: Manifest) -> dict[str, Any]:
    """What a checkpoint keeps of its dataset, so that it can be used without it."""
    assert manifest.stats is not None
    kept = ("shape", "dtype", "wavelengths_nm", "scale", "offset")
    return {**{k: getattr(manifest, k) for k in kept}, "stats": manifest.stats.fields(), "digest": manifest.digest}


def cube_normaliser(data: dict[str, Any]) -> CubeNormaliser:
    """That of a `describe_data`."""
    return CubeNormaliser(BandStats(**data["stats"]), scale=data["scale"], offset=data["offset"])


def trained_digest(folder: Path) -> str | None:
    """sha256 of the commit that a training folder is loaded from; None where nothing is trained."""
    checkpoint = CheckpointStore(folder / "checkpoints", Alone()).newest(progress_exists=False, used=True)
    return _digest(checkpoint) if checkpoint and checkpoint.samples else None


def _digest(checkpoint: Checkpoint) -> str:
    return hashlib.sha256((checkpoint.folder / COMMIT).read_bytes()).hexdigest()


def chosen(folder: Path | str, what: str, best: bool = False) -> tuple[dict[str, Any], Reader, str]:
    """Identity, weights and digest of the checkpoint that a training folder is loaded from: the newest that verifies, or the best.

    Raises:
        InputError: nothing trained there. UnsafeResume: checkpoints, but none that verifies.
    """
    store = CheckpointStore(Path(folder) / "checkpoints", Alone())
    checkpoint = store.best() if best else store.newest(progress_exists=False, used=True)
    if checkpoint is None or not checkpoint.samples:
        raise InputError(f"no trained {what}", where=folder, expected="a committed checkpoint", mend=f"retinaforge train {what} PRESET")
    return checkpoint.state["identity"], Reader(checkpoint, used=True), _digest(checkpoint)


def load_autoencoder(
    folder: Path | str, device: torch.device | str = "cpu", *, best: bool = False, inference: InferenceConfig = FP32
) -> Autoencoder:
    """The VQ-GAN of a training folder, in evaluation mode: the newest, or that of the best validation loss.

    Args:
        inference: a `settled` one.

    Raises:
        InputError: nothing trained there. UnsafeResume: checkpoints, but none that verifies.
    """
    identity, read, digest = chosen(folder, "vqgan", best)
    vqgan = VQGAN(VQGANConfig(**{k: v for k, v in identity["model"].items() if k != "kind"}))
    load_strictly(vqgan, read.under("ema." if "ema" in identity else "vqgan.model."), folder)
    codebook = codebook_from(CodebookConfig(**identity["codebook"]), channels=vqgan.config.latent_channels, seed=0)
    # by its own names: earlier versions kept averages with kinds that have none, too
    load_strictly(codebook, {name: read(f"codebook.{name}") for name in codebook.state_dict()}, folder)
    return Autoencoder(
        vqgan=ready(vqgan, inference, device),
        codebook=codebook.to(device),
        normaliser=cube_normaliser(identity["data"]).to(device),
        fov_HW=read("fov_HW").bool().to(device),
        data=identity["data"],
        digest=digest,
        inference=inference,
        taught_by=identity.get("features"),
    )


def load_denoiser(
    folder: Path | str, device: torch.device | str = "cpu", *, best: bool = False, inference: InferenceConfig = FP32
) -> Denoiser:
    """The averaged denoiser of a training folder, in evaluation mode: the newest, or that of the best validation loss.

    Args:
        inference: a `settled` one.

    Raises:
        InputError: nothing trained there, or on a noise schedule that is not sampled. UnsafeResume: checkpoints, but none that verifies.
    """
    identity, read, digest = chosen(folder, "diffusion", best)
    objective = ObjectiveConfig(**identity["objective"])
    if identity["schedule"] != (now := SCHEDULES.get(objective.target)):
        raise InputError(
            f"a denoiser of {objective.target!r} on the noise schedule {identity['schedule']}",
            where=folder,
            expected=f"{now}: on the other one samples come out hundreds of times too wide",
            mend="train it anew: retinaforge train diffusion PRESET run=runs/NAME, with a fresh run folder",
        )
    net = denoiser_from(identity["model"])
    weights = {name: weight for name, weight in read.under("ema.").items() if not name.startswith("head.")}  # it has served
    load_strictly(net, weights, folder)
    return Denoiser(
        net=ready(net, inference, device),
        normaliser=LatentNormaliser(BandStats(**identity["data"]["stats"])).to(device),
        objective=objective,
        latent_shape=tuple(identity["data"]["shape"]),
        autoencoder=identity["autoencoder"],
        digest=digest,
        inference=inference,
        taught_by=identity.get("features"),
    )


def load_feature_encoder(folder: Path | str, device: torch.device | str = "cpu", *, stage: str = "features") -> TrainedEncoder:
    """The averaged encoder of a training folder, in evaluation mode: the newest.

    Args:
        stage: that trained it: 'features', or 'copies' for the copy-detection head.

    Raises:
        InputError: nothing trained there, or by another stage; weights that are not finite. UnsafeResume: checkpoints, but none that
            verifies.
    """
    identity, read, digest = chosen(folder, stage)
    if identity["stage"] != stage:
        raise InputError(f"a training of stage {identity['stage']!r}", where=folder, expected=f"one of stage {stage!r}: RUN/{stage}")
    model = {k: v for k, v in identity["model"].items() if k != "kind"}
    net = CopyEncoder(CopyEncoderConfig(**model)) if stage == "copies" else FeatureEncoder(FeatureEncoderConfig(**model))
    load_strictly(net, read.under("ema."), folder)
    if not all(weight.isfinite().all() for weight in net.parameters()):
        raise InputError(
            "weights that are not finite",
            where=folder,
            expected="those of a training that went well",
            mend=f"move {folder} away, then retinaforge train {stage} PRESET",
        )
    return TrainedEncoder(
        net=net.eval().requires_grad_(False).to(device),
        normaliser=cube_normaliser(identity["data"]).to(device),
        data=identity["data"],
        digest=digest,
    )


def load_strictly(module: nn.Module, state: dict[str, Tensor], where: object) -> None:
    """load_state_dict(strict) with an error for people.

    Raises:
        InputError: missing, unknown or differently shaped weights.
    """
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(
            f"weights do not fit the model: {str(error).splitlines()[-1].strip()}",
            where=where,
            expected="the configuration that the checkpoint was trained with",
            mend="see run.yaml beside the checkpoint",
        ) from error
