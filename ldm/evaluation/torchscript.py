"""The feature space of a network of your own: a TorchScript file that takes (B, C, H, W) float32 reflectance and gives (B, D).

To load one runs what stands in it: take only files that you would run as a program. None is ever taken from a dataset or a run.

Legend: B batch, C band, H W pixels, D feature.
"""

from __future__ import annotations

from pathlib import Path

import torch

from data_shards.durable import sha256_of
from data_shards.errors import InputError
from data_shards.manifest import BandStats

TRIED_SIDE = 224


class TorchScript:
    """A file of torch.jit.save; in the name the sha256 of its bytes.

    It is tried at once, on two cubes of the training split's mean spectrum.

    Args:
        setting: the file.

    Raises:
        InputError: no such file, no TorchScript, or what it gives is not (B, D) finite numbers.
    """

    refused: str | None = None

    def __init__(self, setting: str, stats: BandStats, *, device: str) -> None:
        self.path, self.device = Path(setting), device
        if not setting or not self.path.is_file():
            raise InputError("no such file", where=setting or "torchscript:", expected="torchscript:PATH of a file of torch.jit.save")
        self.digest = sha256_of(self.path)
        try:
            self.net = torch.jit.load(self.path, map_location=device).eval()
        except RuntimeError as error:
            raise InputError(f"not TorchScript: {_first_line(error)}", where=self.path, expected="a file of torch.jit.save") from error
        mean_BCHW = torch.tensor(stats.mean_C, dtype=torch.float32)[None, :, None, None].expand(2, -1, TRIED_SIDE, TRIED_SIDE)
        tried_BD = self(mean_BCHW.contiguous())
        if not tried_BD.isfinite().all():
            raise InputError(
                "features that are not finite, of images that are the mean spectrum everywhere",
                where=self.path,
                expected="finite numbers",
                mend="another network, or leave this --extractor out",
            )
        self.dimension = tried_BD.shape[1]
        self.name = f"torchscript {self.path.name} {self.digest[:12]}, bands {len(stats.mean_C)}, d={self.dimension}"

    @torch.no_grad()
    def __call__(self, reflectance_BCHW: torch.Tensor) -> torch.Tensor:
        given = f"cubes of shape {tuple(reflectance_BCHW.shape[1:])}"
        try:
            found_BD = self.net(reflectance_BCHW.to(self.device).float())
        except RuntimeError as error:
            raise InputError(
                f"it fails on {given}: {_first_line(error)}",
                where=self.path,
                expected=f"features of cubes of any size; {TRIED_SIDE} pixels are tried first",
            ) from error
        shape = tuple(found_BD.shape) if isinstance(found_BD, torch.Tensor) else type(found_BD).__name__
        if not (isinstance(shape, tuple) and len(shape) == 2 and shape[0] == len(reflectance_BCHW) and shape[1]):
            raise InputError(f"it gives {shape} for {len(reflectance_BCHW)} {given}", where=self.path, expected="(B, D)")
        return found_BD.double().cpu()


def script_digest(extractor: str) -> str | None:
    """sha256 of the file that an extractor's name names, as it is now; None: it names none, or the file is gone."""
    kind, _, setting = extractor.partition(":")
    return sha256_of(Path(setting)) if kind == "torchscript" and Path(setting).is_file() else None


def same_script(extractor: str, said: str) -> bool:
    """Whether what a result says of an extractor is of the file as it is now; also where that is gone, or where it never was a file's."""
    digest = script_digest(extractor)
    return digest is None or digest[:12] in said


def _first_line(error: Exception) -> str:
    """What a RuntimeError of TorchScript says at its end; before it stand the places in the code."""
    return [line for line in str(error).splitlines() if line.strip()][-1].strip()
