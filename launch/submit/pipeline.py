"""A whole run as a graph of SLURM jobs, described by one YAML file:

    preset: retina-224                                     # or a file
    overrides: [data.dataset=data/eyes, run=runs/eyes]
    jobs:                                                  # by stage: fields of a job; what is left out comes from site.yaml
      vqgan: {nodes: 2, tasks_per_node: 4, gpus_per_task: 1, time_minutes: 1440}
      diffusion: {nodes: 2, tasks_per_node: 4, gpus_per_task: 1, time_minutes: 1440}
      sample: {tasks: 64, at_once: 16, gpus_per_task: 1}   # an array of 64, 16 of them at a time

Each stage is a job of its own, RUN/STAGE, that waits for those before it to end well: one that fails holds what follows. Submitted
again, only what is missing goes out: a stage that is finished, or whose job waits or runs already, is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_shards.errors import InputError, nearest
from launch.parse import parse_yaml
from launch.run import Run
from launch.stages import STAGES
from launch.submit.site import KEYS

OF_AN_ARRAY = {"tasks", "at_once"}
ARRAYS = ("sample", "evaluate", "audit")  # stages whose verbs take --task


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Attributes:
    preset: the run's configuration: a preset's name or a YAML file.
    overrides: of it.
    jobs: fields of JobSpec by stage; for those of ARRAYS also tasks and at_once.
    """

    preset: str
    overrides: tuple[str, ...] = ()
    jobs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def read_pipeline(path: Path) -> Pipeline:
    """The pipeline of a file.

    Raises:
        InputError: no such file, not of this form, or an unknown stage or field, with the nearest.
    """
    try:
        tree = parse_yaml(path.read_text(), path)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}", where=path, expected="a pipeline: YAML, in UTF-8") from error
    if not isinstance(tree, dict):
        raise InputError(f"{tree!r} in place of keys and values", where=path, expected="preset, overrides and jobs")
    for key in tree:
        if key not in ("preset", "overrides", "jobs"):
            raise InputError(f"unknown key {key!r}", where=path, expected=nearest(str(key), ("preset", "overrides", "jobs")))
    preset, overrides, jobs = tree.get("preset"), tree.get("overrides") or [], tree.get("jobs") or {}
    if not isinstance(preset, str):
        raise InputError(f"preset: {preset!r}", where=path, expected="a preset's name (retinaforge presets) or a YAML file")
    if not (isinstance(overrides, list) and all(isinstance(word, str) for word in overrides)):
        raise InputError(f"overrides: {overrides!r}", where=path, expected="a list such as [run=runs/eyes, data.dataset=data/eyes]")
    if not isinstance(jobs, dict):
        raise InputError(f"jobs: {jobs!r}", where=path, expected="a stage a line: vqgan: {nodes: 2}")
    for stage, fields in jobs.items():
        _check_stage(str(stage), fields, path)
    return Pipeline(preset=preset, overrides=tuple(overrides), jobs=jobs)


def _check_stage(stage: str, fields: Any, path: Path) -> None:
    if stage not in STAGES:
        raise InputError(f"unknown stage {stage!r}", where=f"{path}: jobs", expected=nearest(stage, STAGES))
    if not isinstance(fields, dict):
        raise InputError(f"{fields!r} in place of fields", where=f"{path}: jobs: {stage}", expected="such as {nodes: 2}")
    known = KEYS | (OF_AN_ARRAY if stage in ARRAYS else set())
    for key, value in fields.items():
        if key not in known:
            raise InputError(f"unknown field {key!r}", where=f"{path}: jobs: {stage}", expected=nearest(str(key), known))
        if key in OF_AN_ARRAY and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise InputError(f"{key}: {value!r}", where=f"{path}: jobs: {stage}", expected="a whole number from 1 on")


def stage_job(pipeline: Pipeline, stage: str) -> tuple[list[str], dict[str, Any]]:
    """The words after `retinaforge` for a stage, without the run, and the fields of its job."""
    fields = {key: list(value) if isinstance(value, tuple) else value for key, value in pipeline.jobs.get(stage, {}).items()}
    tasks, at_once = fields.pop("tasks", 1), fields.pop("at_once", None)
    words = [*STAGES[stage].verb.split(), pipeline.preset, *pipeline.overrides]
    if tasks > 1:
        fields["array"] = f"1-{tasks}" + (f"%{at_once}" if at_once else "")
        words += ["--task", f"{{array_task}}/{tasks}"]
    return words, fields


def missing(run: Run) -> list[str]:
    """Stages to make, in order: those that are not done, and all that stand behind one of them, which are not looked at; none of those
    that the run is left without.

    Raises:
        UnsafeResume: checkpoints, but none that can be loaded.
    """
    stages: list[str] = []
    without = left_out(run)
    for stage, about in STAGES.items():
        if stage in without:
            continue
        if any(one in stages for one in about.waits_for(run.config)) or not about.done(run):
            stages.append(stage)
    return stages


def left_out(run: Run) -> dict[str, str]:
    """The stages that a run goes without, and why."""
    return {name: reason for name, stage in STAGES.items() if (reason := stage.left_out(run))}
