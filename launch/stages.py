"""The stages of a run, in order: data, vqgan, encode, diffusion, sample, evaluate, audit, report.

Each finds what the former left in the run folder and leaves its own; a stage that is done does nothing when called again.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from data_shards import durable
from data_shards.dataset import Dataset
from data_shards.errors import InputError
from data_shards.manifest import NAME, read_manifest
from data_shards.stores import Cache, is_url
from launch.config import Config, to_tree, to_yaml

Watch = Callable[..., Iterable[Any]]
HEADLINE = ("psnr_gain_db", "codes_used", "frechet_over_gaussian_latents", "seconds")
BASELINE_IMAGES = 1024
FREE_TO_CHANGE = {
    *("samples", "checkpoint_every", "log_every", "keep", "validate_samples", "background", "profile", "workers", "max_bad_steps"),
    *("read", "cache", "cache_gib"),
}
# what a section of the configuration decides first; until it stands, the section may still be corrected
FIRST_OUTPUT = {"data": "data", "vqgan": "vqgan/checkpoints", "diffusion": "diffusion/checkpoints", "sample": "synthetic"}


class Run:
    """A run folder and its configuration.

    Raises:
        InputError: the folder belongs to a run of another configuration.
    """

    def __init__(self, config: Config) -> None:
        self.config, self.folder = config, Path(config.run)
        named = config.data.dataset
        self.dataset: Path | str = self.folder / "data" if not named else named if is_url(named) else Path(named)
        self.vqgan, self.latents, self.diffusion, self.synthetic = (self.folder / n for n in ("vqgan", "latents", "diffusion", "synthetic"))

    def open(self, place: Path | str) -> Dataset:
        """A dataset of this run, read through its cache where there is one."""
        data = self.config.data
        return Dataset(place, cache=Cache(Path(data.cache), int(data.cache_gib * 2**30)) if data.cache else None)

    def check(self) -> None:
        """Refuse to mix two configurations in one folder.

        Raises:
            InputError: the folder was begun with another one.
        """
        path = self.folder / "run.yaml"
        if path.exists():
            changed = [
                key
                for key in _changed(yaml.safe_load(path.read_text()), to_tree(self.config))
                # the folder itself may have been moved, or be called by another path
                if key != "run" and not (FREE_TO_CHANGE & set(key.split("."))) and ".engine." not in key and self._begun(key.split(".")[0])
            ]
            if changed:
                raise InputError(
                    f"this run folder was begun with another configuration: {', '.join(changed)}",
                    where=path,
                    expected="the same values (lengths, logging and engine settings may change)",
                    mend="give the new run another folder: run=runs/NAME",
                )

    def freeze(self) -> None:
        """Write run.yaml and environment.json, as `check` allows. On one rank only."""
        self.check()
        path = self.folder / "run.yaml"
        durable.write_bytes(path, to_yaml(self.config).encode())
        durable.write_json(self.folder / "environment.json", environment())

    def _begun(self, section: str) -> bool:
        return (self.folder / FIRST_OUTPUT[section]).exists()


def _changed(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Dotted keys whose values differ between two trees."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [k for key in sorted({*old, *new}) for k in _changed(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)]
    return [] if old == new else [prefix]


def environment() -> dict[str, Any]:
    """Versions and commit, for the record."""

    def git(*words: str) -> str:
        try:
            return subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True).stdout
        except (OSError, subprocess.SubprocessError):
            return ""  # installed without git, or not from a checkout

    names = ("retinaforge", "torch", "diffusers", "accelerate", "numpy", "safetensors", "webdataset")
    installed = {dist.metadata["Name"]: dist.version for dist in metadata.distributions()}
    return {
        "python": sys.version.split()[0],
        "machine": platform.platform(),
        "packages": {name: installed.get(name, "") for name in names},
        "commit": git("rev-parse", "HEAD").strip(),
        "diff": git("diff", "HEAD"),
    }


def device() -> str:
    """Where models that are only used, not trained, run."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def alone(verb: str) -> None:
    """Refuse to start several copies of what one process does.

    Raises:
        InputError: a launcher started more than one.
    """
    from slurm.rank import placement

    if (world := placement().world) > 1:
        raise InputError(
            f"{verb} was started by {world} processes",
            expected="one: only the trainers run on several ranks",
            mend="launch `train vqgan` and `train diffusion` on many ranks; sample in shares by --task K/N",
        )


def check_inputs(run: Run) -> None:
    """Say what is wrong with the dataset or the codec before anything is written.

    Raises:
        InputError: no such dataset, or a codec that is unknown or not installed.
    """
    from data_shards.codecs import Encoding

    if run.config.data.dataset:
        run.open(run.dataset)
    else:
        data = run.config.data
        _ = Encoding(data.codec, data.max_error, data.tile).coder


def check_latent_size(run: Run) -> None:
    """Refuse, before hours of training, cubes whose latents the denoiser cannot halve twice.

    Raises:
        InputError: height or width is no multiple of 4 × compression.
    """
    step, shape = 4 * run.config.vqgan.model.compression, run.open(run.dataset).shape
    if any(side % step for side in shape[1:]):
        raise InputError(
            f"cubes of shape {shape}",
            where=run.dataset,
            expected=f"height and width multiples of {step}: 4 × vqgan.model.compression",
            mend=f"retinaforge data import --resize HxW (or --crop) to multiples of {step}",
        )


def prepare_data(run: Run, watch: Watch) -> None:
    """Phantoms, packed, unless the configuration names a dataset."""
    from data_shards.pack import pack
    from data_shards.phantom.eyes import write_phantoms

    data = run.config.data
    if data.dataset or (run.dataset / NAME).exists():
        return
    write_phantoms(data.phantom, run.folder / "cubes", subjects=data.subjects, visits=data.visits, workers=data.workers, watch=watch)
    pack(
        run.folder / "cubes",
        run.dataset,
        splits=data.splits,
        codec=data.codec,
        max_error=data.max_error,
        tile=data.tile,
        workers=data.workers,
        watch=lambda keys: watch(keys, title="pack", unit="cube"),
    )


def encode(run: Run, watch: Watch) -> list[str]:
    """Latents of all splits, and the health gate; returns its warnings."""
    from ldm.encode import encode_dataset
    from ldm.health import check
    from ldm.trained import load_autoencoder

    autoencoder = load_autoencoder(run.vqgan, device())
    encode_dataset(run.open(run.dataset), autoencoder, run.latents, watch=lambda batches: watch(batches, title="encode", unit="batch"))
    health = check(Dataset(run.latents), autoencoder)
    durable.write_json(run.folder / "health.json", health)
    return health["warnings"]


def sample(run: Run, watch: Watch, task: tuple[int, int] = (1, 1)) -> bool:
    """This task's shards of the synthetic set; True when the set is whole."""
    from ldm.generate import generate_set
    from ldm.trained import load_autoencoder, load_denoiser

    wanted = run.config.sample
    made = generate_set(
        load_autoencoder(run.vqgan, device()),
        load_denoiser(run.diffusion, device()),
        run.synthetic,
        count=wanted.count,
        shard=wanted.shard,
        seed=wanted.seed,
        sampler=run.config.diffusion.sampler,
        batch=wanted.batch,
        quantise=wanted.quantise,
        task=task,
        watch=lambda numbers: watch(numbers, title="sample", unit="shard"),
    )
    return made is not None


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
    baseline, source = run.folder / "gaussian-latents", {"baseline": denoiser.digest, "seed": wanted.seed, "quantise": wanted.quantise}
    if (baseline / NAME).exists() and read_manifest(baseline).source != source:
        shutil.rmtree(baseline)  # of an earlier state of the denoiser; it can always be made again
    if not (baseline / NAME).exists():
        count = min(wanted.count, BASELINE_IMAGES)
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


def write_report(run: Run) -> Path:
    """report.html from what stands in the run folder."""
    from launch.report.build import build_report

    return build_report(run)


def done(run: Run, stage: str) -> bool:
    """Whether a training stage has reached its length, in a checkpoint that verifies.

    Raises:
        UnsafeResume: checkpoints, but none that can be loaded.
    """
    from ldm.comm import Alone
    from ldm.training.checkpoint import CheckpointStore

    newest = CheckpointStore(getattr(run, stage) / "checkpoints", Alone()).newest(progress_exists=False)
    return newest is not None and newest.samples >= getattr(run.config, stage).loop.samples


def finished(run: Run, stage: str) -> bool:
    """Whether a stage of a run has left what the next ones need, made from what the ones before it left.

    Args:
        stage: data, vqgan, encode, diffusion, sample, evaluate, audit or report.

    Raises:
        UnsafeResume: checkpoints, but none that can be loaded.
    """
    from ldm.trained import trained_digest

    sets = {"data": run.dataset, "encode": run.latents, "sample": run.synthetic}
    if stage == "data":
        return bool(run.config.data.dataset) or (Path(run.dataset) / NAME).exists()
    if stage in ("vqgan", "diffusion"):
        return done(run, stage)
    if stage == "report":
        report, results = run.folder / "report.html", [run.folder / f"{what}.json" for what in ("evaluate", "audit")]
        return all(path.exists() and report.exists() and report.stat().st_mtime >= path.stat().st_mtime for path in results)
    if stage in ("evaluate", "audit"):
        return judged(run, stage)
    if not (sets[stage] / NAME).exists():
        return False
    source = read_manifest(sets[stage]).source
    if stage == "encode":
        return source.get("encode", {}).get("autoencoder") == trained_digest(run.vqgan)
    asked = source.get("sample", {})
    return asked.get("denoiser") == trained_digest(run.diffusion) and asked.get("count") == run.config.sample.count


def figures(run: Run) -> dict[str, Any]:
    """metrics.json, {} before there is one."""
    path = run.folder / "metrics.json"
    return json.loads(path.read_text()) if path.exists() else {}


def add_seconds(run: Run, seconds: float) -> None:
    """Add to the run's working time: a run that was interrupted took as long as all its pieces."""
    record(run, seconds=figures(run).get("seconds", 0.0) + seconds)


def record(run: Run, **new: Any) -> None:
    """Add figures to metrics.json."""
    durable.write_json(run.folder / "metrics.json", {**figures(run), **new})
