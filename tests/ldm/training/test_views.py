"""Two views of a cube: functions of (seed, sample, epoch, view) alone, that leave its spectra what they were."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data_shards.errors import InputError
from ldm.training.config import ViewsConfig
from ldm.training.views import view_of

MEAN_C = torch.tensor([800.0, 1000.0, 1200.0, 900.0])
STILL = ViewsConfig(shift=0, mirror=False, gain=0, tilt=0, noise=0)


def counts(n: int = 6, side: int = 20) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(3).integers(400, 1600, (n, 4, side, side))).float()


def views(x_BCHW: torch.Tensor, config: ViewsConfig = ViewsConfig(), *, view: int = 0, seed: int = 0, epoch: int = 0) -> torch.Tensor:
    sample_B = np.arange(len(x_BCHW))
    return view_of(x_BCHW, sample_B, np.full_like(sample_B, epoch), view=view, seed=seed, mean_C=MEAN_C, config=config)


def test_a_view_hangs_on_seed_sample_epoch_and_its_number_alone():
    x_BCHW = counts()
    first = views(x_BCHW)
    torch.manual_seed(5)
    np.random.seed(5)
    again = view_of(x_BCHW[3:5], np.array([3, 4]), np.zeros(2, int), view=0, seed=0, mean_C=MEAN_C, config=ViewsConfig())
    torch.testing.assert_close(again, first[3:5], rtol=0, atol=0)
    for other in (views(x_BCHW, view=1), views(x_BCHW, seed=1), views(x_BCHW, epoch=1)):
        assert all(not torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_nothing_changes_where_nothing_may_differ():
    torch.testing.assert_close(views(counts(), STILL), counts(), rtol=0, atol=0)


def test_moved_and_mirrored_pixels_keep_their_spectra():
    x_BCHW = counts()
    for view in (0, 1):
        for x_CHW, seen_CHW in zip(x_BCHW, views(x_BCHW, ViewsConfig(gain=0, tilt=0, noise=0), view=view), strict=True):
            was, seen = ({tuple(spectrum) for spectrum in v.flatten(1).T.tolist()} for v in (x_CHW, seen_CHW))
            assert seen - {(0.0,) * 4} <= was and len(seen) > 0.8 * len(was)


def test_no_view_makes_a_right_eye_of_a_left_one():
    """Half of each cube is bright: on its right side, or, turned, at the top, and never elsewhere."""
    x_BCHW = torch.zeros(64, 4, 8, 8)
    x_BCHW[..., 4:] = 1000.0
    for seen_CHW in views(x_BCHW, ViewsConfig(shift=0, gain=0, tilt=0, noise=0)):
        assert seen_CHW[0, :, 6].min() == 1000 or seen_CHW[0, 1, :].min() == 1000


def test_light_and_noise_stay_within_what_was_set():
    config = ViewsConfig(shift=0, mirror=False, gain=0.1, tilt=0.05, noise=0)
    change_BC = (views(counts(64), config) / counts(64)).log()[..., 0, 0]
    assert 0.1 < change_BC.abs().max() <= 0.1 + 2 * 0.05 + 1e-5
    assert change_BC.diff(dim=1).abs().max() < 0.05 + 0.1, "neighbouring bands change alike"
    noisy = views(torch.full((64, 4, 20, 20), 1000.0), ViewsConfig(shift=0, mirror=False, gain=0, tilt=0, noise=0.02))
    assert 0.01 < (noisy[:, 1] / 1000).std((1, 2)).max() <= 0.0225, "at the mean of its band"


def test_settings_that_cannot_be_are_refused():
    for wrong in ({"shift": 0.5}, {"gain": -0.1}, {"noise": float("nan")}):
        with pytest.raises(InputError):
            ViewsConfig(**wrong)
