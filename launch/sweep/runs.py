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
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from data_shards import durable
from data_shards.errors import InputError
from launch.config import Config, to_tree
from launch.credentials import concealed
from launch.run import Run, changed
from launch.stages import STAGES
from launch.sweep.axes import Axes, Cell, set_name
from launch.sweep.stopping import Rules
from ldm.models.config import SamplerConfig

NAME = "sweep.json"
FORMAT = "retinaforge-sweep-1"
JUDGES = tuple(name for name in ("features", "segmenter") if name in STAGES)
"""Stages that are made once, in the sweep's own folder, and judge all sets alike."""
AXES = ("compression", "latent_channels", "channels")
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
        path = self.folder / NAME
        stated = json.loads(durable.readable_json(self._stated()))
        if not path.exists():
            if (self.folder / "run.yaml").exists():
                raise InputError("a run stands here, and no sweep", where=self.folder, expected="a folder of its own", mend="run=runs/NAME")
            durable.write_bytes(path, durable.readable_json(stated), keep_first=True)
        standing = json.loads(path.read_bytes())
        differing = [
            key
            for key in changed(standing, stated)
            if key.removeprefix("config.") not in FREE and ".engine." not in key and not key.startswith("config.data.read")
        ]
        if differing:
            said = standing["axes"]
            axes = " ".join(f"--{name.replace('_', '-')} {','.join(map(str, said[name]))}" for name in AXES)
            raise InputError(
                f"this folder holds a sweep of another {'grid' if any(k.startswith('axes') for k in differing) else 'configuration'}: "
                f"{', '.join(differing)}",
                where=path,
                expected=f"the same axes and configuration: {axes}",
                mend="a folder of its own for another grid: run=runs/NAME",
            )

    def _stated(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "axes": asdict(self.axes),
            "rules": asdict(self.rules),
            "config": concealed(to_tree(self.base)),
        }


def link(folder: Path, sources: Iterable[Path]) -> None:
    """Let a run folder have things of another, as far as they stand, under their names; the links hold when the sweep is moved."""
    durable.make_folder(folder)
    for source in sources:
        if source.exists():
            with contextlib.suppress(FileExistsError):  # by this process before, or by another
                (folder / source.name).symlink_to(os.path.relpath(source, folder))
