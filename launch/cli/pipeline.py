"""retinaforge submit -- pipeline FILE: a run as a graph of jobs, of which only those go out that are missing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from data_shards.errors import InputError

if TYPE_CHECKING:
    from typer.core import TyperGroup

    from launch.submit.described import Described


def submit_pipeline(
    program: TyperGroup,
    words: list[str],
    given: dict[str, Any],
    name: str | None,
    *,
    jobs: Path,
    local: bool,
    dry_run: bool,
    as_json: bool,
    force: bool,
) -> None:
    """Submit what is missing of a pipeline, or run it here; see launch/submit/pipeline.py.

    Raises:
        InputError: what `submit` refuses of any stage; then nothing is submitted. TryAgain: SLURM does not answer.
    """
    from launch.run import Run
    from launch.stages.outdated import check_outdated
    from launch.submit.described import described
    from launch.submit.graph import keep, run_here, submit_all
    from launch.submit.pipeline import left_out, missing, read_pipeline, stage_job
    from launch.tree import load
    from slurm.jobs import words_on
    from slurm.records import job_folder

    if not words or given:
        raise InputError(
            f"options of a job ({', '.join(given)}) for a pipeline" if given else "no pipeline named",
            expected="submit [--name RUN] -- pipeline FILE [KEY=VALUE]...; nodes, times and the like stand in the file, by stage",
            mend="site.yaml for what all jobs share",
        )
    file, *overrides = words
    pipeline = read_pipeline(Path(file))
    pipeline = replace(pipeline, overrides=(*pipeline.overrides, *overrides))
    run = Run(load(pipeline.preset, list(pipeline.overrides)))
    name = name or run.folder.absolute().name
    check_outdated(run)
    without = left_out(run)
    wanted = {stage: described(program, *stage_job(pipeline, stage), f"{name}/{stage}", jobs, file) for stage in missing(run)}
    if dry_run:
        _show(wanted, without, as_json)
        return
    if local:
        for stage, reason in without.items():
            typer.echo(f"{stage} is left out: {reason}", err=True)
        raise typer.Exit(run_here(wanted, force, lambda stage: typer.echo(f"{stage} …", err=True)))
    folder = job_folder(jobs, name)
    sent = submit_all(wanted, lambda: keep(pipeline, wanted, jobs, name), force, folder)
    rows = _states(sent, without)
    if as_json:
        typer.echo(json.dumps({"name": name, "stages": rows}))
        return
    for row in rows:
        after = f", after {' and '.join(row['after'])}" if row["after"] else ""
        typer.echo(f"{row['stage']:10} {row['state']}{': job ' + ', '.join(row['job_ids']) if row['job_ids'] else ''}{after}")
    typer.echo(f"{words_on('status', name, folder)} shows how far they are")


def _states(sent: dict[str, dict[str, Any]], without: dict[str, str]) -> list[dict[str, Any]]:
    """How it is with each stage: what `submit_all` said of it, left out, or finished before."""
    from launch.stages import STAGES
    from launch.submit.graph import FINISHED, LEFT_OUT

    states = {stage: f"{LEFT_OUT}: {without[stage]}" if stage in without else FINISHED for stage in STAGES}
    return [{"stage": stage, "state": state, "job_ids": [], "after": []} | sent.get(stage, {}) for stage, state in states.items()]


def _show(wanted: dict[str, Described], without: dict[str, str], as_json: bool) -> None:
    from launch.submit.described import as_tree, show

    if as_json:
        typer.echo(json.dumps({"stages": {stage: as_tree(job) for stage, job in wanted.items()}, "left_out": without}))
        return
    if not wanted:
        typer.echo("# all stages are finished; nothing would be submitted")
    for stage, reason in without.items():
        typer.echo(f"# {stage} is left out: {reason}")
    for stage, job in wanted.items():
        typer.echo(f"# ---- {stage}: {job.spec.name}")
        show(job, as_json=False)
