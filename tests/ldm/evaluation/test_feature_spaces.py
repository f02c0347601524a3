"""The feature network is the same everywhere and for ever, and sees both spectra and texture."""

import hashlib

import numpy as np
import pytest
import torch

from data_shards.errors import InputError
from data_shards.manifest import BandStats
from ldm.evaluation.features import SeededConv, get_extractor, seeded_weights, standardise


def stats(bands: int = 4, mean: float = 0.3, std: float = 0.1) -> BandStats:
    return BandStats(split="train", mean_C=(mean,) * bands, std_C=(std,) * bands, min_C=(0.0,) * bands, max_C=(1.0,) * bands, values=1000)


def cubes(n: int = 6, bands: int = 4, side: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0.3, 0.1, (n, bands, side, side))).float()


def test_weights_never_change():
    content = b"".join(w.numpy().tobytes() for w in SeededConv(stats(16)).weights)
    assert hashlib.sha256(content).hexdigest() == "2381b9b680a7d3208f69d0556bc5dbc276a9e40a3872d343a936bec9169376e6"


def test_weights_have_variance_one_over_fan_in():
    weight = seeded_weights((64, 32, 3, 3), (0, 1))
    assert weight.var() * 32 * 9 == pytest.approx(1, rel=0.02)
    assert abs(weight.mean()) < 1e-3


def test_weights_hang_on_seed_and_bands_and_on_no_global_generator():
    torch.manual_seed(1)
    np.random.seed(1)
    first = SeededConv(stats(4))
    torch.manual_seed(2)
    again = SeededConv(stats(4))
    assert all(torch.equal(a, b) for a, b in zip(first.weights, again.weights, strict=True))
    assert not torch.equal(first.weights[1], SeededConv(stats(4), seed=1).weights[1])
    assert not torch.equal(first.weights[1], SeededConv(stats(5)).weights[1])


def test_features_do_not_hang_on_the_batch():
    extractor, x_BCHW = SeededConv(stats()), cubes()
    whole_BD = extractor(x_BCHW)
    assert whole_BD.dtype == torch.float64 and whole_BD.shape == (6, extractor.dimension)
    torch.testing.assert_close(whole_BD, torch.cat([extractor(x) for x in x_BCHW.split(1)]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (33, 64), (96, 96)])
@pytest.mark.parametrize("bands", [1, 3, 198])
def test_any_size_and_any_band_count(size, bands):
    found = SeededConv(stats(bands))(torch.rand(2, bands, *size))
    assert found.shape == (2, 192) and torch.isfinite(found).all()


def test_half_of_the_spatial_kernels_see_no_brightness():
    for weight in SeededConv(stats()).weights[1:]:
        assert weight[::2].sum((2, 3)).abs().max() < 1e-6
        assert weight[1::2].sum((2, 3)).abs().max() > 1e-2


def test_sees_spectra_and_texture():
    extractor, x_BCHW = SeededConv(stats()), cubes()
    base_BD = extractor(x_BCHW)
    shuffled = x_BCHW.flatten(2)[..., torch.randperm(32 * 32, generator=torch.Generator().manual_seed(0))].view_as(x_BCHW)
    smooth = torch.nn.functional.avg_pool2d(x_BCHW, 3, 1, 1, count_include_pad=False)
    other_spectrum = x_BCHW + torch.tensor([0.1, -0.1, 0.1, -0.1]).view(1, 4, 1, 1)
    same = (extractor(cubes(seed=1)).mean(0) - base_BD.mean(0)).norm()  # noise of the same law: what 'no change' looks like
    assert (extractor(smooth).mean(0) - base_BD.mean(0)).norm() > 3 * same
    assert (extractor(other_spectrum).mean(0) - base_BD.mean(0)).norm() > 3 * same
    assert (extractor(shuffled).mean(0) - base_BD.mean(0)).norm() < 3 * same  # white noise stays white noise


def test_standardise_is_per_band_and_survives_a_dead_band():
    s = BandStats(split="train", mean_C=(0.2, 0.5), std_C=(0.1, 0.0), min_C=(0.0, 0.5), max_C=(1.0, 0.5), values=9)
    x = standardise(torch.full((1, 2, 2, 2), 0.5), s)
    torch.testing.assert_close(x[0, :, 0, 0], torch.tensor([3.0, 0.0]))


def test_refusals():
    with pytest.raises(InputError, match="did you mean 'seeded-conv-v1'"):
        get_extractor("seeded-conv-v2", stats())
    with pytest.raises(InputError, match="cubes of 3 bands"):
        SeededConv(stats(4))(torch.rand(1, 3, 8, 8))


def test_the_name_says_what_it_is():
    assert get_extractor("seeded-conv-v1", stats(16)).name == "seeded-conv-v1, seed 0, bands 16, d=192"
