"""Stage audit: a search of the set for copies of training images."""

from __future__ import annotations

from data_shards.manifest import NAME
from data_shards.reading.dataset import Dataset
from launch.run import Run, device, read_result
from launch.stages.evaluate import LEARNED, encoder_digest
from launch.stages.stage import MeasuredStage, check_sampled
from launch.work import Phases


class Audit(MeasuredStage):
    name, verb, after = "audit", "audit", ("sample", "features")
    reads, writes = "dataset, `synthetic/`, `features/`", "`audit.json`, `audit.flagged.csv`"

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
        digest = encoder_digest(run)
        return tuple(seen.descriptors) == wanted(run) and (digest is None or digest[:12] in seen.descriptors[LEARNED].space)

    def phases(self, run: Run) -> Phases:
        from ldm.authenticity.audit import Audit, AuditConfig

        if not self.done(run):
            config = AuditConfig(spaces=wanted(run), device=device())
            learned = run.features if LEARNED in config.spaces else None
            yield from Audit(run.open(run.dataset), run.images(), config, run.folder / "audit.json", learned=learned).phases()


def wanted(run: Run) -> tuple[str, ...]:
    """The spaces that copies of a run are looked for in: the learned one where an encoder was trained."""
    return ("pooled", "contrast", *((LEARNED, "identity") if encoder_digest(run) else ()))
