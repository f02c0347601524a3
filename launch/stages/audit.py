"""Stage audit: a search of the set for copies of training images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from data_shards.manifest import NAME
from data_shards.reading.dataset import Dataset
from launch.run import Run, device, read_result
from launch.stages.evaluate import LEARNED, encoder_digest
from launch.stages.stage import MeasuredStage, check_sampled
from launch.stages.training import trained
from launch.work import Phases

if TYPE_CHECKING:
    from ldm.authenticity.descriptors import Space


COPIES = "copies"


class Audit(MeasuredStage):
    name, verb, after = "audit", "audit", ("sample", "features", "copies")
    reads, writes = "dataset, `synthetic/`, `features/`, `copies/`", "`audit.json`"

    def check(self, run: Run) -> None:
        check_sampled(run)

    def done(self, run: Run) -> bool:
        """It has seen the present sets, and as this version judges."""
        from ldm.authenticity.audit import AuditResult

        seen = read_result(run.folder / "audit.json", AuditResult)
        if seen is None or not (run.synthetic / NAME).exists():
            return False
        if (seen.train.digest, seen.synthetic.digest) != (run.open(run.dataset).digest, Dataset(run.synthetic).digest):
            return False
        return [space.space for space in seen.descriptors.values()] == [space.name for space in spaces_of(run).values()]

    def phases(self, run: Run) -> Phases:
        from ldm.authenticity.audit import Audit, AuditConfig

        if not self.done(run):
            config = AuditConfig(spaces=wanted(run), device=device())
            result = run.folder / "audit.json"
            yield from Audit(run.open(run.dataset), run.images(), config, result, **encoders_of(config.spaces, run)).phases()


def wanted(run: Run) -> tuple[str, ...]:
    """The spaces that copies of a run are looked for in: those of its encoders where they were trained."""
    return ("pooled", "contrast", *((COPIES,) if trained(run, COPIES) else ()), *((LEARNED,) if encoder_digest(run) else ()))


def encoders_of(names: tuple[str, ...], run: Run) -> dict[str, Path | None]:
    """Folders of the encoders that spaces of these names need."""
    return {"learned": run.features if LEARNED in names else None, "copies": run.copies if COPIES in names else None}


def spaces_of(run: Run) -> dict[str, Space]:
    from ldm.authenticity.descriptors import spaces

    names = wanted(run)
    return spaces(names, run.open(run.dataset), **encoders_of(names, run), device=device())
