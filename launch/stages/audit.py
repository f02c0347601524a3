"""Stage audit: a search of the set for copies of training images, and an attack on the networks that made it."""

from __future__ import annotations

from functools import partial

from data_shards.manifest import NAME
from data_shards.reading.dataset import Dataset
from launch.run import Run, device, read_result
from launch.stages.evaluate import LEARNED, encoder_digest
from launch.stages.stage import MeasuredStage, check_sampled
from launch.stages.training import trained
from launch.work import Phases

COPIES = "copies"


class Audit(MeasuredStage):
    name, verb, after = "audit", "audit", ("sample", "features", "copies")
    reads = "dataset, `synthetic/`, `features/`, `copies/`, `vqgan/`, `diffusion/`"
    writes = "`audit.json`, `audit.flagged.csv`, `membership.json`"

    def check(self, run: Run) -> None:
        check_sampled(run)

    def done(self, run: Run) -> bool:
        """The set was searched and the networks attacked, as they are now, and as this version judges."""
        return self.searched(run) and self.attacked(run)

    def searched(self, run: Run) -> bool:
        from ldm.authenticity.audit import AuditResult
        from ldm.checkpoints.trained import trained_digest

        seen = read_result(run.folder / "audit.json", AuditResult)
        if seen is None or not (run.synthetic / NAME).exists():
            return False
        if (seen.train.digest, seen.synthetic.digest) != (run.open(run.dataset).digest, Dataset(run.synthetic).digest):
            return False
        if tuple(seen.descriptors) != wanted(run):
            return False
        digests = {LEARNED: encoder_digest(run), COPIES: trained_digest(run.copies) if COPIES in seen.descriptors else None}
        return all(digest is None or digest[:12] in seen.descriptors[name].space for name, digest in digests.items())

    def attacked(self, run: Run) -> bool:
        """True as well where the networks are gone: a set can be searched without them."""
        from ldm.authenticity.membership import MembershipResult
        from ldm.checkpoints.trained import trained_digest

        if not (trained(run, "vqgan") and trained(run, "diffusion")):
            return True
        seen = read_result(run.folder / "membership.json", MembershipResult)
        wanted = (trained_digest(run.vqgan), trained_digest(run.diffusion), run.open(run.dataset).digest)
        return seen is not None and (seen.autoencoder, seen.denoiser, seen.train.digest) == wanted

    def phases(self, run: Run) -> Phases:
        from ldm.authenticity.audit import Audit, AuditConfig
        from ldm.authenticity.membership import Membership, MembershipConfig
        from ldm.checkpoints.trained import load_autoencoder, load_denoiser

        if not self.attacked(run):
            networks = load_autoencoder(run.vqgan, device()), load_denoiser(run.diffusion, device())
            config = MembershipConfig(device=device())
            yield "attack", partial(Membership, run.open(run.dataset), *networks, config, run.folder / "membership.json")
        if not self.searched(run):
            config = AuditConfig(spaces=wanted(run), device=device())
            encoders = {name: folder for name, folder in ((LEARNED, run.features), (COPIES, run.copies)) if name in config.spaces}
            yield from Audit(run.open(run.dataset), run.images(), config, run.folder / "audit.json", **encoders).phases()

    def grows(self, run: str) -> tuple[str, ...]:
        return (*super().grows(run), f"{run}/membership.units-*/*.safetensors")


def wanted(run: Run) -> tuple[str, ...]:
    """The spaces that copies of a run are looked for in: those of its encoders where they were trained."""
    return ("pooled", "contrast", *((COPIES,) if trained(run, COPIES) else ()), *((LEARNED, "identity") if encoder_digest(run) else ()))
