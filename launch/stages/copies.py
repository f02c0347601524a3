"""Stage copies: the copy-detection head, by whose embedding the audit knows a training image that was turned, cut or moved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from launch.run import Run
from launch.stages.training import Training


class Copies(Training):
    name, verb, after = "copies", "train copies", ("data",)
    reads, writes = "the dataset", "`copies/`"

    def data(self, run: Run) -> Path | str:
        return run.dataset

    def builder(self, run: Run) -> Callable[..., Any]:
        from launch.build_judges import copies_trainer

        return copies_trainer
