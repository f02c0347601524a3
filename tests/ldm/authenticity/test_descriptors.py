"""Descriptors of the audit are what they say: area means, blind to gain, mirrored with the image."""

import pytest
import torch

from ldm.authenticity import descriptors


def test_pooled_distance_is_the_rms_of_area_means():
    x = torch.randn(2, 16, 96, 96, generator=torch.Generator().manual_seed(0))
    d = descriptors.pooled_descriptor(x)
    assert d.shape == (2, 4096)
    means = x.view(2, 16, 16, 6, 16, 6).mean((3, 5))
    assert (d[0] - d[1]).norm().item() == pytest.approx(((means[0] - means[1]) ** 2).mean().sqrt().item(), rel=1e-5)
    assert [descriptors.grid_side(c) for c in (1, 3, 16, 198, 1000)] == [32, 32, 16, 4, 4]


def test_contrast_is_blind_to_gain_and_band_offsets():
    x = torch.randn(1, 16, 48, 48, generator=torch.Generator().manual_seed(0))
    brighter = 1.7 * x + torch.linspace(-1, 1, 16).view(1, 16, 1, 1)
    assert (descriptors.contrast_descriptor(x) - descriptors.contrast_descriptor(brighter)).norm() < 1e-5
    assert (descriptors.pooled_descriptor(x) - descriptors.pooled_descriptor(brighter)).norm() > 0.3
    assert descriptors.contrast_descriptor(torch.ones(1, 2, 8, 8)).abs().max() == 0
