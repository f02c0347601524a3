"""Trainer of the segmenter.

Legend: B batch, C band, L class, H W pixels, N pixel.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from data_shards.cube import LABELS
from data_shards.reading.batch import Batch
from data_shards.reading.order import hash64
from ldm.models.segmenter import SegmenterNet
from ldm.normalise import CubeNormaliser
from ldm.schedules import OptimizerConfig
from ldm.training.averaged import AveragedTrainer
from ldm.training.config import EMAConfig
from ldm.training.engine import Engine

GAIN = 0.1
"""Reflectances of a band are multiplied by up to exp(±GAIN): lamps and cameras differ, and so does what a decoder makes."""
UNKNOWN = 255
"""Of a pixel that nothing is learnt from: outside the field of view, of an image without labels, or of no class that there is."""


class SegmenterTrainer(AveragedTrainer):
    """Dice and cross entropy of the labels within the field of view. How an image is turned is a function of (seed, sample, epoch)."""

    def __init__(
        self,
        engine: Engine,
        net: SegmenterNet,
        normaliser: CubeNormaliser,
        *,
        optimizer: OptimizerConfig,
        ema: EMAConfig,
        total: int,
        seed: int,
    ) -> None:
        from monai.losses import DiceCELoss  # takes seconds

        super().__init__(engine, "segmenter", net, optimizer=optimizer, ema=ema, total=total)
        self.normaliser, self.seed = normaliser.to(engine.device), seed
        self.dice_and_ce = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)

    def losses(self, batch: Batch, samples: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The loss over the labelled pixels of all images together; 0 where there are none."""
        x_BCHW, known_BHW = self._seen(batch, gain_BC=gains(self.seed, batch, batch.cubes_BCHW.shape[1]))
        x_BCHW, known_BHW = (turned(maps, self.seed, batch) for maps in (x_BCHW, known_BHW))
        loss = self._loss(self.network(self.engine.laid_out(x_BCHW)), known_BHW)
        return {"segmenter": loss}, {"loss/segment": loss.detach()}

    def validate(self, batch: Batch, samples: int) -> dict[str, Tensor]:
        """The loss of each image, as it is; 0 of one without labels."""
        x_BCHW, known_BHW = self._seen(batch)
        self.module.eval()
        logits_BLHW = self.module(self.engine.laid_out(x_BCHW))
        self.module.train()
        return {"loss": torch.stack([self._loss(logits_BLHW[b : b + 1], known_BHW[b : b + 1]) for b in range(len(known_BHW))])}

    def _seen(self, batch: Batch, gain_BC: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
        """What the network sees, and the class of each pixel or UNKNOWN."""
        moved = batch.to(self.engine.device)
        stored_BCHW, zero = moved.cubes_BCHW.float(), self.normaliser.log_zero
        if gain_BC is not None:
            gain_BC11 = torch.from_numpy(gain_BC).to(stored_BCHW)[:, :, None, None]
            stored_BCHW = (stored_BCHW - zero) * gain_BC11 + zero
        x_BCHW = self.normaliser(stored_BCHW, moved.fov_BHW)
        return x_BCHW, known_classes(moved)

    def _loss(self, logits_BLHW: Tensor, known_BHW: Tensor) -> Tensor:
        """DiceCELoss of the pixels whose class is known, as if they were one image: a mask would still count the others in its mean."""
        within_BHW = known_BHW != UNKNOWN
        if not within_BHW.any():
            return logits_BLHW.float().sum() * 0
        logits_LN, class_N = logits_BLHW.float().movedim(1, 0)[:, within_BHW], known_BHW[within_BHW]
        return self.dice_and_ce(logits_LN[None], class_N[None, None].long())


def known_classes(batch: Batch) -> Tensor:
    """The class of each pixel, uint8 (B, H, W), and UNKNOWN where there is none to learn or to judge by."""
    if batch.labels_BHW is None or batch.labelled_B is None:
        return torch.full_like(batch.cubes_BCHW[:, 0], UNKNOWN, dtype=torch.uint8)
    known_BHW = batch.labels_BHW < len(LABELS)
    known_BHW &= torch.from_numpy(batch.labelled_B).to(known_BHW.device)[:, None, None]
    if batch.fov_BHW is not None:
        known_BHW &= batch.fov_BHW
    return torch.where(known_BHW, batch.labels_BHW, UNKNOWN)


def gains(seed: int, batch: Batch, bands: int) -> np.ndarray:
    """A factor for each image and band, log-uniform: float32 (B, C)."""
    drawn_BC = hash64(seed, batch.sample_B[:, None], batch.epoch_B[:, None], 0x6761696E, np.arange(bands)[None])
    return np.exp(GAIN * (2 * (drawn_BC / 2.0**64) - 1)).astype(np.float32)


def turned(maps: Tensor, seed: int, batch: Batch) -> Tensor:
    """Each image mirrored or not and turned by a multiple of 90° (where it is not square, of 180°).

    Args:
        maps: (B, …, H, W).
    """
    drawn_B = hash64(seed, batch.sample_B, batch.epoch_B, 0x7475726E)
    quarters = 1 if maps.shape[-1] == maps.shape[-2] else 2
    out = [
        torch.rot90(image.flip(-1) if drawn & 1 else image, quarters * (drawn >> 1 & 3), (-2, -1))
        for image, drawn in zip(maps, drawn_B.tolist(), strict=True)
    ]
    return torch.stack(out)
