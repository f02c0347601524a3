"""The feature trainer's loss is VICReg's of the whole batch, whichever ranks hold it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from pytorch_metric_learning.losses import VICRegLoss
from torch import Tensor

from ldm.comm import Alone
from ldm.training.features import of_all_ranks

N, D = 8, 5


class Shared:
    """One of two ranks whose all-reduce is given the other's part."""

    world = 2

    def __init__(self, rank: int, other_BD: Tensor) -> None:
        self.rank, self.other_BD = rank, other_BD

    def all_reduce_sum_(self, tensor_BRD: Tensor) -> Tensor:
        tensor_BRD[:, 1 - self.rank] += self.other_BD
        return tensor_BRD


def outputs(weight: Tensor, x_ND: Tensor) -> Tensor:
    return torch.tanh(x_ND @ weight)


def loss_of(a_ND: Tensor, b_ND: Tensor) -> Tensor:
    return VICRegLoss()(a_ND, ref_emb=b_ND)


def test_two_ranks_have_the_loss_and_the_gradient_of_one():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(D, D, generator=generator, dtype=torch.float64, requires_grad=True)
    a_ND, b_ND = torch.randn(2, N, D, generator=generator, dtype=torch.float64)
    whole = loss_of(*(of_all_ranks(outputs(weight, x_ND), Alone()) for x_ND in (a_ND, b_ND)))
    (gradient,) = torch.autograd.grad(whole, weight)
    shares = []
    for rank in (0, 1):
        seen = [
            of_all_ranks(outputs(weight, x_ND[rank::2]), Shared(rank, outputs(weight, x_ND[1 - rank :: 2]).detach()))
            for x_ND in (a_ND, b_ND)
        ]
        loss = loss_of(*seen)
        torch.testing.assert_close(loss, whole)
        shares.append(torch.autograd.grad(loss, weight)[0])
    torch.testing.assert_close(sum(shares) / 2, gradient)


def test_the_library_computes_the_equations_of_the_paper():
    """Bardes et al. 2022, eq. 1 to 6, in the halved form of the authors' code: the mean of both views' variance terms."""
    a_ND, b_ND = torch.randn(2, N, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.7
    invariance = (a_ND - b_ND).square().mean()
    hinge = [torch.relu(1 - (z_ND.var(0) + 1e-4).sqrt()).mean() for z_ND in (a_ND, b_ND)]
    covariances = [torch.cov(z_ND.T) for z_ND in (a_ND, b_ND)]
    covariance = sum((c.square().sum() - c.diag().square().sum()) / D for c in covariances)
    assert loss_of(a_ND, b_ND).item() == pytest.approx((25 * invariance + 25 * sum(hinge) / 2 + covariance).item(), rel=1e-9)


def test_a_single_rank_keeps_its_own_features():
    own_BD = torch.randn(3, 2, requires_grad=True)
    assert of_all_ranks(own_BD, SimpleNamespace(world=1)) is own_BD
