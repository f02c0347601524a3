"""A run's folder: its parts, its configuration, and what is frozen with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from data_shards import durable
from data_shards.errors import CorruptData, InputError, command, moved_aside
from data_shards.manifest import NAME
from data_shards.reading.dataset import Dataset
from data_shards.stores import Cache, is_url
from launch.config import Config
from launch.credentials import CREDENTIALS, concealed
from launch.parse import parse_yaml
from launch.provenance import environment
from launch.tree import completed, to_public_yaml, to_tree
from launch.worked import working_seconds

FREE_TO_CHANGE = {
    *("samples", "checkpoint_every", "log_every", "keep", "validate_samples", "background", "profile", "workers", "max_bad_steps"),
    *("read", "cache", "cache_gib", "decay_samples"),
}
# a set may grow; each shard states its batch, each set how it was computed
FREE_OF_A_SET = {"sample.count", "sample.batch", "sample.licence", "inference.precision", "inference.compile"}
# a set may be judged anew
FREE_OF_A_JUDGEMENT = {"evaluate.extractors", "evaluate.pairs"}
# what a section of the configuration decides first; until it stands, the section may still be corrected
FIRST_OUTPUT = {
    "data": "data",
    "segmenter": "segmenter/checkpoints",
    "vqgan": "vqgan/checkpoints",
    "features": "features/checkpoints",
    "copies": "copies/checkpoints",
    "diffusion.sampler": "synthetic",
    "diffusion": "diffusion/checkpoints",
    "sample": "synthetic",
}


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
        self.features, self.copies, self.segmenter = (self.folder / n for n in ("features", "copies", "segmenter"))
        self.envelope, self.copy_bounds = self.folder / "envelope.json", self.folder / "copy-bounds.json"

    def open(self, place: Path | str) -> Dataset:
        """A dataset of this run, read through its cache where there is one."""
        data = self.config.data
        return Dataset(place, cache=Cache(Path(data.cache), int(data.cache_gib * 2**30)) if data.cache else None)

    def images(self) -> Dataset:
        """The synthetic set as cubes: one of codes is decoded as it is read, on the device of `device`.

        Raises:
            InputError: codes of an earlier state of the autoencoder.
        """
        dataset = Dataset(self.synthetic)
        if dataset.payload != "codes":
            return dataset
        from ldm.generation.decode import DecodedDataset

        return DecodedDataset.open(self.synthetic, self.vqgan, device())

    def check(self) -> None:
        """Refuse to mix two configurations in one folder.

        Raises:
            InputError: the folder was begun with another one, or holds a larger synthetic set.
        """
        path = self.folder / "run.yaml"
        if path.exists():
            differing = changed(concealed(completed(parse_yaml(path.read_text(), path))), concealed(to_tree(self.config)))
            if "sample.count" in differing and (self.synthetic / NAME).exists():
                from ldm.generation.standing import standing_set

                standing_set(self.synthetic, self.config.sample.count)  # refuses to make it smaller
            refused = [
                key
                for key in differing
                # the folder itself may have been moved, or be called by another path
                if key not in {"run", *FREE_OF_A_SET, *FREE_OF_A_JUDGEMENT}
                and not (FREE_TO_CHANGE & set(key.split(".")))
                and ".engine." not in key
                and self._begun(key)
            ]
            if refused:
                of_a_set = all(FIRST_OUTPUT[_section(key)] == "synthetic" for key in refused)
                another = "; of this run's models: docs/bulk.md, 'Another set of the same models'" if of_a_set else ""
                raise InputError(
                    f"this run folder was begun with another configuration: {', '.join(refused)}",
                    where=path,
                    expected="the same values (lengths, the count of a set, logging and engine settings may change)",
                    mend=f"to go on as it was begun: {command(path, f'run={self.folder}')} in place of preset and overrides; "
                    f"for a new run another folder: run=runs/NAME{another}",
                )

    def freeze(self, *, works: bool = True) -> None:
        """Write run.yaml, as `check` allows, where it says something else. On one rank only.

        Args:
            works: something is going to be made, and environment.json says by what.
        """
        self.check()
        with durable.explained(self.folder / "run.yaml"):
            self._write()
            if works:
                durable.write_changed(self.folder / "environment.json", durable.readable_json(environment()), private=True)

    def _write(self) -> None:
        hidden: dict[str, str] = {}
        concealed(to_tree(self.config), hidden)
        if hidden:
            durable.write_changed(self.folder / CREDENTIALS, durable.readable_json(hidden), private=True)
        elif (self.folder / CREDENTIALS).exists():
            (self.folder / CREDENTIALS).unlink()
        durable.write_changed(self.folder / "run.yaml", to_public_yaml(self.config).encode())

    def _begun(self, key: str) -> bool:
        return (self.folder / FIRST_OUTPUT[_section(key)]).exists()


def _section(key: str) -> str:
    """The section of FIRST_OUTPUT that a dotted key is of."""
    return next(section for section in FIRST_OUTPUT if f"{key}.".startswith(f"{section}."))


def changed(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Dotted keys whose values differ between two trees."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [k for key in sorted({*old, *new}) for k in changed(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)]
    return [] if old == new else [prefix]


def device() -> str:
    """Where models that are only used, not trained, run: of several GPUs, each process of a machine takes its own."""
    import torch

    from slurm.rank import placement

    if not torch.cuda.is_available():
        return "cpu"
    index = placement().local_rank % torch.cuda.device_count()
    torch.cuda.set_device(index)  # else events and graphs of this process would go to the first one
    return f"cuda:{index}"


Result = TypeVar("Result")


def read_result(path: Path, kind: type[Result]) -> Result | None:
    """A result as it was written; None where there is none, or one in the form of an earlier version.

    Raises:
        CorruptData: damaged.
    """
    if not path.exists():
        return None
    try:
        tree = json.loads(path.read_bytes())
        if tree.get("format") != getattr(kind, "format", None):
            return None
        return TypeAdapter(kind).validate_python(tree)
    except (ValueError, AttributeError, RecursionError) as error:
        said = f"a damaged result: {str(error).partition(chr(10))[0]}"
        raise CorruptData(said, where=path, mend=f"{moved_aside(path)}, and the same command again makes it anew") from error


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
