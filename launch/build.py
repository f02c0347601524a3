"""Configuration → objects, each built in the open. What a dataset decides (bands, latent channels) is filled in here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data_shards.errors import InputError
from data_shards.manifest import Manifest
from data_shards.reading.batch import Batch
from data_shards.reading.config import ReadConfig
from data_shards.reading.dataset import Dataset
from data_shards.reading.mixture import Mixture
from data_shards.reading.stream import CubeStream
from data_shards.stores import place_of
from launch.config import DiffusionStage, VQGANStage
from launch.tree import to_tree
from ldm.checkpoints.trained import TrainedEncoder, describe_data, load_autoencoder, load_feature_encoder, trained_digest
from ldm.evaluation.sets import common_fov, evenly
from ldm.generation.encode import MIRRORED
from ldm.models.codebook import Codebook
from ldm.models.denoiser import DENOISERS, described
from ldm.models.discriminator import PatchGAN
from ldm.models.objective import SCHEDULES
from ldm.models.other_codebooks import codebook_from
from ldm.models.vqgan import VQGAN, initialised
from ldm.normalise import CubeNormaliser, LatentNormaliser
from ldm.training.config import LoopConfig
from ldm.training.diffusion import DiffusionTrainer
from ldm.training.engine import Engine
from ldm.training.monitor import DecodedMonitor, SpectralMonitor
from ldm.training.vqgan import VQGANTrainer

LATER = ("perceptual", "equivariance", "r1")
"""Terms of the VQ-GAN's loss that are not named where they are 0: trainings that began before there were any go on."""
LATER_TIMES = ("times", "logit-normal")
"""Of an objective: likewise."""
DECODED = 8  # of the latents that are judged: evenly spaced, for neighbours are often visits of one eye


def stream(dataset: Dataset | Mixture, loop: LoopConfig, engine: Engine, read: ReadConfig, *, maps: bool, crop: int = 0) -> CubeStream:
    """The training stream: this rank's share of the global batch.

    Raises:
        InputError: the global batch does not divide by the world.
    """
    if loop.batch % engine.world:
        raise InputError(f"global batch {loop.batch}", where="loop.batch", expected=f"a multiple of the {engine.world} ranks")
    return CubeStream(
        dataset,
        "train",
        batch_size=loop.batch // engine.world,
        seed=loop.seed,
        rank=engine.rank,
        world=engine.world,
        maps=maps,
        crop=(crop, crop) if crop else None,
        epoch_samples=loop.epoch_samples,
        read=read,
        device=engine.device,
    )


def validation(dataset: Dataset, loop: LoopConfig, engine: Engine, read: ReadConfig, crop: int = 0) -> CubeStream | None:
    """The held-out samples that the loop judges, a micro batch at a time; None where the dataset has none."""
    if "val" not in dataset.splits or not dataset.splits["val"].count:
        return None
    micro = loop.batch // (engine.world * engine.config.accumulation)
    return CubeStream(
        dataset,
        "val",
        batch_size=micro,
        rank=engine.rank,
        world=engine.world,
        maps=dataset.payload == "cube",
        crop=(crop, crop) if crop else None,
        read=read,
        device=engine.device,
    )


def check_bands(section: str, stated: int, bands: int) -> None:
    """Refuse a section of the configuration that states another number of bands than the dataset has.

    Raises:
        InputError: it does.
    """
    if stated not in (0, bands):
        raise InputError(f"{section}.bands = {stated}", expected=f"{bands}, the bands of the dataset (or 0: taken from it)")


def vqgan_modules(stage: VQGANStage, bands: int) -> tuple[VQGAN, Codebook, PatchGAN]:
    """Freshly initialised networks for cubes of so many bands.

    Raises:
        InputError: the configuration states another number of bands.
    """
    check_bands("vqgan.model", stage.model.bands, bands)
    check_bands("vqgan.discriminator", stage.discriminator.bands, bands)
    seed = stage.loop.seed
    vqgan = initialised(lambda: VQGAN(replace(stage.model, bands=bands)), seed)
    codebook = codebook_from(stage.codebook, channels=stage.model.latent_channels, seed=seed)
    return vqgan, codebook, initialised(lambda: PatchGAN(replace(stage.discriminator, bands=bands)), seed + 1)


def check_fit(stage: VQGANStage, dataset: Dataset) -> None:
    """Refuse, before anything is trained, a dataset that these networks could not take.

    Raises:
        InputError: latents instead of cubes; a height or width that does not divide, or is too small for the discriminator; fewer
        latents than codes.
    """
    dataset.expect("cube", mend="retinaforge data import")
    height, width = (stage.crop or side for side in dataset.shape[1:])
    factor, least = stage.model.compression, stage.discriminator.least_pixels if stage.loss.gan else 1
    if height % factor or width % factor or min(height, width) < least:
        raise InputError(
            f"cubes of {height}×{width}",
            where=dataset.path,
            expected=f"multiples of {factor}, the compression, of at least {least} pixels, for the {stage.discriminator.layers} "
            "layers of the discriminator",
            mend="retinaforge data import --resize HxW (or --crop), or other vqgan.model.compression and vqgan.discriminator.layers",
        )
    count = min(dataset.count("train"), stage.loop.epoch_samples or dataset.count("train"))
    latents = count * (height // factor) * (width // factor)
    if stage.codebook.kmeans != "never" and latents < stage.codebook.codes:
        raise InputError(
            f"{latents} latents in the training split for {stage.codebook.codes} codes",
            where=dataset.path,
            expected="at least one latent a code, for k-means",
            mend="lower vqgan.codebook.codes or vqgan.model.compression, or add cubes",
        )


def _mixed(dataset: Dataset, mix: dict[str, float]) -> Mixture:
    """The run's own dataset and others, these in the order of their digests: it decides which sample comes when."""
    others = sorted(((dataset.beside(place_of(place)), weight) for place, weight in mix.items()), key=lambda pair: pair[0].digest)
    return Mixture([dataset, *(other for other, _ in others)], [1.0, *(weight for _, weight in others)])


def vqgan_trainer(
    stage: VQGANStage, dataset: Dataset, engine: Engine, read: ReadConfig = ReadConfig(), *, features: Path | None = None
) -> tuple[VQGANTrainer, CubeStream, dict[str, Any]]:
    """Trainer, its stream, and the identity that its checkpoints carry.

    Args:
        features: folder of the trained feature encoder, for a perceptual loss.
    """
    check_fit(stage, dataset)
    vqgan, codebook, discriminator = vqgan_modules(stage, dataset.shape[0])
    mixed = _mixed(dataset, stage.mix) if stage.mix else dataset
    train = stream(mixed, stage.loop, engine, read, maps=True, crop=stage.crop)
    encoder = load_feature_encoder(features, engine.device) if stage.loss.perceptual else None
    trainer = VQGANTrainer(
        engine,
        vqgan,
        codebook,
        discriminator,
        CubeNormaliser(dataset.stats, scale=dataset.scale, offset=dataset.offset),
        train,
        fov_HW=torch.from_numpy(common_fov(dataset, "train")),
        dataset=dataset.digest,
        loss=stage.loss,
        optimizer=stage.optimizer,
        total=stage.loop.samples,
        flip=stage.flip,
        perceptual=encoder and encoder.net,
        ema=stage.ema,
        monitor=SpectralMonitor(dataset.stats, engine.device),
    )
    model = {"kind": "vqgan", **to_tree(vqgan.config)}
    identity = {"stage": "vqgan", "model": model, "codebook": to_tree(stage.codebook), "seed": stage.loop.seed}
    if isinstance(mixed, Mixture):
        identity["mix"] = [[other.digest, weight] for other, weight in zip(mixed.datasets[1:], mixed.weights[1:], strict=True)]
    if encoder:
        identity["features"] = encoder.digest
    if stage.ema.halflife_samples:
        identity["ema"] = to_tree(stage.ema)
    loss = {name: weight for name, weight in to_tree(stage.loss).items() if weight or name not in LATER}
    return (
        trainer,
        train,
        {**identity, "discriminator": to_tree(stage.discriminator), "loss": loss, "data": describe_data(dataset.manifest)},
    )


def denoiser_module(stage: DiffusionStage, latents: Manifest) -> nn.Module:
    """A freshly initialised denoiser for these latents.

    Raises:
        InputError: height or width of the latents cannot be halved twice.
    """
    channels, height, width = latents.shape
    if height % 4 or width % 4:
        raise InputError(
            f"latents of {height}×{width}",
            expected="multiples of 4: the denoiser halves them twice",
            mend="retinaforge data import --resize HxW (a multiple of 4 × compression), or another vqgan.model.compression",
        )
    config = replace(stage.model, latent_channels=channels)
    return initialised(lambda: DENOISERS[type(config)](config), stage.loop.seed)


def diffusion_trainer(
    stage: DiffusionStage,
    latents: Dataset,
    engine: Engine,
    read: ReadConfig = ReadConfig(),
    *,
    features: Path | None = None,
    cubes: Callable[[], Dataset] | None = None,
    vqgan: Path | None = None,
    quantise: bool = True,
) -> tuple[DiffusionTrainer, CubeStream, dict[str, Any]]:
    """Trainer, its stream, and the identity that its checkpoints carry.

    Args:
        features, cubes: folder of the trained feature encoder, and the cubes that the latents are of, for an alignment with its maps.
        vqgan: folder of the autoencoder that some of the judged latents are decoded by, if it is the one that they are of.
        quantise: sample.quantise.
    """
    latents.expect("latent", mend="retinaforge encode PRESET")
    origin = latents.manifest.source.get("encode", {}).get("autoencoder", "")
    judged = min(stage.loop.validate_samples, latents.splits["val"].count if "val" in latents.splits else 0)
    monitor = None
    if judged and vqgan and trained_digest(vqgan) == origin:
        monitor = DecodedMonitor(load_autoencoder(vqgan, engine.device), evenly(judged, DECODED), quantise=quantise)
    denoiser, aligned, maps_of = denoiser_module(stage, latents.manifest), {}, None
    if stage.alignment:
        encoder = load_feature_encoder(features, engine.device)
        maps_of = maps_by(encoder, cubes(), read)
        initialised(lambda: denoiser.add_head(encoder.net.widths[-1]), stage.loop.seed)
        aligned = {"alignment": stage.alignment, "features": encoder.digest}
    trainer = DiffusionTrainer(
        engine,
        denoiser,
        LatentNormaliser(latents.stats),
        objective=stage.objective,
        optimizer=stage.optimizer,
        ema=stage.ema,
        total=stage.loop.samples,
        seed=stage.loop.seed,
        alignment=stage.alignment,
        maps_of=maps_of,
        monitor=monitor,
    )
    objective = {name: value for name, value in to_tree(stage.objective).items() if (name, value) != LATER_TIMES}
    identity = {"stage": "diffusion", "model": described(denoiser.config), "objective": objective, "seed": stage.loop.seed, **aligned}
    identity["schedule"] = SCHEDULES.get(stage.objective.target)
    return (
        trainer,
        stream(latents, stage.loop, engine, read, maps=False),
        {**identity, "autoencoder": origin, "data": describe_data(latents.manifest)},
    )


def maps_by(encoder: TrainedEncoder, cubes: Dataset, read: ReadConfig) -> Callable[[Batch], Tensor]:
    """What gives the maps of the encoder's last level, (B, K, H, W), of the cubes that a batch of latents was made of."""
    stream = CubeStream(cubes, "train", batch_size=1, maps=True, read=read, device=encoder.normaliser.mean_C11.device)
    number = {key: i for i, key in enumerate(cubes.keys("train"))}

    def maps_of(batch: Batch) -> Tensor:
        plain = [key if key in number else key.removesuffix(MIRRORED) for key in batch.keys]
        moved = stream.read(np.array([number[key] for key in plain]))
        x_BCHW = encoder.normaliser(moved.cubes_BCHW, moved.fov_BHW)
        mirrored_B = torch.tensor([key not in number for key in batch.keys], device=x_BCHW.device)
        return encoder.net.maps(torch.where(mirrored_B[:, None, None, None], x_BCHW.flip(-1), x_BCHW))[-1]

    return maps_of
