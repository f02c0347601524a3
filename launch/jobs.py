"""From words to a job: what `submit` freezes into a job's folder, and how far the work of a job has come.

A job that works on a run is given the run's whole configuration as it was when it was submitted (config.yaml in the job's folder): a
preset or a file that is edited afterwards does not change what a requeued job does.
"""

from __future__ import annotations

import glob
import json
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from data_shards import durable
from data_shards.errors import CorruptData, InputError, moved_aside
from data_shards.manifest import NAME
from ldm.training.committed import COMMIT, faults_of, read_commit
from slurm.jobs import JobSpec

if TYPE_CHECKING:
    from launch.config import Config

CONFIG_NAME, TARGET_NAME, ENVIRONMENT_NAME = "config.yaml", "target.json", "environment.json"
STAGES = {
    "data prepare": "data",
    "train vqgan": "vqgan",
    "encode": "encode",
    "train diffusion": "diffusion",
    "sample": "sample",
    "evaluate": "evaluate",
    "audit": "audit",
    "report": "report",
    "run": "run",
}
"""Verbs that work on a run, by what they make there; the name of their jobs is RUN/STAGE."""
TAIL_BYTES = 1 << 15


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a job makes of its run: target.json in the job's folder, so that its progress is read without the configuration.

    Attributes:
        run: the run's folder, absolute.
        stage: a value of STAGES.
        goal: samples to train on, or images to generate; 0 where neither is made.
        every: samples between two checkpoints, of a training.
        shard: images a shard, of a set.
    """

    run: str
    stage: str
    goal: int = 0
    every: int = 0
    shard: int = 0


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a job's work has come; None: not known (yet).

    Attributes:
        done, goal: samples trained on or images generated, and how many there shall be.
        per_s: samples a second, of late.
        checkpoint: samples in the newest checkpoint whose commit is whole.
        checkpoint_unix_s: when that was committed.
        faults: what was found wrong with it, where it was verified.
    """

    done: int | None = None
    goal: int | None = None
    per_s: float | None = None
    checkpoint: int | None = None
    checkpoint_unix_s: float | None = None
    faults: tuple[str, ...] | None = None

    @property
    def eta_s(self) -> float | None:
        """Seconds to the goal at the present pace."""
        if self.done is None or not (self.goal and self.per_s):
            return None
        return max(0, self.goal - self.done) / self.per_s


TARGET = TypeAdapter(Target)


def target_of(config: Config, verb: str) -> Target:
    """What a verb makes of a run of this configuration."""
    stage, run = STAGES[verb], str(Path(config.run).absolute())
    if stage in ("vqgan", "diffusion"):
        loop = getattr(config, stage).loop
        return Target(run=run, stage=stage, goal=loop.samples, every=loop.checkpoint_every)
    if stage == "sample":
        return Target(run=run, stage=stage, goal=config.sample.count, shard=config.sample.shard)
    return Target(run=run, stage=stage)


def progress_patterns(target: Target) -> tuple[str, ...]:
    """Files that change as the job gets on, for JobSpec.progress; none for what begins anew each time."""
    run = glob.escape(target.run)
    trainings = [f"{run}/{stage}/checkpoints/samples-*/{COMMIT}" for stage in ("vqgan", "diffusion")]
    made = {
        "data": [f"{run}/cubes/*", f"{run}/.part-*-data/*.tar", f"{run}/data/dataset.json"],
        "vqgan": trainings[:1],
        "diffusion": trainings[1:],
        "encode": [f"{run}/.part-*-latents/*.tar", f"{run}/latents/dataset.json"],
        "sample": [f"{run}/synthetic/*.tar"],
    }
    made["run"] = [pattern for stage in ("data", "vqgan", "encode", "diffusion", "sample") for pattern in made[stage]]
    return tuple(made.get(target.stage, ()))


def freeze_run(folder: Path, config: Config, target: Target) -> None:
    """Write what the job works with into its folder: configuration, target, versions and commit.

    Raises:
        InputError: the folder is that of a job on another run or stage, or cannot be written.
    """
    from launch.config import to_yaml
    from launch.provenance import environment

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


def progress_of(target: Target, *, verify: bool = False) -> Progress:
    """How far a run's stage has come, from the files of the run alone.

    Args:
        verify: also hash the parts of the newest checkpoint, which takes as long as reading it.
    """
    run = Path(target.run)
    if target.stage == "sample" and target.shard > 0:
        full = sum(1 for path in (run / "synthetic").glob("*.tar") if re.fullmatch(r"synthetic-\d+\.tar", path.name))
        number, last = divmod(target.goal, target.shard)  # ends of smaller sets are no part of it
        has_last = (run / "synthetic" / f"synthetic-{number:06d}.first{last}.tar").exists()
        return Progress(done=min(target.goal, full * target.shard + (last if has_last else 0)), goal=target.goal)
    if target.stage not in ("vqgan", "diffusion"):
        return Progress()
    rows = last_rows(run / target.stage / "metrics.jsonl")
    found = sorted((run / target.stage / "checkpoints").glob(f"samples-*/{COMMIT}"), reverse=True)
    newest = next((commit for path in found if (commit := read_commit(path.parent))), None)
    paces = [row["samples_per_s"] for row in rows if row.get("samples_per_s")]
    samples = [row["samples"] for row in rows] + ([newest.samples] if newest else [])
    faults = None
    if verify and newest:
        faults = tuple(faults_of(newest))
    return Progress(
        done=max(samples, default=None),
        goal=target.goal,
        per_s=sorted(paces)[len(paces) // 2] if paces else None,
        checkpoint=newest.samples if newest else None,
        checkpoint_unix_s=(newest.folder / COMMIT).stat().st_mtime if newest else None,
        faults=faults,
    )


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


RUN_STAGES = ("data", "vqgan", "encode", "diffusion", "sample", "evaluate", "audit", "report")


def stage_words(run: Path) -> dict[str, str]:
    """How far each stage of a run is, in a word or two, from what lies in its folder."""

    def training(stage: str) -> str:
        progress = progress_of(Target(run=str(run), stage=stage))
        return "" if progress.done is None else f"{progress.done:,}"

    shards = len(list((run / "synthetic").glob("*.tar")))
    sets = {"data": run / "data" / NAME, "encode": run / "latents" / NAME, "sample": run / "synthetic" / NAME}
    files = {"evaluate": run / "evaluate.json", "audit": run / "audit.json", "report": run / "report.html"}
    words = {stage: "done" if path.exists() else "" for stage, path in {**sets, **files}.items()}
    words["sample"] = words["sample"] or (f"{shards} shard(s)" if shards else "")
    return {**words, "vqgan": training("vqgan"), "diffusion": training("diffusion")}


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
