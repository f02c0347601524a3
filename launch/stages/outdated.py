"""What stands in a run folder and was made from an earlier state of what it depends on."""

from __future__ import annotations

import itertools
import shlex
from pathlib import Path

from data_shards.errors import InputError
from launch.run import Run
from launch.stages.training import trained


def outdated(run: Run) -> list[Path]:
    """What stands in a run folder and was made from what has changed since, or is going to be trained further: no later stage takes it.

    Raises:
        UnsafeResume: checkpoints, but none that can be loaded.
    """
    from ldm.checkpoints.store import CheckpointStore
    from ldm.checkpoints.trained import trained_digest
    from ldm.comm import Alone
    from ldm.generation.encode import asked_of
    from ldm.generation.standing import request_of

    found = []
    newest = CheckpointStore(run.diffusion / "checkpoints", Alone()).newest(progress_exists=False, used=True)
    denoiser = newest if newest and newest.samples else None
    if run.latents.exists() or denoiser:
        vqgan = trained_digest(run.vqgan) if trained(run, "vqgan") else None
        if run.latents.exists() and asked_of(run.latents).get("autoencoder") != vqgan:
            found.append(run.latents)
        if denoiser and denoiser.state["identity"].get("autoencoder", vqgan) != vqgan:
            found.append(run.diffusion)
    asked = request_of(run.synthetic)
    if sampled := asked.get("denoiser"):
        final = not found and trained(run, "diffusion") and (not asked["segmenter"] or trained(run, "segmenter"))
        if not final or sampled != trained_digest(run.diffusion) or asked["segmenter"] not in (None, trained_digest(run.segmenter)):
            found.append(run.synthetic)
    return found


def check_outdated(run: Run) -> None:
    """Refuse to begin what must fail hours later, at what an earlier state of the run left in its folder.

    Raises:
        InputError: a network was trained further, or is to be, after the next stage had worked with it.
    """
    if found := outdated(run):
        raise InputError(
            f"made from an earlier state of what it depends on: {', '.join(path.name for path in found)}",
            where=run.folder,
            expected="what follows a training to be made after it",
            mend=f"{set_aside(run, found)}\n            then the same command again, which makes it anew; "
            "or the lengths that the run had, or another folder: run=runs/NAME",
        )


def set_aside(run: Run, found: list[Path]) -> str:
    """The command that moves these folders of a run into a new one within it."""
    aside = run.folder / "earlier"
    aside = next(path for i in itertools.count() if not (path := aside.with_name(f"earlier-{i}") if i else aside).exists())
    apart = shlex.quote(str(aside))
    return f"mkdir {apart} && mv {shlex.join(map(str, found))} {apart}"
