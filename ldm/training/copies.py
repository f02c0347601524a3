"""Trainer of the copy-detection head: copies of one photograph have one embedding, and different photographs different ones.

Legend: B batch, C band, H W pixels, N photograph of the batch of all ranks, V = 2 N view, D embedding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from data_shards.reading.batch import Batch
from ldm.models.copy_encoder import seen
from ldm.normalise import within
from ldm.training.config import InfoNCEConfig
from ldm.training.copy_views import copy_of
from ldm.training.features import ViewsTrainer, of_all_ranks


class CopyTrainer(ViewsTrainer):
    """InfoNCE over the views of the micro batch of all ranks, with a regulariser of the entropy (SSCD, Pizzi et al. 2022, eq. 1 to 4).

    Two visits of one eye are different photographs, and pushed apart as any two are.
    """

    def __init__(self, *args: Any, loss: InfoNCEConfig, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.loss = loss

    def view(self, counts_BCHW: Tensor, batch: Batch, number: int) -> Tensor:
        """Nothing is seen outside the field of view, whatever was moved there, as the audit sees nothing there."""
        how = {"seed": self.seed, "mean_C": self.mean_C, "config": self.config}
        return within(copy_of(counts_BCHW, batch.sample_B, batch.epoch_B, view=number, **how), self.fov_HW)

    def seen(self, counts_BCHW: Tensor) -> Tensor:
        return seen(counts_BCHW, self.normaliser)

    def losses(self, batch: Batch, samples: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Both views through the network in one call."""
        comm, own_BD = self.engine.comm, self.network(self.views(batch)).float().chunk(2)
        number_B1 = torch.from_numpy(batch.sample_B).to(own_BD[0].device, torch.float64)[:, None]
        number_V = of_all_ranks(number_B1, comm)[:, 0].repeat(2)
        with torch.autocast(self.engine.device.type, enabled=False):
            x_VD = torch.cat([of_all_ranks(view_BD, comm) for view_BD in own_BD])
            contrast, spread = info_nce(x_VD, number_V, self.loss.temperature), koleo(x_VD, number_V)
        return {"encoder": contrast + self.loss.spread * spread}, {"loss/contrast": contrast.detach(), "loss/spread": spread.detach()}

    def validate(self, batch: Batch, samples: int) -> dict[str, Tensor]:
        """Distance of the two views of each photograph."""
        self.module.eval()
        a_BD, b_BD = self.module(self.views(batch)).float().chunk(2)
        self.module.train()
        return {"distance": (a_BD - b_BD).norm(dim=1)}


def info_nce(x_VD: Tensor, number_V: Tensor, temperature: float) -> Tensor:
    """Cross entropy of a view's own other view among all views (Chen et al. 2020, eq. 1, with half of the squared distances).

    Args:
        x_VD: first one view of each photograph, then the other in the same order.
        number_V: of the photograph; other views of the same one, which come where an epoch ends within a batch, do not count.
    """
    view_V = torch.arange(len(x_VD), device=x_VD.device)
    other_V = view_V.roll(len(x_VD) // 2)
    left_out_VV = number_V[:, None] == number_V
    left_out_VV[view_V, other_V] = False
    return F.cross_entropy((-squared(x_VD) / (2 * temperature)).masked_fill(left_out_VV, -torch.inf), other_V)


def koleo(x_VD: Tensor, number_V: Tensor) -> Tensor:
    """Mean negative logarithm of the distance to the nearest view of another photograph (Kozachenko and Leonenko 1987; Sablayrolles et
    al. 2019, eq. 4): small where embeddings spread evenly. 0 where all are of one photograph."""
    squared_V = squared(x_VD).masked_fill(number_V[:, None] == number_V, torch.inf).min(1).values
    return -0.5 * squared_V[squared_V.isfinite()].clamp(min=1e-8).log().sum() / len(x_VD)


def squared(x_VD: Tensor) -> Tensor:
    """Squared distances of all pairs, (V, V)."""
    return (x_VD[:, None] - x_VD[None]).square().sum(2)
