"""retinaforge doctor: what this machine can do."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from launch.doctor import Finding

MARK = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "missing": "[dim]missing[/]", "broken": "[bold red]broken[/]"}


def command(
    runs: Annotated[Path, typer.Option(help="Folder that runs are written to, for its free space.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Say what this machine can do, and the command that adds what is missing. Exit code 2 when something needed is broken."""
    from launch.doctor import examine

    by_topic = examine(runs)
    broken = any(finding.state == "broken" for findings in by_topic.values() for finding in findings)
    if as_json:
        each = [{"topic": topic, **asdict(finding)} for topic, findings in by_topic.items() for finding in findings]
        typer.echo(json.dumps({"ok": not broken, "findings": each}))
    else:
        _show(by_topic)
    if broken:
        raise typer.Exit(2)


def _show(by_topic: dict[str, list[Finding]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    for column in ("topic", "name", "state", "found"):
        table.add_column(column, no_wrap=column != "found", style="bold" if column == "topic" else None)
    for topic, findings in by_topic.items():
        for i, finding in enumerate(findings):
            table.add_row("" if i else topic, escape(finding.name), MARK[finding.state], escape(finding.found))
    console = Console()
    console.print(table)
    mends = [finding for findings in by_topic.values() for finding in findings if finding.mend]
    if mends:
        console.print("\n[bold]To add or mend[/]")
    for finding in mends:  # outside the table, so that a command is one line to copy
        console.print(f"  {finding.name}: ", end="", markup=False, highlight=False)
        console.print(finding.mend, markup=False, highlight=False, soft_wrap=True)
