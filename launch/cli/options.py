"""Arguments that several verbs share."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_shards.errors import InputError

if TYPE_CHECKING:
    from launch.run import Run

Preset = Annotated[str, typer.Argument(help="A preset (see `retinaforge presets`) or a YAML file, such as the run.yaml of a run.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Dotted overrides: vqgan.model.channels=64 run=runs/mine")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")]
Hostfile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="DeepSpeed's hostfile: refuse, before anything is written, names that do not resolve and another number of processes than its "
        "slots. With --dry-run: plan for so many processes.",
    ),
]
Task = Annotated[
    str, typer.Option(metavar="K/N", help="Begin as the K-th of N tasks, K from 1, with its share of the work; then help the others.")
]
Jobs = Annotated[Path, typer.Option(help="Where job folders lie; that of a job is JOBS/NAME.")]


def resolved(preset: str, overrides: list[str] | None, dry_run: bool = False) -> Run:
    """The run that these words mean; with `dry_run` its configuration is printed and nothing else happens."""
    from launch.run import Run
    from launch.tree import load, to_public_yaml

    config = load(preset, overrides or [])
    if dry_run:
        typer.echo(to_public_yaml(config), nl=False)
        raise typer.Exit
    return Run(config)


def numbers(option: str, words: str) -> tuple[int, ...]:
    """`4,8,16` → (4, 8, 16).

    Raises:
        InputError: something else.
    """
    if not all(word.strip().isdecimal() for word in words.split(",")):
        raise InputError(f"{option} {words}", expected="whole numbers from 0 on with commas between them, such as 4,8,16")
    return tuple(int(word) for word in words.split(","))


def task_of(words: str) -> tuple[int, int]:
    """`3/16` → (3, 16).

    Raises:
        InputError: something else.
    """
    k, slash, n = words.partition("/")
    if not (slash and k.isdigit() and n.isdigit() and 1 <= int(k) <= int(n)):
        raise InputError(f"--task {words}", expected="K/N with 1 ≤ K ≤ N, such as 3/16")
    return int(k), int(n)


@contextlib.contextmanager
def looking_on(goes_on: str) -> Iterator[None]:
    """Around what only looks on: Ctrl-C ends it, with a word on what goes on without it and the exit code of shells."""
    before = signal.getsignal(signal.SIGINT)
    if before != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(goes_on, err=True)
        raise typer.Exit(128 + signal.SIGINT) from None
    finally:
        signal.signal(signal.SIGINT, before)
