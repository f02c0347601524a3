"""The nearest code of each vector: on a processor by faiss where dimensions are few, else by matrix products; on a GPU by a fused kernel.

Legend: N vector, K code, D dimension.
"""

from __future__ import annotations

import functools
import importlib.util

import numpy as np
import torch
from torch import Tensor

from ldm.threads import in_parts

BLOCK = 1 << 16  # vectors at once on a GPU
FEW = 16  # dimensions up to which faiss is faster: its kernel never writes the products down
SCORES = 1 << 18  # products that are written down at once: what a core's cache holds


@torch.compiler.disable
def nearest_code(z_ND: Tensor, codes_KD: Tensor) -> Tensor:
    """Index of the nearest code of each vector, Euclidean, (N,) int64; of one that is not finite, any. Memory does not grow with N × K."""
    z_ND, codes_KD = z_ND.detach().float(), codes_KD.detach().float()
    if not len(z_ND):
        return torch.empty(0, dtype=torch.int64, device=z_ND.device)
    with torch.autocast(z_ND.device.type, enabled=False):  # would round both factors to bfloat16
        if z_ND.device.type == "cpu":
            return torch.cat(in_parts(lambda part: on_one_core(part, codes_KD), parts_of(z_ND), threads_alone))
        # argmin ‖z − c‖² = argmax z·c − ‖c‖²/2
        half_norm_K = 0.5 * codes_KD.square().sum(1)
        if z_ND.device.type == "cuda" and _installed("triton"):
            from ldm.kmeans import nearest_triton

            if z_ND.shape[1] <= nearest_triton.WIDEST:
                return nearest_triton.nearest(z_ND, codes_KD, half_norm_K)
        return torch.cat([torch.addmm(-half_norm_K, block, codes_KD.T).argmax(1) for block in z_ND.split(BLOCK)])


def on_one_core(z_ND: Tensor, codes_KD: Tensor) -> Tensor:
    """The same for some of the vectors, in fp32 on a processor, by the thread that calls."""
    if z_ND.shape[1] <= FEW and (faiss := _faiss()):
        index_N1 = faiss.knn(z_ND.contiguous().numpy(), codes_KD.contiguous().numpy(), 1)[1]
        return torch.from_numpy(index_N1[:, 0].clip(min=0))  # -1: of a vector that is not finite
    rows, k = max(64, SCORES // len(codes_KD)), len(codes_KD)
    # argmax z·c − ‖c‖²/2, the norm as one dimension more: added to products that are there already it would cost another pass
    wide_DK = torch.cat([codes_KD, -0.5 * codes_KD.square().sum(1, keepdim=True)], dim=1).T.contiguous()
    wide_ND = torch.cat([z_ND, torch.ones(len(z_ND), 1)], dim=1)
    score_NK, index_N = torch.empty(min(rows, len(z_ND)), k), np.empty(len(z_ND), np.int64)
    for block_ND, index in zip(wide_ND.split(rows), np.split(index_N, range(rows, len(z_ND), rows)), strict=True):
        score = torch.mm(block_ND, wide_DK, out=score_NK[: len(index)])
        np.argmax(score.numpy(), axis=1, out=index)  # torch's argmax takes longer than the product; numpy's is vectorised
    return torch.from_numpy(index_N)


def parts_of(z_ND: Tensor, least: int = 1 << 12) -> tuple[Tensor, ...]:
    """Parts for `in_parts`, of `least` vectors or more: the same whatever the number of threads, and so what is added up by them."""
    return z_ND.split(max(least, 1 << 12, BLOCK // z_ND.shape[1])) if len(z_ND) else ()


def threads_alone() -> None:
    """In a thread of its own: faiss computes on this one."""
    if faiss := _faiss():
        faiss.omp_set_num_threads(1)


@functools.cache
def _faiss():
    if not _installed("faiss"):
        return None
    import faiss

    # since 1.15 few vectors pass it by, and take fifteen times as long each
    faiss.cvar.distance_compute_blas_threshold = min(faiss.cvar.distance_compute_blas_threshold, 20)
    return faiss


@functools.cache
def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
