"""The envelope of the training images' mean spectra, measured in units.

Legend: B batch, C band, H W pixels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_shards.reading.dataset import Dataset
from ldm.evaluation.measurements import Arrays, ImageMeasurements, Piece, beside, written
from ldm.evaluation.sets import Part
from ldm.generation.gate import FORMAT, Envelope, at_a_bound, envelope_of

MOST = 4096  # training images, evenly spaced


class TrainingSpectra(ImageMeasurements):
    """The mean spectrum of every training image within its field of view, a unit a shard; `result` is their envelope.

    Args:
        path: file for the result, beside which the units lie; None: they are kept in memory.
    """

    def __init__(self, dataset: Dataset, path: Path | None = None) -> None:
        self.dataset, self.path = dataset, path
        split = dataset.stats.split
        self.part = Part.of(dataset, split, MOST)
        super().__init__([self.part], beside(path, {"format": FORMAT, "dataset": dataset.digest, "most": MOST}))

    def measured(self, piece: Piece) -> Arrays:
        spectra, bounds = [], []
        for batch in piece.batches(8):
            fov_BHW = batch.fov_BHW.numpy() if batch.fov_BHW is not None else np.ones_like(batch.cubes_BCHW[:, 0], bool)
            for cube_CHW, fov_HW in zip(batch.cubes_BCHW.numpy(), fov_BHW, strict=True):
                inside_CN = cube_CHW[:, fov_HW]
                spectra.append(inside_CN.mean(1) * self.dataset.scale + self.dataset.offset)
                bounds.append(at_a_bound(inside_CN))
        return {"spectra_NC": np.stack(spectra), "bound_N": np.array(bounds)}

    def result(self) -> Envelope:
        """Of units that are all there."""
        people = len(set(self.part.units()))
        spectra_NC, bound_N = self.of(self.part, "spectra_NC"), self.of(self.part, "bound_N")
        return envelope_of(spectra_NC, bound_N, dataset=self.dataset.digest, people=people)

    def finish(self) -> Envelope:
        return written(self.path, self.result(), self.out)
