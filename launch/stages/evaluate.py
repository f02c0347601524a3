"""Stage evaluate: reconstruction of held-out people, evaluation of the set, and the baseline of decoded Gaussian latents."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from data_shards import durable
from data_shards.manifest import NAME, read_manifest
from data_shards.packing.splits import LEAST_PEOPLE, held_out_split
from data_shards.reading.dataset import Dataset
from launch.headline import HEADLINE
from launch.run import Run, device, figures, record
from launch.stages.stage import Display, Stage, check_sampled, check_trained

BASELINE_IMAGES = 1024
MORE_PEOPLE = "retinaforge data pack FOLDER DATASET --splits train=0.7,val=0.2,test=0.1, into another folder"


class Evaluate(Stage):
    name, verb, after = "evaluate", "evaluate", ("sample",)
    reads, writes = "dataset, `synthetic/`", "`evaluate.json`, `reconstruction.json`, `gaussian-latents/`"

    def check(self, run: Run) -> None:
        check_trained(run, "vqgan", "diffusion")
        check_sampled(run)

    def done(self, run: Run) -> bool:
        """It has seen the present sets, and as this version judges."""
        from ldm.evaluation.evaluate import FORMAT

        path = run.folder / "evaluate.json"
        if not (path.exists() and (run.synthetic / NAME).exists()):
            return False
        if not {figure.key for figure in HEADLINE} - {"seconds"} <= set(figures(run)):
            return False
        seen = json.loads(path.read_text())
        if seen["format"] != FORMAT:
            return False
        sets = (seen["reference"]["digest"], seen["synthetic"]["digest"])
        return sets == (run.open(run.dataset).digest, Dataset(run.synthetic).digest)

    def make(self, run: Run, display: Display, place: tuple[int, int] = (0, 1)) -> list[str]:
        if not self.done(run):
            judge(run, display)
        return []

    def told(self, run: Run) -> str:
        return f"result: {run.folder / 'evaluate.json'}"

    def shown(self, run: Path) -> str:
        return "done" if (run / "evaluate.json").exists() else ""


def judge(run: Run, display: Display) -> None:
    """Judge the set, whatever stands there."""
    from data_shards.packing.pack import write_dataset
    from ldm.checkpoints.trained import load_autoencoder, load_denoiser
    from ldm.evaluation.evaluate import FEW_PEOPLE, EvaluateConfig
    from ldm.evaluation.evaluate import evaluate as evaluate_set
    from ldm.evaluation.reconstruction import decoded_gaussian_latents, reconstruction

    autoencoder, denoiser = load_autoencoder(run.vqgan, device()), load_denoiser(run.diffusion, device())
    real, wanted = run.open(run.dataset), run.config.sample
    count = min(wanted.count, BASELINE_IMAGES)
    baseline = run.folder / "gaussian-latents"
    source = {"baseline": denoiser.digest, "seed": wanted.seed, "quantise": wanted.quantise, "count": count}
    if (baseline / NAME).exists() and read_manifest(baseline).source != source:
        shutil.rmtree(baseline)  # of an earlier state of the denoiser, or of another number; it can always be made again
    if not (baseline / NAME).exists():
        cubes = decoded_gaussian_latents(autoencoder, denoiser, count, seed=wanted.seed, batch=wanted.batch, quantise=wanted.quantise)
        write_dataset(baseline, {"synthetic": display.over(cubes, total=count, title="baseline", unit="cube")}, source=source)
    rebuilt = reconstruction(real, autoencoder)
    evaluation = evaluate_set(real, Dataset(run.synthetic), EvaluateConfig(against=held_out_split(real), device=device()), display.over)
    frechet = frechet_to_held_out(real, {"samples": Dataset(run.synthetic), "gaussian_latents": Dataset(baseline)}, display.over)
    durable.write_json(run.folder / "reconstruction.json", rebuilt)
    durable.write_json(run.folder / "evaluate.json", evaluation)
    figures_of, left_out = {"codes_used": rebuilt["codes_used"], "psnr_gain_db": rebuilt["psnr_gain_db"]}, {}
    if rebuilt["splits"] == ["train"]:
        figures_of["psnr_gain_db"], left_out["psnr_gain_db"] = None, "no people held out of training"
    ratio = "frechet_over_gaussian_latents"
    figures_of[ratio] = frechet["ratio"]
    if reason := frechet["reason"] or out_of_reach(frechet):
        figures_of[ratio], left_out[ratio] = None, reason
    few = f"only {frechet['people']} people held out: who they are decides it" if frechet["people"] < FEW_PEOPLE else ""
    cautions = {"psnr_gain_db": few} if few and figures_of["psnr_gain_db"] is not None else {}
    if figures_of[ratio] is not None:
        floor = f"{frechet['n_floor']} training images: {frechet['ratio_floor']:.2f}"
        cautions[ratio] = f"{floor}; {few}" if few else floor
    record(run, **figures_of, psnr_db=rebuilt["psnr_db"], frechet=frechet, left_out=left_out, cautions=cautions)


def out_of_reach(frechet: dict[str, Any]) -> str | None:
    """Why no set could reach what is wanted of the ratio: as many training images do not. None where it can be reached."""
    wanted = next(figure.wanted for figure in HEADLINE if figure.key == "frechet_over_gaussian_latents")
    if frechet["n_floor"] < frechet["n"] or frechet["ratio_floor"] <= wanted:
        return None
    return f"of {frechet['n']} images even training images come to {frechet['ratio_floor']:.2f}, where at most {wanted} is wanted: too few"


def frechet_to_held_out(real: Dataset, sets: dict[str, Dataset], watch: Callable[..., Iterable[Any]]) -> dict[str, Any]:
    """Fréchet distances of both sets to all people held out of training, at one number of images, on whitened features.

    To the training split they would be a yardstick that a set of copies wins.

    Keys: a distance by set; `floor`, that of as many training images; `ratio`, of the first set over the second, and `ratio_floor`, of the
    training images; `images`, `people`: held out; `n`: images of each set; `n_floor`: training images beside them;
    `effective_rank_whitened`; `reason`, why there are no figures.
    """
    from ldm.evaluation.evaluate import features_of, whitening_of
    from ldm.evaluation.features import get_extractor
    from ldm.evaluation.frechet import frechet_distance
    from ldm.evaluation.sets import Part, evenly

    extractor = get_extractor("seeded-conv-v1", real.stats)

    def features(dataset: Dataset, split: str, most: int | None = None) -> np.ndarray:
        part = Part(dataset=dataset, split=split, sample_N=evenly(dataset.count(split), most))
        return features_of(part, extractor, device=device(), watch=watch)

    held_out = [name for name, info in real.splits.items() if info.count and name != "train"]
    people = len({subject for name in held_out for subject in real.subjects(name)})
    n = min(dataset.count("synthetic") for dataset in sets.values())
    found: dict[str, Any] = {
        **dict.fromkeys((*sets, "floor", "ratio", "ratio_floor", "effective_rank_whitened")),
        "images": sum(real.count(name) for name in held_out),
        "people": people,
        "n": n,
        "n_floor": min(n, real.count("train")),
        "reason": None,
    }
    white = whitening_of(real, extractor, device=device(), watch=watch) if people >= LEAST_PEOPLE and n > 1 else None
    if people < LEAST_PEOPLE:
        return found | {"reason": f"{people} people held out of training, at least {LEAST_PEOPLE} wanted: {MORE_PEOPLE}"}
    if white is None:
        return found | {"reason": "one synthetic image" if n < 2 else "the training images do not differ in their features"}
    held_out_ND = white(np.concatenate([features(real, name) for name in held_out]))
    parts = {name: (dataset, "synthetic") for name, dataset in sets.items()} | {"floor": (real, "train")}
    for name, (dataset, split) in parts.items():
        x_ND = white(features(dataset, split, n))
        found[name] = frechet_distance(held_out_ND, x_ND)
    above, below = (found[name] for name in sets)
    if below <= 0:
        return found | {"reason": "decoded Gaussian latents are at distance 0"}
    return found | {"ratio": above / below, "ratio_floor": found["floor"] / below, "effective_rank_whitened": white.effective_rank_whitened}
