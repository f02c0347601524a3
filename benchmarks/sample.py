"""Sampling, ours against diffusers' own pipeline for latent diffusion (LDMPipeline), over the same networks.

`equal_steps`: the same solver, steps, precision and noise; batches of one size on both sides. Ours makes cubes of counts and looks whether
they are sound; the pipeline's images are turned into counts too. Equal means: nine counts of ten are the same or one apart in fp32, the
mean difference is below 0.2 % of the deviation in bf16.

`equal_quality`: ours with the steps given by --few-steps against the pipeline with 50, its default; --run names a trained run, and equal
means that the Fréchet distance of ours to held-out people is not above the pipeline's by more than what halves of it differ.

Networks of `equal_steps` have weights by chance: speed does not know. Utilisation is operations of matrix products, attention and
convolutions, over the time spent, over what a bare product reaches here in the same precision.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from diffusers import LDMPipeline
from rounds import finish, row

from data_shards.manifest import BandStats
from launch import build
from launch.config import VQGANStage, load
from ldm.checkpoints.export import as_vqmodel
from ldm.checkpoints.trained import Autoencoder, Denoiser, cube_normaliser
from ldm.generation.images import Generator
from ldm.generation.speed import DECODING, DENOISING, Speed, cost_of
from ldm.models.config import InferenceConfig, ObjectiveConfig, SamplerConfig, UNetConfig
from ldm.models.denoiser import UNet
from ldm.models.inference import DTYPES, FP32, ready
from ldm.models.noise import SAMPLES, normal_at
from ldm.models.sampler import scheduler_for
from ldm.models.vqgan import initialised
from ldm.normalise import LatentNormaliser
from ldm.speed import matmul_flops_per_s

RANDN = "diffusers.pipelines.deprecated.latent_diffusion_uncond.pipeline_latent_diffusion_uncond.randn_tensor"


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


CASES = {
    "quick": [Case(name="", size=96, width=16, base=32, batch=8, images=16, steps=4, layers=1, compression=4)],
    "cpu": [
        Case(name="", size=224, width=32, base=64, batch=4, images=8, steps=10),
        Case(name="_672", size=672, width=16, base=64, batch=1, images=2, steps=4),
    ],
    "cuda": [
        Case(name="_224", size=224, width=128, base=256, batch=64, images=256, steps=30),
        Case(name="", size=672, width=128, base=512, batch=32, images=96, steps=30),
    ],
}


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


def pipeline_of(autoencoder: Autoencoder, denoiser: Denoiser, sampler: SamplerConfig, device: str) -> LDMPipeline:
    """diffusers' pipeline over the same weights."""
    net = denoiser.net.net
    net.register_to_config(sample_size=denoiser.latent_shape[-1])
    pipeline = LDMPipeline(vqvae=as_vqmodel(autoencoder), unet=net, scheduler=scheduler_for(sampler, denoiser.objective.target)).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def by_pipeline(pipeline: LDMPipeline, case: Case, steps: int, precision: str, seed: int = 0) -> np.ndarray:
    """What the pipeline's decoder gives, (N, H, W, C) in [0, 1], from our noise; under autocast where it is bf16."""
    shape, device = (8, *(2 * [pipeline.unet.config.sample_size])), pipeline.device
    made = []
    for a in range(0, case.images, case.batch):
        noise = normal_at(seed, np.arange(a, a + case.batch), shape, SAMPLES, device=device)
        with patch(RANDN, lambda *_, noise=noise, **__: noise), torch.autocast(device.type, DTYPES["bf16"], enabled=precision == "bf16"):
            made.append(pipeline(batch_size=case.batch, num_inference_steps=steps, output_type="np").images)
    return np.concatenate(made)


def counts_of(image_NHWC: np.ndarray, autoencoder: Autoencoder) -> np.ndarray:
    """The pipeline's images as stored counts (N, C, H, W)."""
    x = torch.from_numpy(image_NHWC).permute(0, 3, 1, 2).float() * 2 - 1
    return autoencoder.normaliser.cpu().stored(x).numpy()


def same(ours: list[Any], image_NHWC: np.ndarray, autoencoder: Autoencoder, precision: str) -> bool:
    """Whether both made the same images, where the pipeline did not cut values off."""
    own = np.stack([cube.data_CHW for cube in ours]).astype(np.float64)
    theirs = counts_of(image_NHWC, autoencoder).astype(np.float64)
    inside = np.moveaxis((image_NHWC > 0) & (image_NHWC < 1), -1, 1)
    apart = np.abs(own - theirs)[inside]
    print(
        f"  apart: mean {apart.mean():.4f} counts, most {apart.max():.0f}, of a deviation of {own.std():.0f}; {inside.mean():.0%} looked at"
    )
    return bool(np.mean(apart <= 1) > 0.9 if precision == "fp32" else apart.mean() < 0.002 * own.std()) and bool(inside.mean() > 0.5)


def equal_steps(case: Case, device: str, inference: InferenceConfig, rounds: int) -> dict[str, Any]:
    """One row, with the share of the bare product that ours reached."""
    sampler, kind = SamplerConfig(name="dpm++", steps=case.steps), "gpu" if device == "cuda" else "cpu"
    pipeline = pipeline_of(*networks(case), sampler, device)
    autoencoder, denoiser = used(*networks(case), inference, device)
    speed = Speed()
    generator = Generator(autoencoder=autoencoder, denoiser=denoiser, seed=0, sampler=sampler, batch=case.batch, speed=speed)
    compiled = "" if inference.compile == "off" else f"_{inference.compile}"
    found = row(
        f"{kind}{case.name}{compiled}_equal_steps_vs_diffusers",
        lambda: list(generator.images(range(case.images))),
        lambda: by_pipeline(pipeline, case, case.steps, inference.precision),
        lambda ours, image: same(ours, image, autoencoder, inference.precision),
        rounds,
    )
    print(f"  {speed.line()}", flush=True)
    cost, seconds = cost_of(generator), speed.clock.seconds()
    bare = matmul_flops_per_s(torch.device(device), DTYPES[inference.precision])
    utilisation = {
        "denoising_utilisation": speed.images * cost.denoising_flops / seconds[DENOISING] / bare,
        "decoding_utilisation": speed.images * cost.decoding_flops / seconds[DECODING] / bare,
    }
    return {**found, "cubes_per_s": case.images / found["ours"], **utilisation, "bare_tflops": bare / 1e12}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small case, within 50 s on two cores")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    inference = InferenceConfig(precision="bf16") if device == "cuda" else FP32
    began, rows = time.perf_counter(), []
    for case in CASES["quick" if args.quick else device]:
        rows.append(equal_steps(case, device, inference, args.rounds))
        for mode in ("default", "reduce-overhead") if device == "cuda" else ():
            if time.perf_counter() - began < 300:
                rows.append(equal_steps(case, device, replace(inference, compile=mode), 1))
    other = {"cuda": "cpu", "cpu": "gpu"}[device]
    finish("sample", rows, {f"{other}_equal_steps_vs_diffusers": f"this machine's rows are {device}"})


if __name__ == "__main__":
    main()
