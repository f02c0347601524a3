"""K-means: no worse than sklearn-like Lloyd, the same on any spread over ranks, no one left waiting, empty clusters filled."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.errors import InputError
from ldm.comm import Alone
from ldm.kmeans import kmeans
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


def test_equal_points_and_duplicates_do_not_break_it() -> None:
    z = torch.ones(50, 3)
    found = kmeans(z, np.arange(50), k=8, comm=Alone(), seed=0)
    assert found.codes_KD.isfinite().all() and found.inertia < 1e-5


@pytest.mark.parametrize(("bad", "message"), [("nan", "1 of 60 latents are NaN"), ("few", "60 latents for 100 codes")])
def test_bad_latents_end_every_rank(bad: str, message: str) -> None:
    z = torch.randn(60, 3)
    if bad == "nan":
        z[7, 1] = float("nan")
    results = Threads(3).run(
        lambda comm: kmeans(z[comm.rank :: 3], np.arange(60)[comm.rank :: 3], k=100 if bad == "few" else 8, comm=comm, seed=0)
    )
    assert all(isinstance(r, InputError) and message in str(r) for r in results), results
