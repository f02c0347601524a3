"""K-means over vectors that lie spread over ranks; every rank ends with the same codes, bit for bit.

Seeded by k-means|| (seeding.py), then Lloyd's iterations. Who is drawn is decided by a hash of (seed, number of the vector), and sums
are float64, so the result does not depend on how the vectors are spread over ranks, up to the rounding of these sums. An
iteration costs one search for the nearest codes and one all-reduce of K × (D + 1) numbers.

Legend: N this rank's vectors, D dimensions, K codes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csc_array
from torch import Tensor

from data_shards.errors import InputError
from ldm.comm import Communicator, on_rank_0
from ldm.kmeans.nearest import BLOCK, nearest_code, on_one_core, parts_of, threads_alone
from ldm.kmeans.seeding import seeded, too_few
from ldm.threads import in_parts

LARGEST_SQUARE = 1e36  # of a vector's length: the search is in float32


@dataclass(frozen=True)
class KMeans:
    """
    Attributes:
        codes_KD: fp32; of length 1 under 'cosine'.
        counts_K: vectors that were last assigned to each, float64.
        inertia: mean squared distance of the vectors to the code that they were last assigned to.
        iterations: how many were made.
        fresh: whether they began at codes drawn by k-means||, not at those given.
    """

    codes_KD: Tensor
    counts_K: Tensor
    inertia: float
    iterations: int
    fresh: bool


def kmeans(
    z_ND: Tensor,
    ids_N: np.ndarray,
    *,
    k: int,
    comm: Communicator,
    seed: int,
    start_KD: Tensor | None = None,
    reseed: bool = True,
    previous: float = float("inf"),
    iterations: int = 10,
    tolerance: float = 1e-3,
    metric: Literal["euclidean", "cosine"] = "euclidean",
    watch: Callable[[int, Tensor, float, bool], None] | None = None,
) -> KMeans:
    """Codes of small mean squared distance to the vectors. Collective: a rank without vectors calls it too.

    Args:
        z_ND: this rank's vectors, (N, D); N may be 0.
        ids_N: a number for each vector, unique over all ranks and independent of them.
        start_KD: codes to begin with, the same on every rank.
        reseed: with `start_KD`, also draw codes by k-means||, and begin with those that fit better.
        previous: inertia of the iteration before, of one that was interrupted and goes on from `start_KD`.
        iterations: at most so many; 0: only assign.
        tolerance: stop when an iteration lowers the inertia by less than this share.
        metric: 'cosine' compares directions (spherical k-means, Dhillon and Modha 2001): vectors and codes are brought to length 1.
        watch: told after each iteration, on every rank: iterations done, the codes, the inertia of those before, and whether it was the
            last because the inertia hardly fell.

    Raises:
        InputError (on every rank): fewer different vectors than codes; vectors that are not finite, of another dimension on
            another rank or, under 'cosine', of length 0.
    """
    if start_KD is not None and not bool(start_KD.isfinite().all()):
        raise InputError("codes to begin with that are NaN or infinite", where="k-means of the codebook", expected="finite codes")
    vectors = _compared(z_ND.detach().float(), ids_N, k, comm, unit=metric == "cosine")
    now, fresh = _begun(vectors, ids_N, k, seed, start_KD, reseed)
    codes_KD, before, done, converged = now.codes_KD, previous, 0, False
    while done < iterations and not converged:
        now = now if done == 0 else vectors.assigned(codes_KD)
        codes_KD = vectors.as_codes(_split_large(_means(now), now.counts_K))
        done, converged, before = done + 1, before - now.inertia <= tolerance * now.inertia, now.inertia
        if watch:
            watch(done, vectors.placed(codes_KD), now.inertia, converged)
    if bool((now.counts_K == 0).any()):  # codes that were just moved into a large cluster: who is near them?
        now = vectors.assigned(codes_KD)
        inertia = now.inertia
    else:
        inertia = vectors.inertia(codes_KD, now.sums_KD, now.counts_K)
    return KMeans(vectors.placed(codes_KD), now.counts_K, inertia, done, fresh)


@dataclass(frozen=True)
class _Assigned:
    """All vectors to the nearest of some codes: the sum and the count of each code's, and the mean squared distance."""

    codes_KD: Tensor
    sums_KD: Tensor
    counts_K: Tensor
    inertia: float


@dataclass(frozen=True, kw_only=True)
class _Vectors:
    """All ranks' vectors as they are compared with codes.

    Attributes:
        z_ND: this rank's; of length 1 under 'cosine', else without their mean where that is far from the origin: there a float32 product
            cannot tell near codes apart.
        centre_D: the mean that was taken out; None: none was.
        squares: squared lengths of all ranks' vectors, summed.
        count: vectors of all ranks.
        unit: they are of length 1, and so are their codes.
    """

    z_ND: Tensor
    centre_D: Tensor | None
    squares: float
    count: int
    unit: bool
    comm: Communicator

    def assigned(self, codes_KD: Tensor) -> _Assigned:
        """Who is near these codes: one search, and one all-reduce. Collective."""
        packed = self.comm.all_reduce_sum_(_packed_sums(self.z_ND, codes_KD))
        sums_KD, counts_K = packed[:, :-1], packed[:, -1]
        return _Assigned(codes_KD, sums_KD, counts_K, self.inertia(codes_KD, sums_KD, counts_K))

    def inertia(self, codes_KD: Tensor, sums_KD: Tensor, counts_K: Tensor) -> float:
        """Mean of ‖z − c‖² = ‖z‖² − 2 z·c + ‖c‖² from the sums alone; in float64, and of vectors that lie around the origin."""
        wide_KD = codes_KD.double()
        total = self.squares - 2 * (wide_KD * sums_KD).sum() + (counts_K * wide_KD.square().sum(1)).sum()
        return max(0.0, float(total) / self.count) if bool(total.isfinite()) else float("inf")

    def as_codes(self, codes_KD: Tensor) -> Tensor:
        """For 'cosine' of length 1; a code of length 0, the mean of opposites, stays what it is."""
        return codes_KD / codes_KD.norm(dim=1, keepdim=True).clamp(min=1e-12) if self.unit else codes_KD

    def taken_in(self, codes_KD: Tensor) -> Tensor:
        """Codes from outside, to be compared with these vectors."""
        codes_KD = codes_KD.to(self.z_ND)
        return self.as_codes(codes_KD if self.centre_D is None else (codes_KD.double() - self.centre_D).float())

    def placed(self, codes_KD: Tensor) -> Tensor:
        """The inverse: codes where the vectors came from."""
        return codes_KD if self.centre_D is None else (codes_KD.double() + self.centre_D).float()


def _begun(vectors: _Vectors, ids_N: np.ndarray, k: int, seed: int, start_KD: Tensor | None, reseed: bool) -> tuple[_Assigned, bool]:
    """Who is near the codes to begin with, and whether these were drawn: of given and drawn ones those that fit better."""
    starts: list[tuple[_Assigned, bool]] = []
    if start_KD is not None:
        starts.append((vectors.assigned(vectors.taken_in(start_KD)), False))
    if start_KD is None or reseed:
        drawn_KD = vectors.as_codes(seeded(vectors.z_ND, ids_N, k, vectors.comm, seed, vectors.count))
        starts.append((vectors.assigned(drawn_KD), True))
    return min(starts, key=lambda start: start[0].inertia)


def _compared(z_ND: Tensor, ids_N: np.ndarray, k: int, comm: Communicator, *, unit: bool) -> _Vectors:
    """The vectors as they are compared, checked. Collective."""
    if unit:
        z_ND = z_ND / z_ND.norm(dim=1, keepdim=True)  # of length 0: NaN from here on
    moments = _moments(z_ND)
    count = _checked(z_ND, ids_N, k, comm, sound=float(moments[-1]) < LARGEST_SQUARE, unit=unit)
    moments = comm.all_reduce_sum_(moments)
    centre_D, squares = moments[:-1] / count, float(moments[-1])
    if unit or float(centre_D.square().sum()) <= 0.5 * squares / count:
        return _Vectors(z_ND=z_ND, centre_D=None, squares=squares, count=count, unit=unit, comm=comm)
    z_ND = torch.cat([(block.double() - centre_D).float() for block in z_ND.split(BLOCK)])
    squares = float(comm.all_reduce_sum_(_moments(z_ND))[-1])
    return _Vectors(z_ND=z_ND, centre_D=centre_D, squares=squares, count=count, unit=unit, comm=comm)


def _checked(z_ND: Tensor, ids_N: np.ndarray, k: int, comm: Communicator, *, sound: bool, unit: bool) -> int:
    """How many vectors all ranks have. Every rank sees what is wrong on any, so none waits for one that left."""
    wrong = torch.empty(0) if sound else torch.nonzero(~(z_ND.double().square().sum(1) < LARGEST_SQUARE)).flatten()
    first = int(ids_N[int(wrong[0])]) if len(wrong) else -1
    counts, dimensions, wrong_counts, first_wrong = zip(*comm.gather((len(z_ND), z_ND.shape[1], len(wrong), first)), strict=True)
    count, where = sum(counts), "k-means of the codebook"
    if len(set(dimensions)) > 1:
        by_rank = ", ".join(f"rank {rank}: {d}" for rank, d in enumerate(dimensions))
        raise InputError("latents of different dimensions", where=where, expected=f"one on all ranks ({by_rank})")
    if bad := sum(wrong_counts):
        rank, number = next((rank, first_wrong[rank]) for rank, n in enumerate(wrong_counts) if n)
        kind = "NaN, infinite or of length 0" if unit else "NaN, infinite or too large"
        raise InputError(
            f"{bad} of {count} latents are {kind}, the first: number {number}, on rank {rank}",
            where=where,
            expected=f"finite latents, of lengths below {LARGEST_SQUARE**0.5:.0e}",
            mend="train the encoder at a lower learning rate (vqgan.optimizer.lr), then encode anew",
        )
    if count < k:
        raise too_few(count, "latents", k)
    return count


def _moments(z_ND: Tensor) -> Tensor:
    """Sum of the vectors, and sum of their squared lengths: (D + 1) float64."""

    def of(part: Tensor) -> Tensor:
        wide_ND = part.double()
        flat = wide_ND.flatten()
        return torch.cat([wide_ND.T @ wide_ND.new_ones(len(part)), torch.dot(flat, flat)[None]])

    parts = in_parts(of, parts_of(z_ND)) if z_ND.device.type == "cpu" else [of(block) for block in z_ND.split(BLOCK)]
    return sum(parts, torch.zeros(z_ND.shape[1] + 1, dtype=torch.float64, device=z_ND.device))


def _packed_sums(z_ND: Tensor, codes_KD: Tensor) -> Tensor:
    """Sum and count of the vectors nearest to each code, (K, D + 1) float64, for one all-reduce."""
    k, d = codes_KD.shape
    packed = torch.zeros(k, d + 1, dtype=torch.float64, device=z_ND.device)
    if z_ND.device.type == "cpu":  # each part is added up where it was searched, while a core's cache holds it
        parts = parts_of(z_ND, least=2 * k)  # the sums of all parts together are no larger than the vectors
        for sums_KD, counts_K in in_parts(lambda part: _summed(part, on_one_core(part, codes_KD), k), parts, threads_alone):
            packed[:, :d] += torch.from_numpy(sums_KD)
            packed[:, d] += torch.from_numpy(counts_K)
        return packed
    for block, index in zip(z_ND.split(BLOCK), nearest_code(z_ND, codes_KD).split(BLOCK), strict=True):
        packed.index_add_(0, index, F.pad(block.double(), (0, 1), value=1.0))
    return packed


def _summed(z_ND: Tensor, index_N: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums in float64, and counts, of vectors whose code is known; as a product with a matrix of a one a column, which passes once."""
    index, n = index_N.numpy(), len(z_ND)
    codes_KN = csc_array((np.ones(n), index, np.arange(n + 1)), shape=(k, n))
    return codes_KN @ z_ND.double().numpy(), np.bincount(index, minlength=k)


def _means(now: _Assigned) -> Tensor:
    """The mean of each code's vectors; a code without any stays."""
    means_KD = now.sums_KD / now.counts_K.clamp(min=1)[:, None]
    return torch.where((now.counts_K == 0)[:, None], now.codes_KD.double(), means_KD).float()


def _split_large(codes_KD: Tensor, counts_K: Tensor) -> Tensor:
    """Give each empty code half of one of the largest clusters: a copy, both moved a little apart."""
    empty = torch.nonzero(counts_K == 0).flatten()
    if not len(empty):
        return codes_KD
    large = counts_K.argsort(descending=True, stable=True)[: len(empty)]
    step = 1e-3 * codes_KD[large].abs().clamp(min=1e-3)
    codes_KD = codes_KD.clone()
    codes_KD[empty] = codes_KD[large] + step
    codes_KD[large] -= step
    return codes_KD


def matched(codes_KD: Tensor, to_KD: Tensor, comm: Communicator) -> Tensor:
    """The order in which `codes_KD` lie nearest to `to_KD`, pair by pair (Hungarian method): so a code's number keeps its meaning."""
    # on rank 0 alone: processors of other kinds may round otherwise
    order_K = on_rank_0(comm, lambda: linear_sum_assignment(torch.cdist(to_KD.double(), codes_KD.double()).square().cpu().numpy())[1])
    return torch.from_numpy(order_K).to(codes_KD.device)
