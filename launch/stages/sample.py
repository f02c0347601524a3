"""Stage sample: the synthetic set, in shards; image i depends on (seed, i) alone."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_shards import durable
from data_shards.cube import Cube
from data_shards.errors import InputError, command
from data_shards.folder import write_cube
from data_shards.ledger import holders
from data_shards.manifest import NAME, read_manifest
from data_shards.reading.dataset import Dataset
from data_shards.shards.index import index_path
from launch.machine import device_name, free_bytes
from launch.report.card import write_card
from launch.run import Run, device, read_result
from launch.stages.stage import Progress, Target, UnitStage, check_trained
from launch.stages.training import trained
from launch.work import Display, Phases, make_phases
from ldm.checkpoints.commit import COMMIT

if TYPE_CHECKING:
    from launch.config import Config
    from ldm.authenticity.gate import CopyGate, TrainingSide
    from ldm.generation.images import Generator
    from ldm.generation.speed import Speed

LOGGER = logging.getLogger("retinaforge")
SPLIT = "synthetic"
SPEED = "speed.json"  # the pace of the process that wrote it last
LATELY = 33  # shards whose times, all of one file server's clock, say how many images a second there are


def generator_of(run: Run, speed: Speed | None = None) -> Generator:
    """What makes the images of a run."""
    from ldm.checkpoints.segmenter import load_segmenter
    from ldm.checkpoints.trained import load_autoencoder, load_denoiser
    from ldm.generation.gate import Envelope, Gate
    from ldm.generation.images import Generator
    from ldm.generation.speed import Speed, cost_of
    from ldm.generation.standing import request_of
    from ldm.models.inference import settled

    wanted, on = run.config.sample, device()
    if run.config.inference.precision == "bf16" and on == "cpu":
        LOGGER.warning("bf16 on a processor may take ten times as long as fp32: retinaforge doctor says how it is here")
    begun = request_of(run.synthetic)
    inference = settled(run.config.inference, on, begun.get("inference"))
    autoencoder = load_autoencoder(run.vqgan, on, inference=inference)
    labelled = labels_by(run) and (not begun or begun["segmenter"])
    generator = Generator(
        autoencoder=autoencoder,
        denoiser=load_denoiser(run.diffusion, on, inference=inference),
        seed=wanted.seed,
        sampler=run.config.diffusion.sampler,
        batch=wanted.batch or 1,
        quantise=wanted.quantise,
        payload=wanted.payload,
        guide=load_denoiser(wanted.guide, on, inference=inference) if wanted.guide else None,
        guidance=wanted.guidance if wanted.guide else 1.0,
        segmenter=load_segmenter(run.segmenter, on, inference=inference) if labelled else None,
        gate=Gate.of(read_result(run.envelope, Envelope), wanted.gate, autoencoder, copies=copy_gate(run)),
        speed=speed or Speed(),
    )
    return generator if wanted.batch else replace(generator, batch=cost_of(generator).batch(free_bytes(on)))


def copy_gate(run: Run) -> CopyGate | None:
    """What refuses copies of training images, of units that are there; None where none are looked for."""
    from ldm.authenticity.gate import CopyBounds, CopyGate

    if not run.config.sample.copies:
        return None
    return CopyGate(side=training_side(run), settled=read_result(run.copy_bounds, CopyBounds))


def training_side(run: Run) -> TrainingSide:
    """The training images, as copies of them are looked for."""
    from ldm.authenticity.gate import TrainingSide

    return TrainingSide(run.open(run.dataset), run.copy_bounds, run.config.sample.copies, device=device())


def copies_bounded(run: Run) -> bool:
    """Whether what a gate refuses copies by is there, of these training images, at this rate."""
    from ldm.authenticity.gate import CopyBounds

    seen = read_result(run.copy_bounds, CopyBounds)
    return seen is not None and (seen.dataset, seen.rate) == (run.open(run.dataset).digest, run.config.sample.copies)


def labels_by(run: Run) -> str | None:
    """The digest of the segmenter that labels the run's images; None where none does."""
    from ldm.checkpoints.trained import trained_digest

    wanted = run.config.sample
    return trained_digest(run.segmenter) if wanted.labels and wanted.payload == "cube" and trained(run, "segmenter") else None


class Sample(UnitStage):
    name, verb, after = "sample", "sample", ("diffusion", "segmenter")
    reads, writes = "`vqgan/`, `diffusion/`, `segmenter/`; once the training images", "`synthetic/`, with its card, `envelope.json`"

    def target(self, config: Config) -> Target:
        wanted = config.sample
        return Target(run=str(Path(config.run).absolute()), stage=self.name, goal=wanted.count, shard=wanted.shard)

    def check(self, run: Run) -> None:
        check_trained(run, "vqgan", "diffusion")
        guide = run.config.sample.guide
        if guide and not any(Path(guide, "checkpoints").glob(f"samples-*/{COMMIT}")):
            raise InputError(
                "no trained denoiser to be led away from",
                where=guide,
                expected="sample.guide=runs/NAME/diffusion, the folder of a training",
                mend="sample.guide= for none",
            )

    def done(self, run: Run) -> bool:
        from ldm.checkpoints.trained import trained_digest
        from ldm.generation.standing import manifest_of

        if (done := manifest_of(run.synthetic)) is None:
            return False
        asked = done.source["sample"]
        if asked.get("segmenter") not in (None, labels_by(run)):
            return False
        return asked.get("count") == run.config.sample.count and asked.get("denoiser") == trained_digest(run.diffusion)

    def phases(self, run: Run, speed: Speed | None = None) -> Phases:
        from ldm.evaluation.envelope import TrainingSpectra
        from ldm.generation.gate import Envelope
        from ldm.generation.generate import SyntheticSet

        if run.config.sample.gate and read_result(run.envelope, Envelope) is None:
            yield "training spectra", partial(TrainingSpectra, run.open(run.dataset), run.envelope)
        if run.config.sample.copies and not copies_bounded(run):
            for units in training_side(run).phases():
                yield "training images", lambda units=units: units
        yield (
            self.name,
            partial(SyntheticSet, generator_of(run, speed), run.synthetic, count=run.config.sample.count, shard=run.config.sample.shard),
        )

    def make(self, run: Run, display: Display, place: tuple[int, int] = (0, 1)) -> list[str]:
        from ldm.generation.speed import Speed
        from ldm.generation.standing import check_sizes

        speed = Speed()
        if self.done(run):
            check_sizes(run.synthetic, read_manifest(run.synthetic))
        else:
            make_phases(self.phases(run, speed), display, place)
        if place[0] == 0:
            write_card(run)
            if pace := speed.pace(device_name(device())):
                durable.write_json(run.folder / SPEED, asdict(pace))
        display.note(speed.line())
        return [*unbounded(run), *copies_unbounded(run), *refused(run)]

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
        full = sorted(path.stat().st_mtime for path in folder.glob("*.tar") if re.fullmatch(r"synthetic-\d+\.tar", path.name))
        number, last = divmod(target.goal, target.shard)  # ends of smaller sets are no part of it
        has_last = (folder / f"synthetic-{number:06d}.first{last}.tar").exists()
        lately = full[-LATELY:]
        span_s = lately[-1] - lately[0] if lately else 0.0
        return Progress(
            done=min(target.goal, len(full) * target.shard + (last if has_last else 0)),
            goal=target.goal,
            per_s=(len(lately) - 1) * target.shard / span_s if span_s > 0 else None,
            held=holders(folder),
        )

    def standing(self, run: Path) -> str:
        if (run / "synthetic" / NAME).exists():
            return "done"
        shards = len(list((run / "synthetic").glob("*.tar")))
        return f"{shards} shard(s)" if shards else ""

    def grows(self, run: str) -> tuple[str, ...]:
        return (f"{run}/synthetic/*.tar",)


def unbounded(run: Run) -> list[str]:
    """That there are too few training images for a gate at this rate, if so."""
    from ldm.generation.gate import Envelope

    envelope, rate = read_result(run.envelope, Envelope), run.config.sample.gate
    if not (envelope and rate) or envelope.bound(rate) is not None:
        return []
    return [
        f"{envelope.images} training images bound no spectrum at sample.gate={rate:g}, for which {math.ceil(1 / rate) - 1} are wanted: "
        "images were looked at for values that are not finite or out of range alone"
    ]


def copies_unbounded(run: Run) -> list[str]:
    """That too few people are held out for a threshold at this rate, if so."""
    from ldm.authenticity.gate import CopyBounds

    bounds = read_result(run.copy_bounds, CopyBounds) if run.config.sample.copies else None
    without = [name for name, space in bounds.spaces.items() if space.threshold is None] if bounds else []
    if not without:
        return []
    return [
        f"{bounds.people} people held out bear no threshold at sample.copies={bounds.rate:g} ({', '.join(without)}): refused was what is a "
        "training image but for rounding, or lies far nearer to one person than to the next"
    ]


def refused(run: Run) -> list[str]:
    """What the gate refused while the set was made."""
    causes = read_manifest(run.synthetic).source["sample"].get("refused", {})
    return [f"refused, and made again: {', '.join(f'{count} for {cause!r}' for cause, count in causes.items())}"] if causes else []


def make_again(run: Run, ids: Sequence[int], folder: Path) -> list[str]:
    """Write images of a run, by their numbers alone, as loose cubes; a line on each, which says how it compares with the set's own.

    Raises:
        InputError: numbers out of range or named twice, a set of another request, a place that is taken.
    """
    if not ids or min(ids) < 0 or max(ids) >= 1 << 63 or len(set(ids)) < len(ids):
        raise InputError(f"--ids {','.join(map(str, ids))}", expected="numbers from 0, each once, such as 7,1000042")
    from ldm.generation.generate import SyntheticSet

    Sample().check(run)
    whole = run.images() if (run.synthetic / NAME).exists() else None
    count = max(run.config.sample.count, whole.count(SPLIT) if whole else 0)
    lines = []
    with durable.writing_folder(folder) as part:
        units = SyntheticSet(generator_of(run), run.synthetic, count=count, shard=run.config.sample.shard)
        batch = whole.manifest.source["sample"].get("batch") if whole else None  # as the set was made, where all of it was alike
        generator = replace(units.generator, payload="cube", batch=batch if isinstance(batch, int) else units.generator.batch)
        for cube in generator.images(ids):
            write_cube(part, cube)
            lines.append(f"{cube.meta.key}: {compared(cube, whole)}")
    return lines


def compared(cube: Cube, whole: Dataset | None) -> str:
    """An image beside the one of its number in the set."""
    i = int(cube.meta.notes["image"])
    if whole is None or i >= whole.count(SPLIT):
        return "made; the set does not hold it" if whole else "made; there is no finished set to compare it with"
    own = whole.cube(SPLIT, i)
    most = int(np.abs(own.data_CHW.astype(np.int64) - cube.data_CHW).max())
    if most == 0:
        return "made; the set holds the same, to the bit"
    batches = own.meta.notes.get("batch"), cube.meta.notes["batch"]
    why = (
        f"made {batches[0]} at a time, now {batches[1]}" if batches[0] != batches[1] else "made on another machine, or the set was altered"
    )
    return f"made; it differs from the set's by up to {most} counts: that was {why}"
