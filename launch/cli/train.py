"""retinaforge train …: the two trainers. The same command under any launcher; run again, it resumes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import typer

from launch.cli.meter import Meter, meter
from launch.cli.options import DryRun, Hostfile, Overrides, Preset, resolved

app = typer.Typer(help="Train the VQ-GAN, then the latent diffusion. The same command again resumes.", no_args_is_help=True)


@app.command()
def vqgan(preset: Preset, overrides: Overrides = None, dry_run: DryRun = False, hostfile: Hostfile = None) -> None:
    """Train the autoencoder and its codebook on the run's dataset."""
    _train(preset, overrides, dry_run, hostfile, "vqgan")


@app.command()
def diffusion(preset: Preset, overrides: Overrides = None, dry_run: DryRun = False, hostfile: Hostfile = None) -> None:
    """Train the denoiser on the run's cached latents (see `retinaforge encode`)."""
    _train(preset, overrides, dry_run, hostfile, "diffusion")


def _train(preset: str, overrides: list[str] | None, dry_run: bool, hostfile: Path | None, stage: str) -> None:
    from slurm.hostfile import check_names, check_started, planned_environ, read_hostfile
    from slurm.rank import placement

    hosts = read_hostfile(hostfile) if hostfile else None
    if not dry_run:
        if hosts:
            check_started(hosts, placement())
            check_names(hosts)
        run = resolved(preset, overrides)
        from launch.worked import counted

        with counted(run.folder, f"train {stage}", counts=placement().rank == 0):
            train_stage(run, stage)
        return
    environ = planned_environ(hosts, os.environ) if hosts else os.environ
    from launch.config import load, to_public_yaml
    from launch.plan import plan

    config = load(preset, overrides or [])
    typer.echo(to_public_yaml(config) + plan(config, stage, environ))


def train_stage(run, stage: str) -> None:
    """Train one stage, rank 0 showing how far it is."""
    from launch import training

    shown: list[Meter] = []
    with contextlib.ExitStack() as stack:

        def started(engine) -> None:
            total = getattr(run.config, stage).loop.samples
            shown.append(stack.enter_context(meter(stage, total, shown=engine.is_main)))

        samples = training.train(run, stage, report=lambda samples, values: shown[0](samples, values), started=started)
    if shown[0].shown:
        typer.echo(f"{stage}: {samples:,} samples, checkpoints in {getattr(run, stage) / 'checkpoints'}")
