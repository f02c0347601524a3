"""What lifts the samples: each option of the trainings alone against the demo without it, by the same processor time, over several seeds.

    python benchmarks/lifts.py FOLDER          # as often at once as there are cores; who is killed is started again

Data and the judge's feature encoder are made once, in FOLDER/shared. A trial is a run folder of its own, so every verb looks into it. A
trial whose option changes only the denoiser, or the sampling, takes the autoencoder of the plain trial of its seed. What it costs is
measured first, in processor time by turns with the plain step, and its trainings are shortened by so much.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rounds import by_turns

from data_shards import durable
from data_shards.ledger import Ledger, Units
from data_shards.reading.dataset import Dataset
from launch import build
from launch.cli.display import Terminal
from launch.config import Config
from launch.run import Run, device
from launch.stages import STAGES
from launch.sweep.runs import link
from launch.tree import load
from launch.work import work
from ldm.evaluation.features import get_extractor
from ldm.evaluation.frechet import frechet_distance
from ldm.evaluation.sets import common_fov, reflectance
from ldm.evaluation.whitening import whitening
from ldm.generation.decode import stream_of
from ldm.training.engine import Engine

SPACES = ("seeded-conv-v1", "learned", "efficientnet-lite0")
GUIDE_SHARE = 1 / 6  # of the samples that a guided denoiser and its guide are trained on together
STEPS = 4  # of a turn, as costs are measured
PLAIN = "plain"


@dataclass(frozen=True)
class Option:
    """What is tried: its setting, and the training that it changes."""

    words: tuple[str, ...] = ()
    stage: str = "vqgan"
    guided: bool = field(default=False, kw_only=True)


OPTIONS = {
    PLAIN: Option(),
    "perceptual": Option(("vqgan.loss.perceptual=1",)),
    "equivariance": Option(("vqgan.loss.equivariance=0.5",)),
    "uniform times": Option(("diffusion.objective.times=uniform",), "diffusion"),
    "alignment": Option(("diffusion.alignment=0.5",), "diffusion"),
    "guide": Option((), "diffusion", guided=True),
    "averaged": Option(("vqgan.ema.halflife_samples=200",)),
    "r1": Option(("vqgan.loss.r1=10",)),
}


class Trials(Units):
    """All options by all seeds, seed by seed."""

    def __init__(self, folder: Path, seeds: int, words: list[str]) -> None:
        self.out, self.words = folder, words
        self.trials = [(option, seed) for seed in range(seeds) for option in OPTIONS]
        self.names = [f"{option.replace(' ', '-')}-{seed}" for option, seed in self.trials]

    def config(self, name: str, option: Option = OPTIONS[PLAIN], seed: int = 0) -> Config:
        seeded = [f"vqgan.loop.seed={seed}", f"diffusion.loop.seed={seed}", "sample.count=384", "sample.labels=false"]
        return load("demo", [f"run={self.out / name}", *seeded, *self.words, *option.words])

    @cached_property
    def shared(self) -> Run:
        run = Run(self.config("shared"))
        for stage in ("data", "features"):
            if not STAGES[stage].done(run):
                STAGES[stage].make(run, Terminal())
        return run

    def published(self, number: int) -> bool:
        return (self.out / self.names[number] / "trial.json").exists()

    def ready(self, number: int) -> bool:
        option, seed = self.trials[number]
        return option == PLAIN or self.published(self.trials.index((PLAIN, seed)))

    def size(self, number: int) -> int:
        return 1

    def make(self, number: int) -> None:
        name, seed = self.trials[number]
        option, folder, cost = OPTIONS[name], self.out / self.names[number], 1.0
        link(folder, [self.shared.folder / "data", self.shared.features, self.shared.features.with_suffix(".json")])
        config = self.config(folder.name, option, seed)
        plain = self.out / f"{PLAIN}-{seed}"
        if option.words:
            cost = self.cost_of(option, folder)
            config = shortened(config, option.stage, 1 / cost)
        if option.stage == "diffusion":
            link(folder, [plain / "vqgan", plain / "latents", plain / "health.json"])
        if option.guided:
            config = replace(config, sample=replace(config.sample, guide=str(self.guide(folder, config))))
            config = shortened(config, "diffusion", 1 - GUIDE_SHARE)
        run = Run(config)
        for stage in ("vqgan", "encode", "diffusion", "sample"):
            if not STAGES[stage].done(run):
                STAGES[stage].make(run, Terminal())
        rebuilt = {"psnr_db": psnr_db(run)}
        durable.write_json(folder / "trial.json", {"cost": cost, **rebuilt, **judged(self.shared, Dataset(run.synthetic))})

    def guide(self, folder: Path, config: Config) -> Path:
        """Trained for a sixth of the time, on the same latents."""
        worse = Run(shortened(replace(config, run=str(folder / "guide")), "diffusion", GUIDE_SHARE))
        link(worse.folder, [folder / "latents", folder / "vqgan", folder / "data"])
        if not STAGES["diffusion"].done(worse):
            STAGES["diffusion"].make(worse, Terminal())
        return worse.diffusion

    def cost_of(self, option: Option, folder: Path) -> float:
        """Processor time of a training with the option over that of the plain one; of the autoencoder's, before and after the
        discriminator joins, each by its share."""
        path = folder / "cost.json"
        if not path.exists():
            latents = self.out / f"{PLAIN}-0" / "latents"
            plain, ours = (self.config("costs", of) for of in (OPTIONS[PLAIN], option))
            costs = []
            for joins in (1 << 40, 0) if option.stage == "vqgan" else (0,):
                sides = [of_steps(with_start(config, joins), option.stage, self.shared, latents) for config in (ours, plain)]
                _, _, cpu = by_turns(*sides, rounds=5)
                costs.append((cpu[0], cpu[1]))
            share = 1 - plain.vqgan.loss.gan_start_samples / plain.vqgan.loop.samples if option.stage == "vqgan" else 0.0
            weights = (1 - share, share)
            total = [sum(w * cost[side] for w, cost in zip(weights, costs, strict=False)) for side in (0, 1)]
            durable.write_json(path, total[0] / total[1])
        return json.loads(path.read_text())

    def finish(self) -> None:
        return None


def with_start(config: Config, samples: int) -> Config:
    """The discriminator joins there, and codes are used from the first step on."""
    vqgan = config.vqgan
    codebook = replace(vqgan.codebook, warmup_epochs=0, kmeans="never")
    return replace(config, vqgan=replace(vqgan, codebook=codebook, loss=replace(vqgan.loss, gan_start_samples=samples)))


def of_steps(config: Config, stage: str, shared: Run, latents: Path) -> Callable[[], None]:
    """A function that trains on by STEPS steps."""
    section, cubes = getattr(config, stage), shared.open(shared.dataset)
    engine = Engine(replace(section.engine, tracker="none"), batch=section.loop.batch)
    if stage == "vqgan":
        trainer, stream, _ = build.vqgan_trainer(section, cubes, engine, features=shared.features)
    else:
        trainer, stream, _ = build.diffusion_trainer(section, Dataset(latents), engine, features=shared.features, cubes=lambda: cubes)
    batches = stream.batches(0)

    def train() -> None:
        for _ in range(STEPS):
            losses, _ = trainer.losses(next(batches), train.samples)
            engine.backward(losses)
            engine.gradient_norms()
            engine.step(trainer.learning_rates(train.samples))
            train.samples += section.loop.batch
            trainer.after_step(train.samples, section.loop.batch, skipped=False)

    train.samples = 0
    return train


def shortened(config: Config, stage: str, share: float) -> Config:
    """With so much of the training, the discriminator at the same share of it; whole batches and checkpoint intervals."""
    section = getattr(config, stage)
    loop = section.loop
    samples = loop.batch * max(1, round(loop.samples * share / loop.batch))
    section = replace(section, loop=replace(loop, samples=samples))
    if stage == "vqgan":
        start = loop.batch * round(section.loss.gan_start_samples * share / loop.batch)
        section = replace(section, loss=replace(section.loss, gan_start_samples=start))
    return replace(config, **{stage: section})


def features(shared: Run, space: str, dataset: Dataset, split: str) -> np.ndarray:
    """(N, D) of all images of a split."""
    real = shared.open(shared.dataset)
    extractor = get_extractor(space, real.stats, wavelengths_nm=real.wavelengths_nm, learned=shared.features, device=device())
    stream = stream_of(dataset, split, batch_size=16)
    fov_HW, samples = common_fov(real, real.stats.split), np.arange(dataset.count(split))
    found = [extractor(reflectance(dataset, batch.cubes_BCHW, device(), fov_HW)) for batch in stream.each(samples)]
    return np.concatenate([np.asarray(x, np.float64) for x in found])


def judged(shared: Run, synthetic: Dataset) -> dict[str, Any]:
    """Fréchet distance to all people held out, on whitened features, of the set, and of as many training images."""
    real = shared.open(shared.dataset)
    held_out = [name for name, info in real.splits.items() if info.count and name != "train"]
    figures = {}
    for space in SPACES:
        train_ND = features(shared, space, real, "train")
        white = whitening(train_ND)
        held_out_ND = white(np.concatenate([features(shared, space, real, split) for split in held_out]))
        ours_ND = white(features(shared, space, synthetic, "synthetic"))
        figures[space] = {"frechet": frechet_distance(held_out_ND, ours_ND), "floor": frechet_distance(held_out_ND, white(train_ND))}
    return figures


def psnr_db(run: Run) -> float:
    """Of people held out, in reflectance, of a peak of 1."""
    from ldm.checkpoints.trained import load_autoencoder

    autoencoder, real = load_autoencoder(run.vqgan, device()), run.open(run.dataset)
    errors = []
    for split in (name for name, info in real.splits.items() if info.count and name != "train"):
        stream = stream_of(real, split, batch_size=8)
        for batch in stream.each(np.arange(real.count(split))):
            rebuilt, _ = autoencoder.reconstruct(batch.cubes_BCHW, batch.fov_BHW)
            error = (rebuilt - reflectance(real, batch.cubes_BCHW, device())).square()
            inside = batch.fov_BHW[:, None].float().expand_as(error) if batch.fov_BHW is not None else 1 + 0 * error
            errors += ((error * inside).sum((1, 2, 3)) / inside.sum((1, 2, 3))).tolist()
    return float(-10 * np.log10(np.mean(errors)))


def table(trials: Trials) -> Iterator[str]:
    """Rows of Markdown: ratio of each Fréchet distance to the plain trial's of the same seed, mean and each."""
    yield f"| option | cost of a step | PSNR, dB | {' | '.join(SPACES)} |"
    yield "|---" * (3 + len(SPACES)) + "|"
    for option in OPTIONS:
        pairs = []
        for number, (name, seed) in enumerate(trials.trials):
            plain = trials.trials.index((PLAIN, seed))
            if name == option and trials.published(number) and trials.published(plain):
                pairs.append([json.loads((trials.out / trials.names[i] / "trial.json").read_text()) for i in (number, plain)])
        if not pairs:
            continue
        cells = [
            f"{statistics.mean(ours['cost'] for ours, _ in pairs):.2f}",
            f"{statistics.mean(ours['psnr_db'] for ours, _ in pairs):.2f}",
        ]
        for space in SPACES:
            if option == PLAIN:
                cells.append(", ".join(f"{ours[space]['frechet']:.2f}" for ours, _ in pairs))
                continue
            ratios = [ours[space]["frechet"] / plain[space]["frechet"] for ours, plain in pairs]
            cells.append(f"{np.exp(np.mean(np.log(ratios))):.2f} ({', '.join(f'{r:.2f}' for r in ratios)})")
        yield f"| {option} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("overrides", nargs="*", help="of the demo's configuration, in all trials")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", action="store_true", help="print what is there, and make nothing")
    asked = parser.parse_intermixed_args()
    trials = Trials(asked.folder, asked.seeds, asked.overrides)
    if not asked.table:
        with trials:
            work(trials, Ledger(trials.shared.folder.parent))
    print("\n".join(table(trials)))


if __name__ == "__main__":
    main()
