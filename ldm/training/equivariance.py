"""How latents, and their cubes alike, are scaled and turned, so that one decodes to the other (Kouzelis et al. 2025, EQ-VAE).

Legend: B batch, D channel, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data_shards.reading.batch import Batch
from data_shards.reading.order import hash64

LEAST_SCALE = 0.25  # of moved latents (Kouzelis et al. 2025, section 4)


def movement(seed: int, batch: Batch, samples: int, *, share: float, least: int) -> Callable[..., Tensor] | None:
    """What moves (B, D, h, w) latents and, called with the compression as factor, their (B, C, H, W) cubes; None in most of the steps.

    One scale for all samples of a step, of all ranks; quarter turns by sample, half turns where it is not square.

    Args:
        samples: the place of the step.
        share: of the steps, that move.
        least: latents a side that have to be left.
    """
    drawn, scale = hash64(seed, samples, 0, np.array([0x65717661, 0x73636C65])) / 2.0**64
    if drawn >= share:
        return None
    turn_B = hash64(seed, batch.sample_B, batch.epoch_B, 0x7475726E)

    def moved(maps_BDHW: Tensor, factor: int = 1) -> Tensor:
        sides = [side // factor for side in maps_BDHW.shape[-2:]]  # in latents
        size = [factor * min(side, max(least, round(side * (LEAST_SCALE + (1 - LEAST_SCALE) * scale)))) for side in sides]
        quarters = 1 if sides[0] == sides[1] else 2
        turned = [torch.rot90(x, int(turn) * quarters, (-2, -1)) for x, turn in zip(maps_BDHW, turn_B % 4, strict=True)]
        return F.interpolate(torch.stack(turned).float(), size=size, mode="bilinear", antialias=True)

    return moved
