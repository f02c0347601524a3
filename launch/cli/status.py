"""retinaforge status, cancel, runs: submitted jobs and runs, and how far they are."""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.cli.options import Jobs
from launch.cli.progress import duration
from slurm.fields import JOBS

if TYPE_CHECKING:
    from data_shards.errors import CorruptData
    from launch.stages.stage import Progress
    from slurm.history import Attempt
    from slurm.queue import Answer, JobState
    from slurm.records import Submitted

Names = Annotated[list[str] | None, typer.Argument(help="Jobs by name, or RUN for all jobs of a run; left out: all in JOBS.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
DAMAGED = "record damaged"
"""In place of a state, of a job of which nothing can be said."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A submitted job, and how it stands.

    Attributes:
        states: one; of an array, one or more.
        progress: of what it makes; empty for what works on no run.
        attempts: by index of an array; of a job that is none, under ''.
    """

    record: Submitted
    states: list[JobState]
    progress: Progress
    attempts: dict[str, list[Attempt]]

    @property
    def runs(self) -> bool:
        return any(state.state == "RUNNING" for state in self.states)

    def tree(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "state": summary(self.states),
            "jobs": [asdict(state) for state in self.states],
            "progress": {**asdict(self.progress), "eta_s": self.progress.eta_s},
            "attempts": [{"index": index or None, **asdict(attempt)} for index, each in self.attempts.items() for attempt in each],
        }


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
    states = current(records, shared)
    answer = shared.answer()
    each = [_job(record, states[record.name], jobs, verify) for record in records]
    if as_json:
        rows = {job.record.name: job.tree() for job in each}
        rows |= {name: {"state": DAMAGED, "jobs": [], "attempts": [], "fault": str(error)} for name, error in damaged.items()}
        typer.echo(json.dumps({"as_of_unix_s": answer.asked_unix_s, "jobs": rows}))
        return
    _show(each, damaged, jobs, answer)
    if names:
        for job in each:
            for line in history(job.record.name, job.attempts, is_live(job.states)):
                typer.echo(line)
            for unit, holder in job.progress.held.items():
                typer.echo(f"{job.record.name}: {unit} is made by {holder}")
    if answer.failures:
        typer.secho(f"warning: SLURM does not answer since then ({answer.said}); the states are those of before", fg="yellow", err=True)


def _show(each: list[Job], damaged: dict[str, CorruptData], jobs: Path, answer: Answer) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        title=f"jobs in {jobs}, as of {datetime.fromtimestamp(answer.asked_unix_s):%H:%M:%S}", title_justify="left", box=box.SIMPLE_HEAD
    )
    for column in ("name", "job", "state", "progress", "checkpoint", "restarts", "nodes or reason"):
        table.add_column(column, no_wrap=column in ("name", "state"))
    for job in each:
        numbers = ", ".join(job.record.job_ids)
        cells = (job.record.name, numbers, summary(job.states), pace(job.progress, job.runs), checkpoint(job.progress))
        table.add_row(*map(escape, (*cells, restarts(job), reason(job))))
    for name, error in damaged.items():
        table.add_row(escape(name), "", DAMAGED, "", "", "", escape(str(error.where)))
    Console().print(table)
    for error in damaged.values():
        typer.echo(str(error))


def _job(record: Submitted, states: list[JobState], jobs: Path, verify: bool) -> Job:
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
    progress = progress_of(target, verify=verify) if target else Progress()
    return Job(record=record, states=states, progress=progress, attempts=read_all(folder))


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


def restarts(job: Job) -> str:
    """How often, and why, in as few words as there are reasons."""
    each = job.attempts.values()
    before = [attempt for one in each for attempt, after in itertools.pairwise(one) if attempt.submission == after.submission]
    live = {attempt.submission for one in each for attempt in one[-1:]}  # of this submission, not of those before
    why = Counter(short(attempt.why) for attempt in before if attempt.submission in live)
    if not why:
        return str(sum(state.restarts for state in job.states))
    return f"{why.total()}: " + ", ".join(f"{text} ({count})" if count > 1 else text for text, count in why.most_common())


def short(why: str, most: int = 40) -> str:
    """A reason in a table."""
    return why if len(why) <= most else why[: most - 1].rstrip() + "…"


def reason(job: Job) -> str:
    """Where it runs, why it waits, or how it ended."""
    if len(job.states) == 1 and job.states[0].state in ("RUNNING", "PENDING", "COMPLETING"):
        return job.states[0].why
    last = Counter(short(each[-1].why) for each in job.attempts.values() if each[-1].why)
    if len(last) == 1:
        return next(iter(last))
    ends = ", ".join(f"{count} {why}" for why, count in last.most_common(4))
    return ends or "; ".join(dict.fromkeys(state.why for state in job.states if state.why))


def history(name: str, attempts: dict[str, list[Attempt]], live: bool) -> list[str]:
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


def runs(
    folder: Annotated[Path, typer.Argument(help="Where run folders lie.")] = Path("runs"),
    jobs: Jobs = JOBS,
    as_json: AsJson = False,
) -> None:
    """Runs and how far each stage of them is, from their folders alone; SLURM is not asked."""
    from launch.stages import STAGES
    from slurm.records import of, read_records

    records = read_records(jobs, [])[0] if jobs.exists() else []
    rows = {}
    for path in sorted(folder.glob("*/run.yaml")):
        names = [record.name for record in records if of(path.parent.name, record.name)]
        shown = {name: stage.standing(path.parent) for name, stage in STAGES.items()}
        rows[path.parent.name] = {"folder": str(path.parent), "stages": shown, "jobs": names}
    if as_json:
        typer.echo(json.dumps(rows))
        return
    if not rows:
        typer.echo(f"no run in {folder}; retinaforge run --help")
        return
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"runs in {folder}", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("run", "stages done", "others, how far", "jobs"):
        table.add_column(column)
    for name, row in rows.items():
        done = [stage for stage, standing in row["stages"].items() if standing == "done"]
        begun = [f"{stage} {standing}" for stage, standing in row["stages"].items() if standing not in ("", "done")]
        table.add_row(escape(name), f"{len(done)} of {len(STAGES)}", ", ".join(begun), str(len(row["jobs"]) or ""))
    Console().print(table)
