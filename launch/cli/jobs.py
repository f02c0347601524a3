"""retinaforge status, logs, cancel: submitted jobs, by their names."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from launch.cli.options import JOBS, Jobs

if TYPE_CHECKING:
    from slurm.executor import Submitted

ASK_EVERY_S = 30.0  # sites ban who asks more often

Name = Annotated[str, typer.Argument(help="Name of the job.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def status(
    names: Annotated[list[str] | None, typer.Argument(help="Jobs by name; all in JOBS when left out.")] = None,
    jobs: Jobs = JOBS,
    as_json: AsJson = False,
) -> None:
    """State of submitted jobs, by one call to SLURM."""
    from slurm.executor import current, read_records

    records = read_records(jobs, names or [])
    found = current(records)
    if as_json:
        typer.echo(json.dumps({record.name: [asdict(state) for state in found[record.name]] for record in records}))
        return
    if not records:
        typer.echo(f"nothing was submitted from {jobs}; retinaforge submit --help")
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"jobs in {jobs}")
    for column in ("job", "name", "state", "running", "restarts", "nodes or reason"):
        table.add_column(column)
    for record in records:
        for state in found[record.name]:
            table.add_row(
                *(escape(text) for text in (state.job_id, record.name, state.state, state.elapsed, str(state.restarts), state.why))
            )
    Console().print(table)


def logs(
    name: Name,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on with each new line until the job has ended.")] = False,
    last: Annotated[int | None, typer.Option("-n", "--lines", min=0, help="Of what stands there, so many lines of each rank.")] = None,
    rank: Annotated[str | None, typer.Option(help="One rank alone; 'batch' for the script; in an array INDEX:RANK.")] = None,
    jobs: Jobs = JOBS,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """What the ranks of a job said, across its restarts, with the rank before each line."""
    from slurm.executor import job_folder, read_records
    from slurm.logs import lines

    [record] = read_records(jobs, [name])
    over = _asked_politely(record) if follow else lambda: True
    for who, line in lines(job_folder(jobs, name), last=last, ended=over):
        if rank in (None, who):
            typer.echo(json.dumps({"rank": who, "line": line}) if as_json else f"[{who}] {line}")


def cancel(
    names: Annotated[list[str], typer.Argument(help="Jobs by name.")],
    jobs: Jobs = JOBS,
    as_json: AsJson = False,
) -> None:
    """Cancel jobs that wait or run. What they have committed stays: submitted again, they go on from it."""
    from slurm.executor import cancelled, read_records

    records = read_records(jobs, names)
    ended = cancelled(records)
    if as_json:
        typer.echo(json.dumps({record.name: record.name in ended for record in records}))
        return
    for record in records:
        typer.echo(f"{record.name}: {'cancelled' if record.name in ended else 'had ended already'} (job {record.job_id})")


def _asked_politely(record: Submitted) -> Callable[[], bool]:
    """Whether the job has ended: SLURM is asked at most twice a minute."""
    from slurm.executor import current
    from slurm.status import ENDED

    asked, over = float("-inf"), False

    def ended() -> bool:
        nonlocal asked, over
        if not over and time.monotonic() - asked >= ASK_EVERY_S:
            over = all(state.state in ENDED for state in current([record])[record.name])
            asked = time.monotonic()
        return over

    return ended
