"""What k-means at each epoch brings to a VQ-GAN: against k-means once, exponential averages alone, and other codebooks.

Every arm trains the same network on the same cubes in the same order, from the same weights, with several seeds, and differs in its
codebook alone. Told are the samples until the validation error falls to levels that the slowest arm passes, codes in use,
perplexity, and the PSNR of held-out people at the end. A folder of an earlier call is gone on with.

Not a benchmark of time: `ratio` of a row is the speed in samples, those to the last level of the other arm over those of the first named.
`equal` says that both got there.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rounds import finish

from data_shards import durable
from launch.cli.display import Hidden
from launch.run import Run
from launch.stages import STAGES
from launch.stages.training import trained as is_trained
from launch.tree import load

ARMS = {
    "k-means every epoch": ["vqgan.codebook.kmeans=every_epoch"],
    "k-means at first": ["vqgan.codebook.kmeans=first"],
    "averages alone": ["vqgan.codebook.kmeans=never"],
    "k-means every epoch, rotation": ["vqgan.codebook.kmeans=every_epoch", "vqgan.codebook.gradient=rotation"],
    "SimVQ": ["vqgan.codebook.kmeans=never", "vqgan.codebook.kind=simvq"],
    # as many codes; a warm-up would teach latents that the bounds then cut off
    "FSQ": [
        *("vqgan.codebook.kmeans=never", "vqgan.codebook.kind=fsq", "vqgan.codebook.levels=[4,4,4,4,4]", "vqgan.codebook.warmup_epochs=0"),
        "vqgan.model.latent_channels=5",
    ],
}
SIZES = {
    "demo": ["demo", "vqgan.loop.checkpoint_every=192", "vqgan.loop.validate_samples=24"],
    "224": [
        *("retina-224", "data.subjects=60", "data.visits=1", "vqgan.model.channels=16"),
        *("vqgan.model.layers=1", "vqgan.model.norm_groups=1", "vqgan.codebook.kmeans_vectors=16384"),
        *("vqgan.discriminator.channels=16", "vqgan.loss.gan=0.1", "vqgan.loss.gan_start_samples=768", "vqgan.engine.precision=fp32"),
        *("vqgan.optimizer.lr=2e-3", "vqgan.optimizer.decay=cosine", "vqgan.optimizer.warmup_samples=80"),
        *("vqgan.loop.samples=1152", "vqgan.loop.batch=2", "vqgan.loop.checkpoint_every=96", "vqgan.loop.validate_samples=12"),
    ],
}  # 224: the published preset, narrow and short enough for two cores
COLOURS = ["#0b6e4f", "#c8553d", "#3a6ea5", "#8f6bb3", "#b8860b", "#6b6b6b"]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        default=Path("runs/codebooks"),
        help="where the runs stand, and what was found: codebooks.json, codebooks.svg",
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--at-once", type=int, default=os.cpu_count(), help="trainings beside each other, one thread each")
    parser.add_argument(
        "--quick", action="store_true", help="few eyes, two arms, one seed, 96 samples: whether it runs, not what comes out"
    )
    return parser.parse_args()


def configuration(size: str, arm: str, seed: int, folder: Path, more: list[str]) -> list[str]:
    """The words after `retinaforge train vqgan` of one training."""
    name = f"{size}-{arm.replace(' ', '-')}-{seed}"
    data = f"data.dataset={folder / f'data-{size}' / 'data'}"
    return [*SIZES[size], *ARMS[arm], f"run={folder / name}", data, f"vqgan.loop.seed={seed}", *more]


def trained(words: list[str]) -> dict[str, Any]:
    """One training, in a process of its own; the curve of its validation and what it ended with."""
    run = Run(load(words[0], words[1:]))
    kept = run.folder / "arm.json"
    if not is_trained(run, "vqgan"):
        with (run.folder.parent / f"{run.folder.name}.log").open("w") as log:
            command = [sys.executable, "-m", "launch", "train", "vqgan", *words]
            subprocess.run(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    if not kept.exists():
        durable.write_json(kept, result(run))
    return json.loads(kept.read_text())


def result(run: Run) -> dict[str, Any]:
    """Validation while codes are in use, by samples; usage, perplexity and PSNR of the last weights; seconds."""
    from ldm.checkpoints.trained import load_autoencoder
    from ldm.evaluation.reconstruction import reconstruction

    rows = [json.loads(line) for line in (run.vqgan / "metrics.jsonl").read_text().splitlines()]
    dataset, stage = run.open(run.dataset), run.config.vqgan
    quantised = stage.codebook.warmup_epochs * dataset.count("train")
    curve = [(row["samples"], row["val/l1"]) for row in rows if "val/l1" in row and row["samples"] > quantised]
    epochs = [(row["samples"], row["codes/usage_epoch"]) for row in rows if "codes/usage_epoch" in row]
    rebuilt = asdict(reconstruction(dataset, load_autoencoder(run.vqgan)))
    told = {name: rebuilt[name] for name in ("psnr_db", "psnr_gain_db", "codes_used", "codes_perplexity", "spectral_angle_rad")}
    kmeans_s = sum(row.get("speed/kmeans_s", 0.0) for row in rows)
    return {**told, "curve": curve, "usage_by_epoch": epochs, "kmeans_s": kmeans_s}


def samples_to(level: float, curve: list[tuple[int, float]]) -> float:
    """Samples until the validation error is at the level for the first time, between two judgements in a straight line."""
    before = None
    for samples, error in curve:
        if error <= level:
            if before is None or before[1] == error:
                return float(samples)
            return before[0] + (samples - before[0]) * (before[1] - level) / (before[1] - error)
        before = (samples, error)
    return float("inf")


def levels_of(arms: dict[str, list[dict[str, Any]]]) -> list[float]:
    """The errors that every training has reached after a half, three quarters and all of its samples."""
    curves = [one["curve"] for seeds in arms.values() for one in seeds]
    return [max(min(error for samples, error in curve if samples <= part * curve[-1][0]) for curve in curves) for part in (0.5, 0.75, 1.0)]


def mean_curve(found: list[dict[str, Any]], name: str = "curve") -> list[tuple[int, float]]:
    """Mean over the seeds."""
    return [(points[0][0], statistics.mean(p[1] for p in points)) for points in zip(*(f[name] for f in found), strict=True)]


def spread(values: list[float]) -> str:
    """Mean, and what lies on both sides of it."""
    return f"{statistics.mean(values):.4g} ({min(values):.4g} to {max(values):.4g})"


def drawn(found: dict[str, dict[str, list[dict[str, Any]]]], out: Path) -> None:
    """Validation error and use of codes, a column a size, a colour an arm; thin lines are seeds."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams |= {"svg.hashsalt": "codebooks", "svg.fonttype": "none", "font.size": 9}
    figure, axes = plt.subplots(2, len(found), figsize=(5 * len(found), 6), squeeze=False)
    for column, (size, arms) in enumerate(found.items()):
        top, bottom = axes[0][column], axes[1][column]
        for colour, (arm, seeds) in zip(COLOURS, arms.items(), strict=False):
            for one in seeds:
                for axis, name in ((top, "curve"), (bottom, "usage_by_epoch")):
                    axis.plot(*zip(*one[name], strict=True), color=colour, alpha=0.3, linewidth=0.8)
            for axis, name in ((top, "curve"), (bottom, "usage_by_epoch")):
                axis.plot(*zip(*mean_curve(seeds, name), strict=True), color=colour, label=arm)
        title = {"demo": "96×96, f4"}.get(size, f"{size}×{size}, f8")
        top.set(title=title, xlabel="samples", ylabel="validation L1 (normalised)")
        bottom.set(xlabel="samples", ylabel="share of codes used in an epoch", ylim=(0, 1.02))
        top.legend(frameon=False)
        for axis in (top, bottom):
            axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(out, metadata={"Date": None})


def main() -> None:
    args = arguments()
    durable.make_folder(args.folder)
    more = ["vqgan.loop.samples=96", "vqgan.loop.checkpoint_every=48", "vqgan.codebook.warmup_epochs=0"] if args.quick else []
    sizes, seeds = (["demo"], 1) if args.quick else (args.sizes, args.seeds)
    if args.quick:
        SIZES["demo"] += ["data.subjects=8", "data.visits=1"]
        args.arms = args.arms[:2]
    for size in sizes:
        STAGES["data"].make(Run(load(SIZES[size][0], [*SIZES[size][1:], f"run={args.folder / f'data-{size}'}"])), Hidden())
    asked = [(size, arm, seed) for size in sizes for seed in range(seeds) for arm in args.arms]
    with ThreadPoolExecutor(args.at_once) as pool:
        results = list(pool.map(lambda one: trained(configuration(*one, args.folder.resolve(), more)), asked))
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for (size, arm, _), one in zip(asked, results, strict=True):
        found.setdefault(size, {}).setdefault(arm, []).append(one)
    rows = []
    for size, arms in found.items():
        levels = levels_of(arms)
        reached = {arm: [[samples_to(level, one["curve"]) for one in seeds] for level in levels] for arm, seeds in arms.items()}
        print(f"\n{size}: samples to a validation error of {', '.join(f'{level:.4f}' for level in levels)}")
        for arm, seeds in arms.items():
            print(f"  {arm:24}", "; ".join(spread(at) for at in reached[arm]))
            for name in ("codes_used", "codes_perplexity", "psnr_db", "psnr_gain_db", "spectral_angle_rad", "kmeans_s"):
                print(f"    {name:20} {spread([one[name] for one in seeds])}")
        ours = statistics.mean(reached[args.arms[0]][-1])
        for arm in args.arms[1:]:
            other = statistics.mean(reached[arm][-1])
            case = f"{size}_{args.arms[0]}_vs_{arm}".replace(" ", "_")
            numbers = {"ours": ours, "other": other, "unit": "samples", "ratio": other / ours, "cpu_ratio": None}
            rows.append({"case": case, **numbers, "equal": math.isfinite(ours + other)})
    durable.write_json(args.folder / "codebooks.json", found)
    drawn(found, args.folder / "codebooks.svg")
    finish("codebooks", rows)


if __name__ == "__main__":
    main()
