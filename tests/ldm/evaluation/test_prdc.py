"""Precision, recall, density and coverage against the authors' own package, and on sets whose answer is known."""

import numpy as np
import pytest
from prdc import compute_prdc

from data_shards.errors import InputError
from ldm.evaluation import prdc as tiled
from ldm.evaluation.prdc import Prdc, prdc


def sets(seed=0, real=90, synthetic=70, d=12, shift=0.3):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(real, d)), rng.normal(shift, 0.9, size=(synthetic, d))


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("tile_bytes", [2**26, 2000])  # the whole matrix, and rows by twos
def test_equals_the_authors_package(k, tile_bytes, monkeypatch):
    monkeypatch.setattr(tiled, "TILE_BYTES", tile_bytes)
    real, synthetic = sets()
    expected = compute_prdc(real, synthetic, k)
    assert vars(prdc(real, synthetic, k=k)) == pytest.approx(expected, rel=1e-5)


def test_the_best_and_the_worst():
    real, synthetic = sets()
    assert prdc(real, synthetic + 100) == Prdc(precision=0, recall=0, density=0, coverage=0)
    same = prdc(real, real)
    assert same.precision == same.recall == same.coverage == 1
    # each image's own ball, and those of its neighbours; exact ties at the border of a ball lie outside it, whatever the rounding
    assert same.density == 1 and prdc(real + 1e6, real + 1e6).density == 1


def test_modes_that_are_missing_cost_recall_and_not_precision():
    rng = np.random.default_rng(0)
    real = np.concatenate([rng.normal(0, 1, (60, 6)), rng.normal(20, 1, (60, 6))])
    one_mode = prdc(real, rng.normal(0, 1, (120, 6)))
    assert one_mode.precision > 0.9 and one_mode.recall < 0.55 and one_mode.coverage < 0.55


@pytest.mark.parametrize(("real", "synthetic"), [(5, 70), (70, 5)])
def test_too_few_images_are_refused(real, synthetic):
    with pytest.raises(InputError, match="5 (real|synthetic) images"):
        prdc(*sets(real=real, synthetic=synthetic))
