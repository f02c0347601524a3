"""retinaforge attack: whether a run's trained networks give away who was in its training set."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from launch.cli.evaluate import AsJson
from launch.cli.options import Overrides, Preset, resolved
from launch.cli.units import made


def attack(
    preset: Preset,
    overrides: Overrides = None,
    people: Annotated[int, typer.Option("--people", help="At most this many people of each side, with all their images.", min=1)] = 1000,
    draws: Annotated[int, typer.Option("--draws", help="Noises at each time of the denoiser.", min=1)] = 2,
    seed: Annotated[int, typer.Option("--seed", help="Of the noises.", min=0)] = 0,
    as_json: AsJson = False,
) -> None:
    """Attack a run's autoencoder and denoiser: are people of the training set better known to them than people held out?

    Into the run's folder, membership.json. Several processes share the work; the same command again goes on.
    """
    of = resolved(preset, overrides)
    from launch.run import device
    from launch.stages.data import check_inputs
    from launch.stages.stage import check_trained
    from ldm.authenticity.membership import Membership, MembershipConfig, rows_of_membership
    from ldm.checkpoints.trained import load_autoencoder, load_denoiser
    from ldm.evaluation.tables import between, number

    check_inputs(of)
    check_trained(of, "vqgan", "diffusion")
    config = MembershipConfig(people=people, draws=draws, seed=seed, device=device())
    networks = load_autoencoder(of.vqgan, config.device), load_denoiser(of.diffusion, config.device)
    units = Membership(of.open(of.dataset), *networks, config, of.folder / "membership.json")
    result = made([("attack", lambda: units)])
    if as_json:
        typer.echo(json.dumps(asdict(result)))
        return
    members, others = result.people
    table = Table(title=f"{of.folder}: {members} training people against {others} held out", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("", "measured", "95 % interval", "if they are alike", ""):
        table.add_column(column, justify="left" if not column else "right", no_wrap=bool(column))
    for row in rows_of_membership(result):
        table.add_row(row.metric, number(row.value), between(row.interval), number(row.floor), row.reason or row.note)
    Console().print(table)
    typer.echo(f"{result.judgement.verdict}\n{result.caveat}\nresult: {units.path}")
