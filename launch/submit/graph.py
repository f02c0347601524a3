"""The jobs of a pipeline, each waiting for those before it: submitted to SLURM, or run here one after the other."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from data_shards import durable
from launch.stages import STAGES
from launch.submit.described import Described
from launch.submit.frozen import CONFIG_NAME, private
from launch.submit.pipeline import Pipeline
from launch.tree import to_yaml
from slurm.records import job_folder

PIPELINE_NAME = "pipeline.yaml"
NEVER = "DependencyNeverSatisfied"
FINISHED, LIVE, SUBMITTED, LEFT_OUT = "finished", "waits or runs", "submitted", "left out"


def submit_all(wanted: dict[str, Described], checked: Callable[[], None], force: bool, folder: Path) -> dict[str, dict[str, Any]]:
    """Submit the stages in order, each waiting for the jobs of those before it that are not finished.

    Args:
        checked: called before the first goes out.
        force: stages of which nobody knows whether their jobs live go out too.
        folder: of the pipeline; one process at a time submits from it.

    Raises:
        TryAgain: another process submits this pipeline.
    """
    from slurm.executor import check_slurm, submit
    from slurm.offers import offers

    check_slurm()
    offered = offers()
    for job in wanted.values():  # all of them before the first goes out
        job.check()
        job.check_on(offered)
    if not wanted:
        return {}
    ids: dict[str, tuple[str, ...]] = {}
    rows: dict[str, dict[str, Any]] = {}
    with durable.claimed(folder / ".submit", "submitting this pipeline"):
        live, over = _left_alone(wanted, force)
        checked()
        for stage, job in wanted.items():
            before = [earlier for earlier in before_it(stage, job) if earlier in ids]
            if stage in live:
                ids[stage] = live[stage]
            else:
                waits = [number for earlier in before for number in ids[earlier]]
                spec = replace(job.spec, dependency=f"afterok:{':'.join(waits)}" if waits else None)
                ids[stage] = submit(spec, job.folder, over=over.get(stage), force=force, frozen_with_it=job.freeze).job_ids
            rows[stage] = {"state": LIVE if stage in live else SUBMITTED, "job_ids": list(ids[stage]), "after": before}
    return rows


def before_it(stage: str, job: Described) -> tuple[str, ...]:
    """The stages that a job of a pipeline waits for."""
    return STAGES[stage].waits_for(job.config) if job.config else STAGES[stage].after


def _left_alone(wanted: dict[str, Described], force: bool) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """Numbers of the jobs that wait or run already, by stage; and, of the others, which submissions are over.

    Those that wait behind a stage that goes out anew, or are held for good by one that failed, are cancelled: they wait for a job that
    is no more.

    Raises:
        InputError: nobody knows whether the job of a stage still lives.
    """
    from slurm.states import cancelled, current, is_live, is_unknown, known, not_known

    read = {stage: known(job.folder, force=force) for stage, job in wanted.items()}
    records = {stage: record for stage, record in read.items() if record}
    states = current(list(records.values()), fresh=True)
    for stage, record in records.items():
        if is_unknown(now := states[record.name]) and not is_live(now) and not force:
            raise not_known(record, wanted[stage].folder, now)
    anew: list[str] = []
    for stage in wanted:
        now = states[records[stage].name] if stage in records else []
        waits = bool(now) and all(state.state == "PENDING" for state in now)
        behind = any(earlier in anew for earlier in before_it(stage, wanted[stage])) or any(NEVER in state.why for state in now)
        if not is_live(now) or (waits and behind):
            anew.append(stage)
    cancelled([records[stage] for stage in anew if stage in records and is_live(states[records[stage].name])])
    live = {stage: record.job_ids for stage, record in records.items() if stage not in anew}
    return live, {stage: record.key for stage, record in records.items() if stage in anew}


def keep(pipeline: Pipeline, wanted: dict[str, Described], jobs: Path, name: str) -> None:
    """The pipeline as `resume NAME` finds it, with the configuration as it is now."""
    folder = job_folder(jobs, name)
    config = next((job.config for job in wanted.values() if job.config), None)
    if config is None:
        return  # all is finished
    private(folder)
    durable.write_bytes(folder / CONFIG_NAME, to_yaml(config).encode(), private=True)
    tree = {"preset": str(folder / CONFIG_NAME), "jobs": {stage: dict(fields) for stage, fields in pipeline.jobs.items()}}
    durable.write_bytes(folder / PIPELINE_NAME, yaml.safe_dump(tree, sort_keys=False).encode())


def run_here(wanted: dict[str, Described], force: bool, begun: Callable[[str], None]) -> int:
    """The stages one after the other on this machine; the exit code of the first that fails."""
    from slurm.foreground import run_local
    from slurm.states import check_free

    for job in wanted.values():
        job.check()
        if shutil.which("squeue"):
            check_free(job.folder, force=force)  # a job of this name that waits would read what is frozen now
    for stage, job in wanted.items():
        begun(stage)
        job.freeze()
        if code := run_local(job.spec, job.folder):
            return code
    return 0
