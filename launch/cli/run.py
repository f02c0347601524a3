"""retinaforge run, report, presets: a whole run by one command."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from launch.cli.generate import show_warnings
from launch.cli.options import DryRun, Overrides, Preset, resolved
from launch.cli.progress import progress
from launch.cli.train import train_stage

if TYPE_CHECKING:
    from launch.stages import Run
    from launch.worked import Worked


def command(preset: Preset, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """From cubes to a report: data, vqgan, encode, diffusion, sample, evaluate, audit, report. Run again, it goes on."""
    run = resolved(preset, overrides, dry_run)
    from launch.worked import counted

    with counted(run.folder, "run") as worked:
        complete(run, worked)


def complete(run: Run, worked: Worked) -> None:
    """All stages that are not done, and the report."""
    from launch import headline, judging, stages

    trained = False
    stages.alone("run")
    stages.check_inputs(run)
    run.check()
    stages.check_outdated(run)
    run.freeze()
    stages.prepare_data(run, progress)
    stages.check_latent_size(run)
    if not stages.done(run, "vqgan"):
        show_warnings(stages.told_of(run))
    for stage in ("vqgan", "diffusion"):
        if not stages.done(run, stage):
            train_stage(run, stage)
            trained = True
        if stage == "vqgan":
            show_warnings(stages.encode(run, progress))
    stages.sample(run, progress)
    judged = {what: judging.judged(run, what) for what in ("evaluate", "audit")}
    if not judged["evaluate"]:
        judging.evaluate(run, progress)
    if not judged["audit"]:
        judging.audit(run, progress)
    if all(judged.values()) and not trained:
        worked.forget()  # to look whether all is done is no work on it
    worked.note()
    stages.record_seconds(run)
    path = stages.write_report(run)
    typer.echo("\n".join(headline.lines(stages.figures(run))))
    typer.echo(f"report: {path}")


def report(preset: Preset, overrides: Overrides = None) -> None:
    """Write the HTML report of a run anew from what stands in its folder."""
    from launch import stages

    run = resolved(preset, overrides)
    if stages.figures(run):
        stages.record_seconds(run)
    typer.echo(f"report: {stages.write_report(run)}")


def presets() -> None:
    """The presets that travel with the package, and what each is for."""
    from launch.config import preset_names, preset_text

    for name in preset_names():
        typer.echo(f"{name:14} {preset_text(name).splitlines()[0].lstrip('# ')}")
