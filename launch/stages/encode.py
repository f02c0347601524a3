"""Stage encode: the latents of all splits, and whether the autoencoder is fit to diffuse on."""

from __future__ import annotations

import json
from pathlib import Path

from data_shards import durable
from data_shards.manifest import NAME, read_manifest
from data_shards.reading.dataset import Dataset
from launch.run import Run, device
from launch.stages.data import check_inputs
from launch.stages.stage import Display, Stage, check_trained

HEALTH = "health.json"


class Encode(Stage):
    name, verb, after = "encode", "encode", ("vqgan",)
    reads, writes = "dataset, `vqgan/`", "`latents/`, `health.json`; warns when the autoencoder is not fit to diffuse on"

    def check(self, run: Run) -> None:
        check_inputs(run)
        check_trained(run, "vqgan")

    def done(self, run: Run) -> bool:
        from ldm.checkpoints.trained import trained_digest

        if not (run.latents / NAME).exists():
            return False
        return read_manifest(run.latents).source.get("encode", {}).get("autoencoder") == trained_digest(run.vqgan)

    def make(self, run: Run, display: Display) -> list[str]:
        from ldm.checkpoints.trained import load_autoencoder
        from ldm.evaluation.health import check
        from ldm.generation.encode import encode_dataset

        if self.done(run) and (run.folder / HEALTH).exists():
            return json.loads((run.folder / HEALTH).read_text())["warnings"]
        autoencoder = load_autoencoder(run.vqgan, device())
        watch = lambda batches: display.over(batches, title="encode", unit="batch")  # noqa: E731
        encode_dataset(run.open(run.dataset), autoencoder, run.latents, watch=watch)
        health = check(Dataset(run.latents), autoencoder)
        durable.write_json(run.folder / HEALTH, health)
        return health["warnings"]

    def told(self, run: Run) -> str:
        return f"latents in {run.latents}"

    def shown(self, run: Path) -> str:
        return "done" if (run / "latents" / NAME).exists() else ""

    def grows(self, run: str) -> tuple[str, ...]:
        return (f"{run}/.part-*-latents/*.tar", f"{run}/latents/{NAME}")
