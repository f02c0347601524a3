"""retinaforge codebook fit: a codebook from cached latents, on any number of processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from launch.cli.progress import progress

app = typer.Typer(help="Codebooks by k-means over cached latents.", no_args_is_help=True)


@app.command()
def fit(
    latents: Annotated[
        str, typer.Option(metavar="SET", help="Packed latents (from `retinaforge encode`): the folder with dataset.json, or a URL.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="The file to write; absent, or this very codebook. Left out: codebook.safetensors beside SET.")
    ] = None,
    codes: Annotated[int, typer.Option(help="How many.", min=1)] = 1024,
    split: Annotated[str, typer.Option(help="Of the latents.")] = "train",
    vectors: Annotated[int, typer.Option(help="Draw about so many over all processes; they are held in memory.", min=1)] = 1 << 20,
    seed: Annotated[int, typer.Option(help="Of the draw and of the start.", min=0)] = 0,
    iterations: Annotated[int, typer.Option(help="Of Lloyd's, at most.", min=1)] = 50,
    tolerance: Annotated[float, typer.Option(help="Stop when one lowers the inertia by less than this share.")] = 1e-4,
    metric: Annotated[str, typer.Option(help="euclidean, or cosine: directions alone.")] = "euclidean",
) -> None:
    """Fit a codebook under python, mpiexec, srun or torchrun. Killed, the same command goes on from the last iteration.

    Training begins with it by vqgan.codebook.start=FILE, and its first k-means goes on from it.
    """
    from data_shards.errors import InputError
    from data_shards.reading.dataset import Dataset
    from data_shards.stores import is_url, place_of
    from ldm.comm import lost_ranks_told
    from ldm.kmeans.fit import FitConfig, fit_codebook

    if metric not in ("euclidean", "cosine"):
        raise InputError(f"--metric {metric}", expected="euclidean or cosine")
    if out is None and is_url(latents):
        raise InputError(f"--latents {latents} without --out", expected="a file to write; beside a URL there is no place for it")
    out = out or Path(latents).absolute().parent / "codebook.safetensors"
    config = FitConfig(codes=codes, split=split, vectors=vectors, seed=seed, iterations=iterations, tolerance=tolerance, metric=metric)
    comm = _communicator()
    main = comm.rank == 0

    def report(iterations: int, inertia: float) -> None:
        if main:
            typer.echo(f"iteration {iterations}: inertia {inertia:.6g}", err=True)

    watch = (lambda parts: progress(parts, title="read latents", unit="parts")) if main else iter
    with lost_ranks_told():
        fitted = fit_codebook(Dataset(place_of(latents)), out, config, comm, watch=watch, report=report)
    if main:
        unused = int((fitted.counts_K == 0).sum())
        typer.echo(f"{out}: {codes} codes, inertia {fitted.about['inertia']:.6g} after {fitted.about['made']} iterations, {unused} unused")


def _communicator() -> Any:
    """How the processes that were started speak with each other: MPI's by MPI, others by torch's gloo."""
    from ldm.comm import Alone, Group
    from slurm.rank import MpiCommunicator, placement, torch_environ

    place = placement()
    if place.world == 1:
        return Alone()
    if place.source == "mpi":
        return MpiCommunicator(place)
    from launch.stages.training import meeting

    os.environ.update(torch_environ(place))
    import torch

    with meeting(place):
        torch.distributed.init_process_group("gloo")
    return Group()
