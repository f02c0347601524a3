"""Fewer steps against quality, on a trained run: solvers, steps, times and cached features, all from the same noise.

Told of each are the denoiser's calls an image; the time of denoising beside that of the run's own sampler (by turns, batch by batch); the
root mean square difference of the images, in counts, to those of the converged solution; and the Fréchet distance to people
held out of training on whitened features, as `evaluate` takes it, beside the one of training people. The first tells of small losses,
which the last cannot see.

`ratio` of a row is the speed over the run's own sampler. `equal` says that the Fréchet distance is no larger than that one's: 0 or
less lies within 95 % of their difference over images drawn with replacement, the same ones of both.
Legend: B batch, N image, C band, D feature, H W pixels.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rounds import finish

from data_shards.reading.dataset import Dataset
from data_shards.reading.stream import CubeStream
from launch.run import Run, device
from launch.tree import load
from ldm.checkpoints.trained import Autoencoder, Denoiser, load_autoencoder, load_denoiser
from ldm.evaluation.features import Extractor, get_extractor
from ldm.evaluation.frechet import frechet_distance
from ldm.evaluation.sets import evenly
from ldm.evaluation.whitening import Whitening, whitening
from ldm.generation.images import latents_of
from ldm.models.config import SAMPLERS, SamplerConfig
from ldm.models.sampler import scheduler_for

STEPS = {
    "flow-heun": (30, 15, 8, 4),
    "flow-euler": (60, 30, 15, 8),
    "dpm++": (30, 15, 8),
    "unipc": (30, 15, 8),
    "ddim": (60, 30, 15),
}
RESAMPLES = 200


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/demo"), help="of a trained run; nothing is written")
    parser.add_argument("--images", type=int, default=256, help="of each arm (default 256)")
    parser.add_argument("--converged", type=int, default=64, help="images of the converged solution (default 64)")
    parser.add_argument("--steps", type=int, default=200, help="of the converged solution (default 200)")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--quick", action="store_true", help="few images and arms: whether it runs, not what comes out")
    return parser.parse_args()


def arms_of(own: SamplerConfig, target: str, *, quick: bool) -> dict[str, SamplerConfig]:
    """What is compared, by a name that says how it differs; the first is the run's own."""
    arms = [own, *([replace(own, sigma_min=1 / own.steps)] if target == "flow" and own.steps > 1 else [])]
    for name in (name for name in STEPS if target in SAMPLERS[name]):
        arms += [SamplerConfig(name=name, steps=steps) for steps in STEPS[name]]
        if target == "flow":
            even = [SamplerConfig(name=name, steps=steps, sigma_min=1 / steps) for steps in STEPS[name][1:]]
            arms += [*even, *(replace(even[-2], shift=shift) for shift in (0.5, 2))]
    arms += [replace(own, cache_every=every) for every in (2, 3, 5)]
    if quick:
        arms = [own, *(arm for arm in arms if arm.steps == 8 and arm.shift == 1), replace(own, cache_every=2)]
    return {described(arm): arm for arm in arms}


def described(arm: SamplerConfig) -> str:
    """`flow-euler 15 shift 2`: the solver, its steps, and what is not the default."""
    others = ((key, getattr(arm, key)) for key in ("shift", "sigma_min", "cache_every"))
    return " ".join([arm.name, str(arm.steps), *(f"{key} {value:.3g}" for key, value in others if value != getattr(SamplerConfig, key))])


def calls_of(arm: SamplerConfig, target: str) -> int:
    """How often the denoiser is asked for an image."""
    scheduler = scheduler_for(arm, target)
    scheduler.set_timesteps(arm.steps)
    return len(scheduler.timesteps)


@dataclass
class Arm:
    """What was measured of one sampler: seconds a batch, wall and processor; features; squares of differences to the converged images."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    features_ND: list[np.ndarray] = field(default_factory=list)
    squares_N: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Models:
    """The trained pair, and what looks at its images."""

    autoencoder: Autoencoder
    denoiser: Denoiser
    extractor: Extractor
    quantise: bool

    def counts(self, sampler: SamplerConfig, ids_B: np.ndarray, arm: Arm | None = None) -> torch.Tensor:
        """Stored counts of images by number; the time that denoising took is noted."""
        began, used = time.perf_counter(), time.process_time()
        z_BDHW = latents_of(self.denoiser, ids_B, seed=0, sampler=sampler)
        z_BDHW.sum().item()  # waits for a GPU
        if arm is not None:
            arm.wall_s.append(time.perf_counter() - began)
            arm.cpu_s.append(time.process_time() - used)
        return self.autoencoder.decode(z_BDHW, quantise=self.quantise)

    def features(self, counts_BCHW: torch.Tensor, dataset: Dataset | None = None) -> np.ndarray:
        """Features of stored counts: of a dataset's, or of our own."""
        data = self.autoencoder.data
        scale, offset = (dataset.scale, dataset.offset) if dataset else (data["scale"], data["offset"])
        return self.extractor(counts_BCHW.float() * scale + offset).numpy()

    def squares(self, a_BCHW: torch.Tensor, b_BCHW: torch.Tensor) -> list[float]:
        """Mean square of the difference of each image, within the field of view."""
        gap_BCN = (a_BCHW.float() - b_BCHW.float())[..., self.autoencoder.fov_HW]
        return gap_BCN.square().mean((1, 2)).tolist()


def measured(models: Models, arms: dict[str, SamplerConfig], args: argparse.Namespace) -> tuple[dict[str, Arm], float]:
    """All arms, by turns; and how far two images of different noise lie apart, root mean square in counts."""
    found, apart = {label: Arm() for label in arms}, []
    exact = SamplerConfig(steps=args.steps)
    for first in range(0, args.images, args.batch):
        ids_B = np.arange(first, min(first + args.batch, args.images))
        converged_BCHW = models.counts(exact, ids_B) if first < args.converged else None
        if converged_BCHW is not None:
            apart += models.squares(converged_BCHW, converged_BCHW.roll(1, 0))
        for label, sampler in arms.items():
            counts_BCHW = models.counts(sampler, ids_B, found[label])
            found[label].features_ND.append(models.features(counts_BCHW))
            if converged_BCHW is not None:
                found[label].squares_N += models.squares(counts_BCHW, converged_BCHW)
    return found, statistics.mean(apart) ** 0.5


def real_features(models: Models, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Of the images of people held out of training, and of those in it."""
    by_split = {
        split: np.concatenate([models.features(batch.cubes_BCHW, dataset) for batch in CubeStream(dataset, split, batch_size=16).once()])
        for split, info in dataset.splits.items()
        if info.count
    }
    train_ND = by_split.pop("train")
    return np.concatenate(list(by_split.values())), train_ND


def difference(real_ND: np.ndarray, arm_ND: np.ndarray, own_ND: np.ndarray) -> tuple[float, float]:
    """2.5 and 97.5 percentiles of the Fréchet distance of an arm less that of the run's own sampler, over images drawn with replacement."""
    rng = np.random.default_rng(0)
    drawn = [rng.integers(len(own_ND), size=len(own_ND)) for _ in range(RESAMPLES)]
    gaps = [frechet_distance(real_ND, arm_ND[rows]) - frechet_distance(real_ND, own_ND[rows]) for rows in drawn]
    low, high = np.quantile(gaps, (0.025, 0.975))
    return float(low), float(high)


def rows_of(found: dict[str, Arm], calls: dict[str, int], real_ND: np.ndarray, white: Whitening) -> list[dict[str, Any]]:
    """A line of the table for each arm, and its row."""
    features = {label: white(np.concatenate(arm.features_ND)) for label, arm in found.items()}
    first, *_ = found
    own, images, rows = found[first], len(features[first]), []
    print(f"{'':36} calls    time  rms counts   Fréchet  less the run's own, 95 %")
    for label, arm in found.items():
        wall, cpu = (
            statistics.median(a / b for a, b in zip(mine, of_own, strict=True))
            for mine, of_own in ((arm.wall_s, own.wall_s), (arm.cpu_s, own.cpu_s))
        )
        low, high = difference(real_ND, features[label], features[first]) if arm is not own else (0.0, 0.0)
        rms, frechet = statistics.mean(arm.squares_N) ** 0.5, frechet_distance(real_ND, features[label])
        print(f"{label:36} {calls[label]:5} {wall:7.3f}  {rms:10.2f}  {frechet:8.2f}  {low:+.2f} to {high:+.2f}", flush=True)
        times = {"ours": sum(arm.wall_s) / images, "other": sum(own.wall_s) / images, "unit": "s", "ratio": 1 / wall, "cpu_ratio": 1 / cpu}
        quality = {"calls": calls[label], "rms_counts": rms, "frechet": frechet, "frechet_less_own": [low, high]}
        rows.append({"case": label.replace(" ", "_"), **times, "equal": low <= 0, **quality})
    return rows


def main() -> None:
    args = arguments()
    if args.quick:
        args.images, args.converged, args.steps, args.batch = 16, 8, 20, 8
    run = Run(load(str(args.folder / "run.yaml"), [f"run={args.folder}"]))
    dataset, autoencoder, denoiser = run.open(run.dataset), load_autoencoder(run.vqgan, device()), load_denoiser(run.diffusion, device())
    target = denoiser.objective.target
    models = Models(autoencoder, denoiser, get_extractor("seeded-conv-v1", dataset.stats), run.config.sample.quantise)
    arms = arms_of(run.config.diffusion.sampler, target, quick=args.quick)
    found, apart = measured(models, arms, args)
    held_out_ND, train_ND = real_features(models, dataset)
    white = whitening(train_ND)
    rows = rows_of(found, {label: calls_of(arm, target) for label, arm in arms.items()}, white(held_out_ND), white)
    trained_ND = train_ND[evenly(len(train_ND), args.images)]
    floor = frechet_distance(white(held_out_ND), white(trained_ND))
    print(f"images of different noise are {apart:.2f} counts apart; Fréchet distance of {len(trained_ND)} training images: {floor:.2f}")
    finish("steps", rows)


if __name__ == "__main__":
    main()
