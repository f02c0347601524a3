"""Exact nearest neighbours, by faiss or torch.

Legend: N query, M reference, K neighbour, T candidate, D dimension, B block of queries, R row of a tile.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable

import numpy as np
import torch

from data_shards.errors import InputError, nearest

MARGIN = 7  # candidates fetched beyond k at first: float32 may rank that many too far down before a query is searched again
MOST_CANDIDATES = 2048  # what the GPU search of faiss can keep


def _faiss_top(query_ND: np.ndarray, reference_MD: np.ndarray, t: int) -> tuple[np.ndarray, np.ndarray]:
    """faiss' exact search. Branches on the number of GPUs: the GPU build aborts the process where there is none."""
    import faiss

    if faiss.get_num_gpus() > 0 and t <= MOST_CANDIDATES:
        return faiss.knn_gpu(faiss.StandardGpuResources(), query_ND, reference_MD, t)
    return faiss.knn(query_ND, reference_MD, t)


def _torch_top(
    query_ND: np.ndarray, reference_MD: np.ndarray, t: int, *, rows: int = 1024, columns: int = 65536
) -> tuple[np.ndarray, np.ndarray]:
    """The same by one matrix product a tile, on the GPU where there is one; never more than rows x columns distances at once."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reference, found = torch.from_numpy(reference_MD), []
    for q_RD in torch.from_numpy(query_ND).split(rows):
        q_RD = q_RD.to(device)
        best = torch.empty((len(q_RD), 0), device=device), torch.empty((len(q_RD), 0), dtype=torch.long, device=device)
        for start in range(0, len(reference), columns):
            r_MD = reference[start : start + columns].to(device)
            tile_RM = torch.addmm((r_MD**2).sum(1)[None], q_RD, r_MD.T, alpha=-2)  # + |q|² at the end: it does not rank
            near = tile_RM.topk(min(t, len(r_MD)), dim=1, largest=False)
            both = torch.cat([best[0], near.values], 1), torch.cat([best[1], near.indices + start], 1)
            keep = both[0].topk(min(t, both[0].shape[1]), dim=1, largest=False)
            best = keep.values, both[1].gather(1, keep.indices)
        found.append(((best[0] + (q_RD**2).sum(1, keepdim=True)).cpu().numpy(), best[1].cpu().numpy()))
    return np.concatenate([d for d, _ in found]), np.concatenate([i for _, i in found])


BACKENDS: dict[str, Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]] = {
    "faiss": _faiss_top,
    "torch": _torch_top,
}
"""Each gives squared distances (N, T) and positions (N, T), in float32 and nearly in order; `nearest_neighbours` makes them exact."""


def _direct(query_D: np.ndarray, rows_TD: np.ndarray) -> np.ndarray:
    """Squared distances by (x - y)² in float64: |x|² - 2 xy + |y|² cancels, and would call a 1e-5 change of a copy 0."""
    gap_TD = rows_TD.astype(np.float64) - query_D.astype(np.float64)
    return np.einsum("td,td->t", gap_TD, gap_TD)


def _refined(query_D: np.ndarray, reference_MD: np.ndarray, index_T: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of the proposed rows, by direct distances; equal ones in the order of the reference."""
    squared_T = _direct(query_D, reference_MD[index_T])
    order_K = np.lexsort((index_T, squared_T))[:k]
    return squared_T[order_K], index_T[order_K]


def _whole_row(query_D: np.ndarray, reference_MD: np.ndarray, k: int, block: int = 8192) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of one query by direct distances to everything."""
    squared_M = np.concatenate([_direct(query_D, reference_MD[s : s + block]) for s in range(0, len(reference_MD), block)])
    order_K = np.argsort(squared_M, kind="stable")[:k]
    return squared_M[order_K], order_K


def _rounding_bound(query_BD: np.ndarray, longest: float) -> np.ndarray:
    """How far a squared distance from float32 products may be off: c √D u (|x| + |y|)².

    Higham & Mary 2019, Theorem 2.4: a float32 dot product of D terms errs by at most λ √D u |x||y| but for a probability of
    2 D exp(-λ²/2); λ = 8 here, and 4 such terms (two norms, one product taken twice).
    """
    dimension = query_BD.shape[1]
    return 4 * 8 * math.sqrt(dimension) * 2.0**-24 * (np.linalg.norm(query_BD.astype(np.float64), axis=1) + longest) ** 2


def nearest_neighbours(
    query_ND: np.ndarray, reference_MD: np.ndarray, k: int = 1, *, backend: str = "auto", block: int = 4096
) -> tuple[np.ndarray, np.ndarray]:
    """Euclidean distances (N, K), float64, and positions (N, K), int64, of the k nearest rows of the reference; exact.

    The float32 search proposes some more than k candidates; their distances are taken directly in float64. Where the
    rounding of the float32 search cannot exclude that a row it did not propose lies nearer than the k-th, that query asks
    for eight times as many, and in the end goes through all rows in float64.

    Where k exceeds M the missing neighbours have position -1 and distance infinity.

    Args:
        query_ND, reference_MD: finite numbers, float32 or float64.
        backend: 'faiss', 'torch', or 'auto': faiss where it is installed.
        block: queries searched at once.

    Raises:
        InputError: different D, an empty reference, values that are not finite, an unknown backend.
    """
    if query_ND.ndim != 2 or reference_MD.ndim != 2 or query_ND.shape[1] != reference_MD.shape[1] or not len(reference_MD) or k < 1:
        raise InputError(
            f"queries {query_ND.shape}, reference {reference_MD.shape}, k={k}", expected="(N, D) and (M, D), M and k at least 1"
        )
    for name, x in (("queries", query_ND), ("reference", reference_MD)):
        if not np.isfinite(x).all():
            raise InputError(f"{name} with NaN or infinite values", expected="finite values")
    if backend == "auto":
        backend = "faiss" if importlib.util.find_spec("faiss") else "torch"
    if backend not in BACKENDS:
        raise InputError(f"unknown search backend {backend!r}", expected=nearest(backend, BACKENDS))
    centre_D = reference_MD.mean(0, dtype=np.float64)  # distances do not change, and the norms that cancel shrink
    shifted_MD = np.empty(reference_MD.shape, np.float32)
    np.subtract(reference_MD, centre_D, out=shifted_MD, dtype=np.float64, casting="same_kind")  # no second copy in float64
    longest = math.sqrt(float(np.einsum("md,md->m", shifted_MD, shifted_MD).max()))
    distance_NK, index_NK = np.full((len(query_ND), k), np.inf), np.full((len(query_ND), k), -1, np.int64)
    for start in range(0, len(query_ND), block):
        waiting_B, t = np.arange(start, min(start + block, len(query_ND))), min(k + MARGIN, len(reference_MD))
        while len(waiting_B):
            shifted_BD = np.ascontiguousarray(query_ND[waiting_B] - centre_D, np.float32)
            rough_BT, index_BT = BACKENDS[backend](shifted_BD, shifted_MD, t)
            excluded_B = rough_BT.max(1) - _rounding_bound(shifted_BD, longest)  # no row left out lies nearer than this
            unsure = []
            for n, excluded, index_T in zip(waiting_B, excluded_B, index_BT, strict=True):
                squared_K, index_K = _refined(query_ND[n], reference_MD, index_T, k)
                if t < len(reference_MD) and squared_K[-1] > excluded:
                    if t < MOST_CANDIDATES:
                        unsure.append(n)
                        continue
                    squared_K, index_K = _whole_row(query_ND[n], reference_MD, k)
                distance_NK[n, : len(index_K)], index_NK[n, : len(index_K)] = np.sqrt(squared_K), index_K
            waiting_B, t = np.array(unsure, np.int64), min(8 * t, MOST_CANDIDATES, len(reference_MD))
    return distance_NK, index_NK
