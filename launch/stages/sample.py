"""Stage sample: the synthetic set, in shards; image i depends on (seed, i) alone."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from data_shards.errors import command
from data_shards.manifest import NAME, read_manifest
from data_shards.shards.index import index_path
from launch.run import Run, device
from launch.stages.stage import Progress, Target, UnitStage, check_trained
from launch.work import Phases

if TYPE_CHECKING:
    from launch.config import Config


class Sample(UnitStage):
    name, verb, after = "sample", "sample", ("diffusion",)
    reads, writes = "`vqgan/`, `diffusion/`", "`synthetic/`"

    def target(self, config: Config) -> Target:
        wanted = config.sample
        return Target(run=str(Path(config.run).absolute()), stage=self.name, goal=wanted.count, shard=wanted.shard)

    def check(self, run: Run) -> None:
        check_trained(run, "vqgan", "diffusion")

    def done(self, run: Run) -> bool:
        from ldm.checkpoints.trained import trained_digest

        if not (run.synthetic / NAME).exists():
            return False
        asked = read_manifest(run.synthetic).source.get("sample", {})
        return asked.get("count") == run.config.sample.count and asked.get("denoiser") == trained_digest(run.diffusion)

    def phases(self, run: Run) -> Phases:
        from ldm.checkpoints.trained import load_autoencoder, load_denoiser
        from ldm.generation.generate import SyntheticSet

        wanted = run.config.sample
        build = partial(
            SyntheticSet,
            load_autoencoder(run.vqgan, device()),
            load_denoiser(run.diffusion, device()),
            run.synthetic,
            count=wanted.count,
            shard=wanted.shard,
            seed=wanted.seed,
            sampler=run.config.diffusion.sampler,
            batch=wanted.batch,
            quantise=wanted.quantise,
        )
        yield self.name, build

    def where(self, run: Run) -> str:
        from ldm.generation.generate import superseded

        lines = [f"{run.config.sample.count} images in {run.synthetic}"]
        for name in superseded(run.synthetic):
            end = run.synthetic / name
            lines.append(f"{name} was the end of a smaller set; when nobody reads that any more: {command('rm', end, index_path(end))}")
        return "\n".join(lines)

    def progress(self, target: Target, *, verify: bool = False) -> Progress:
        if target.shard < 1:
            return Progress()
        folder = Path(target.run) / "synthetic"
        full = sum(1 for path in folder.glob("*.tar") if re.fullmatch(r"synthetic-\d+\.tar", path.name))
        number, last = divmod(target.goal, target.shard)  # ends of smaller sets are no part of it
        has_last = (folder / f"synthetic-{number:06d}.first{last}.tar").exists()
        return Progress(done=min(target.goal, full * target.shard + (last if has_last else 0)), goal=target.goal)

    def standing(self, run: Path) -> str:
        if (run / "synthetic" / NAME).exists():
            return "done"
        shards = len(list((run / "synthetic").glob("*.tar")))
        return f"{shards} shard(s)" if shards else ""

    def grows(self, run: str) -> tuple[str, ...]:
        return (f"{run}/synthetic/*.tar",)
