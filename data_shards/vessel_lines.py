"""Centre lines of vessels, by which a thin one stays connected on a coarser raster.

Legend: H W pixels.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import binary_propagation
from skimage.morphology import skeletonize

from data_shards.cube import LABELS


def centre_lines(labels_HW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the centre lines of arteries, of veins, and of the tree of both, where one ends at the other."""
    artery_HW, vein_HW = labels_HW == LABELS["artery"], labels_HW == LABELS["vein"]
    lines_HW = skeletonize(artery_HW) | skeletonize(vein_HW) | skeletonize(artery_HW | vein_HW)
    return np.nonzero(lines_HW)


def with_lines(vessel_HW: np.ndarray, lines_HW: np.ndarray) -> np.ndarray:
    """Vessels with the pixels that their centre lines pass on a coarser raster, on which no line breaks.

    Neighbours on a line fall into one pixel or into neighbours. Where they make steps of two pixels, one is thinned away.
    """
    thin_HW = skeletonize(vessel_HW | lines_HW)
    return binary_propagation(thin_HW, structure=np.ones((3, 3)), mask=vessel_HW | thin_HW)  # nothing lies apart from its line
