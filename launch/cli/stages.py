"""retinaforge run, data prepare, train …, sample, report, presets, and the plain verbs of stages: one by one, and all at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_shards.errors import InputError
from launch.cli.display import Hidden, Terminal
from launch.cli.options import DryRun, Hostfile, Overrides, Preset, Task, numbers, resolved, task_of

if TYPE_CHECKING:
    from launch.run import Run
    from launch.stages.stage import Stage
    from launch.worked import Worked
    from slurm.rank import Placement

train = typer.Typer(
    help="Train the VQ-GAN, the latent diffusion; the segmenter and the encoders that judge. The same command again resumes.",
    no_args_is_help=True,
)


def make(name: str, run: Run, task: tuple[int, int] = (1, 1)) -> None:
    """One stage of a run, by its name, with whatever other processes make it too.

    Args:
        task: (K, N), the K-th of N tasks, K from 1, each of which may be several processes.
    """
    from launch.stages import STAGES
    from launch.worked import counted
    from slurm.rank import placement

    stage, place, (k, n) = STAGES[name], placement(), task
    main = place.rank == 0
    if not (main or stage.collective or stage.in_units):
        return
    done = False
    if not stage.collective:
        stage.check(run)
        done = main and stage.done(run)
        if main:
            run.freeze(works=not done)
    with counted(run.folder, stage.verb, counts=main and not done):  # to look whether all is there is no work on it
        warnings = stage.make(run, Terminal() if main else Hidden(), ((k - 1) * place.world + place.rank, n * place.world))
    if main:
        show_warnings(warnings)
        typer.echo(stage.where(run))


def run(preset: Preset, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """All stages of a run, from cubes to a report. Run again, it goes on."""
    of = resolved(preset, overrides, dry_run)
    from launch.worked import counted
    from slurm.rank import placement

    place = placement()
    with counted(of.folder, "run", counts=place.rank == 0) as worked:
        complete(of, worked, place)


def complete(of: Run, worked: Worked, place: Placement) -> None:
    """All stages that are not done, and the report."""
    from launch import headline
    from launch.run import figures
    from launch.stages import STAGES
    from launch.stages.data import check_inputs, check_latent_size
    from launch.stages.outdated import check_outdated

    main = place.rank == 0
    check_inputs(of)
    of.check()
    check_outdated(of)
    if main:
        of.freeze(works=False)
    data, *stages, report = STAGES.values()
    made = [_made(data, of, place)]
    check_latent_size(of)
    made += [_made(stage, of, place) for stage in stages]
    if not main:
        return
    if not any(made):
        worked.forget()
    worked.note()
    report.make(of, Terminal())
    typer.echo("\n".join(headline.lines(figures(of))))
    typer.echo(report.where(of))


def _made(stage: Stage, of: Run, place: Placement) -> bool:
    """Make a stage that is not done, together with the other processes."""
    main = place.rank == 0
    if reason := stage.left_out(of):
        if main:
            typer.echo(f"{stage.name} is left out: {reason}", err=True)
        return False
    if stage.done(of):
        return False
    if main:
        of.freeze()
        show_warnings(stage.cautions(of))
    warnings = stage.make(of, Terminal() if main else Hidden(), (place.rank, place.world))
    if main:
        show_warnings(warnings)
    return True


def prepare(preset: Preset, overrides: Overrides = None) -> None:
    """The cubes of a run whose configuration names no dataset: phantoms, packed into its folder, as `retinaforge run` makes them."""
    make("data", resolved(preset, overrides))


@train.command()
def segmenter(preset: Preset, overrides: Overrides = None, dry_run: DryRun = False, hostfile: Hostfile = None) -> None:
    """Train the segmenter of artery, vein and optic nerve head on the run's dataset, and measure it on people held out."""
    _train(preset, overrides, dry_run, hostfile, "segmenter")


@train.command()
def vqgan(preset: Preset, overrides: Overrides = None, dry_run: DryRun = False, hostfile: Hostfile = None) -> None:
    """Train the autoencoder and its codebook on the run's dataset."""
    _train(preset, overrides, dry_run, hostfile, "vqgan")


@train.command()
def diffusion(preset: Preset, overrides: Overrides = None, dry_run: DryRun = False, hostfile: Hostfile = None) -> None:
    """Train the denoiser on the run's cached latents (see `retinaforge encode`)."""
    _train(preset, overrides, dry_run, hostfile, "diffusion")


@train.command()
def features(preset: Preset, overrides: Overrides = None, dry_run: DryRun = False, hostfile: Hostfile = None) -> None:
    """Train the encoder in whose features images are compared, on the run's dataset, and probe what feature spaces can tell."""
    _train(preset, overrides, dry_run, hostfile, "features")


@train.command()
def copies(preset: Preset, overrides: Overrides = None, dry_run: DryRun = False, hostfile: Hostfile = None) -> None:
    """Train the copy-detection head on the run's dataset: the audit then also finds training images that were turned, cut or moved."""
    _train(preset, overrides, dry_run, hostfile, "copies")


def _train(preset: str, overrides: Overrides, dry_run: bool, hostfile: Hostfile, stage: str) -> None:
    from slurm.hostfile import check_names, check_started, planned_environ, read_hostfile
    from slurm.rank import placement

    hosts = read_hostfile(hostfile) if hostfile else None
    if not dry_run:
        if hosts:
            check_started(hosts, placement())
            check_names(hosts)
        make(stage, resolved(preset, overrides))
        return
    environ = planned_environ(hosts, os.environ) if hosts else os.environ
    from launch.plan import plan
    from launch.tree import load, to_public_yaml

    config = load(preset, overrides or [])
    typer.echo(to_public_yaml(config) + plan(config, stage, environ))


def plain(name: str) -> Callable[..., None]:
    """The verb of a stage that takes no words of its own."""

    def verb(preset: Preset, overrides: Overrides = None, dry_run: DryRun = False) -> None:
        make(name, resolved(preset, overrides, dry_run))

    return verb


def sample(
    preset: Preset,
    overrides: Overrides = None,
    task: Task = "1/1",
    ids: Annotated[
        str | None, typer.Option(metavar="I,J,…", help="Make these images alone, by their numbers, in the set or not, into --out.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="With --ids: a new folder, for loose cubes.")] = None,
    dry_run: DryRun = False,
) -> None:
    """Generate the synthetic set into shards; image i depends on (seed, i) alone. The same command again goes on; a larger count adds."""
    of = resolved(preset, overrides, dry_run)
    if ids is not None:
        from launch.stages.sample import make_again
        from slurm.rank import placement

        if placement().rank:
            return  # one makes them
        if out is None:
            raise InputError("--ids without a place for them", expected="--out FOLDER")
        typer.echo("\n".join([*make_again(of, numbers("--ids", ids), out), f"{out}"]))
        return
    make("sample", of, task_of(task))


def report(
    preset: Preset,
    overrides: Overrides = None,
    text: Annotated[bool, typer.Option("--text", help="Print figures and measures instead, for a terminal; nothing is written.")] = False,
) -> None:
    """Write the HTML report of a run anew from what stands in its folder."""
    from launch.report.text import build_text
    from launch.stages.report import Report

    of, stage = resolved(preset, overrides), Report()
    if text:
        stage.check(of)
        typer.echo(build_text(of))
        return
    stage.make(of, Terminal())
    typer.echo(stage.where(of))


def presets() -> None:
    """The presets that travel with the package, and what each is for."""
    from launch.tree import preset_names, preset_text

    for name in preset_names():
        typer.echo(f"{name:14} {preset_text(name).splitlines()[0].lstrip('# ')}")


def show_warnings(warnings: list[str]) -> None:
    """Sentences that a person should read before going on."""
    for warning in warnings:
        typer.secho(f"warning: {warning}", fg="yellow", err=True)
