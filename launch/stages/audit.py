"""Stage audit: a search of the set for copies of training images."""

from __future__ import annotations

from data_shards.manifest import NAME
from data_shards.packing.splits import held_out_split
from data_shards.reading.dataset import Dataset
from launch.run import Run, device, read_result
from launch.stages.stage import MeasuredStage, check_sampled
from launch.work import Phases


class Audit(MeasuredStage):
    name, verb, after = "audit", "audit", ("sample",)
    reads, writes = "dataset, `synthetic/`", "`audit.json`"

    def check(self, run: Run) -> None:
        check_sampled(run)

    def done(self, run: Run) -> bool:
        """It has seen the present sets, and as this version judges."""
        from ldm.authenticity.audit import AuditResult

        seen = read_result(run.folder / "audit.json", AuditResult)
        if seen is None or not (run.synthetic / NAME).exists():
            return False
        return (seen.train.digest, seen.synthetic.digest) == (run.open(run.dataset).digest, Dataset(run.synthetic).digest)

    def phases(self, run: Run) -> Phases:
        from ldm.authenticity import audit

        if not self.done(run):
            real = run.open(run.dataset)
            config = audit.AuditConfig(against=held_out_split(real), device=device())
            units = audit.Audit(real, run.images(), config, run.folder / "audit.json")
            yield "descriptors", lambda: units.descriptors
            yield self.name, lambda: units
