"""retinaforge encode, sample: what lies between and after the two trainings."""

from __future__ import annotations

from typing import Annotated

import typer

from data_shards.errors import InputError
from launch.cli.options import DryRun, Overrides, Preset, resolved
from launch.cli.progress import progress


def encode(preset: Preset, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Cache the latents of the run's dataset, and check whether the autoencoder is fit to diffuse on."""
    run = resolved(preset, overrides, dry_run)
    from launch import stages
    from launch.worked import counted

    stages.alone("encode")
    stages.check_inputs(run)
    stages.check_trained(run, "vqgan")
    run.freeze()
    with counted(run.folder, "encode"):
        warnings = stages.encode(run, progress)
    typer.echo(f"latents in {run.latents}")
    show_warnings(warnings)


def sample(
    preset: Preset,
    overrides: Overrides = None,
    task: Annotated[str, typer.Option(metavar="K/N", help="Make the K-th of N tasks' share of the shards, K from 1.")] = "1/1",
    dry_run: DryRun = False,
) -> None:
    """Generate the synthetic set into shards; image i depends on (seed, i) alone. The same command again goes on; a larger count adds."""
    run = resolved(preset, overrides, dry_run)
    from data_shards.shards.index import index_path
    from launch import stages
    from launch.worked import counted
    from ldm.generation.generate import superseded

    k, slash, n = task.partition("/")
    if not (slash and k.isdigit() and n.isdigit()):
        raise InputError(f"--task {task}", expected="K/N, such as 3/16")
    stages.alone("sample")
    stages.check_trained(run, "vqgan", "diffusion")
    run.freeze()
    with counted(run.folder, "sample"):
        whole = stages.sample(run, progress, (int(k), int(n)))
    if whole:
        typer.echo(f"{run.config.sample.count} images in {run.synthetic}")
        for name in superseded(run.synthetic):
            index = index_path(run.synthetic / name)
            typer.echo(f"{name} was the end of a smaller set; when nobody reads that any more: rm {run.synthetic / name} {index}")
    else:
        typer.echo(f"share {task} is made; the set in {run.synthetic} is whole when all {n} tasks are")


def show_warnings(warnings: list[str]) -> None:
    """The health gate's sentences, where a person sees them."""
    for warning in warnings:
        typer.secho(f"warning: {warning}", fg="yellow", err=True)
