"""The stages of a run, in order: data, vqgan, encode, diffusion, sample, evaluate, audit, report.

Each finds what the former left in the run folder and leaves its own; a stage that is done does nothing when called again.
"""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from data_shards import durable
from data_shards.dataset import Dataset
from data_shards.errors import InputError, command
from data_shards.manifest import NAME, read_manifest
from data_shards.stores import Cache, is_url
from launch.config import CREDENTIALS, Config, completed, concealed, to_public_yaml, to_tree
from launch.parse import parse_yaml
from launch.provenance import environment
from launch.worked import working_seconds

Watch = Callable[..., Iterable[Any]]
FREE_TO_CHANGE = {
    *("samples", "checkpoint_every", "log_every", "keep", "validate_samples", "background", "profile", "workers", "max_bad_steps"),
    *("read", "cache", "cache_gib", "decay_samples"),
}
FREE_OF_A_SET = {"sample.count", "sample.batch"}  # a set may grow; each shard states its batch
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
            InputError: the folder was begun with another one, or holds a larger synthetic set.
        """
        path = self.folder / "run.yaml"
        if path.exists():
            differing = _changed(concealed(completed(parse_yaml(path.read_text(), path))), concealed(to_tree(self.config)))
            if "sample.count" in differing and (self.synthetic / NAME).exists():
                from ldm.generate import check_count

                check_count(self.synthetic, self.config.sample.count, read_manifest(self.synthetic))
            changed = [
                key
                for key in differing
                # the folder itself may have been moved, or be called by another path
                if key not in {"run", *FREE_OF_A_SET}
                and not (FREE_TO_CHANGE & set(key.split(".")))
                and ".engine." not in key
                and self._begun(key.split(".")[0])
            ]
            if changed:
                raise InputError(
                    f"this run folder was begun with another configuration: {', '.join(changed)}",
                    where=path,
                    expected="the same values (lengths, the count of a set, logging and engine settings may change)",
                    mend="give the new run another folder: run=runs/NAME",
                )

    def freeze(self) -> None:
        """Write run.yaml and environment.json, as `check` allows. On one rank only."""
        self.check()
        hidden: dict[str, str] = {}
        concealed(to_tree(self.config), hidden)
        if hidden:
            durable.write_json(self.folder / CREDENTIALS, hidden, private=True)
        else:
            (self.folder / CREDENTIALS).unlink(missing_ok=True)
        durable.write_bytes(self.folder / "run.yaml", to_public_yaml(self.config).encode())
        durable.write_json(self.folder / "environment.json", environment(), private=True)

    def _begun(self, section: str) -> bool:
        return (self.folder / FIRST_OUTPUT[section]).exists()


def _changed(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Dotted keys whose values differ between two trees."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [k for key in sorted({*old, *new}) for k in _changed(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)]
    return [] if old == new else [prefix]


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


def check_trained(run: Run, *stages: str) -> None:
    """Say that a network is missing before anything is written; which of its checkpoints is whole is seen as one is loaded.

    Raises:
        InputError: no commit of one of these trainings.
    """
    from ldm.training.committed import COMMIT

    for stage in stages:
        folder = getattr(run, stage)
        if not any((folder / "checkpoints").glob(f"samples-*/{COMMIT}")):
            raise InputError(
                f"no trained {stage}",
                where=folder,
                expected="a committed checkpoint",
                mend=command("retinaforge", "train", stage, "PRESET", f"run={run.folder}"),
            )


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


def told_of(run: Run) -> list[str]:
    """What a person should know of the data before a training on them."""
    from data_shards.fields_of_view import unlike

    return list(filter(None, [unlike(run.open(run.dataset), "train")]))


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


def write_report(run: Run) -> Path:
    """report.html from what stands in the run folder."""
    from launch.report.build import build_report

    return build_report(run)


def done(run: Run, stage: str) -> bool:
    """Whether a training stage has reached its length, in a checkpoint of which all that later stages read verifies.

    Raises:
        UnsafeResume: checkpoints, but none that can be loaded.
    """
    from ldm.comm import Alone
    from ldm.training.checkpoint import CheckpointStore

    newest = CheckpointStore(getattr(run, stage) / "checkpoints", Alone()).newest(progress_exists=False, used=True)
    return newest is not None and newest.samples >= getattr(run.config, stage).loop.samples


def outdated(run: Run) -> list[Path]:
    """What stands in a run folder and was made from what has changed since, or is going to be trained further: no later stage takes it.

    Raises:
        UnsafeResume: checkpoints, but none that can be loaded.
    """
    from ldm.comm import Alone
    from ldm.generate import request_of
    from ldm.trained import trained_digest
    from ldm.training.checkpoint import CheckpointStore

    found = []
    newest = CheckpointStore(run.diffusion / "checkpoints", Alone()).newest(progress_exists=False, used=True)
    denoiser = newest if newest and newest.samples else None
    if run.latents.exists() or denoiser:
        vqgan = trained_digest(run.vqgan) if done(run, "vqgan") else None
        if run.latents.exists() and Dataset(run.latents).manifest.source.get("encode", {}).get("autoencoder") != vqgan:
            found.append(run.latents)
        if denoiser and denoiser.state["identity"].get("autoencoder", vqgan) != vqgan:
            found.append(run.diffusion)
    if sampled := request_of(run.synthetic).get("denoiser"):
        final = not found and done(run, "diffusion")
        if not final or sampled != trained_digest(run.diffusion):
            found.append(run.synthetic)
    return found


def check_outdated(run: Run) -> None:
    """Refuse to begin what must fail hours later, at what an earlier state of the run left in its folder.

    Raises:
        InputError: a network was trained further, or is to be, after the next stage had worked with it.
    """
    if found := outdated(run):
        raise InputError(
            f"made from an earlier state of what it depends on: {', '.join(path.name for path in found)}",
            where=run.folder,
            expected="what follows a training to be made after it",
            mend=f"{set_aside(run, found)}\n            then the same command again, which makes it anew; "
            "or the lengths that the run had, or another folder: run=runs/NAME",
        )


def set_aside(run: Run, found: list[Path]) -> str:
    """The command that moves these folders of a run into a new one within it."""
    aside = run.folder / "earlier"
    aside = next(path for i in itertools.count() if not (path := aside.with_name(f"earlier-{i}") if i else aside).exists())
    apart = shlex.quote(str(aside))
    return f"mkdir {apart} && mv {shlex.join(map(str, found))} {apart}"


def figures(run: Run) -> dict[str, Any]:
    """metrics.json, {} before there is one."""
    path = run.folder / "metrics.json"
    return json.loads(path.read_text()) if path.exists() else {}


def record_seconds(run: Run) -> None:
    """The working time of all processes so far, into metrics.json."""
    if seconds := working_seconds(run.folder):
        record(run, seconds=seconds)


def record(run: Run, **new: Any) -> None:
    """Add figures to metrics.json."""
    durable.write_json(run.folder / "metrics.json", {**figures(run), **new})
