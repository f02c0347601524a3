"""K-means: no worse than sklearn-like Lloyd, the same on any spread over ranks, no one left waiting, empty clusters filled."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.errors import InputError
from ldm.comm import Alone
from ldm.kmeans.lloyd import kmeans, matched
from tests.threads import Threads


def blobs(n: int = 2000, k: int = 20, d: int = 4, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy((rng.normal(0, 5, (k, d))[rng.integers(0, k, n)] + rng.normal(0, 0.1, (n, d))).astype(np.float32))


def test_separate_clusters_are_found() -> None:
    z = blobs()
    found = kmeans(z, np.arange(len(z)), k=20, comm=Alone(), seed=0, iterations=20)
    assert found.inertia < 4 * 0.1**2 * 1.2
    assert int(found.counts_K.sum()) == len(z) and (found.counts_K > 0).all()


def test_inertia_is_near_that_of_many_restarts() -> None:
    """Against the best of five scipy runs from k-means++."""
    from scipy.cluster.vq import kmeans2

    z = torch.randn(3000, 6, generator=torch.Generator().manual_seed(1))
    best = min(
        float(((z.numpy() - codes[index]) ** 2).sum(1).mean())
        for codes, index in (kmeans2(z.numpy(), 64, iter=25, minit="++", seed=s) for s in range(5))
    )
    assert kmeans(z, np.arange(3000), k=64, comm=Alone(), seed=0, iterations=25).inertia < 1.02 * best


@settings(max_examples=12, deadline=None)
@given(world=st.integers(2, 4), seed=st.integers(0, 100), empty=st.booleans())
def test_any_spread_over_ranks_gives_one_result(world: int, seed: int, empty: bool) -> None:
    """Also with a rank that holds nothing: it joins every collective."""
    z, ids = blobs(400, 8, seed=seed), np.random.default_rng(seed).permutation(400)
    owner = np.random.default_rng(seed + 1).integers(1 if empty else 0, world, 400)
    alone = kmeans(z, ids, k=8, comm=Alone(), seed=seed)
    parts = Threads(world).run(lambda comm: kmeans(z[owner == comm.rank], ids[owner == comm.rank], k=8, comm=comm, seed=seed))
    for part in parts:
        assert not isinstance(part, Exception), part
        assert torch.equal(part.codes_KD, parts[0].codes_KD), "ranks ended with different codes"
        torch.testing.assert_close(part.codes_KD, alone.codes_KD, rtol=1e-5, atol=1e-5)
        assert part.inertia == pytest.approx(alone.inertia, rel=1e-6)


def test_fewer_different_vectors_than_codes_end_every_rank() -> None:
    z = torch.ones(60, 3)
    z[::6] = torch.arange(10.0)[:, None]  # nine different ones besides, and the ones themselves again
    results = Threads(3).run(lambda comm: kmeans(z[comm.rank :: 3], np.arange(60)[comm.rank :: 3], k=11, comm=comm, seed=0))
    assert all(isinstance(r, InputError) and "10 different latents for 11 codes" in str(r) for r in results), results
    found = kmeans(z, np.arange(60), k=10, comm=Alone(), seed=0)
    assert found.inertia == pytest.approx(0, abs=1e-9) and len(torch.unique(found.codes_KD, dim=0)) == 10


@settings(max_examples=25, deadline=None)
@given(data=st.data(), world=st.integers(1, 4), k=st.integers(1, 12), d=st.integers(1, 5))
def test_whatever_the_ranks_hold_all_of_them_end_alike(data, world: int, k: int, d: int) -> None:
    """Few vectors, one a rank, none, duplicates, all of them equal: codes or an error, the same everywhere."""
    values = data.draw(st.lists(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 3.0]), min_size=d, max_size=d), min_size=0, max_size=20))
    z = torch.tensor(values).reshape(-1, d)
    owner = np.array(data.draw(st.lists(st.integers(0, world - 1), min_size=len(z), max_size=len(z))), int)
    results = Threads(world).run(lambda comm: kmeans(z[owner == comm.rank], np.flatnonzero(owner == comm.rank), k=k, comm=comm, seed=3))
    if len(torch.unique(z, dim=0)) < k:
        assert all(isinstance(r, InputError) and f"for {k} codes" in str(r) for r in results), results
        return
    for found in results:
        assert torch.equal(found.codes_KD, results[0].codes_KD) and found.codes_KD.isfinite().all()
        assert int(found.counts_K.sum()) == len(z)


def test_a_vector_that_is_not_finite_is_named_on_every_rank() -> None:
    z = torch.randn(60, 3)
    z[7, 1] = float("nan")
    z[10, 0], z[13, 0] = float("inf"), 1e19  # float32 cannot hold the square of the latter
    results = Threads(3).run(lambda comm: kmeans(z[comm.rank :: 3], np.arange(60)[comm.rank :: 3], k=8, comm=comm, seed=0))
    message = "3 of 60 latents are NaN, infinite or too large, the first: number 7, on rank 1"
    assert all(isinstance(r, InputError) and message in str(r) for r in results), results


def test_dimensions_that_differ_end_every_rank() -> None:
    results = Threads(3).run(
        lambda comm: kmeans(torch.randn(20, 3 + comm.rank // 2), np.arange(20) + 20 * comm.rank, k=4, comm=comm, seed=0)
    )
    assert all(isinstance(r, InputError) and "rank 0: 3, rank 1: 3, rank 2: 4" in str(r) for r in results), results


def test_the_better_of_two_starts_is_gone_on_from() -> None:
    z, ids = blobs(k=20), np.arange(2000)
    good = kmeans(z, ids, k=20, comm=Alone(), seed=0, iterations=20).codes_KD
    far = good[:1] + 1e-3 * torch.randn(20, 4)
    kept, dropped = (kmeans(z, ids, k=20, comm=Alone(), seed=1, start_KD=start) for start in (good, far))
    assert not kept.fresh and dropped.fresh and dropped.inertia < 1.05 * kept.inertia
    torch.testing.assert_close(kept.codes_KD, good, rtol=1e-3, atol=1e-3)
    assert not kmeans(z, ids, k=20, comm=Alone(), seed=1, start_KD=far, reseed=False).fresh


def test_codes_are_matched_with_those_they_take_the_place_of() -> None:
    old = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    mixed = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    new = (old + 0.01 * torch.randn(50, 4, generator=torch.Generator().manual_seed(2)))[mixed]
    results = Threads(2).run(lambda comm: matched(new, old, comm))
    assert torch.equal(mixed[results[0]], torch.arange(50)) and torch.equal(results[0], results[1])


def test_what_lies_far_from_the_origin_is_told_apart_too() -> None:
    z, ids = blobs(), np.arange(2000)
    near, far = (kmeans(z + shift, ids, k=20, comm=Alone(), seed=0, iterations=20) for shift in (0.0, 3e4))
    assert far.inertia == pytest.approx(near.inertia, rel=0.05)
    index = torch.cdist(z.double() + 3e4, far.codes_KD.double()).argmin(1)
    assert float((z.double() + 3e4 - far.codes_KD[index].double()).square().sum(1).mean()) == pytest.approx(far.inertia, rel=0.01)


def test_cosine_compares_directions() -> None:
    rng = np.random.default_rng(0)
    directions = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(12, 6)).astype(np.float32)), dim=1)
    length = torch.from_numpy(rng.uniform(0.1, 100, 3000).astype(np.float32))[:, None]
    which = torch.from_numpy(rng.integers(0, 12, 3000))
    z = (directions[which] + 0.01 * torch.randn(3000, 6, generator=torch.Generator().manual_seed(0))) * length
    found = kmeans(z, np.arange(3000), k=12, comm=Alone(), seed=0, metric="cosine", iterations=20)
    torch.testing.assert_close(found.codes_KD.norm(dim=1), torch.ones(12))
    assert float((found.codes_KD @ directions.T).max(0).values.min()) > 0.999
    z[5] = 0
    with pytest.raises(InputError, match="1 of 3000 latents are NaN, infinite or of length 0, the first: number 5"):
        kmeans(z, np.arange(3000), k=12, comm=Alone(), seed=0, metric="cosine")


def test_given_codes_become_directions_and_have_to_be_finite() -> None:
    z = torch.nn.functional.normalize(torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    start = z[:10] * torch.arange(1.0, 11.0)[:, None]
    start[9] = 100.0  # nobody's nearest
    found = kmeans(z, np.arange(40), k=10, comm=Alone(), seed=0, start_KD=start, reseed=False, iterations=1, metric="cosine")
    torch.testing.assert_close(found.codes_KD.norm(dim=1), torch.ones(10))
    start[3, 1] = float("nan")
    with pytest.raises(InputError, match="NaN or infinite"):
        kmeans(z, np.arange(40), k=10, comm=Alone(), seed=0, start_KD=start)


def test_no_iteration_only_assigns() -> None:
    z = blobs()
    found = kmeans(z, np.arange(2000), k=20, comm=Alone(), seed=0, start_KD=z[:20], reseed=False, iterations=0)
    assert torch.equal(found.codes_KD, z[:20]) and found.iterations == 0
    assert found.inertia == pytest.approx(float(torch.cdist(z.double(), z[:20].double()).min(1).values.square().mean()), rel=1e-6)


def test_an_iteration_is_one_all_reduce_of_sums_and_counts() -> None:
    class Counting(Alone):
        def __init__(self) -> None:
            self.shapes: list[tuple[int, ...]] = []

        def all_reduce_sum_(self, tensor: torch.Tensor) -> torch.Tensor:
            self.shapes.append(tuple(tensor.shape))
            return tensor

    z, comm = blobs(), Counting()
    seen: list[tuple[int, float]] = []
    watch = lambda done, codes, inertia, converged: seen.append((done, inertia))  # noqa: E731
    found = kmeans(z, np.arange(2000), k=20, comm=comm, seed=0, start_KD=z[:20], reseed=False, iterations=6, tolerance=-1.0, watch=watch)
    assert comm.shapes[0] == (5,) and set(comm.shapes[1:]) == {(20, 5)} and len(comm.shapes) - 1 in (6, 7)
    assert [done for done, _ in seen] == [1, 2, 3, 4, 5, 6] and found.iterations == 6
    assert seen[-1][1] < seen[0][1] and found.inertia <= seen[-1][1]


MPIEXEC = shutil.which("mpiexec", path=str(Path(sys.executable).parent))  # the one of the same MPI as mpi4py's
OVER_MPI = """
import sys, numpy as np, torch
from ldm.kmeans.lloyd import kmeans, matched
from slurm.rank import MpiCommunicator
comm = MpiCommunicator()
z, ids = torch.from_numpy(np.load(f"{sys.argv[1]}/z.npy")), np.arange(3000)
mine = np.flatnonzero(ids % 7 % 3 == comm.rank) if comm.rank < 2 else np.arange(0)
found = kmeans(z[mine], ids[mine], k=30, comm=comm, seed=4)
codes = found.codes_KD.flip(0)[matched(found.codes_KD.flip(0), found.codes_KD, comm)]
np.savez(f"{sys.argv[1]}/{comm.rank}.npz", codes=codes.numpy(), inertia=found.inertia, used=mine)
"""


@pytest.mark.skipif(MPIEXEC is None, reason="no mpiexec beside this Python: pip install 'retinaforge[mpi]'")
def test_mpi_ranks_find_what_one_process_finds(tmp_path: Path) -> None:
    """Three, of which one holds nothing."""
    z = blobs(3000, 30)
    np.save(tmp_path / "z.npy", z.numpy())
    words = [MPIEXEC, "-n", "3", sys.executable, "-c", OVER_MPI, str(tmp_path)]
    done = subprocess.run(words, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    parts = [np.load(tmp_path / f"{rank}.npz") for rank in range(3)]
    used = np.concatenate([part["used"] for part in parts])
    alone = kmeans(z[used], used, k=30, comm=Alone(), seed=4)
    for part in parts:
        assert np.array_equal(part["codes"], parts[0]["codes"]) and np.allclose(part["codes"], alone.codes_KD, atol=1e-5)
        assert float(part["inertia"]) == pytest.approx(alone.inertia, rel=1e-6)


def test_a_rank_that_is_killed_ends_the_others(tmp_path: Path) -> None:
    """Over gloo; they hear of it from the connection, not after a time-out."""
    code = """
import os, signal, sys, time, numpy as np, torch
import torch.distributed as dist
from ldm.comm import Group, lost_ranks_told
from ldm.kmeans.lloyd import kmeans, matched
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=3)
z = torch.randn(3000, 4, generator=torch.Generator().manual_seed(rank))
kill = lambda done, codes, inertia, converged: os.kill(os.getpid(), signal.SIGKILL) if rank == 1 and done == 3 else None
with lost_ranks_told():
    kmeans(z, np.arange(3000) + 3000 * rank, k=40, comm=Group(), seed=0, iterations=500, tolerance=-1.0, watch=kill)
"""
    words = [sys.executable, "-c", code]
    started = [
        subprocess.Popen([*words, str(rank), str(tmp_path / "meet")], cwd=Path(__file__).parents[3], stderr=subprocess.PIPE, text=True)
        for rank in range(3)
    ]
    said = [process.communicate(timeout=90)[1] for process in started]
    assert [process.returncode for process in started] == [1, -signal.SIGKILL, 1]
    assert all("TryAgain" in said[rank] and "a rank is gone" in said[rank] for rank in (0, 2)), said
