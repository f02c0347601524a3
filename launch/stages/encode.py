"""Stage encode: the latents of all splits, and whether the autoencoder is fit to diffuse on."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

from data_shards import durable
from data_shards.manifest import NAME, read_manifest
from data_shards.reading.dataset import Dataset
from launch.run import Run, device, read_result
from launch.stages.data import check_inputs
from launch.stages.stage import UnitStage, check_trained
from launch.work import Display, Phases

HEALTH = "health.json"


class Encode(UnitStage):
    """Cache the latents of the run's dataset, and check whether the autoencoder is fit to diffuse on."""

    name, verb, after = "encode", "encode", ("vqgan",)
    reads, writes = "dataset, `vqgan/`", "`latents/`, `health.json`; warns when the autoencoder is not fit to diffuse on"

    def check(self, run: Run) -> None:
        check_inputs(run)
        check_trained(run, "vqgan")

    def done(self, run: Run) -> bool:
        from ldm.checkpoints.trained import trained_digest

        if not ((run.latents / NAME).exists() and (run.folder / HEALTH).exists()):
            return False
        made_of = read_manifest(run.latents).source.get("encode", {})
        return made_of.get("autoencoder") == trained_digest(run.vqgan) and made_of.get("flip", False) == run.config.diffusion.flip

    def phases(self, run: Run) -> Phases:
        from ldm.checkpoints.trained import load_autoencoder
        from ldm.generation.encode import LatentSet, asked_of
        from ldm.models.inference import FP32, settled, stated

        asked = asked_of(run.latents)
        inference = settled(run.config.inference, device(), asked and asked.get("inference", stated(FP32)))
        autoencoder = load_autoencoder(run.vqgan, device(), inference=inference)
        yield self.name, partial(LatentSet, run.open(run.dataset), autoencoder, run.latents, flip=run.config.diffusion.flip)

    def make(self, run: Run, display: Display, place: tuple[int, int] = (0, 1)) -> list[str]:
        from ldm.checkpoints.trained import load_autoencoder
        from ldm.evaluation.health import Health, check

        super().make(run, display, place)
        latents = Dataset(run.latents)
        health = read_result(run.folder / HEALTH, Health)
        if health is None or health.latents != latents.digest:
            health = check(latents, load_autoencoder(run.vqgan, device()))
            durable.write_json(run.folder / HEALTH, asdict(health))
        return list(health.warnings)

    def where(self, run: Run) -> str:
        return f"latents in {run.latents}"

    def standing(self, run: Path) -> str:
        return "done" if (run / "latents" / NAME).exists() else ""

    def grows(self, run: str) -> tuple[str, ...]:
        return (f"{run}/latents/*.tar", f"{run}/latents/{NAME}")
