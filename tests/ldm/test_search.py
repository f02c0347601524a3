"""Nearest neighbours are exact: against brute force in float64, on both backends."""

import numpy as np
import pytest

from data_shards.errors import InputError
from ldm.search import backends, exact, nearest_neighbours

both = pytest.mark.parametrize("backend", ["faiss", "torch"])


def brute(query, reference, k):
    distance = np.sqrt(((query[:, None].astype(np.float64) - reference[None].astype(np.float64)) ** 2).sum(-1))
    index = np.argsort(distance, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distance, index, 1), index


@both
@pytest.mark.parametrize("k", [1, 5])
def test_equals_brute_force(backend, k):
    rng = np.random.default_rng(0)
    query, reference = rng.normal(size=(70, 24)).astype(np.float32), rng.normal(size=(500, 24)).astype(np.float32)
    distance, index = nearest_neighbours(query, reference, k, backend=backend, block=32)
    expected, at = brute(query, reference, k)
    np.testing.assert_array_equal(index, at)
    np.testing.assert_allclose(distance, expected, rtol=1e-12)


@both
def test_copies_at_1e_5_keep_their_distance(backend):
    """The trap: on features of mean 3 and deviation 1, |x|² - 2xy + |y|² in float32 calls them 0."""
    rng = np.random.default_rng(1)
    reference = rng.normal(3, 1, (3000, 64))
    query = reference[100:150] + rng.normal(0, 1e-5, (50, 64))
    distance, index = nearest_neighbours(query, reference, backend=backend)
    np.testing.assert_array_equal(index[:, 0], np.arange(100, 150))
    np.testing.assert_allclose(distance[:, 0], np.linalg.norm(query - reference[100:150], axis=1), rtol=1e-9)


@both
def test_the_nearest_among_many_that_float32_cannot_tell_apart(backend):
    """300 near copies, closer to each other than float32 products resolve: more than the first candidates hold."""
    rng = np.random.default_rng(2)
    centre = rng.normal(3, 1, 64)
    reference = np.concatenate([centre + rng.normal(0, 1e-5, (300, 64)), rng.normal(3, 1, (700, 64))])
    query = centre + rng.normal(0, 1e-5, (20, 64))
    distance, index = nearest_neighbours(query, reference, 3, backend=backend)
    expected, at = brute(query, reference, 3)
    np.testing.assert_array_equal(index, at)
    np.testing.assert_allclose(distance, expected, rtol=1e-9)


def test_even_more_of_them_than_the_largest_list_of_candidates(monkeypatch):
    monkeypatch.setattr(exact, "MOST_CANDIDATES", 16)
    rng = np.random.default_rng(3)
    reference = 5 + rng.normal(0, 1e-6, (200, 32))
    reference[0] = -5
    query = 5 + rng.normal(0, 1e-6, (10, 32))
    np.testing.assert_array_equal(nearest_neighbours(query, reference)[1], brute(query, reference, 1)[1])


@both
def test_k_beyond_the_reference_gives_minus_one(backend):
    distance, index = nearest_neighbours(np.zeros((2, 3)), np.array([[1.0, 0, 0], [0, 2.0, 0]]), 4, backend=backend)
    np.testing.assert_array_equal(index, [[0, 1, -1, -1]] * 2)
    np.testing.assert_array_equal(distance, [[1, 2, np.inf, np.inf]] * 2)


@both
def test_equal_ones_come_in_the_order_of_the_reference(backend):
    assert nearest_neighbours(np.zeros((1, 2)), np.ones((5, 2)), 3, backend=backend)[1].tolist() == [[0, 1, 2]]


def test_the_torch_tiles_meet_at_their_borders():
    rng = np.random.default_rng(4)
    query, reference = rng.normal(size=(33, 8)).astype(np.float32), rng.normal(size=(101, 8)).astype(np.float32)
    rough, index = search._torch_top(query, reference, 6, rows=10, columns=17)
    np.testing.assert_array_equal(index, brute(query, reference, 6)[1])
    np.testing.assert_allclose(rough, brute(query, reference, 6)[0] ** 2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("query", "reference", "options"),
    [
        (np.zeros((2, 3)), np.zeros((2, 4)), {}),
        (np.zeros((2, 3)), np.zeros((0, 3)), {}),
        (np.zeros((2, 3)), np.zeros((2, 3)), {"k": 0}),
        (np.full((2, 3), np.nan), np.zeros((2, 3)), {}),
        (np.zeros((2, 3)), np.full((2, 3), np.inf), {}),
        (np.zeros((2, 3)), np.zeros((2, 3)), {"backend": "annoy"}),
    ],
)
def test_refusals(query, reference, options):
    with pytest.raises(InputError):
        nearest_neighbours(query, reference, **options)
