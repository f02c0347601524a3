"""How good a run's set is: evaluation, audit, and the yardsticks beside them."""

from __future__ import annotations

import json
import shutil

from data_shards import durable
from data_shards.dataset import Dataset
from data_shards.manifest import NAME, read_manifest
from launch.stages import HEADLINE, Run, Watch, device, figures, record

BASELINE_IMAGES = 1024


def held_out_split(real: Dataset) -> str:
    """The split to compare with: people that no model was trained on, where there are any."""
    filled = [name for name, info in real.splits.items() if info.count]
    return next((name for name in ("val", "test", *filled) if name in filled and name != "train"), "train")


def evaluate(run: Run, watch: Watch) -> None:
    """Reconstruction of held-out people, evaluation of the set, and the baseline of decoded Gaussian latents."""
    from data_shards.pack import write_dataset
    from ldm.evaluation import EvaluateConfig
    from ldm.evaluation import evaluate as evaluate_set
    from ldm.reconstruction import decoded_gaussian_latents, reconstruction
    from ldm.trained import load_autoencoder, load_denoiser

    autoencoder, denoiser = load_autoencoder(run.vqgan, device()), load_denoiser(run.diffusion, device())
    real, wanted = run.open(run.dataset), run.config.sample
    count = min(wanted.count, BASELINE_IMAGES)
    baseline = run.folder / "gaussian-latents"
    source = {"baseline": denoiser.digest, "seed": wanted.seed, "quantise": wanted.quantise, "count": count}
    if (baseline / NAME).exists() and read_manifest(baseline).source != source:
        shutil.rmtree(baseline)  # of an earlier state of the denoiser, or of another number; it can always be made again
    if not (baseline / NAME).exists():
        cubes = decoded_gaussian_latents(autoencoder, denoiser, count, seed=wanted.seed, batch=wanted.batch, quantise=wanted.quantise)
        write_dataset(baseline, {"synthetic": watch(cubes, total=count, title="baseline", unit="cube")}, source=source)
    rebuilt = reconstruction(real, autoencoder)
    evaluation = evaluate_set(real, Dataset(run.synthetic), EvaluateConfig(against=held_out_split(real), device=device()), watch)
    frechet = {
        name: frechet_to_train(real, Dataset(path), watch) for name, path in (("samples", run.synthetic), ("gaussian_latents", baseline))
    }
    durable.write_json(run.folder / "reconstruction.json", rebuilt)
    durable.write_json(run.folder / "evaluate.json", evaluation)
    record(
        run,
        psnr_gain_db=rebuilt["psnr_gain_db"],
        psnr_db=rebuilt["psnr_db"],
        codes_used=rebuilt["codes_used"],
        frechet_over_gaussian_latents=frechet["samples"] / frechet["gaussian_latents"],
        frechet=frechet,
    )


def audit(run: Run, watch: Watch) -> None:
    """Search the set for copies of training images."""
    from ldm.audit import AuditConfig
    from ldm.audit import audit as audit_set

    real = run.open(run.dataset)
    config = AuditConfig(against=held_out_split(real), device=device())
    durable.write_json(run.folder / "audit.json", audit_set(real, Dataset(run.synthetic), config, watch))


def judged(run: Run, what: str) -> bool:
    """Whether 'evaluate' or 'audit' has seen the present sets."""
    path = run.folder / f"{what}.json"
    if not (path.exists() and (run.synthetic / NAME).exists()):
        return False
    if what == "evaluate" and not {*HEADLINE} - {"seconds"} <= set(figures(run)):
        return False
    seen, real = json.loads(path.read_text()), run.open(run.dataset)
    return (seen[SEEN[what]]["digest"], seen["synthetic"]["digest"]) == (real.digest, Dataset(run.synthetic).digest)


SEEN = {"evaluate": "reference", "audit": "train"}
"""Where the result of each names the real set."""


def frechet_to_train(real: Dataset, synthetic: Dataset, watch: Watch) -> float:
    """Fréchet distance of a set to the training split: the largest real set, so the least biased yardstick for a ratio."""
    import numpy as np

    from ldm.evaluation import features_of
    from ldm.metrics.features import get_extractor
    from ldm.metrics.frechet import frechet_distance
    from ldm.metrics.sets import Part

    extractor = get_extractor("seeded-conv-v1", real.stats)
    parts = [Part(dataset=d, split=s, sample_N=np.arange(d.count(s))) for d, s in ((real, "train"), (synthetic, "synthetic"))]
    return frechet_distance(*(features_of(part, extractor, watch=watch) for part in parts))
