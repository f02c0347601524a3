"""Sums over the pixels of a set's cubes, within the field of view and within each labelled region.

Legend: C band, H W pixels, N pixel, U resampling unit (a patient, or an independent synthetic image), R region.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np

from data_shards.cube import LABELS
from ldm.spectra import REGIONS

STRUCTURES = REGIONS[1:]


class RegionSums(ABC):
    """Sums by unit and region; filled cube by cube, or by what was summed of other cubes.

    Args:
        zeros: the sums of a unit without pixels: arrays (R, …), by the names under which `arrays` has those of all units.
    """

    def __init__(self, zeros: Mapping[str, np.ndarray]) -> None:
        self.zeros, self.labelled = zeros, False
        self._of: dict[int, dict[str, np.ndarray]] = {}

    @abstractmethod
    def of_pixels(self, values_CN: np.ndarray) -> Mapping[str, np.ndarray | int]:
        """What some pixels of one region add to each of the sums."""

    def add(self, data_CHW: np.ndarray, *, unit: int, fov_HW: np.ndarray, labels_HW: np.ndarray | None = None) -> None:
        """Sum one cube under `unit`; labels outside the field of view do not count."""
        masks = [fov_HW]
        if labels_HW is not None:
            self.labelled = True
            masks += [fov_HW & (labels_HW == LABELS[name]) for name in STRUCTURES]
        for r, mask_HW in enumerate(masks):
            for name, added in self.of_pixels(data_CHW[:, mask_HW]).items():
                self._sums(unit)[name][r] += added

    def arrays(self) -> dict[str, np.ndarray]:
        """What `merge` adds to others: the units, and their sums in the whole field of view and, of a labelled set, in each region."""
        regions = len(REGIONS) if self.labelled else 1
        of_units = {
            name: np.array([sums[name][:regions] for sums in self._of.values()], zero.dtype).reshape(-1, regions, *zero.shape[1:])
            for name, zero in self.zeros.items()
        }
        return {"unit_U": np.array(list(self._of), np.int64), **of_units}

    def merge(self, unit_U: np.ndarray, **of_units: np.ndarray) -> None:
        """Add what was summed of other cubes of the set."""
        for name, sums_UR in of_units.items():
            self.labelled |= sums_UR.shape[1] > 1
            for unit, sums_R in zip(unit_U.tolist(), sums_UR, strict=True):
                self._sums(unit)[name][: len(sums_R)] += sums_R

    def by_unit(self, name: str, region: str) -> np.ndarray:
        """Sums (U, …) of a region, by unit in their order."""
        sums = [self._of[unit][name][REGIONS.index(region)] for unit in sorted(self._of)]
        zero = self.zeros[name]
        return np.array(sums, zero.dtype).reshape(-1, *zero.shape[1:])

    def _sums(self, unit: int) -> dict[str, np.ndarray]:
        return self._of.setdefault(unit, {name: zero.copy() for name, zero in self.zeros.items()})


def lacking_labels(sets: Mapping[str, RegionSums], region: str) -> str | None:
    """Why a region of 'real' and 'synthetic' cannot be compared where no label map says where it is; None where one does."""
    if region == "fov" or sets["synthetic"].labelled:
        return None
    return "the synthetic set has no labels" if sets["real"].labelled else "neither set has labels"
