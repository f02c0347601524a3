"""The nearest code of each vector: faiss on a processor, a fused kernel or matrix products on a GPU.

Legend: N vector, K code, D dimension.
"""

from __future__ import annotations

import functools
import importlib.util

import torch
from torch import Tensor

BLOCK = 1 << 16  # vectors at once


def nearest_code(z_ND: Tensor, codes_KD: Tensor) -> Tensor:
    """Index of the nearest code of each vector, Euclidean, (N,) int64. Memory does not grow with N × K."""
    z_ND, codes_KD = z_ND.float(), codes_KD.float()
    if not len(z_ND):
        return torch.empty(0, dtype=torch.int64, device=z_ND.device)
    if z_ND.device.type == "cpu" and _installed("faiss"):
        import faiss

        return torch.from_numpy(faiss.knn(z_ND.contiguous().numpy(), codes_KD.contiguous().numpy(), 1)[1][:, 0])
    # argmin ‖z − c‖² = argmax z·c − ‖c‖²/2
    half_norm_K = 0.5 * codes_KD.square().sum(1)
    if z_ND.device.type == "cuda" and _installed("triton"):
        from ldm import nearest_triton

        if z_ND.shape[1] <= nearest_triton.WIDEST:
            return nearest_triton.nearest(z_ND, codes_KD, half_norm_K)
    with torch.autocast(z_ND.device.type, enabled=False):  # would round both factors to bfloat16
        return torch.cat([torch.addmm(-half_norm_K, block, codes_KD.T).argmax(1) for block in z_ND.split(BLOCK)])


@functools.cache
def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
