"""retinaforge logs: what the ranks of a submitted job say."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.cli.options import Jobs, looking_on
from slurm.fields import JOBS

if TYPE_CHECKING:
    from slurm.queue import Queue
    from slurm.records import Submitted


def logs(
    name: Annotated[str, typer.Argument(help="Name of the job.")],
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on with each new line until the job has ended.")] = False,
    last: Annotated[int | None, typer.Option("-n", "--lines", min=0, help="Of what stands there, so many lines of each rank.")] = None,
    rank: Annotated[str | None, typer.Option(help="One rank alone; 'batch' for the script; in an array INDEX:RANK.")] = None,
    jobs: Jobs = JOBS,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """What the ranks of a job said, across its restarts, with the rank before each line."""
    from data_shards.errors import InputError
    from launch.submit.site import queue
    from slurm.jobs import words_on
    from slurm.logs import lines
    from slurm.records import job_folder, read_records

    records, damaged = read_records(jobs, [name])
    if name in damaged:
        raise damaged[name]
    record = next((record for record in records if record.name == name), None)
    if record is None and not records:
        raise next(iter(damaged.values()))
    if record is None:
        several = ", ".join(record.name for record in records)
        raise InputError(
            f"{name!r} is a run of several jobs",
            expected=f"one of {several}",
            mend=words_on("logs", records[-1].name, job_folder(jobs, records[-1].name)),
        )
    folder = job_folder(jobs, name)
    if rank is not None and not follow:
        _check_rank(rank, record, folder)
    over = _asked_politely(record, queue()) if follow else lambda: True
    with looking_on(f"no longer followed; {words_on('status', record.name, folder)} says how far it is"):
        for who, line in lines(folder, last=last, ended=over, true_id=record.true_id):
            if rank in (None, who):
                typer.echo(json.dumps({"rank": who, "line": line}) if as_json else f"[{who}] {line}")
    if rank is not None and follow:  # one that was waited for
        _check_rank(rank, record, folder)


def _check_rank(rank: str, record: Submitted, folder: Path) -> None:
    """Refuse a rank of which there is no log.

    Raises:
        InputError: as said, with those there are.
    """
    from data_shards.errors import InputError
    from slurm.jobs import words_on
    from slurm.logs import log_files

    if rank not in (there := log_files(folder, record.true_id)):
        raise InputError(
            f"--rank {rank}: no log of it",
            where=folder,
            expected=f"one of {', '.join(there)}" if there else "a job that has begun",
            mend=words_on("logs" if there else "status", record.name, folder),
        )


def _asked_politely(record: Submitted, shared: Queue) -> Callable[[], bool]:
    """Whether the job has ended: SLURM is asked as seldom as `shared` allows, and one that does not answer has not said so."""
    from data_shards.errors import TryAgain
    from slurm.states import current, is_live

    looked, over = float("-inf"), False

    def ended() -> bool:
        nonlocal looked, over
        if not over and time.monotonic() - looked >= 1.0:
            looked = time.monotonic()
            try:
                over = not is_live(current([record], shared)[record.name]) and not shared.answer().failures
            except TryAgain:
                over = False
        return over

    return ended
