"""Stage data: the cubes of a run whose configuration names no dataset; phantoms, packed."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from data_shards.errors import InputError
from data_shards.manifest import NAME
from launch.run import Run
from launch.stages.stage import UnitStage
from launch.work import Phases


class Data(UnitStage):
    name, verb = "data", "data prepare"
    reads, writes = "`data.phantom`, unless `data.dataset` is set", "`cubes/`, `data/`"

    def check(self, run: Run) -> None:
        check_inputs(run)

    def done(self, run: Run) -> bool:
        return bool(run.config.data.dataset) or (Path(run.dataset) / NAME).exists()

    def workers(self, run: Run) -> int:
        return run.config.data.workers

    def phases(self, run: Run) -> Phases:
        from data_shards.packing.pack import packing
        from data_shards.phantom.eyes import Phantoms

        if not self.done(run):
            data, cubes = run.config.data, run.folder / "cubes"
            yield "phantom", partial(Phantoms, data.phantom, cubes, subjects=data.subjects, visits=data.visits)
            how = {"splits": data.splits, "codec": data.codec, "max_error": data.max_error, "tile": data.tile}
            yield "pack", partial(packing, cubes, Path(run.dataset), **how)
        check_latent_size(run)

    def where(self, run: Run) -> str:
        return f"dataset: {run.dataset}"

    def standing(self, run: Path) -> str:
        return "done" if (run / "data" / NAME).exists() else ""

    def grows(self, run: str) -> tuple[str, ...]:
        return (f"{run}/cubes/*", f"{run}/.part-*-data/*.tar", f"{run}/data/{NAME}")


def check_inputs(run: Run) -> None:
    """Say what is wrong with the dataset or the codec before anything is written.

    Raises:
        InputError: no such dataset, or a codec that is unknown or not installed.
    """
    from data_shards.shards.codecs import Encoding

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
