"""retinaforge doctor: what this machine can do."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

MARK = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "missing": "[dim]missing[/]", "broken": "[bold red]broken[/]"}


def command(
    runs: Annotated[Path, typer.Option(help="Folder that runs are written to, for its free space.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Say what this machine can do, and the command that adds what is missing. Exit code 2 when something needed is broken."""
    from launch.doctor import examine

    findings = examine(runs)
    broken = [finding for finding in findings if finding.state == "broken"]
    if as_json:
        typer.echo(json.dumps({"ok": not broken, "findings": [asdict(finding) for finding in findings]}))
    else:
        _show(findings)
    if broken:
        raise typer.Exit(2)


def _show(findings) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    for column in ("topic", "name", "state", "found"):
        table.add_column(column, no_wrap=column != "found", style="bold" if column == "topic" else None)
    topic = None
    for finding in findings:
        table.add_row(finding.topic if finding.topic != topic else "", escape(finding.name), MARK[finding.state], escape(finding.found))
        topic = finding.topic
    console = Console()
    console.print(table)
    mends = [finding for finding in findings if finding.mend and finding.state != "ok"]
    if mends:
        console.print("\n[bold]To add or mend[/]")
    for finding in mends:  # outside the table, so that a command is one line to copy
        console.print(f"  {finding.name}: ", end="", markup=False, highlight=False)
        console.print(finding.mend, markup=False, highlight=False, soft_wrap=True)
