"""From words to a job: what `submit` freezes into a job's folder, and how far the work of a job has come.

A job that works on a run is given the run's whole configuration as it was when it was submitted (config.yaml in the job's folder): a
preset or a file that is edited afterwards does not change what a requeued job does.
"""

from __future__ import annotations

import glob
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from data_shards import durable
from data_shards.errors import CorruptData, InputError, moved_aside
from launch.stages import STAGES
from launch.stages.stage import Progress, Target
from slurm.jobs import JobSpec

if TYPE_CHECKING:
    from launch.config import Config

CONFIG_NAME, TARGET_NAME, ENVIRONMENT_NAME = "config.yaml", "target.json", "environment.json"
TARGET = TypeAdapter(Target)
ALL = "run"
"""The verb that makes all stages, and what its jobs are called: RUN/run."""


def verbs_on_runs() -> dict[str, str]:
    """Verbs that work on a run, by what they make there; the name of their jobs is RUN/STAGE."""
    return {stage.verb: stage.name for stage in STAGES.values()} | {ALL: ALL}


def target_of(config: Config, verb: str) -> Target:
    """What a verb makes of a run of this configuration."""
    name = verbs_on_runs()[verb]
    return STAGES[name].target(config) if name in STAGES else Target(run=str(Path(config.run).absolute()), stage=ALL)


def progress_patterns(target: Target) -> tuple[str, ...]:
    """Files that change as the job gets on, for JobSpec.progress; none for what begins anew each time."""
    run = glob.escape(target.run)
    stages = [STAGES[target.stage]] if target.stage in STAGES else STAGES.values()
    return tuple(pattern for stage in stages for pattern in stage.grows(run))


def progress_of(target: Target, *, verify: bool = False) -> Progress:
    """How far a run's stage has come, from the files of the run alone.

    Args:
        verify: also hash the parts of the newest checkpoint, which takes as long as reading it.
    """
    return STAGES[target.stage].progress(target, verify=verify) if target.stage in STAGES else Progress()


def freeze_run(folder: Path, config: Config, target: Target) -> None:
    """Write what the job works with into its folder: configuration, target, versions and commit.

    Raises:
        InputError: the folder is that of a job on another run or stage, or cannot be written.
    """
    from launch.provenance import environment
    from launch.tree import to_yaml

    check_target(folder, target)
    private(folder)
    durable.write_bytes(folder / CONFIG_NAME, to_yaml(config).encode(), private=True)
    durable.write_json(folder / ENVIRONMENT_NAME, environment(), private=True)
    durable.write_json(folder / TARGET_NAME, asdict(target))


def private(folder: Path) -> None:
    """A folder that nobody else may look into: a configuration may hold the password of a store.

    Raises:
        InputError: it cannot be made.
    """
    with durable.explained(folder):
        durable.make_folder(folder)
        folder.chmod(0o700)


def check_target(folder: Path, target: Target) -> None:
    """Raises: InputError: the folder is that of a job on another run or stage."""
    standing = read_target(folder)
    if standing and (standing.run, standing.stage) != (target.run, target.stage):
        raise InputError(
            f"this name is in use: a job on {standing.stage} of {standing.run}",
            where=folder,
            expected=f"a name of its own for {target.stage} of {target.run}",
            mend="give another --name",
        )


def read_target(folder: Path) -> Target | None:
    """What a job makes; None for one that works on no run.

    Raises:
        CorruptData: target.json is not what was written.
    """
    path = folder / TARGET_NAME
    try:
        return TARGET.validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        mend = f"{moved_aside(path)}; the next submit writes it anew"
        raise CorruptData(f"what the job makes cannot be read: {error}", where=path, expected="run, stage, goal", mend=mend) from error


def check_time(spec: JobSpec, target: Target) -> None:
    """Refuse a time limit within which no checkpoint is reached, where the pace of the run is known.

    Raises:
        InputError: as said.
    """
    pace = progress_of(target).per_s if target.every else None
    if not (pace and spec.time_minutes):
        return
    needed_s, given_s = target.every / pace, spec.time_minutes * 60 - spec.signal_seconds
    if needed_s > given_s:
        raise InputError(
            f"--time-minutes {spec.time_minutes}: at the {pace:.3g} samples/s of this run, the {target.every:,} samples between two "
            f"checkpoints take {needed_s / 60:.0f} minutes",
            where=target.run,
            expected=f"a limit above {(needed_s + spec.signal_seconds) / 60:.0f} minutes, or checkpoints more often",
            mend=f"a longer --time-minutes, or {target.stage}.loop.checkpoint_every={max(1, int(pace * given_s / 2))}",
        )


def check_writable(folder: Path) -> None:
    """Refuse a place that nothing can be written to, before a job waits for hours to find that out.

    Raises:
        InputError: as said.
    """
    with durable.explained(folder):
        durable.make_folder(folder)
        probe = durable.part_name(folder / f"probe-{time.time_ns()}")
        probe.touch()
        probe.unlink()
