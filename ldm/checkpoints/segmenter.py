"""A trained segmenter, loaded from the newest checkpoint that verifies.

Legend: B batch, C band, L class, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_shards.errors import InputError
from ldm.checkpoints.trained import chosen, cube_normaliser, load_strictly
from ldm.models.config import InferenceConfig, SegmenterConfig
from ldm.models.inference import DTYPES, FP32, ready
from ldm.models.segmenter import SegmenterNet, check_size
from ldm.normalise import CubeNormaliser


@dataclass(frozen=True, kw_only=True)
class Segmenter:
    """The averaged segmenter of one checkpoint; `data` says what cubes it was trained on."""

    net: SegmenterNet
    normaliser: CubeNormaliser
    data: dict[str, Any]
    digest: str
    inference: InferenceConfig = FP32

    @torch.no_grad()
    def __call__(self, stored_BCHW: Tensor, fov_HW: Tensor | None = None) -> Tensor:
        """Stored counts → the class of each pixel, uint8 (B, H, W); 0 outside the field of view.

        One image at a time: its labels depend on nothing that is labelled beside it, and memory on no batch.

        Args:
            fov_HW: bool, of all images, or (B, H, W), of each; None: all is within.
        """
        device = self.normaliser.mean_C11.device
        stored_BCHW = stored_BCHW.to(device)
        fov_BHW = None if fov_HW is None else fov_HW.to(device).expand(len(stored_BCHW), -1, -1)
        return torch.cat(
            [self._of_one(stored_BCHW[b : b + 1], None if fov_BHW is None else fov_BHW[b : b + 1]) for b in range(len(stored_BCHW))]
        )

    def _of_one(self, stored_1CHW: Tensor, fov_1HW: Tensor | None) -> Tensor:
        check_size(*stored_1CHW.shape[2:], where="labels")
        dtype = DTYPES[self.inference.precision]
        with torch.autocast(stored_1CHW.device.type, dtype=dtype, enabled=dtype is not torch.float32):
            logits_1LHW = self.net(self.normaliser(stored_1CHW, fov_1HW))
        labels_1HW = logits_1LHW.float().argmax(1).to(torch.uint8)
        return labels_1HW if fov_1HW is None else labels_1HW * fov_1HW

    def check(self, where: object, **cubes: Any) -> None:
        """Refuse cubes that mean something else than those it was trained on.

        Args:
            cubes: wavelengths_nm, scale and offset, or some of them.

        Raises:
            InputError: another of these.
        """
        for name, value in cubes.items():
            theirs, mine = np.atleast_1d(value), np.atleast_1d(self.data[name])
            if len(theirs) != len(mine) or not np.allclose(theirs, mine, rtol=1e-6, atol=0.5 if name == "wavelengths_nm" else 0.0):
                raise InputError(
                    f"cubes with {name} {', '.join(f'{number:g}' for number in theirs)}",
                    where=where,
                    expected=f"{', '.join(f'{number:g}' for number in mine)}, as the segmenter was trained on",
                    mend="retinaforge train segmenter PRESET, on cubes of this kind, in a fresh run folder",
                )


def load_segmenter(
    folder: Path | str, device: torch.device | str = "cpu", *, best: bool = False, inference: InferenceConfig = FP32
) -> Segmenter:
    """The averaged segmenter of a training folder, in evaluation mode: the newest, or that of the best validation loss.

    Args:
        inference: a `settled` one.

    Raises:
        InputError: nothing trained there. UnsafeResume: checkpoints, but none that verifies.
    """
    identity, read, digest = chosen(folder, "segmenter", best)
    net = SegmenterNet(SegmenterConfig(**identity["model"]))
    load_strictly(net, read.under("ema."), folder)
    return Segmenter(
        net=ready(net, FP32, device),  # in bf16 it computes under autocast, which keeps its last layer's sums
        normaliser=cube_normaliser(identity["data"]).to(device),
        data=identity["data"],
        digest=digest,
        inference=inference,
    )
