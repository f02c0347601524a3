"""Sampling, ours against diffusers' own pipeline for latent diffusion (LDMPipeline), over the same networks.

`equal_steps`: the same solver, steps, precision and noise, in batches of one size. Ours ends with cubes of counts, the pipeline with images
in floats, which are turned into counts to be compared. Equal means: nine counts of ten are the same or one apart in fp32, the
mean difference is below 0.2 % of the deviation in bf16.

With --run, on the networks of a trained run:
`equal_quality`: ours with the sampler given by --few against the pipeline with 50 steps, its default. Equal means that the Fréchet
distance of ours to people held out is no larger: 0 or less lies within 95 % of their difference over images drawn with replacement.
`bf16_vs_fp32`: the same images in both precisions. Equal means that the Fréchet distance between both sets is below that of two sets of
other noise, in fp32.

Networks of `equal_steps` have weights by chance: speed does not know. Utilisation is operations of matrix products, attention and
convolutions, over the time spent, over what a bare product reaches here in the same precision.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from diffusers import LDMPipeline
from rounds import finish, row
from sample_networks import Case, networks, used
from steps import Models, difference, real_features
from torch import Tensor

from launch.run import Run
from launch.tree import load
from ldm.checkpoints.export import as_vqmodel
from ldm.checkpoints.trained import Autoencoder, Denoiser, load_autoencoder, load_denoiser
from ldm.evaluation.features import get_extractor
from ldm.evaluation.frechet import frechet_distance
from ldm.evaluation.whitening import whitening
from ldm.generation.images import Generator
from ldm.generation.speed import DECODING, DENOISING, Speed, cost_of
from ldm.models.config import InferenceConfig, SamplerConfig
from ldm.models.inference import DTYPES, FP32
from ldm.models.noise import SAMPLES, normal_at
from ldm.models.sampler import scheduler_for
from ldm.speed import matmul_flops_per_s

RANDN = "diffusers.pipelines.deprecated.latent_diffusion_uncond.pipeline_latent_diffusion_uncond.randn_tensor"


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


def pipeline_of(autoencoder: Autoencoder, denoiser: Denoiser, sampler: SamplerConfig, device: str) -> LDMPipeline:
    """diffusers' pipeline over the same weights."""
    net = denoiser.net.net
    net.register_to_config(sample_size=denoiser.latent_shape[-1])
    scheduler = scheduler_for(sampler, denoiser.objective.target)
    if not hasattr(scheduler, "init_noise_sigma"):  # the pipeline asks for what solvers of flows have no need of
        scheduler.init_noise_sigma, scheduler.scale_model_input = 1.0, lambda z, t: z
    pipeline = LDMPipeline(vqvae=as_vqmodel(autoencoder), unet=net, scheduler=scheduler).to(device)
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
    compiled = "_compiled" if inference.compile else ""
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


def trained(folder: Path, precision: str, device: str) -> tuple[Run, Autoencoder, Denoiser]:
    """A run and its networks."""
    run = Run(load(str(folder / "run.yaml"), [f"run={folder}"]))
    inference = InferenceConfig(precision=precision)
    return run, load_autoencoder(run.vqgan, device, inference=inference), load_denoiser(run.diffusion, device, inference=inference)


def counts_by(generator: Generator, ids: range) -> Tensor:
    """Stored counts of images by number, (N, C, H, W)."""
    return torch.from_numpy(np.stack([cube.data_CHW for cube in generator.images(ids)]))


def equal_quality(folder: Path, few: SamplerConfig, device: str, images: int, rounds: int) -> dict[str, Any]:
    """One row: fewer steps against the pipeline's 50."""
    precision = "bf16" if device == "cuda" else "fp32"
    run, autoencoder, denoiser = trained(folder, precision, device)
    _, exact, plain = trained(folder, "fp32", device)
    models = Models(autoencoder, denoiser, get_extractor("seeded-conv-v1", run.open(run.dataset).stats), run.config.sample.quantise)
    held_out_ND, train_ND = real_features(models, run.open(run.dataset))
    white = whitening(train_ND)
    many = SamplerConfig(name="flow-euler" if denoiser.objective.target == "flow" else "ddim", steps=50)
    case = Case(name="", size=0, width=0, base=0, batch=16, images=16, steps=50)
    # other noise than that of steps.py, by whose figures the few steps were chosen
    how = {"autoencoder": autoencoder, "denoiser": denoiser, "seed": 1, "batch": case.batch}
    features = {sampler: white(models.features(counts_by(Generator(sampler=sampler, **how), range(images)))) for sampler in (few, many)}
    low, high = difference(white(held_out_ND), features[few], features[many])
    distances = [frechet_distance(white(held_out_ND), features[sampler]) for sampler in (few, many)]
    print(f"  Fréchet distance to people held out: ours {distances[0]:.2f}, the pipeline's {distances[1]:.2f}; {low:+.2f} to {high:+.2f}")
    pipeline = pipeline_of(exact, plain, many, device)
    found = row(
        f"{'gpu' if device == 'cuda' else 'cpu'}_equal_quality_vs_diffusers",
        lambda: list(Generator(sampler=few, **how).images(range(case.images))),
        lambda: by_pipeline(pipeline, case, case.steps, precision),
        lambda ours, image: low <= 0,
        rounds,
    )
    return {**found, "frechet": distances, "frechet_less_other": [low, high]}


def precisions(folder: Path, device: str, images: int) -> dict[str, Any]:
    """One row: the same images in bf16 and in fp32."""
    counts, seconds = {}, {}
    for precision, seed in (("fp32", 0), ("bf16", 0), ("fp32", 1)):
        run, autoencoder, denoiser = trained(folder, precision, device)
        generator = Generator(autoencoder=autoencoder, denoiser=denoiser, seed=seed, sampler=run.config.diffusion.sampler, batch=16)
        began = time.perf_counter()
        counts[precision, seed] = counts_by(generator, range(images))
        seconds[precision, seed] = time.perf_counter() - began
    models = Models(autoencoder, denoiser, get_extractor("seeded-conv-v1", run.open(run.dataset).stats), run.config.sample.quantise)
    features = {key: models.features(stored) for key, stored in counts.items()}
    exact, half = counts["fp32", 0].float(), counts["bf16", 0].float()
    apart = (exact - half).abs()
    distance = frechet_distance(features["fp32", 0], features["bf16", 0])
    floor = frechet_distance(features["fp32", 0], features["fp32", 1])
    print(
        f"bf16 against fp32, {images} images: mean {apart.mean():.2f} counts apart, most {apart.max():.0f}; deviation {exact.std():.0f}; "
        f"Fréchet distance {distance:.3g}, of two sets of other noise {floor:.3g}"
    )
    return {
        "case": "bf16_vs_fp32",
        "ours": seconds["bf16", 0],
        "other": seconds["fp32", 0],
        "unit": "s",
        "ratio": seconds["fp32", 0] / seconds["bf16", 0],
        "equal": distance < floor,
        "mean_counts": float(apart.mean()),
        "largest_counts": float(apart.max()),
        "deviation_counts": float(exact.std()),
        "frechet": distance,
        "frechet_floor": floor,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small case, within 50 s on two cores")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--run", type=Path, help="of a trained run; nothing is written there")
    parser.add_argument("--few", type=int, default=8, help="steps of flow-heun, of `equal_quality`, with a shift of 2 (default 8)")
    parser.add_argument("--images", type=int, default=256, help="of each set whose quality is measured (default 256)")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    inference = InferenceConfig(precision="bf16") if device == "cuda" else FP32
    began, rows = time.perf_counter(), []
    for case in CASES["quick" if args.quick else device]:
        rows.append(equal_steps(case, device, inference, args.rounds))
        if device == "cuda" and time.perf_counter() - began < 300:
            rows.append(equal_steps(case, device, replace(inference, compile=True), 1))
    other = {"cuda": "cpu", "cpu": "gpu"}[device]
    missing = {f"{other}_{what}_vs_diffusers": f"this machine's rows are {device}" for what in ("equal_steps", "equal_quality")}
    if args.run:
        few = SamplerConfig(name="flow-heun", steps=args.few, sigma_min=1 / args.few, shift=2.0)
        rows.append(equal_quality(args.run, few, device, args.images, args.rounds))
        rows.append(precisions(args.run, device, min(args.images, 64)))
    else:
        missing["equal_quality"] = missing["bf16_vs_fp32"] = "wants a trained run: --run runs/demo"
    finish("sample", rows, missing)


if __name__ == "__main__":
    main()
