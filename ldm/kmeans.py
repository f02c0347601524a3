"""K-means over vectors that lie spread over ranks; every rank ends with the same codes.

Legend: N this rank's vectors, D dimensions, K codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data_shards.errors import InputError
from data_shards.order import hash64
from ldm.comm import Communicator

CANDIDATES_A_CODE, CANDIDATES_LEAST = 8, 4096


@dataclass(frozen=True)
class KMeans:
    """codes_KD fp32; counts_K vectors assigned to each; inertia: mean squared distance to the nearest code."""

    codes_KD: Tensor
    counts_K: Tensor
    inertia: float
    iterations: int


def kmeans(
    z_ND: Tensor,
    ids_N: np.ndarray,
    *,
    k: int,
    comm: Communicator,
    seed: int,
    start_KD: Tensor | None = None,
    iterations: int = 10,
    tolerance: float = 1e-3,
) -> KMeans:
    """Lloyd's iterations from a k-means++ start, or from `start_KD`. Collective: a rank without vectors calls it too.

    The start is drawn by hash of (seed, id) and all sums are float64, so the result does not depend on how the vectors
    are spread over ranks (up to rounding of the sums). One all-reduce an iteration.

    Args:
        z_ND: this rank's vectors, (N, D); N may be 0.
        ids_N: a number for each vector, unique over all ranks and independent of them.
        start_KD: codes to go on from, the same on every rank; they keep their numbers.
        tolerance: stop when an iteration lowers the inertia by less than this share.

    Raises:
        InputError (on every rank): fewer vectors than codes, or vectors that are not finite.
    """
    z_ND = z_ND.float()
    totals = torch.tensor([len(z_ND), int((~z_ND.isfinite()).any(1).sum())], dtype=torch.float64, device=z_ND.device)
    count, bad = (int(v) for v in comm.all_reduce_sum_(totals))
    if bad or count < k:
        what = f"{bad} of {count} latents are NaN or infinite" if bad else f"{count} latents for {k} codes"
        raise InputError(
            what,
            where="k-means of the codebook",
            expected="finite latents, at least one a code",
            mend="lower vqgan.codebook.codes, or the learning rate: vqgan.optimizer.lr",
        )
    if start_KD is None:
        start_KD = _plus_plus(_candidates(z_ND, ids_N, max(k * CANDIDATES_A_CODE, CANDIDATES_LEAST), comm, seed), k, seed)
    codes_KD = start_KD.to(z_ND)
    before, done = float("inf"), 0
    while done < iterations:
        done += 1
        packed = comm.all_reduce_sum_(_lloyd_sums(z_ND, codes_KD))
        inertia = float(packed[0, -1]) / count
        counts_K = packed[:, -2]
        codes_KD = torch.where(counts_K[:, None] > 0, packed[:, :-2] / counts_K.clamp(min=1)[:, None], codes_KD.double()).float()
        codes_KD = _split_large(codes_KD, counts_K)
        if before - inertia <= tolerance * inertia:
            break
        before = inertia
    packed = comm.all_reduce_sum_(_lloyd_sums(z_ND, codes_KD))
    return KMeans(codes_KD, packed[:, -2], float(packed[0, -1]) / count, done)


def _lloyd_sums(z_ND: Tensor, codes_KD: Tensor) -> Tensor:
    """Float64 sums, counts and (in row 0) inertia, packed as (K, D + 2) for one all-reduce."""
    half_norm_K = 0.5 * codes_KD.square().sum(1)
    packed = torch.zeros(len(codes_KD), z_ND.shape[1] + 2, dtype=torch.float64, device=z_ND.device)
    for block in z_ND.split(1 << 15):
        index = torch.addmm(-half_norm_K, block, codes_KD.T).argmax(1)
        wide = block.double()
        packed[:, :-2].index_add_(0, index, wide)
        packed[:, -2] += torch.bincount(index, minlength=len(codes_KD))
        packed[0, -1] += (wide - codes_KD[index].double()).square().sum()
    return packed


def _split_large(codes_KD: Tensor, counts_K: Tensor) -> Tensor:
    """Give each empty code half of one of the largest clusters: a copy, both moved a little apart."""
    empty = torch.nonzero(counts_K == 0).flatten()
    large = counts_K.argsort(descending=True, stable=True)[: len(empty)]
    step = 1e-3 * codes_KD[large].abs().clamp(min=1e-3)
    codes_KD = codes_KD.clone()
    codes_KD[empty] = codes_KD[large] + step
    codes_KD[large] -= step
    return codes_KD


def _candidates(z_ND: Tensor, ids_N: np.ndarray, wanted: int, comm: Communicator, seed: int) -> np.ndarray:
    """The `wanted` vectors of smallest hash over all ranks, in the order of their hash; the same on every rank."""
    priority_N = hash64(seed, ids_N)
    mine = np.argsort(priority_N)[:wanted]
    gathered = comm.gather((priority_N[mine], z_ND.cpu().numpy()[mine]))
    priority = np.concatenate([p for p, _ in gathered])
    first = np.argsort(priority)[:wanted]
    return np.concatenate([z for _, z in gathered])[first]


def _plus_plus(z_MD: np.ndarray, k: int, seed: int) -> Tensor:
    """k-means++ (Arthur and Vassilvitskii 2007) on the gathered candidates."""
    draw = (hash64(seed, np.arange(k), 1) >> np.uint64(11)).astype(np.float64) / 2**53
    chosen = [int(draw[0] * len(z_MD))]
    nearest_M = ((z_MD - z_MD[chosen[0]]) ** 2).sum(1)
    for i in range(1, k):
        cumulative = np.cumsum(nearest_M, dtype=np.float64)
        # all candidates already chosen or equal: fall back to the next by hash, Lloyd's splits do the rest
        pick = int(np.searchsorted(cumulative, draw[i] * cumulative[-1], side="right")) if cumulative[-1] > 0 else i % len(z_MD)
        chosen.append(min(pick, len(z_MD) - 1))
        nearest_M = np.minimum(nearest_M, ((z_MD - z_MD[chosen[-1]]) ** 2).sum(1))
    return torch.from_numpy(z_MD[chosen])
