"""Fréchet distance and KID against independent implementations and closed forms."""

import numpy as np
import pytest
import scipy.linalg

from ldm.evaluation import frechet


def by_sqrtm(a_ND, b_ND):
    """Heusel et al. 2017, Eq. 6, as every public implementation does it."""
    cov_a, cov_b = np.cov(a_ND, rowvar=False), np.cov(b_ND, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    return ((a_ND.mean(0) - b_ND.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root)


def sets(n, m, d, seed=0):
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(d, d)) / np.sqrt(d) + np.eye(d)
    return rng.normal(size=(n, d)), rng.normal(size=(m, d)) @ mix + 0.3


@pytest.mark.parametrize(("n", "m", "d"), [(400, 300, 16), (200, 500, 64), (65, 65, 64)])
def test_equals_the_matrix_square_root(n, m, d):
    a, b = sets(n, m, d)
    assert frechet.frechet_distance(a, b) == pytest.approx(by_sqrtm(a, b), rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(20, 300), (300, 20), (20, 30)])
def test_equals_it_for_singular_covariances_too(n, m):
    a, b = sets(n, m, 64)
    # sqrtm is inexact on singular products, so the reference is the eigenvalues of the symmetric form in float64
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors @ np.diag(np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross
    assert frechet.frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("n", "d"), [(50, 8), (10, 64)])
def test_closed_forms(n, d):
    a, _ = sets(n, n, d)
    trace = a.var(0, ddof=1).sum()
    assert frechet.frechet_distance(a, a) == pytest.approx(0, abs=1e-12 * trace)
    assert frechet.frechet_distance(a, a + 2) == pytest.approx(4 * d, rel=1e-9)  # a shift: its square
    assert frechet.frechet_distance(a, 3 * (a - a.mean(0)) + a.mean(0)) == pytest.approx(4 * trace, rel=1e-9)  # a scale c: (c-1)² tr Σ


@pytest.mark.parametrize("n", [40, 400])
@pytest.mark.parametrize("least", [1.0, 1e-3, 1e-9, 0.0])  # by Cholesky, by Cholesky, by QR, by QR: the last has features that never vary
def test_exact_whatever_the_condition_of_the_features(n, least):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(n, 64)) * np.geomspace(1, max(least, 1e-9), 64) * (np.arange(64) < (64 if least else 50))
    noise = rng.normal(size=(64, 64))
    b = a + a @ (noise + noise.T) / 100 + 0.01  # a symmetric positive map: the optimal transport, so its length is the distance
    moved = b - a
    known = (moved.mean(0) ** 2).sum() + ((moved - moved.mean(0)) ** 2).sum() / (n - 1)
    assert frechet.frechet_distance(a, b) == pytest.approx(known, rel=1e-10)


def test_symmetric_and_float32_input_is_worked_in_float64():
    a, b = sets(60, 70, 32)
    assert frechet.frechet_distance(a, b) == pytest.approx(frechet.frechet_distance(b, a), rel=1e-10)
    far = (a * 1e-3 + 100).astype(np.float32)
    assert frechet.frechet_distance(far, far) == pytest.approx(0, abs=1e-12)


def test_bias_falls_as_one_over_n_and_infinity_removes_it():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 800, 32))
    biased = frechet.frechet_distance(a, b)
    limit = frechet.frechet_infinity(a, b)
    assert biased > 0.5 and abs(limit.value) < 0.2 * biased
    shifted = frechet.frechet_infinity(a, b + 0.25)
    assert shifted.value == pytest.approx(32 * 0.0625, abs=0.3)
    assert (limit.smallest_n, limit.largest_n) == (400, 800)
    assert frechet.frechet_infinity(a[:39], b) is None


def brute_kid(a, b):
    """Bińkowski et al. 2018, Eq. 4, term by term."""

    def kernel(x, y):
        return (x @ y / len(x) + 1) ** 3

    within = [np.mean([kernel(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j]) for x in (a, b)]
    return sum(within) - 2 * np.mean([kernel(x, y) for x in a for y in b])


def test_kid_equals_the_double_sum():
    a, b = sets(12, 9, 5)
    assert frechet.kid(a, b) == pytest.approx(brute_kid(a, b), rel=1e-10)


def test_kid_is_unbiased_and_sees_a_shift():
    rng = np.random.default_rng(3)
    null = [frechet.kid(*rng.normal(size=(2, 20, 8))) for _ in range(300)]
    assert abs(np.mean(null)) < 4 * np.std(null) / np.sqrt(300) and min(null) < 0
    a, b = rng.normal(size=(2, 200, 8))
    assert frechet.kid(a, b + 1) > 10 * abs(frechet.kid(a, b))
