"""retinaforge status, logs, cancel, runs: submitted jobs, by their names."""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.cli.options import Jobs
from launch.cli.progress import duration
from slurm import JOBS

if TYPE_CHECKING:
    from launch.stages.stage import Progress
    from slurm.history import Attempt
    from slurm.queue import JobState, Queue
    from slurm.records import Submitted

Name = Annotated[str, typer.Argument(help="Name of the job.")]
Names = Annotated[list[str] | None, typer.Argument(help="Jobs by name, or RUN for all jobs of a run; left out: all in JOBS.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def status(
    names: Names = None,
    verify: Annotated[bool, typer.Option("--verify", help="Also hash the newest checkpoint of each, as a resume would.")] = False,
    jobs: Jobs = JOBS,
    as_json: AsJson = False,
) -> None:
    """State of submitted jobs, how far they are, their newest checkpoint, how often they were restarted and why.

    SLURM is asked once for all of them, and not more often than every 30 seconds, whoever asks.
    """
    from launch.submit.site import queue
    from slurm.records import read_records
    from slurm.states import current, is_live

    records, damaged = read_records(jobs, names or [])
    if not (records or damaged):
        typer.echo(
            json.dumps({"as_of_unix_s": None, "jobs": {}}) if as_json else f"nothing was submitted from {jobs}; retinaforge submit --help"
        )
        return
    shared = queue()
    found = current(records, shared)
    answer = shared.answer()
    told = {record.name: _told(record, found[record.name], jobs, verify) for record in records}
    if as_json:
        rows = {name: _as_json(*row) for name, row in told.items()}
        rows |= {name: {"state": DAMAGED, "jobs": [], "attempts": [], "fault": str(error)} for name, error in damaged.items()}
        typer.echo(json.dumps({"as_of_unix_s": answer.asked_unix_s, "jobs": rows}))
        return
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        title=f"jobs in {jobs}, as of {datetime.fromtimestamp(answer.asked_unix_s):%H:%M:%S}", title_justify="left", box=box.SIMPLE_HEAD
    )
    for column in ("name", "job", "state", "progress", "checkpoint", "restarts", "nodes or reason"):
        table.add_column(column, no_wrap=column in ("name", "state"))
    for record in records:
        states, progress, attempts = told[record.name]
        runs = any(state.state == "RUNNING" for state in states)
        cells = (record.name, ", ".join(record.job_ids), summary(states), pace(progress, runs), checkpoint(progress))
        table.add_row(*map(escape, (*cells, restarts(record, states, attempts), reason(states, attempts))))
    for name, error in damaged.items():
        table.add_row(escape(name), "", DAMAGED, "", "", "", escape(str(error.where)))
    console = Console()
    console.print(table)
    for error in damaged.values():
        console.print(str(error), markup=False, highlight=False, soft_wrap=True)
    if names:
        for record in records:
            states, _, attempts = told[record.name]
            for line in history(record.name, attempts, is_live(states)):
                console.print(line, markup=False, highlight=False)
    if answer.failures:
        typer.secho(f"warning: SLURM does not answer since then ({answer.said}); the states are those of before", fg="yellow", err=True)


DAMAGED = "record damaged"
"""In place of a state, of a job of which nothing can be said."""
Attempts = dict[str, list["Attempt"]]
"""By index of an array; of a job that is none, under ''."""
Told = tuple[list["JobState"], "Progress", Attempts]


def _told(record: Submitted, states: list[JobState], jobs: Path, verify: bool) -> Told:
    """What is known of one job beside its states."""
    from data_shards.errors import CorruptData
    from launch.stages.stage import Progress
    from launch.submit.frozen import progress_of, read_target
    from slurm.history import read_all
    from slurm.records import job_folder

    folder = job_folder(jobs, record.name)
    try:
        target = read_target(folder)
    except CorruptData as error:  # its progress alone is not known
        typer.secho(f"warning: {error}", fg="yellow", err=True)
        target = None
    return states, progress_of(target, verify=verify) if target else Progress(), read_all(folder)


def _as_json(states: list[JobState], progress: Progress, attempts: Attempts) -> dict[str, Any]:
    return {
        "state": summary(states),
        "jobs": [asdict(state) for state in states],
        "progress": {**asdict(progress), "eta_s": progress.eta_s},
        "attempts": [{"index": index or None, **asdict(attempt)} for index, each in attempts.items() for attempt in each],
    }


def summary(states: list[JobState]) -> str:
    """One word where all are in one state, else how many are in each; indices that wait together count each."""
    counts: Counter[str] = Counter()
    for state in states:
        counts[state.state] += len(state.indices) or 1
    return next(iter(counts)) if len(counts) == 1 else ", ".join(f"{count} {word}" for word, count in counts.most_common())


def pace(progress: Progress, runs: bool) -> str:
    """'960 of 4,800, 20 %; 17.1/s, 3 min 44 s left'."""
    if progress.done is None:
        return ""
    share = f" of {progress.goal:,}, {100 * progress.done / progress.goal:.0f} %" if progress.goal else ""
    left = f"; {progress.per_s:.3g}/s, {duration(progress.eta_s)} left" if runs and progress.per_s and progress.eta_s is not None else ""
    return f"{progress.done:,}{share}{left}"


def checkpoint(progress: Progress) -> str:
    """The newest one, how old it is, and what a look at its parts showed."""
    if progress.checkpoint is None:
        return ""
    seen = "" if progress.faults is None else ", FAULTY" if progress.faults else ", verified"
    return f"{progress.checkpoint:,}, {duration(time.time() - (progress.checkpoint_unix_s or 0))} ago{seen}"


def restarts(record: Submitted, states: list[JobState], attempts: Attempts) -> str:
    """How often, and why, in as few words as there are reasons."""
    before = [
        attempt for each in attempts.values() for attempt, after in itertools.pairwise(each) if attempt.submission == after.submission
    ]
    live = {attempt.submission for each in attempts.values() for attempt in each[-1:]}  # of this submission, not of those before
    why = Counter(short(attempt.why) for attempt in before if attempt.submission in live)
    if not why:
        return str(sum(state.restarts for state in states))
    return f"{why.total()}: " + ", ".join(f"{text} ({count})" if count > 1 else text for text, count in why.most_common())


def short(why: str, most: int = 40) -> str:
    """A reason in a table."""
    return why if len(why) <= most else why[: most - 1].rstrip() + "…"


def reason(states: list[JobState], attempts: Attempts) -> str:
    """Where it runs, why it waits, or how it ended."""
    if len(states) == 1 and states[0].state in ("RUNNING", "PENDING", "COMPLETING"):
        return states[0].why
    last = Counter(short(each[-1].why) for each in attempts.values() if each[-1].why)
    if len(last) == 1:
        return next(iter(last))
    return ", ".join(f"{count} {why}" for why, count in last.most_common(4)) or "; ".join(dict.fromkeys(s.why for s in states if s.why))


def history(name: str, attempts: Attempts, live: bool) -> list[str]:
    """A line for each attempt; of an array, for those of the indices that did not end well at once."""
    shown = {index: each for index, each in attempts.items() if not index or len(each) > 1 or each[-1].code != 0}
    lines = [f"{name}: {sum(map(len, attempts.values()))} attempt(s)"] if attempts else []
    for index, each in shown.items():
        for attempt in each:
            began = datetime.fromtimestamp(attempt.began_unix_s)
            took = duration(attempt.ended_unix_s - attempt.began_unix_s) if attempt.ended_unix_s else "runs" if live else "?"
            code = "" if attempt.code is None else f" [{attempt.code}]"
            which = f"job {attempt.job_id}.{attempt.restart}" + (f" [{index}]" if index else "")
            lines.append(f"  {which}  {began:%m-%d %H:%M:%S}  {took:>8}  {attempt.nodes:12}  {attempt.why}{code}")
    return lines


def logs(
    name: Name,
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


def cancel(
    names: Annotated[list[str], typer.Argument(help="Jobs by name, or RUN for all jobs of a run.")],
    jobs: Jobs = JOBS,
    as_json: AsJson = False,
) -> None:
    """Cancel jobs that wait or run. What they have committed stays: `resume`, or the same `submit`, goes on from it."""
    from data_shards.errors import InputError
    from launch.submit.site import queue
    from slurm.queue import UNKNOWN
    from slurm.records import read_records
    from slurm.states import CANCELLED, cancelled, current, is_away, whereabouts

    records, damaged = read_records(jobs, names)
    shared = queue()
    came_of = cancelled(records, shared)
    unknown = [record for record in records if came_of[record.name] == UNKNOWN]
    if as_json:  # null: nobody knows
        typer.echo(json.dumps({name: None if said == UNKNOWN else said == CANCELLED for name, said in came_of.items()}))
    else:
        for record in records:
            if record not in unknown:
                typer.echo(f"{record.name}: {came_of[record.name]} (job {', '.join(record.job_ids)})")
    for error in damaged.values():
        raise error  # what could be cancelled is
    if unknown:
        states = current(unknown, shared)
        away = {record.cluster for record in unknown if is_away(record)}
        raise InputError(
            "; ".join(f"{record.name}: {whereabouts(record, is_away(record), states[record.name])}" for record in unknown),
            where=jobs,
            expected="jobs that SLURM here knows",
            mend=f"the same command on a machine of cluster {' and of '.join(sorted(away))}"
            if away
            else "squeue --me --all lists the jobs that live, by their numbers; scancel NUMBER ends one",
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


def runs(
    folder: Annotated[Path, typer.Argument(help="Where run folders lie.")] = Path("runs"),
    jobs: Jobs = JOBS,
    as_json: AsJson = False,
) -> None:
    """Runs and how far each stage of them is, from their folders alone; SLURM is not asked."""
    from launch.stages import STAGES
    from slurm.records import of, read_records

    records = read_records(jobs, [])[0] if jobs.exists() else []
    found = {}
    for path in sorted(folder.glob("*/run.yaml")):
        names = [record.name for record in records if of(path.parent.name, record.name)]
        shown = {name: stage.shown(path.parent) for name, stage in STAGES.items()}
        found[path.parent.name] = {"folder": str(path.parent), "stages": shown, "jobs": names}
    if as_json:
        typer.echo(json.dumps(found))
        return
    if not found:
        typer.echo(f"no run in {folder}; retinaforge run --help")
        return
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"runs in {folder}", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("run", *STAGES, "jobs"):
        table.add_column(column)
    for name, about in found.items():
        table.add_row(escape(name), *(about["stages"][stage] for stage in STAGES), str(len(about["jobs"]) or ""))
    Console().print(table)
