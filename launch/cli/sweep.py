"""retinaforge sweep: a grid of networks and solvers, trained, timed and judged alike."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from data_shards.errors import InputError
from launch.cli.display import Terminal
from launch.cli.options import Overrides, Preset, numbers

if TYPE_CHECKING:
    from launch.sweep.results import Results, Row
    from launch.sweep.runs import Sweep


def sweep(
    preset: Preset,
    overrides: Overrides = None,
    compression: Annotated[str, typer.Option(metavar="N,…", help="Of the autoencoder: 4, 8, 16.")] = "4,8,16",
    latent_channels: Annotated[str, typer.Option(metavar="N,…", help="Of the autoencoder.")] = "8,32,256",
    channels: Annotated[str, typer.Option(metavar="N,…", help="Base width of the denoiser.")] = "128,256,512",
    samplers: Annotated[
        str | None,
        typer.Option(metavar="NAME:STEPS,…", help="Solvers; each makes a set of every denoiser. (Default: the preset's.)"),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes on this machine; any number may also be started by hand, or as an array.")
    ] = 1,
    least_gain: Annotated[
        float, typer.Option(metavar="DB", help="An autoencoder whose PSNR is less above that of the mean image is not diffused on.")
    ] = 3.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the grid, its sizes and its cost, and stop.")] = False,
) -> None:
    """Train, time and judge a grid of networks and solvers; draw the front and recommend one. The same command again goes on.

    Autoencoders are shared by the denoisers on them, and these by their solvers. The folder is run=RUN; left out, that of the preset with
    -sweep behind it.
    """
    from launch.sweep.axes import Axes, impossible, sampler_named
    from launch.sweep.runs import Sweep, base_of
    from launch.sweep.stopping import Rules

    base = base_of(preset, overrides or [])
    own, target = base.diffusion.sampler, base.diffusion.objective.target
    axes = Axes(
        compression=numbers("--compression", compression),
        latent_channels=numbers("--latent-channels", latent_channels),
        channels=numbers("--channels", channels),
        samplers=tuple(sampler_named(word, own, target) for word in samplers.split(",")) if samplers else (own,),
    )
    grid = Sweep(base=base, axes=axes, rules=Rules(psnr_gain_db=least_gain))
    from launch.plan import cube_shape

    shape = cube_shape(base)
    refused = {cell: why for cell in axes.cells() if (why := impossible(base, cell, shape, grid.folder))}
    if dry_run:
        show_grid(grid, refused)
        return
    if refused:
        raise InputError(
            f"{len(refused)} of {len(axes.cells())} configurations cannot be",
            where="; ".join(f"{cell.name}: {why}" for cell, why in list(refused.items())[:3]),
            expected="axes of which every combination can be trained on these cubes",
            mend="leave these values out, or resize the cubes; --dry-run lists all of them",
        )
    make(grid, workers)


def make(grid: Sweep, workers: int) -> None:
    """All pieces, by this process and further ones, and what came of it."""
    from launch.sweep.figure import write_figure
    from launch.sweep.pieces import Paces, phases, try_again
    from launch.sweep.results import write_results
    from launch.work import make_phases
    from slurm.rank import placement

    if placement().world > 1:
        raise InputError(
            f"a sweep by {placement().world} ranks",
            expected="processes that know nothing of one another",
            mend="retinaforge submit --array 1-8 -- sweep PRESET, or --workers N; a network for several GPUs: retinaforge train diffusion "
            "RUN/NAME/run.yaml under torchrun, and then the sweep again",
        )
    grid.begin()
    grid.shared.freeze()
    try_again(grid)
    make_phases(phases(grid, Terminal()), Terminal(), (0, 1), workers=workers, unit="piece")
    make_phases([("pace", partial(Paces, grid))], Terminal(), (0, 1), unit="set")
    results = write_results(grid)
    write_figure(results, grid.folder)
    show(results)
    typer.echo(f"figure: {grid.folder / 'sweep.svg'}\ntable: {grid.folder / 'results.csv'}")


def show_grid(grid: Sweep, refused: dict) -> None:
    """The configurations with their sizes and costs, before anything is made."""
    import torch
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from launch.machine import device_name
    from launch.run import device
    from launch.sweep.axes import cost_of, in_order
    from ldm.speed import matmul_flops_per_s

    cells = [cell for cell in grid.axes.cells() if cell not in refused]
    costs = {cell: cost_of(grid.denoiser(cell).config) for cell in cells}
    on = device()
    bare = matmul_flops_per_s(torch.device(on), torch.float32)
    table = Table(title=f"{grid.folder}: {len(cells)} configurations, the cheapest first", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("configuration", "autoencoder", "weights", "denoiser's weights", "training, PFLOP"):
        table.add_column(column, justify="left" if column in ("configuration", "autoencoder") else "right")
    seen, total = set(), 0.0
    for cell in in_order(cells, costs):
        cost, new = costs[cell], cell.autoencoder not in seen
        seen.add(cell.autoencoder)
        flops = cost.denoiser_flops + (cost.autoencoder_flops if new else 0)
        total += flops
        weights = f"{cost.autoencoder_parameters:,}" if new else "shared"
        table.add_row(cell.name, cell.autoencoder, weights, f"{cost.denoiser_parameters:,}", f"{flops / 1e15:.3g}")
    Console().print(table)
    for cell, why in refused.items():
        typer.echo(f"cannot be: {cell.name}: {why}")
    sets = len(cells) * len(grid.axes.samplers)
    typer.echo(
        f"{len(seen)} autoencoders, {len(cells)} denoisers, {sets} sets of {grid.base.sample.count}; trainings {total / 1e15:.3g} PFLOP, "
        f"at least {total / bare / 3600:.2g} h on {device_name(on)}, whose bare fp32 product reaches {bare / 1e12:.2g} TFLOP/s"
    )


def pace_of(row: Row) -> str:
    """Images a second, in brackets until they were measured alone."""
    if row.pace is None:
        return "–"
    return f"{row.pace.images_per_s:.3g}" if row.pace.alone else f"({row.pace.images_per_s:.3g})"


def show(results: Results) -> None:
    """The table that people see, and the recommendation."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ldm.evaluation.tables import number

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("", "networks", "solver"):
        table.add_column(column, no_wrap=True)
    for column in ("images/s", *results.titles.values()):
        table.add_column(column, justify="right")
    for row in results.rows:
        if row.reason is None:
            mark = "→" if row.name == results.recommended else "*" if row.name in results.front else ""
            values = ["–" if (v := row.value(key)) is None else f"{v:.3g}" for key in results.titles]
            table.add_row(mark, row.cell.name, row.sampler, pace_of(row), *values)
    console = Console()
    console.print(table)
    for row in results.rows:
        if row.reason:
            console.print(escape(f"{row.name}: {row.reason}"), highlight=False, soft_wrap=True)
    for key, title in results.titles.items():
        reasons = {row.measures[key].reason for row in results.rows if row.measures.get(key) and row.measures[key].value is None}
        for reason in sorted(filter(None, reasons)):
            typer.echo(f"not measured: {title}: {reason}")
    floors = [f"{title} {number(floor)}" for key, title in results.titles.items() if (floor := results.floor(key)) is not None]
    if floors:
        typer.echo(f"other real people in place of a set (median): {', '.join(floors)}")
    for line in results.disagreements:
        typer.echo(line)
    typer.echo(
        f"timed on {'; '.join(results.devices) or 'no device'}; * no set beats it\n→ recommended: {results.why}\nrule: {results.rule}"
    )
