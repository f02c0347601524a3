"""Stage vqgan: the autoencoder and its codebook, on the run's dataset."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.run import Run
from launch.stages.features import learned_is_weak
from launch.stages.stage import check_trained
from launch.stages.training import Training

if TYPE_CHECKING:
    from launch.config import Config


class VQGAN(Training):
    name, verb, after = "vqgan", "train vqgan", ("data",)
    reads, writes = "the dataset; `features/` for a perceptual loss", "`vqgan/`"

    def data(self, run: Run) -> Path | str:
        return run.dataset

    def cautions(self, run: Run) -> list[str]:
        from data_shards.reading.fields_of_view import unlike

        said = [unlike(run.open(run.dataset), "train")]
        if run.config.vqgan.loss.perceptual:
            said.append(learned_is_weak(run))
        return [line for line in said if line]

    def builder(self, run: Run) -> Callable[..., Any]:
        from launch.build import vqgan_trainer

        return partial(vqgan_trainer, features=run.features)

    def waits_for(self, config: Config) -> tuple[str, ...]:
        return (*self.after, "features") if config.vqgan.loss.perceptual else self.after

    def check(self, run: Run) -> None:
        super().check(run)
        if run.config.vqgan.loss.perceptual:
            check_trained(run, "features")
