"""The copy-detection head: its views are functions that keep bands, its loss is the papers', whichever ranks hold the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss
from torch.nn.functional import normalize

from data_shards.errors import InputError
from ldm.comm import Alone
from ldm.training.config import CopyViewsConfig, InfoNCEConfig
from ldm.training.copies import info_nce, koleo
from ldm.training.copy_views import affine, copy_of, moved
from ldm.training.features import of_all_ranks
from tests.ldm.training.test_feature_training import Shared, outputs

MEAN_C = torch.tensor([800.0, 1000.0, 1200.0, 900.0])
STILL = {"turn": 0.0, "mirror": False, "zoom": 1.0, "shift": 0.0, "gain": 0.0, "tilt": 0.0, "noise": 0.0, "blur": 0.0, "rounding": 0.0}


def counts(n: int = 6, side: int = 20, other: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(3).integers(400, 1600, (n, 4, side, side + other))).float()


def views(
    x_BCHW: torch.Tensor, config: CopyViewsConfig = CopyViewsConfig(), *, view: int = 0, seed: int = 0, epoch: int = 0
) -> torch.Tensor:
    sample_B = np.arange(len(x_BCHW))
    return copy_of(x_BCHW, sample_B, np.full_like(sample_B, epoch), view=view, seed=seed, mean_C=MEAN_C, config=config)


def test_a_view_hangs_on_seed_sample_epoch_and_its_number_alone():
    x_BCHW = counts()
    first = views(x_BCHW)
    torch.manual_seed(5)
    again = copy_of(x_BCHW[3:5], np.array([3, 4]), np.zeros(2, int), view=0, seed=0, mean_C=MEAN_C, config=CopyViewsConfig())
    torch.testing.assert_close(again, first[3:5], rtol=1e-5, atol=0.05)  # blurred with kernels of another reach
    for other in (views(x_BCHW, view=1), views(x_BCHW, seed=1), views(x_BCHW, epoch=1)):
        assert all((a - b).abs().max() > 50 for a, b in zip(first, other, strict=True))


def test_nothing_changes_where_nothing_may_differ():
    torch.testing.assert_close(views(counts(other=8), CopyViewsConfig(**STILL)), counts(other=8), rtol=1e-5, atol=0.02)


@pytest.mark.parametrize("change", [{"turn": 1.0}, {"mirror": True}, {"zoom": 0.6}, {"shift": 0.2}, {"blur": 0.05}])
def test_whatever_moves_pixels_leaves_a_band_a_multiple_of_another(change: dict[str, float]):
    """All bands see one and the same resampling, in their order."""
    x_B1HW = counts()[:, :1]
    seen = views(x_B1HW * torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None, None], CopyViewsConfig(**{**STILL, **change}))
    assert not torch.allclose(seen[:, :1], x_B1HW, atol=1.0)
    for band in (1, 2, 3):
        torch.testing.assert_close(seen[:, band], (band + 1) * seen[:, 0], rtol=1e-4, atol=0.1)


def test_turns_are_about_the_middle_and_keep_distances_also_on_oblong_images():
    u_B6 = np.tile([0.25, 0.9, 0.5, 0.5, 0.5, 0.0], (1, 1))  # a quarter turn, not mirrored, not moved
    config = CopyViewsConfig(**{**STILL, "turn": 1.0})
    x_BCHW = counts(1)
    quarter = moved(x_BCHW, affine(u_B6, (20, 20), config))
    assert min((quarter - torch.rot90(x_BCHW, k, (2, 3))).abs().max() for k in (1, 3)) < 0.1
    oblong = torch.zeros(1, 4, 20, 40)
    oblong[:, :, 9:11, 24:26] = 900.0  # five pixels right of the middle
    rows, columns = (moved(oblong, affine(u_B6, (20, 40), config))[0, 0] > 450).nonzero().float().mean(0).tolist()
    assert abs(columns - 19.5) < 0.1 and abs(abs(rows - 9.5) - 5) < 0.1


def embeddings(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def test_the_loss_is_the_librarys():
    a_ND, b_ND = embeddings()
    ours = info_nce(torch.cat([a_ND, b_ND]), torch.arange(8).repeat(2), 1.5)
    distance = LpDistance(power=2, normalize_embeddings=False)
    assert ours.item() == pytest.approx(SelfSupervisedLoss(NTXentLoss(temperature=3.0, distance=distance))(a_ND, b_ND).item(), rel=1e-6)


def test_a_photograph_that_comes_twice_is_not_pushed_away_from_itself():
    a_ND, b_ND = (normalize(x_ND, dim=1) for x_ND in embeddings())
    number_V = torch.arange(8).repeat(2)
    twice_V = torch.tensor([*range(8), 0]).repeat(2)
    far, near = (info_nce(torch.cat([torch.cat([a_ND, x_1D]), torch.cat([b_ND, x_1D])]), twice_V, 0.2) for x_1D in (-a_ND[:1], a_ND[:1]))
    assert near < far + 1 and koleo(torch.cat([a_ND, a_ND]), number_V).isfinite()
    assert koleo(a_ND, torch.zeros(8)).item() == 0, "there is no other one"


def test_two_ranks_have_the_loss_and_the_gradient_of_one():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    seen = torch.randn(2, 8, 5, generator=generator, dtype=torch.float64)

    def loss_of(x_ND: list[torch.Tensor]) -> torch.Tensor:
        x_VD, number_V = normalize(torch.cat(x_ND), dim=1), torch.arange(8).repeat(2)
        return info_nce(x_VD, number_V, 0.2) + 0.3 * koleo(x_VD, number_V)

    whole = loss_of([of_all_ranks(outputs(weight, x_ND), Alone()) for x_ND in seen])
    (gradient,) = torch.autograd.grad(whole, weight)
    shares = []
    for rank in (0, 1):
        parts = [of_all_ranks(outputs(weight, x[rank::2]), Shared(rank, outputs(weight, x[1 - rank :: 2]).detach())) for x in seen]
        torch.testing.assert_close(loss_of(parts), whole)
        shares.append(torch.autograd.grad(loss_of(parts), weight)[0])
    torch.testing.assert_close(sum(shares) / 2, gradient)


def test_settings_out_of_range_are_refused():
    for wrong in ({"turn": 1.5}, {"zoom": 0.0}, {"shift": 0.5}, {"noise": -1.0}):
        with pytest.raises(InputError, match=r"copies\.views"):
            CopyViewsConfig(**wrong)
    with pytest.raises(InputError, match=r"copies\.loss"):
        InfoNCEConfig(temperature=0)
