"""Networks with weights by chance, for what asks about their speed alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from data_shards.manifest import BandStats
from launch import build
from launch.config import VQGANStage
from launch.tree import load
from ldm.checkpoints.trained import Autoencoder, Denoiser, cube_normaliser
from ldm.models.config import InferenceConfig, ObjectiveConfig, UNetConfig
from ldm.models.denoiser import UNet
from ldm.models.inference import ready
from ldm.models.vqgan import initialised
from ldm.normalise import LatentNormaliser


@dataclass(frozen=True, kw_only=True)
class Case:
    """Attributes:
    name: of the row.
    size: height and width of the cubes.
    width, base: channels of the VQ-GAN and of the U-Net.
    batch, images, steps: of a round.
    """

    name: str
    size: int
    width: int
    base: int
    batch: int
    images: int
    steps: int
    layers: int = 2
    compression: int = 8


def woken(net: torch.nn.Module) -> torch.nn.Module:
    """With small weights where they begin as zero: else whole branches give zeros."""
    generator = torch.Generator().manual_seed(1)
    for p in net.parameters():
        if not p.any():
            p.data = torch.randn(p.shape, generator=generator) * 0.02
    return net


def networks(case: Case) -> tuple[Autoencoder, Denoiser]:
    """Both networks in fp32 on the CPU."""
    stage = load("retina-224").vqgan
    model = replace(stage.model, channels=case.width, layers=case.layers, norm_groups=8, compression=case.compression, latent_channels=8)
    stage = VQGANStage(model=model, codebook=replace(stage.codebook, codes=1024))
    vqgan, codebook, _ = build.vqgan_modules(stage, 16)
    flat = {"mean_C": (0.1,) * 16, "std_C": (0.03,) * 16, "min_C": (0.0,) * 16, "max_C": (1.0,) * 16, "values": 1}
    stats = BandStats(split="train", log_mean_C=(4.0,) * 16, log_std_C=(0.3,) * 16, **flat)
    nm = tuple(450.0 + 30 * c for c in range(16))
    data = {
        "wavelengths_nm": nm,
        "scale": 1 / 4095,
        "offset": 0.0,
        "stats": stats.fields(),
        "digest": "d",
        "shape": (16, case.size, case.size),
    }
    fov_HW = torch.ones(case.size, case.size, dtype=torch.bool)
    autoencoder = Autoencoder(woken(vqgan), codebook, cube_normaliser(data), fov_HW, data, "a")
    config = UNetConfig(latent_channels=8, channels=case.base, layers=case.layers, attention=(1, 2))
    unit = BandStats(split="train", mean_C=(0.0,) * 8, std_C=(1.0,) * 8, min_C=(-1.0,) * 8, max_C=(1.0,) * 8, values=1)
    side = case.size // case.compression
    return autoencoder, Denoiser(
        net=woken(initialised(lambda: UNet(config), 0)).eval(),
        normaliser=LatentNormaliser(unit),
        objective=ObjectiveConfig(target="v"),
        latent_shape=(8, side, side),
        autoencoder="a",
        digest="n",
    )


def used(autoencoder: Autoencoder, denoiser: Denoiser, inference: InferenceConfig, device: str) -> tuple[Autoencoder, Denoiser]:
    """Both, as a run uses them."""
    move = {"inference": inference}
    return (
        replace(
            autoencoder,
            vqgan=ready(autoencoder.vqgan, inference, device),
            codebook=autoencoder.codebook.to(device),
            normaliser=autoencoder.normaliser.to(device),
            fov_HW=autoencoder.fov_HW.to(device),
            **move,
        ),
        replace(denoiser, net=ready(denoiser.net, inference, device), normaliser=denoiser.normaliser.to(device), **move),
    )
