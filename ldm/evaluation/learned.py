"""The feature space of a run's own encoder, learned without labels from the training split alone (ldm/training/{features,copies}.py).

Legend: B batch, C band, H W pixels, D feature.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from data_shards.errors import InputError
from ldm.checkpoints.trained import load_feature_encoder


class Learned:
    """Averaged weights of a training, frozen; in the name the digest of their checkpoint.

    Args:
        folder: of the training, RUN/features.
        wavelengths_nm: of the cubes that are to come; empty: not known.
        stage: that trained it: 'features', or 'copies' for the copy-detection head.

    Raises:
        InputError: nothing trained there, weights that are not finite, or an encoder of other bands.
    """

    refused: str | None = None

    def __init__(self, folder: Path | None, *, bands: int, wavelengths_nm: tuple[float, ...], device: str, stage: str = "features") -> None:
        if folder is None:
            raise InputError(
                f"the space of stage {stage!r} without an encoder",
                expected=f"the folder of a trained one: RUN/{stage}",
                mend=f"retinaforge train {stage} PRESET",
            )
        self.encoder, self.device = load_feature_encoder(folder, device, stage=stage), device
        trained_nm = tuple(self.encoder.data["wavelengths_nm"])
        other = bool(wavelengths_nm) and not (len(wavelengths_nm) == len(trained_nm) and np.allclose(wavelengths_nm, trained_nm, atol=0.5))
        if bands != len(trained_nm) or other:
            raise InputError(
                f"cubes of {bands} bands" + (f" at {', '.join(f'{nm:g}' for nm in wavelengths_nm)} nm" if wavelengths_nm else ""),
                where=folder,
                expected=f"those that the encoder was trained on: {', '.join(f'{nm:g}' for nm in trained_nm)} nm",
                mend=f"retinaforge train {stage} PRESET run=runs/NAME, on a dataset of these bands",
            )
        self.dimension, self.digest = self.encoder.net.config.dimension, self.encoder.digest
        self.name = f"{'learned' if stage == 'features' else stage} {self.digest[:12]}, bands {bands}, d={self.dimension}"

    def __call__(self, reflectance_BCHW: torch.Tensor) -> torch.Tensor:
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):  # the same figures on CPU and GPU
            return self.encoder.features(reflectance_BCHW.to(self.device).float()).double().cpu()
