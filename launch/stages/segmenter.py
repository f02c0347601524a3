"""Stage segmenter: artery, vein and optic nerve head, learnt from the label maps of the run's dataset, and its Dice on people held out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_shards.errors import InputError
from data_shards.manifest import NAME
from launch.run import Run, device, read_result
from launch.stages.training import Training, train, trained
from launch.work import Display, Phases, make_phases

if TYPE_CHECKING:
    from ldm.evaluation.segmentation import SegmentationResult


class Segmenter(Training):
    name, verb, after = "segmenter", "train segmenter", ("data",)
    reads, writes = "the dataset; left out where it has no label maps", "`segmenter/`, `segmenter.json`: its Dice on people held out"

    def data(self, run: Run) -> Path | str:
        return run.dataset

    def builder(self, run: Run) -> Callable[..., Any]:
        from launch.build_judges import segmenter_trainer

        return segmenter_trainer

    def check(self, run: Run) -> None:
        """Raises: InputError: no dataset, or one without label maps."""
        super().check(run)
        if reason := self.left_out(run):
            raise InputError(reason, where=run.dataset, expected="label maps", mend="retinaforge data import … --labels DIR --label-map …")

    def left_out(self, run: Run) -> str | None:
        if not run.config.data.dataset and not (Path(run.dataset) / NAME).exists():
            return None  # phantoms, which have label maps, are still to be made
        return None if run.open(run.dataset).labelled("train") else "the training images have no label maps"

    def done(self, run: Run) -> bool:
        """It is trained, and was measured as it is."""
        from ldm.checkpoints.trained import trained_digest

        if not super().done(run):
            return False
        seen = self.result(run)
        return seen is not None and (seen.segmenter, seen.dataset) == (trained_digest(run.segmenter), run.open(run.dataset).digest)

    def make(self, run: Run, display: Display, place: tuple[int, int] = (0, 1)) -> list[str]:
        if not trained(run, self.name):
            train(self, run, display)
        make_phases(self.phases(run), display, place)
        return []

    def phases(self, run: Run) -> Phases:
        """What is measured of it, by any number of processes."""
        from ldm.checkpoints.segmenter import load_segmenter
        from ldm.evaluation.segmentation import Segmentation

        segmenter = load_segmenter(run.segmenter, device())
        yield "Dice", partial(Segmentation, run.open(run.dataset), segmenter, run.folder / "segmenter.json")

    def result(self, run: Run) -> SegmentationResult | None:
        """What was measured; None where nothing was."""
        from ldm.evaluation.segmentation import SegmentationResult

        return read_result(run.folder / "segmenter.json", SegmentationResult)

    def where(self, run: Run) -> str:
        seen = self.result(run)
        return super().where(run) + (f"\n{seen.line()}" if seen else "")
