"""One training of a run, from the launcher's first word to the last checkpoint: ranks meet, the folder is claimed, the loop runs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from data_shards import durable
from data_shards.errors import InputError, TryAgain
from data_shards.reading.dataset import Dataset
from launch.config import concealed, to_tree
from launch.provenance import versions
from launch.stages import Run, outdated, set_aside

if TYPE_CHECKING:
    from slurm.rank import Placement


CLAIM_PATIENCE_S = 90.0
"""Network file systems show a change to other nodes after up to a minute."""


def check_latents(run: Run) -> None:
    """Refuse latents of an earlier state of the run's autoencoder: samples of a denoiser trained on them could not be decoded.

    Raises:
        InputError: the autoencoder was trained on after `encode`.
    """
    from ldm.checkpoints.trained import trained_digest

    newest = trained_digest(run.vqgan)
    if newest and Dataset(run.latents).manifest.source.get("encode", {}).get("autoencoder") != newest:
        raise InputError(
            "the latents are those of an earlier state of the autoencoder",
            where=run.latents,
            expected=f"latents of checkpoint {newest[:12]} in {run.vqgan}",
            mend=f"{set_aside(run, outdated(run))}\n            then retinaforge encode PRESET, and this command again",
        )


@contextlib.contextmanager
def meeting(place: Placement) -> Iterator[None]:
    """Around the ranks' first contact. What fails there is no fault of the input, and may be well the next time."""
    from torch.distributed import DistError

    from slurm.meeting import check_meeting_point, meeting_point

    if place.world > 1 and "MASTER_ADDR" not in os.environ:
        os.environ.update(meeting_point(place, os.environ))
        check_meeting_point(os.environ)
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, DistError) or "gloo" in str(error).lower()):
            raise
        raise TryAgain(
            f"the ranks did not meet: {str(error).splitlines()[0]}",
            where=f"MASTER_ADDR={os.environ.get('MASTER_ADDR')} MASTER_PORT={os.environ.get('MASTER_PORT')}",
            expected="all ranks started, and a port there that no other program has",
            mend="run the same command again, if need be with another MASTER_PORT",
        ) from error


def train(
    run: Run, stage: str, *, report: Callable[[int, dict[str, float]], None], started: Callable[[Any], None] = lambda engine: None
) -> int:
    """Train 'vqgan' or 'diffusion' to its end, from its newest checkpoint on. Collective over ranks.

    Raises:
        TryAgain: stopped by a signal after a commit, or the ranks did not meet; the same command goes on.
        InputError: launchers that contradict each other, or a meeting point that cannot be.
    """
    from slurm.meeting import check_meeting_point
    from slurm.preempt import stop_on_signals, superseded
    from slurm.rank import placement, torch_environ

    if (place := placement()).world > 1:
        os.environ.update(torch_environ(place))  # started by srun or mpiexec: said again in the words the engine knows
    check_meeting_point(os.environ)
    from launch import build  # it takes seconds, and what was wrong up to here is said at once
    from ldm.checkpoints.store import CheckpointStore
    from ldm.training.clock import traced
    from ldm.training.engine import Engine
    from ldm.training.log import MetricLog
    from ldm.training.loop import fit

    config = getattr(run.config, stage)
    folder = getattr(run, stage)
    with meeting(place):
        engine = Engine(config.engine, batch=config.loop.batch, run_folder=folder)
    held = contextlib.ExitStack()
    try:
        started(engine)
        builder, data = {"vqgan": (build.vqgan_trainer, run.dataset), "diffusion": (build.diffusion_trainer, run.latents)}[stage]
        engine.on_main(lambda: run.open(data))  # refuses before anything is written
        taken_over = superseded(os.environ)  # a job that SLURM started again gives its elder copy, if there is one, time to end
        patience_s = CLAIM_PATIENCE_S if taken_over else 0.0
        claim = durable.claimed(folder / ".training", "training in this folder", patience_s=patience_s)
        engine.on_main(lambda: held.enter_context(claim))
        engine.on_main(run.freeze)
        if stage == "diffusion":
            engine.on_main(lambda: check_latents(run))
        dataset, read = run.open(data), run.config.data.read
        trainer, stream, identity = builder(config, dataset, engine, read)
        store = CheckpointStore(folder / "checkpoints", engine, keep=config.loop.keep, used=trainer.USED)
        log = MetricLog(folder / "metrics.jsonl", writes=engine.is_main)
        trace = folder / "trace.json" if config.loop.profile and engine.is_main else None
        with stop_on_signals(taken_over) as stop, traced(trace) as stepped:
            samples = fit(
                trainer,
                stream,
                engine,
                store,
                log,
                config.loop,
                identity=identity,
                record={"config": concealed(to_tree(run.config)), "versions": versions()},
                validation=build.validation(dataset, config.loop, engine, read, crop=getattr(config, "crop", 0)),
                stop=stop,
                report=report,
                stepped=stepped,
            )
        if samples < config.loop.samples or stop.signal:
            raise TryAgain(
                f"stopped by {stop.signal or 'another rank'} after {samples:,} of {config.loop.samples:,} samples; the state is committed",
                where=folder,
                mend="run the same command again",
            )
    except BaseException as error:
        held.close()
        engine.close(None if isinstance(error, TryAgain) else error)
        raise
    else:
        held.close()
        engine.close()
        return samples
