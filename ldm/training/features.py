"""Trainer of the feature encoder: two views of one eye agree, and the features of different eyes spread over all dimensions.

Legend: B batch, C band, H W pixels, R rank, N sample of the batch of all ranks, D feature.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from pytorch_metric_learning.losses import VICRegLoss
from torch import Tensor, nn

from data_shards.reading.batch import Batch
from ldm.comm import Communicator
from ldm.normalise import CubeNormaliser, within
from ldm.schedules import OptimizerConfig
from ldm.training.averaged import AveragedTrainer
from ldm.training.config import CopyViewsConfig, EMAConfig, VICRegConfig, ViewsConfig
from ldm.training.engine import Engine
from ldm.training.views import view_of


class ViewsTrainer(AveragedTrainer, ABC):
    """Trains an encoder on two views of each cube. Averaged weights are the ones that are used.

    Args:
        mean_C: mean count of each band, above reflectance 0, over the training split.
        fov_HW: field of view of the training set; what a camera writes outside is not learned.
        total: samples of the whole run, for the schedules.
        views, seed: of the views.
    """

    def __init__(
        self,
        engine: Engine,
        encoder: nn.Module,
        normaliser: CubeNormaliser,
        *,
        mean_C: Tensor,
        fov_HW: Tensor,
        views: ViewsConfig | CopyViewsConfig,
        optimizer: OptimizerConfig,
        ema: EMAConfig,
        total: int,
        seed: int,
    ) -> None:
        super().__init__(engine, "encoder", encoder, optimizer=optimizer, ema=ema, total=total)
        self.config, self.seed = views, seed
        self.normaliser, self.mean_C = normaliser.to(engine.device), mean_C.to(engine.device)
        self.fov_HW = fov_HW.to(engine.device)

    @abstractmethod
    def view(self, counts_BCHW: Tensor, batch: Batch, number: int) -> Tensor:
        """A view of each cube, above reflectance 0 as they are. A function of (seed, sample, epoch, number)."""

    def views(self, batch: Batch) -> Tensor:
        """Two views of each cube, normalised: (2 B, C, H, W)."""
        counts_BCHW = within(batch.cubes_BCHW.to(self.engine.device).float() - self.normaliser.log_zero, self.fov_HW)
        views = [self.view(counts_BCHW, batch, number) for number in (0, 1)]
        return self.engine.laid_out(self.seen(torch.cat(views)))

    def seen(self, counts_BCHW: Tensor) -> Tensor:
        """Counts above reflectance 0, as the encoder is given them."""
        return self.normaliser(counts_BCHW + self.normaliser.log_zero)

    def may_be_best(self, samples: int) -> bool:
        """None is: that two views agree says nothing of a network that says the same of all cubes. The last one is what is judged."""
        return False


class FeatureTrainer(ViewsTrainer):
    """VICReg (Bardes et al. 2022) without a projector: the embedding is the feature.

    Variance and covariance are those of the micro batch of all ranks together: what one process would have computed of it.
    """

    def __init__(self, *args: Any, loss: VICRegConfig, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.vicreg = VICRegLoss(invariance_lambda=loss.invariance, variance_mu=loss.variance, covariance_v=loss.covariance)

    def view(self, counts_BCHW: Tensor, batch: Batch, number: int) -> Tensor:
        how = {"seed": self.seed, "mean_C": self.mean_C, "config": self.config}
        return view_of(counts_BCHW, batch.sample_B, batch.epoch_B, view=number, **how)

    def losses(self, batch: Batch, samples: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Invariance, variance and covariance (eq. 1 to 6), both views through the network in one call."""
        own_BD = self.network(self.views(batch)).float().chunk(2)
        a_ND, b_ND = (of_all_ranks(view_BD, self.engine.comm) for view_BD in own_BD)
        with torch.autocast(self.engine.device.type, enabled=False):  # sums over the batch, squared
            loss = self.vicreg(a_ND, ref_emb=b_ND)
            with torch.no_grad():
                deviation_D = torch.cat([a_ND, b_ND]).std(0)
                terms = {
                    "loss/invariance": self.vicreg.invariance_loss(a_ND, b_ND).mean(),
                    "loss/variance": sum(self.vicreg.variance_loss(a_ND, b_ND)).mean(),
                    "loss/covariance": self.vicreg.covariance_loss(a_ND, b_ND),
                    "features/deviation_least": deviation_D.min(),
                }
        return {"encoder": loss}, terms

    def validate(self, batch: Batch, samples: int) -> dict[str, Tensor]:
        """How far the two views of each cube lie apart, per dimension squared: of features of deviation 1 by chance 2."""
        self.module.eval()
        a_BD, b_BD = self.module(self.views(batch)).float().chunk(2)
        self.module.train()
        return {"invariance": (a_BD - b_BD).square().mean(1)}


def of_all_ranks(own_BD: Tensor, comm: Communicator) -> Tensor:
    """The features of all ranks in the order of their positions, (N, D), own ones with their gradient. Collective.

    The engine takes the mean of the ranks' gradients. Each rank has the loss of the whole batch, but the gradient through its own rows
    alone: that counts `world` times, so that the mean is the sum, which is the gradient of one process.
    """
    if comm.world == 1:
        return own_BD
    all_BRD = own_BD.new_zeros(len(own_BD), comm.world, own_BD.shape[1])
    all_BRD[:, comm.rank] = own_BD.detach()
    rows = list(comm.all_reduce_sum_(all_BRD).unbind(1))
    rows[comm.rank] = own_BD.detach() + comm.world * (own_BD - own_BD.detach())
    return torch.stack(rows, dim=1).flatten(0, 1)
