"""Stage diffusion: the denoiser, on the run's cached latents."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_shards.errors import InputError
from data_shards.reading.dataset import Dataset
from launch.run import Run
from launch.stages.features import learned_is_weak
from launch.stages.outdated import outdated, set_aside
from launch.stages.stage import check_trained
from launch.stages.training import Training

if TYPE_CHECKING:
    from launch.config import Config


class Diffusion(Training):
    name, verb, after = "diffusion", "train diffusion", ("encode",)
    reads, writes = "`latents/`; the dataset and `features/` for an alignment", "`diffusion/`"

    def data(self, run: Run) -> Path | str:
        return run.latents

    def builder(self, run: Run) -> Callable[..., Any]:
        from launch.build import diffusion_trainer

        words = {"features": run.features, "vqgan": run.vqgan, "quantise": run.config.sample.quantise}
        return partial(diffusion_trainer, **words, cubes=lambda: run.open(run.dataset))

    def waits_for(self, config: Config) -> tuple[str, ...]:
        return (*self.after, "features") if config.diffusion.alignment else self.after

    def cautions(self, run: Run) -> list[str]:
        weak = learned_is_weak(run) if run.config.diffusion.alignment else None
        return [weak] if weak else []

    def check(self, run: Run) -> None:
        super().check(run)
        if run.config.diffusion.alignment:
            check_trained(run, "features")

    def check_data(self, run: Run) -> None:
        """Refuse latents of an earlier state of the run's autoencoder: samples of a denoiser trained on them could not be decoded.

        Raises:
            InputError: the autoencoder was trained on after `encode`; latents with mirrored ones where none are wanted, or without.
        """
        from ldm.checkpoints.trained import trained_digest

        newest = trained_digest(run.vqgan)
        made_of = Dataset(run.latents).manifest.source.get("encode", {})
        if newest and made_of.get("autoencoder") != newest:
            raise InputError(
                "the latents are those of an earlier state of the autoencoder",
                where=run.latents,
                expected=f"latents of checkpoint {newest[:12]} in {run.vqgan}",
                mend=f"{set_aside(run, outdated(run))}\n            then retinaforge encode PRESET, and this command again",
            )
        if newest and made_of.get("flip", False) != run.config.diffusion.flip:
            raise InputError(
                f"latents {'with' if made_of.get('flip') else 'without'} those of mirrored cubes",
                where=run.latents,
                expected=f"diffusion.flip={str(not run.config.diffusion.flip).lower()}, as they were encoded",
                mend=f"{set_aside(run, [run.latents])}\n            then retinaforge encode PRESET, and this command again",
            )
