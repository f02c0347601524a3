"""The feature encoder takes cubes of any size, of its own bands alone, and can begin with white features."""

from __future__ import annotations

import pytest
import torch

from data_shards.errors import InputError
from ldm.models.config import FeatureEncoderConfig
from ldm.models.feature_encoder import FeatureEncoder, begin_white
from ldm.models.vqgan import initialised

TINY = FeatureEncoderConfig(bands=4, channels=8, levels=2, dimension=6)


def encoder(**changed) -> FeatureEncoder:
    return initialised(lambda: FeatureEncoder(FeatureEncoderConfig(**{**vars(TINY), **changed})), 0)


def cubes(n: int = 12, seed: int = 0, side: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, side, side, generator=generator) + 2 * torch.randn(n, 4, 1, 1, generator=generator)


@pytest.mark.parametrize("size", [(2, 5), (9, 5), (32, 32)])
def test_any_size_gives_one_vector_a_cube_whatever_its_neighbours(size):
    net, x_BCHW = encoder().eval(), torch.rand(3, 4, *size)
    found_BD = net(x_BCHW)
    assert found_BD.shape == (3, 6) and found_BD.isfinite().all()
    torch.testing.assert_close(found_BD[1:2], net(x_BCHW[1:2]), rtol=1e-4, atol=1e-5)


def test_other_bands_and_sizes_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="cubes of 3 bands"):
        encoder()(torch.rand(1, 3, 8, 8))
    with pytest.raises(InputError, match="cubes of 4×2(.|\n)*more than 4 pixels"):
        encoder()(torch.rand(1, 4, 4, 2))
    for wrong in ({"dimension": 257}, {"levels": 0}, {"channels": 12}):
        with pytest.raises(InputError):
            FeatureEncoderConfig(**wrong)


def test_what_is_black_outside_the_field_of_view_does_not_drown_the_rest():
    """Far below what the training images vary by, further down makes no difference."""
    dark = cubes(2)
    dark[..., :4] = -7.0
    darker = dark.clone()
    darker[..., :4] = -70.0
    torch.testing.assert_close(encoder()(dark), encoder()(darker))


def test_it_begins_white_on_the_cubes_that_it_is_shown():
    net, x_BCHW = encoder(dimension=3), cubes(40)
    begin_white(net, x_BCHW.split(16))
    features_BD = net(x_BCHW).detach().double()
    torch.testing.assert_close(features_BD.mean(0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-3)
    torch.testing.assert_close(torch.cov(features_BD.T), torch.eye(3, dtype=torch.float64), rtol=0, atol=2e-2)


def test_of_fewer_cubes_than_dimensions_the_other_features_are_alive_too():
    net = encoder(dimension=32)
    begin_white(net, [cubes(4)])
    assert net(cubes(8, seed=1)).std(0).min() > 0
