"""Trained networks as folders that plain diffusers loads, and as plain safetensors: nothing of this project is needed to use them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import VQModel
from safetensors.torch import save_file

from data_shards import durable
from data_shards.cube import LABELS
from data_shards.errors import InputError, moved_aside
from ldm.checkpoints.segmenter import Segmenter
from ldm.checkpoints.trained import Autoencoder, Denoiser
from ldm.models.config import MULTIPLES, SamplerConfig
from ldm.models.denoiser import UNet
from ldm.models.sampler import scheduler_for
from ldm.normalise import STORED_MAX

HOW_TO = {
    "cubes": "n = counts - log_zero (0 where absent); x = (sign(n) ln(1 + |n| / 16) - log_mean_C) / log_std_C, 0 outside the field of view",
    "latents": "z = VQModel.encode(x).latents; the denoiser sees (z - mean_D) / std_D",
    "counts": "x = VQModel.decode(z).sample; y = x * log_std_C + log_mean_C; log_zero + sign(y) 16 (exp(|y|) - 1), rounded, "
    "clipped to 0 … counts_max (of uint16), uint16",
    "field_of_view": "fov_HW in vqgan.safetensors, 1 inside: what the training cubes share; counts outside are 0",
}


def as_vqmodel(autoencoder: Autoencoder) -> VQModel:
    """diffusers' VQModel with the same weights: its encode gives our latents, its decode goes through the nearest codes.

    Raises:
        InputError: codes that are not found by distance.
    """
    if (kind := autoencoder.codebook.config.kind) == "fsq":
        raise InputError(f"a codebook of kind {kind!r}", expected="'ema' or 'simvq': diffusers' VQModel looks for the nearest code")
    config = autoencoder.vqgan.config
    widths = tuple(config.channels * multiple for multiple in MULTIPLES[config.compression])
    model = VQModel(
        in_channels=config.bands,
        out_channels=config.bands,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=config.layers,
        latent_channels=config.latent_channels,
        num_vq_embeddings=len(autoencoder.codebook.codes_KD),
        vq_embed_dim=config.latent_channels,
        norm_num_groups=config.norm_groups,
        scaling_factor=1.0,
    )
    weights = {**autoencoder.vqgan.state_dict(), "quantize.embedding.weight": autoencoder.codebook.codes_KD}
    model.load_state_dict({name: value.detach().cpu() for name, value in weights.items()})
    return model.eval()


def export_autoencoder(autoencoder: Autoencoder, out: Path) -> None:
    """Write OUT/vqvae (diffusers), OUT/vqgan.safetensors and OUT/vqgan.json.

    Raises:
        InputError: `out` exists, or cannot be written; a codebook that diffusers does not have. TryAgain: disk full.
    """
    about = {
        "config": asdict(autoencoder.vqgan.config),
        "data": autoencoder.data,
        "counts_max": int(STORED_MAX),
        "checkpoint": autoencoder.digest,
        "use": HOW_TO,
    }
    weights = {**autoencoder.vqgan.state_dict(), **{f"codebook.{k}": v for k, v in autoencoder.codebook.state_dict().items()}}
    weights["fov_HW"] = autoencoder.fov_HW.to(torch.uint8)
    with fresh(out) as stage:
        as_vqmodel(autoencoder).save_pretrained(stage / "vqvae", safe_serialization=True)
        _plain(stage, "vqgan", weights, about)


def export_denoiser(denoiser: Denoiser, out: Path) -> None:
    """Write OUT/unet and OUT/scheduler (diffusers), OUT/denoiser.safetensors and OUT/denoiser.json; weights are the averaged ones.

    Raises:
        InputError: `out` exists, cannot be written, or the denoiser is none that diffusers has. TryAgain: disk full.
    """
    if not isinstance(denoiser.net, UNet):
        raise InputError(f"a denoiser of class {type(denoiser.net).__name__}", expected="UNet: diffusers has no other of ours")
    normaliser = denoiser.normaliser
    about = {
        "config": asdict(denoiser.net.config),
        "objective": asdict(denoiser.objective),
        "latent_shape": denoiser.latent_shape,
        "mean_D": normaliser.mean_C11.flatten().tolist(),
        "std_D": normaliser.std_C11.flatten().tolist(),
        "autoencoder": denoiser.autoencoder,
        "checkpoint": denoiser.digest,
        "use": HOW_TO,
    }
    with fresh(out) as stage:
        denoiser.net.net.save_pretrained(stage / "unet", safe_serialization=True)
        scheduler_for(SamplerConfig(), denoiser.objective.target).save_pretrained(stage / "scheduler")
        _plain(stage, "denoiser", denoiser.net.state_dict(), about)


def export_segmenter(segmenter: Segmenter, out: Path) -> None:
    """Write OUT/segmenter.safetensors, weights of MONAI's BasicUNet, and OUT/segmenter.json.

    Raises:
        InputError: `out` exists, or cannot be written. TryAgain: disk full.
    """
    about = {
        "config": asdict(segmenter.net.config),
        "features": segmenter.net.features,
        "classes": LABELS,
        "data": segmenter.data,
        "checkpoint": segmenter.digest,
        "use": {"cubes": HOW_TO["cubes"], "classes": "BasicUNet(spatial_dims=2, features=features)(x).argmax(1)"},
    }
    with fresh(out) as stage:
        _plain(stage, "segmenter", segmenter.net.net.state_dict(), about)


@contextlib.contextmanager
def fresh(out: Path) -> Iterator[Path]:
    """`durable.writing_folder` for a place that is not taken; its files may be read by whom the umask lets read.

    Raises:
        InputError: it is. Else as writing_folder.
    """
    if out.exists():
        mend = f"choose another, or {moved_aside(out)}"
        raise InputError("the place is taken", where=out, expected="a path that does not exist yet", mend=mend)
    with durable.writing_folder(out) as stage:
        yield stage
        for path in stage.rglob("*"):  # safetensors' writer makes files of mode 0600
            if path.is_file():
                path.chmod(stage.stat().st_mode & 0o666)


def _plain(stage: Path, name: str, weights: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
    save_file({k: v.detach().cpu().contiguous() for k, v in weights.items()}, stage / f"{name}.safetensors")
    durable.write_json(stage / f"{name}.json", about)
