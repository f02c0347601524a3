"""How well the segmenter finds artery, vein and optic nerve head in people whom it was not trained on.

Legend: B batch, N image, H W pixels, S structure, U person.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from data_shards.cube import LABELS
from data_shards.reading.dataset import Dataset
from ldm.checkpoints.segmenter import Segmenter
from ldm.evaluation.intervals import ratio_by_person
from ldm.evaluation.measurements import Arrays, ImageMeasurements, Piece, beside, written
from ldm.evaluation.regions import STRUCTURES
from ldm.evaluation.sets import held_out_parts
from ldm.models.inference import stated
from ldm.training.segmenter import UNKNOWN, known_classes

FORMAT = "retinaforge-segmentation-2"
WORDS = (0, 7)  # of the resamples


@dataclass(frozen=True, kw_only=True)
class StructureDice:
    """Of one structure.

    Attributes:
        dice: mean over the images that have the structure; None where none has.
        interval: 95 %, from resampling people; None where a single person has it.
        images, people: with the structure.
        reason: why there is no figure.
        images_without: labelled images that lack the structure, of which Dice says nothing.
        drawn_without: share of these in which it is drawn all the same, 0 to 1; None where all have it.
    """

    dice: float | None = None
    interval: tuple[float, float] | None = None
    images: int = 0
    people: int = 0
    reason: str | None = None
    images_without: int = 0
    drawn_without: float | None = None

    def line(self) -> str:
        """For people."""
        figure = self.reason if self.dice is None else f"{self.dice:.3f}"
        if not self.drawn_without:
            return figure
        return f"{figure} (drawn in {self.drawn_without:.0%} of {self.images_without} images without it)"


@dataclass(frozen=True, kw_only=True)
class SegmentationResult:
    """segmenter.json.

    Attributes:
        segmenter, dataset: digests.
        splits, images, people: labelled images that were looked at: of the people held out or, where there are none, of those that it
            was trained on.
        artery, vein, onh: 2 |A ∩ B| / (|A| + |B|) of predicted and stated pixels within the field of view (Dice 1945).
    """

    segmenter: str
    dataset: str
    splits: tuple[str, ...]
    images: int
    people: int
    artery: StructureDice
    vein: StructureDice
    onh: StructureDice
    format: str = field(default=FORMAT)

    @property
    def structures(self) -> dict[str, StructureDice]:
        """All of them, by name."""
        return {name: getattr(self, name) for name in STRUCTURES}

    def line(self) -> str:
        """For people."""
        figures = [f"{name} {structure.line()}" for name, structure in self.structures.items()]
        whom = f"{self.people} people of {' and '.join(self.splits)}" + (", whom it was trained on" if self.splits == ("train",) else "")
        return f"Dice: {', '.join(figures)}; {self.images} images of {whom}"


class Segmentation(ImageMeasurements):
    """Pixels by structure that a segmenter finds, that are there, and that are both, in units.

    Args:
        path: file for the result, beside which the units lie; None: they are kept in memory.

    Raises:
        InputError: cubes of other bands or another scale than those that it was trained on.
    """

    def __init__(self, dataset: Dataset, segmenter: Segmenter, path: Path | None = None, *, batch: int = 8) -> None:
        dataset.expect("cube")
        segmenter.check(dataset.path, wavelengths_nm=dataset.wavelengths_nm, scale=dataset.scale, offset=dataset.offset)
        self.dataset, self.segmenter, self.path, self.batch = dataset, segmenter, path, batch
        device = segmenter.normaliser.mean_C11.device.type
        out = beside(
            path,
            {
                "format": FORMAT,
                "dataset": dataset.digest,
                "segmenter": segmenter.digest,
                "inference": stated(segmenter.inference),
                "device": device,
            },
        )
        self.parts = held_out_parts(dataset)
        super().__init__(self.parts, out)

    def measured(self, piece: Piece) -> Arrays:
        found, stated_, both, labelled = [], [], [], []
        for batch in piece.batches(self.batch):
            known_BHW = known_classes(batch)
            predicted_BHW = self.segmenter(batch.cubes_BCHW, batch.fov_BHW).cpu()
            f_BS, s_BS, b_BS = pixels(predicted_BHW, known_BHW)
            found.append(f_BS)
            stated_.append(s_BS)
            both.append(b_BS)
            labelled.append((known_BHW != UNKNOWN).flatten(1).any(1).numpy())
        arrays = {"found_NS": found, "stated_NS": stated_, "both_NS": both, "labelled_N": labelled}
        return {name: np.concatenate(parts) for name, parts in arrays.items()}

    def result(self) -> SegmentationResult:
        """The figures, of units that are all there."""
        found_NS, stated_NS, both_NS, labelled_N = (
            np.concatenate([self.of(part, key) for part in self.parts]) for key in ("found_NS", "stated_NS", "both_NS", "labelled_N")
        )
        people_N = np.concatenate([part.units() for part in self.parts])
        dice_NS = dice(found_NS, stated_NS, both_NS)
        return SegmentationResult(
            segmenter=self.segmenter.digest,
            dataset=self.dataset.digest,
            splits=tuple(part.split for part in self.parts),
            images=int(labelled_N.sum()),
            people=len(set(people_N[labelled_N])),
            **{
                name: replace(over_people(dice_NS[:, s], people_N), **drawn_without(found_NS[labelled_N, s], stated_NS[labelled_N, s]))
                for s, name in enumerate(STRUCTURES)
            },
        )

    def finish(self) -> SegmentationResult:
        return written(self.path, self.result(), self.out)


def pixels(predicted_BHW: Tensor, known_BHW: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels of each structure that are found, that are there, and that are both: int64 (B, S) each; UNKNOWN ones are left out."""
    counts = []
    for name in STRUCTURES:
        found_BHW = (predicted_BHW == LABELS[name]) & (known_BHW != UNKNOWN)
        there_BHW = known_BHW == LABELS[name]
        counts.append([(maps.flatten(1).sum(1)).numpy() for maps in (found_BHW, there_BHW, found_BHW & there_BHW)])
    found_BS, there_BS, both_BS = (np.stack(column, axis=1) for column in zip(*counts, strict=True))
    return found_BS, there_BS, both_BS


def dice(found_NS: np.ndarray, there_NS: np.ndarray, both_NS: np.ndarray) -> np.ndarray:
    """Dice of each image and structure; NaN where the image has none of it: to find none is then no merit."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(there_NS > 0, 2 * both_NS / (found_NS + there_NS), np.nan)


def drawn_without(found_N: np.ndarray, there_N: np.ndarray) -> dict[str, float | int | None]:
    """Of labelled images, by pixels found and stated: how many lack a structure, and in which share of them it is drawn all the same."""
    found_where_none_N = found_N[there_N == 0] > 0
    share = float(found_where_none_N.mean()) if len(found_where_none_N) else None
    return {"images_without": len(found_where_none_N), "drawn_without": share}


def over_people(dice_N: np.ndarray, people_N: np.ndarray) -> StructureDice:
    """Mean over the images with the structure, and its interval from resampling people with all their images."""
    there_N = np.isfinite(dice_N)
    if not there_N.any():
        return StructureDice(reason="no image has it in its labels")
    mean, interval = ratio_by_person(dice_N, np.ones_like(dice_N), people_N, WORDS)
    return StructureDice(dice=mean, interval=interval, images=int(there_N.sum()), people=len(set(people_N[there_N])))
