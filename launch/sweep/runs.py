"""The folders of a sweep: its own run, which makes what all share, and below it a run for each autoencoder, denoiser and set.

    RUN/sweep.json               axes and configuration; another grid is refused
    RUN/data, RUN/envelope.json  and what JUDGES leave: made once
    RUN/ae-f8-z8/                an autoencoder, its latents, how well it rebuilds
    RUN/f8-z8-c128/              a denoiser on these latents
    RUN/f8-z8-c128/sets/flow-heun-8/   a synthetic set of it, speed.json, evaluate.json

Each is a plain run folder: what is shared is linked into it, and every verb works on it by its run.yaml.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from data_shards import durable
from data_shards.errors import InputError
from launch.config import Config
from launch.credentials import concealed
from launch.run import Run, changed
from launch.stages import STAGES
from launch.sweep.axes import Axes, Cell, Cost, cost_of, set_name
from launch.sweep.stopping import Rules
from launch.tree import load, to_tree
from ldm.models.config import SamplerConfig

NAME = "sweep.json"
FORMAT = "retinaforge-sweep-1"
JUDGES = ("features", "segmenter")
"""Stages that are made once, in the sweep's own folder, and judge all sets alike."""
FREE = {"run", "data.workers", "data.cache", "data.cache_gib"}  # what may change while a sweep is made; so may engines and reading


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A grid in a folder.

    Attributes:
        base: configuration of all that the axes do not name; its `run` is the folder of the sweep.
    """

    base: Config
    axes: Axes
    rules: Rules = field(default_factory=Rules)

    @property
    def folder(self) -> Path:
        return Path(self.base.run)

    @cached_property
    def shared(self) -> Run:
        """The sweep's own run: data and judges. Its networks are those of the first configuration, and are not trained."""
        return Run(self.axes.cells()[0].config(self.base, self.folder))

    @cached_property
    def costs(self) -> dict[Cell, Cost]:
        """What each configuration takes."""
        return {cell: cost_of(self.denoiser(cell).config) for cell in self.axes.cells()}

    def autoencoder(self, cell: Cell) -> Run:
        """The run of an autoencoder; its denoiser, which is not trained there, is the first of those that share it."""
        return Run(replace(cell, channels=self.axes.channels[0]).config(self.base, self.folder / cell.autoencoder))

    def denoiser(self, cell: Cell) -> Run:
        """The run of a configuration."""
        return Run(cell.config(self.base, self.folder / cell.name))

    def set_of(self, cell: Cell, sampler: SamplerConfig) -> Run:
        """The run of a synthetic set of a configuration."""
        name = set_name(sampler, self.base.diffusion.objective.target)
        config = cell.config(self.base, self.folder / cell.name / "sets" / name)
        return Run(replace(config, diffusion=replace(config.diffusion, sampler=sampler)))

    def begin(self) -> None:
        """State the grid in the folder.

        Raises:
            InputError: a sweep of another grid or configuration, or a plain run, stands there.
        """
        path, stated = self.folder / NAME, json.loads(durable.readable_json(self._stated()))
        if (self.folder / "run.yaml").exists() and not path.exists():  # in this order: a sweep that begins now writes them in the other
            raise InputError("a run stands here, and no sweep", where=self.folder, expected="a folder of its own", mend="run=runs/NAME")
        durable.write_bytes(path, durable.readable_json(stated), keep_first=True)
        standing = json.loads(path.read_bytes())
        differing = [key for key in changed(standing, stated) if not _free(key)]
        if differing:
            what = "grid" if differing[0].startswith("axes") else "configuration"
            raise InputError(
                f"this folder holds a sweep of another {what}: {', '.join(differing)}",
                where=path,
                expected=f"the same axes and configuration: {_as_options(standing['axes'])}",
                mend="a folder of its own for another grid: run=runs/NAME",
            )

    def _stated(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "axes": asdict(self.axes),
            "rules": asdict(self.rules),
            "config": concealed(to_tree(self.base)),
        }


def _free(key: str) -> bool:
    """Whether this key of sweep.json may change while a sweep is made."""
    return key.removeprefix("config.") in FREE or ".engine." in key or key.startswith("config.data.read.")


def _as_options(axes: dict[str, Any]) -> str:
    """The axes of sweep.json as the options that state them."""
    words = {name: ",".join(map(str, axes[name])) for name in ("compression", "latent_channels", "channels")}
    words["samplers"] = ",".join(f"{sampler['name']}:{sampler['steps']}" for sampler in axes["samplers"])
    return " ".join(f"--{name.replace('_', '-')} {values}" for name, values in words.items())


def base_of(preset: str, overrides: list[str]) -> Config:
    """The configuration of a sweep; its folder, where none is named, is that of the preset with -sweep behind it."""
    config = load(preset, overrides)
    named = any(word.startswith("run=") for word in overrides)
    return config if named else replace(config, run=f"{config.run}-sweep")


def progress_patterns(folder: Path) -> tuple[str, ...]:
    """Files that change as a sweep gets on, whichever process makes them."""
    run = glob.escape(str(folder))
    of_shared = [pattern for name in ("data", *JUDGES) for pattern in STAGES[name].grows(run)]
    of_pieces = [
        pattern
        for name, place in (("vqgan", "ae-*"), ("encode", "ae-*"), ("diffusion", "f*"), ("sample", "f*/sets/*"), ("evaluate", "f*/sets/*"))
        for pattern in STAGES[name].grows(f"{run}/{place}")
    ]
    return (*of_shared, *of_pieces, f"{run}/*/stopped.json")


def link(folder: Path, sources: Iterable[Path]) -> None:
    """Let a run folder have things of another, as far as they stand, under their names; the links hold when the sweep is moved."""
    durable.make_folder(folder)
    for source in sources:
        if source.exists():
            with contextlib.suppress(FileExistsError):  # by this process before, or by another
                (folder / source.name).symlink_to(os.path.relpath(source, folder))
