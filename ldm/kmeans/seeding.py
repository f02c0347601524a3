"""Where k-means begins: k-means|| (Bahmani et al. 2012, "Scalable k-means++") over vectors that lie spread over ranks.

Legend: N this rank's vectors, D dimensions, K codes, S vectors of the sample, M candidates, T trials.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from data_shards.errors import InputError
from data_shards.reading.order import hash64
from ldm.comm import Communicator, on_rank_0
from ldm.kmeans.nearest import BLOCK, nearest_code

SAMPLE_A_CODE, ROUNDS, OVERSAMPLING, REFINED = 128, 5, 2, 5
MOST_TRIED = 4096  # codes; of more, a start by several draws each would take minutes


def too_few(count: int, what: str, k: int) -> InputError:
    return InputError(
        f"{count} {what} for {k} codes",
        where="k-means of the codebook",
        expected="at least one a code",
        mend="fewer codes (vqgan.codebook.codes; --codes), or more latents (vqgan.codebook.kmeans_vectors; --vectors)",
    )


def _uniform(seed: int, ids_N: np.ndarray, what: int) -> np.ndarray:
    """A number in [0, 1) for each vector."""
    return (hash64(seed, ids_N, what) >> np.uint64(11)).astype(np.float64) / 2**53


def seeded(z_ND: Tensor, ids_N: np.ndarray, k: int, comm: Communicator, seed: int, count: int) -> Tensor:
    """K of the vectors, far from each other and where there are many: k-means||, then k-means++ among its candidates.

    On a sample of some 128 vectors a code: its rounds would cost more than all of Lloyd's iterations, and a start need not be exact.
    """
    drawn_N = _uniform(seed, ids_N, 1) * count < SAMPLE_A_CODE * k
    z_SD, ids_S = z_ND[torch.from_numpy(drawn_N).to(z_ND.device)], ids_N[drawn_N]
    candidates = _gathered(z_SD, ids_S, _first(ids_S, comm, seed), comm)
    apart_S = torch.full((len(z_SD),), float("inf"), dtype=torch.float64, device=z_SD.device)
    latest = candidates
    for number in range(ROUNDS):
        if len(latest):
            apart_S = torch.minimum(apart_S, _squared_distance(z_SD, latest))
        cost = float(comm.all_reduce_sum_(apart_S.sum()[None]))
        chosen_S = torch.from_numpy(_uniform(seed, ids_S, 2 + number)).to(z_SD.device) * cost < OVERSAMPLING * k * apart_S
        latest = _gathered(z_SD, ids_S, chosen_S.cpu().numpy(), comm)
        candidates = torch.cat([candidates, latest])
    candidates = torch.unique(candidates, dim=0)
    if len(candidates) < k:  # few vectors, or many that are equal
        candidates = _different(z_ND, k, comm)
        if len(candidates) < k:
            raise too_few(len(candidates), "different latents", k)
    weights_M = torch.zeros(len(candidates), dtype=torch.float64, device=z_SD.device)
    if len(z_SD):
        weights_M += torch.bincount(nearest_code(z_SD, candidates), minlength=len(candidates))
    weights_M = comm.all_reduce_sum_(weights_M).clamp(min=1e-3)
    # on rank 0 alone: processors of other kinds may round otherwise
    codes_KD = on_rank_0(comm, lambda: _of_candidates(candidates.cpu(), weights_M.cpu(), k, seed).numpy())
    return torch.from_numpy(codes_KD).to(z_SD.device)


def _of_candidates(z_MD: Tensor, weights_M: Tensor, k: int, seed: int) -> Tensor:
    """K codes for weighted candidates: k-means++, and some of Lloyd's iterations, which cost little on so few."""
    codes_KD = z_MD[_plus_plus(z_MD.numpy(), weights_M.numpy().astype(np.float32), k, seed)]
    for _ in range(REFINED):
        index = nearest_code(z_MD, codes_KD)
        sums_KD = torch.zeros(codes_KD.shape, dtype=torch.float64).index_add_(0, index, z_MD.double() * weights_M[:, None])
        total_K = torch.zeros(k, dtype=torch.float64).index_add_(0, index, weights_M)
        codes_KD = torch.where(total_K[:, None] > 0, sums_KD / total_K[:, None].clamp(min=1e-30), codes_KD.double()).float()
    return codes_KD


def _first(ids_S: np.ndarray, comm: Communicator, seed: int) -> np.ndarray:
    """Marks one vector of all ranks' samples."""
    priority_S = hash64(seed, ids_S, 0)
    lowest = min((low for low in comm.gather(int(priority_S.min()) if len(ids_S) else None) if low is not None), default=-1)
    return priority_S == lowest if lowest >= 0 else np.zeros(len(ids_S), bool)


def _gathered(z_SD: Tensor, ids_S: np.ndarray, chosen_S: np.ndarray, comm: Communicator) -> Tensor:
    """The chosen vectors of all ranks, in the order of their numbers."""
    mine = np.flatnonzero(chosen_S)
    ids, z = zip(*comm.gather((ids_S[mine], z_SD[torch.from_numpy(mine).to(z_SD.device)].cpu().numpy())), strict=True)
    order = np.argsort(np.concatenate(ids), kind="stable")
    return torch.from_numpy(np.concatenate(z)[order]).to(z_SD.device)


def _different(z_ND: Tensor, k: int, comm: Communicator) -> Tensor:
    """Different vectors among all ranks': all of them, or enough."""
    mine = torch.unique(z_ND, dim=0)[:k].cpu().numpy()
    return torch.unique(torch.from_numpy(np.concatenate(comm.gather(mine))).to(z_ND.device), dim=0)


def _squared_distance(z_SD: Tensor, codes_MD: Tensor) -> Tensor:
    """To the nearest code, by differences: exactly 0 for a code itself."""
    nearest = [codes_MD[nearest_code(block, codes_MD)] for block in z_SD.split(BLOCK)]
    return (z_SD.double() - torch.cat(nearest).double()).square().sum(1) if nearest else z_SD.new_zeros(0, dtype=torch.float64)


def _plus_plus(z_MD: np.ndarray, weights_M: np.ndarray, k: int, seed: int) -> list[int]:
    """Greedy k-means++ (Arthur and Vassilvitskii 2007) over weighted candidates: of some draws, the one that lowers the cost most."""
    trials = 2 + int(np.log(k)) if k <= MOST_TRIED else 1
    draw_KT = _uniform(seed, np.arange(k * trials), 99).reshape(k, trials)
    squares_M = np.einsum("md,md->m", z_MD, z_MD)[:, None]
    ones_M = np.ones_like(squares_M)
    # ‖x − z‖² = (−2x, ‖x‖², 1) · (z, 1, ‖z‖²): one product
    left, right = np.concatenate([-2 * z_MD, squares_M, ones_M], 1), np.ascontiguousarray(np.concatenate([z_MD, ones_M, squares_M], 1).T)
    picked, apart_M = [], np.full(len(z_MD), np.inf, np.float32)
    for draw_T in draw_KT:
        share_M = np.cumsum(weights_M * apart_M if picked else weights_M, dtype=np.float64)
        drawn_T = np.searchsorted(share_M, draw_T * share_M[-1], side="right").clip(max=len(z_MD) - 1)
        apart_TM = left[drawn_T] @ right
        apart_TM[np.arange(trials), drawn_T] = 0
        np.minimum(apart_TM, apart_M, out=apart_TM)
        np.maximum(apart_TM, 0, out=apart_TM)
        best = int(np.argmin(apart_TM @ weights_M))
        picked.append(int(drawn_T[best]))
        apart_M = apart_TM[best].copy()
    return picked
