"""The Vendi score against a plain eigen-decomposition of the kernel, and on sets whose answer is known."""

import numpy as np
import pytest

from data_shards.errors import InputError
from ldm.evaluation.vendi import vendi_score


def plain(x_ND):
    unit_ND = x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)
    eigenvalues = np.linalg.eigvalsh(unit_ND @ unit_ND.T / len(x_ND))
    eigenvalues = eigenvalues[eigenvalues > 0]
    return np.exp(-(eigenvalues * np.log(eigenvalues)).sum())


@pytest.mark.parametrize(("n", "d"), [(30, 80), (80, 30)])  # by the matrix of pairs, by that of features
def test_equals_a_plain_decomposition(n, d):
    x = np.random.default_rng(0).normal(0.2, 1, (n, d))
    assert vendi_score(x) == pytest.approx(plain(x), rel=1e-10)


def test_counts_directions():
    assert vendi_score(np.eye(7)) == pytest.approx(7)
    assert vendi_score(np.ones((7, 3)) * np.arange(1, 8)[:, None]) == pytest.approx(1)
    assert vendi_score(np.repeat(np.eye(3), 4, axis=0)) == pytest.approx(3)


@pytest.mark.parametrize("d", [5, 50])
def test_a_weight_stands_for_copies(d):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(20, d))
    drawn = rng.multinomial(20, np.full(20, 1 / 20))
    assert vendi_score(x, drawn / 20) == pytest.approx(plain(np.repeat(x, drawn, axis=0)), rel=1e-10)


def test_what_has_no_score_is_refused():
    x = np.random.default_rng(0).normal(size=(6, 3))
    with pytest.raises(InputError, match="sum to 2"):
        vendi_score(x, np.full(6, 1 / 3))
    with pytest.raises(InputError, match="1 images have features that are all 0"):
        vendi_score(x * (np.arange(6) > 0)[:, None])
