"""Whitened features have unit variance where training features vary, and no more than their due where they do not."""

from __future__ import annotations

import numpy as np
import pytest

from ldm.evaluation.whitening import LEAST_SHARE, effective_rank, whitening

DEVIATION_D = np.array([10.0, 5.0, 2.0, 1e-3, 0.0])


def features(seed: int, n: int = 4000) -> np.ndarray:
    """Normal features of these deviations, turned."""
    turn_DD = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0]
    return np.random.default_rng(seed).normal(size=(n, 5)) * DEVIATION_D @ turn_DD + 3


def test_directions_that_vary_get_unit_variance_and_the_others_are_not_blown_up() -> None:
    white = whitening(features(1))
    spectrum_D = np.linalg.eigvalsh(np.cov(white(features(2)).T))[::-1]
    assert spectrum_D[:3] == pytest.approx(np.ones(3), rel=0.1)
    assert spectrum_D[3] == pytest.approx(1e-6 / (LEAST_SHARE * 100), rel=0.1) and spectrum_D[4] < 1e-12
    assert white.effective_rank == pytest.approx(effective_rank(DEVIATION_D**2), rel=0.02)
    assert white.effective_rank_whitened == pytest.approx(3, rel=0.01)


def test_nothing_to_whiten_by_is_said() -> None:
    assert whitening(features(1)[:1]) is None and whitening(np.ones((4, 3))) is None


def test_fewer_images_than_features_are_borne() -> None:
    white = whitening(features(1)[:3])
    assert np.isfinite(white(features(2))).all() and white.effective_rank_whitened <= 2 + 1e-9
