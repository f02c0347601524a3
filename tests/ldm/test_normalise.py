"""What the networks see of stored counts, against the formula written out here."""

from __future__ import annotations

import math

import pytest
import torch

from data_shards.manifest import BandStats
from ldm.checkpoints.trained import cube_normaliser
from ldm.normalise import CubeNormaliser


def stats(**more: object) -> BandStats:
    fields = {"mean_C": (0.2,), "std_C": (0.1,), "min_C": (-0.05,), "max_C": (0.9,), "values": 9, "log_mean_C": (3.0,), "log_std_C": (0.5,)}
    return BandStats(split="train", **{**fields, **more})


@pytest.mark.parametrize(("offset", "zero"), [(0.0, 0.0), (-3.2768, 32768.0), (-0.1, 1000.0), (0.2, -2000.0)])
def test_counts_enter_by_their_distance_from_reflectance_0_and_come_back(offset: float, zero: float) -> None:
    normaliser = CubeNormaliser(stats(log_zero=zero), scale=1e-4, offset=offset)
    stored = [n for n in (0, 40, 990, 1000, 1016, 5000, 32760, 32768, 33000, 41000) if n * 1e-4 + offset <= 0.9]
    x = normaliser(torch.tensor(stored, dtype=torch.int32).view(1, 1, 1, -1))
    for value, seen in zip(stored, x.flatten().tolist(), strict=True):
        n = value - zero
        assert seen == pytest.approx((math.copysign(math.log(1 + abs(n) / 16), n) - 3.0) / 0.5, abs=1e-4)
    assert normaliser.stored(x).int().flatten().tolist() == stored
    back = normaliser.reflectance(x).flatten().tolist()
    assert back == pytest.approx([v * 1e-4 + offset for v in stored], abs=2e-5)


def test_what_a_checkpoint_of_before_kept_still_takes_the_logarithm_of_stored_counts() -> None:
    fields = stats().fields()
    assert "log_zero" not in fields
    data = {"stats": fields, "scale": 1e-4, "offset": -3.2768, "dtype": "uint16"}
    x = cube_normaliser(data)(torch.full((1, 1, 1, 1), 33000, dtype=torch.int32))
    assert x.item() == pytest.approx((math.log(1 + 33000 / 16) - 3.0) / 0.5, abs=1e-4)


def test_what_is_decoded_stays_within_what_can_be_stored_and_may_be_brighter_than_what_was_seen() -> None:
    normaliser = CubeNormaliser(stats(log_zero=1000.0), scale=1e-4, offset=-0.1)
    low, high = normaliser.reflectance(torch.tensor([-1e9, 1e9]).view(2, 1, 1, 1)).flatten().tolist()
    assert low == pytest.approx(-0.1, abs=1e-5)
    assert high == pytest.approx(65535 * 1e-4 - 0.1, rel=1e-5)
    assert normaliser.stored(torch.full((1, 1, 1, 1), 1e9)).item() == 65535
    brighter = torch.full((1, 1, 1, 1), 12000)  # reflectance 1.1, where the training split ends at 0.9
    assert normaliser.reflectance(normaliser(brighter)).item() == pytest.approx(1.1, rel=1e-4)
