"""Stage vqgan: the autoencoder and its codebook, on the run's dataset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from launch.run import Run
from launch.stages.training import Training


class VQGAN(Training):
    name, verb, after = "vqgan", "train vqgan", ("data",)
    reads, writes = "the dataset", "`vqgan/`"

    def data(self, run: Run) -> Path | str:
        return run.dataset

    def cautions(self, run: Run) -> list[str]:
        from data_shards.reading.fields_of_view import unlike

        different = unlike(run.open(run.dataset), "train")
        return [different] if different else []

    def builder(self, run: Run) -> Callable[..., Any]:
        from launch.build import vqgan_trainer

        return vqgan_trainer
