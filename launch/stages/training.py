"""What the trainings of a run share: their face as stages, and one training from the launcher's first word to the last checkpoint."""

from __future__ import annotations

import contextlib
import json
import os
from abc import abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_shards import durable
from data_shards.errors import TryAgain
from launch.config import to_tree
from launch.credentials import concealed
from launch.provenance import versions
from launch.run import Run
from launch.stages.stage import Progress, Stage, Target
from launch.work import Display
from ldm.checkpoints.commit import COMMIT, faults_of, read_commit

if TYPE_CHECKING:
    from launch.config import Config
    from ldm.training.engine import Engine
    from slurm.rank import Placement


CLAIM_PATIENCE_S = 90.0
"""Network file systems show a change to other nodes after up to a minute."""


TAIL_BYTES = 1 << 15


class Training(Stage):
    """A stage that all ranks make together."""

    collective = True

    @abstractmethod
    def data(self, run: Run) -> Path | str:
        """The set that it trains on."""

    @abstractmethod
    def builder(self, run: Run) -> Callable[..., Any]:
        """Trainer, stream and identity from (configuration, dataset, engine, read)."""

    def check_data(self, run: Run) -> None:
        """Refuse a set that does not fit what was trained before. On one rank, with the folder claimed."""

    def target(self, config: Config) -> Target:
        loop = getattr(config, self.name).loop
        return Target(run=str(Path(config.run).absolute()), stage=self.name, goal=loop.samples, every=loop.checkpoint_every)

    def check(self, run: Run) -> None:
        run.open(self.data(run))

    def done(self, run: Run) -> bool:
        return trained(run, self.name)

    def make(self, run: Run, display: Display, place: tuple[int, int] = (0, 1)) -> list[str]:
        train(self, run, display)
        return []

    def where(self, run: Run) -> str:
        folder = getattr(run, self.name)
        return f"{self.name}: {self.progress(self.target(run.config)).checkpoint or 0:,} samples, checkpoints in {folder / 'checkpoints'}"

    def progress(self, target: Target, *, verify: bool = False) -> Progress:
        folder = Path(target.run) / self.name
        rows = last_rows(folder / "metrics.jsonl")
        found = sorted((folder / "checkpoints").glob(f"samples-*/{COMMIT}"), reverse=True)
        newest = next((commit for path in found if (commit := read_commit(path.parent))), None)
        paces = [row["samples_per_s"] for row in rows if row.get("samples_per_s")]
        samples = [row["samples"] for row in rows] + ([newest.samples] if newest else [])
        return Progress(
            done=max(samples, default=None),
            goal=target.goal,
            per_s=sorted(paces)[len(paces) // 2] if paces else None,
            checkpoint=newest.samples if newest else None,
            checkpoint_unix_s=(newest.folder / COMMIT).stat().st_mtime if newest else None,
            faults=tuple(faults_of(newest)) if verify and newest else None,
        )

    def standing(self, run: Path) -> str:
        done = self.progress(Target(run=str(run), stage=self.name)).done
        return "" if done is None else f"{done:,}"

    def grows(self, run: str) -> tuple[str, ...]:
        return (f"{run}/{self.name}/checkpoints/samples-*/{COMMIT}",)


def trained(run: Run, name: str) -> bool:
    """Whether a training has reached its length, in a checkpoint of which all that later stages read verifies.

    Raises:
        UnsafeResume: checkpoints, but none that can be loaded.
    """
    from ldm.checkpoints.store import CheckpointStore
    from ldm.comm import Alone

    newest = CheckpointStore(getattr(run, name) / "checkpoints", Alone()).newest(progress_exists=False, used=True)
    return newest is not None and newest.samples >= getattr(run.config, name).loop.samples


def last_rows(path: Path, most: int = 5) -> list[dict[str, Any]]:
    """The last rows of a metrics.jsonl, read from its end; a torn one is left out."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for line in lines[-most - 1 :]:
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the first may have been cut by the seek, the last by a kill
        if isinstance(row, dict) and isinstance(row.get("samples"), int):
            rows.append(row)
    return rows[-most:]


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


def train(stage: Training, run: Run, display: Display) -> int:
    """Train to the end, from the newest checkpoint on; returns samples. Collective over ranks.

    Raises:
        TryAgain: stopped by a signal after a commit, or the ranks did not meet; the same command goes on.
        InputError: launchers that contradict each other, or a meeting point that cannot be.
    """
    from slurm.meeting import check_meeting_point
    from slurm.rank import placement, torch_environ

    if (place := placement()).world > 1:
        os.environ.update(torch_environ(place))  # started by srun or mpiexec: said again in the words the engine knows
    check_meeting_point(os.environ)
    from ldm.training.engine import Engine  # it takes seconds, and what was wrong up to here is said at once

    config, folder = getattr(run.config, stage.name), getattr(run, stage.name)
    with meeting(place):
        engine = Engine(config.engine, batch=config.loop.batch, run_folder=folder)
    try:
        with contextlib.ExitStack() as held:
            samples = _fitted(stage, run, engine, display, held)
    except BaseException as error:
        engine.close(None if isinstance(error, TryAgain) else error)
        raise
    engine.close()
    return samples


def _fitted(stage: Training, run: Run, engine: Engine, display: Display, held: contextlib.ExitStack) -> int:
    """The training on ranks that have met.

    Args:
        held: what ends with it: the claim on the folder, the display.
    """
    from launch import build
    from ldm.checkpoints.store import CheckpointStore
    from ldm.comm import on_rank_0
    from ldm.training.clock import traced
    from ldm.training.log import MetricLog
    from ldm.training.loop import fit
    from slurm.preempt import stop_on_signals, superseded

    config, folder = getattr(run.config, stage.name), getattr(run, stage.name)
    report = held.enter_context(display.training(stage.name, config.loop.samples))
    on_rank_0(engine.comm, lambda: stage.check(run))
    taken_over = superseded(os.environ)  # a job that SLURM started again gives its elder copy, if there is one, time to end
    patience_s = CLAIM_PATIENCE_S if taken_over else 0.0
    claim = durable.claimed(folder / ".training", "training in this folder", patience_s=patience_s)
    on_rank_0(engine.comm, lambda: held.enter_context(claim))
    on_rank_0(engine.comm, run.freeze)
    on_rank_0(engine.comm, lambda: stage.check_data(run))
    dataset, read = run.open(stage.data(run)), run.config.data.read
    trainer, stream, identity = stage.builder(run)(config, dataset, engine, read)
    store = CheckpointStore(folder / "checkpoints", engine.comm, keep=config.loop.keep, used=trainer.USED)
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
    return samples
