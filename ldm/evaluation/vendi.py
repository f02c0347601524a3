"""The effective number of different images in a set.

Legend: N image, D feature.
"""

from __future__ import annotations

import numpy as np
import torch

from ldm.threads import one_thread


def vendi_score(x_ND: np.ndarray) -> float:
    """exp of the entropy of the eigenvalues of K / N, K the cosine similarities of the images (Friedman and Dieng 2023, Eq. 2).

    1 where all images point the same way, N where none has anything of another. K / N and the D×D product of the same unit vectors
    share their eigenvalues but for zeros: the smaller of the two is taken.
    """
    length_N1 = np.linalg.norm(x_ND, axis=1, keepdims=True)
    unit_ND = np.asarray(x_ND, np.float64) / np.where(length_N1 > 0, length_N1, 1.0)
    small = unit_ND @ unit_ND.T if len(unit_ND) <= unit_ND.shape[1] else unit_ND.T @ unit_ND
    with one_thread():
        p = torch.linalg.eigvalsh(torch.from_numpy(small / len(unit_ND))).numpy()
    p = p[p > 0]
    return float(np.exp(-(p * np.log(p)).sum()))
