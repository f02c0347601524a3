"""The report in plain text, for a terminal of 80 columns."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from launch.headline import stated
from launch.run import Run, figures, read_result
from ldm.evaluation.tables import Row, between, excess_bounds, missing, number, rows_of_evaluation, rows_of_reconstruction

COLUMNS = 80


def build_text(run: Run) -> str:
    """Headline, measures beside their floors, what the audit says, and where the HTML lies."""
    from ldm.authenticity.audit import AuditResult
    from ldm.authenticity.membership import MembershipResult
    from ldm.evaluation.evaluation_result import EvaluationResult
    from ldm.evaluation.reconstruction import ReconstructionResult

    console = Console(width=COLUMNS, file=io.StringIO(), force_terminal=False, highlight=False)
    console.rule(run.folder.name)
    console.print(headline(run))
    evaluated = read_result(run.folder / "evaluate.json", EvaluationResult)
    if evaluated is None:
        console.print("measures: left out, the run has no evaluate.json of this version yet")
    else:
        reference = evaluated.reference
        console.print(f"measures, against {reference.n} images of {reference.subjects} people (split {reference.split!r})")
        rows = rows_of_evaluation(evaluated)
        console.print(measures(rows))
        for reason, metrics in missing(rows).items():
            console.print(Text(f"left out: {reason} ({'; '.join(metrics)})"))
        for line in evaluated.disagreements:
            console.print(Text(line))
    rebuilt = read_result(run.folder / "reconstruction.json", ReconstructionResult)
    if rebuilt is None:
        console.print("reconstruction: left out, the run has no reconstruction.json of this version yet")
    else:
        console.print(f"reconstruction, of {rebuilt.cubes} cubes ({' and '.join(rebuilt.splits)})")
        console.print(reconstruction(rows_of_reconstruction(rebuilt)))
    audit = read_result(run.folder / "audit.json", AuditResult)
    if audit is None:
        console.print("copies: left out, the run has no audit.json of this version yet")
    else:
        for name, space in audit.descriptors.items():
            console.print(Text(f"copies ({name}): {'; '.join(space.verdict)}"))
    attacked = read_result(run.folder / "membership.json", MembershipResult)
    if attacked is not None:
        console.print(Text(f"attack on the networks: {attacked.judgement.verdict}"))
    page = run.folder / "report.html"
    console.print(Text(f"as a page: {page}" if page.exists() else "as a page: not written yet"), soft_wrap=True)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def headline(run: Run) -> Table:
    """The figures that stand first, with what is wanted of each."""
    table = Table.grid(padding=(0, 2))
    for figure, value, words in stated(figures(run)):
        table.add_row(figure.title, "–" if value is None else figure.form.format(value), words)
    return table


def measures(rows: Sequence[Row]) -> Table:
    """Each figure beside its floor, intervals beneath; beneath what it says, the interval of its excess, on which that rests."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("measure")
    for column in ("synthetic", "floor, real"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("excess")
    for row in rows:
        if not row.reason:
            says = "\n".join(filter(None, (row.verdict, between(excess_bounds(row)))))
            cells = row.metric, _cell(row.value, row.interval), _cell(row.floor, row.floor_interval), says
            table.add_row(*map(Text, cells))  # as text: a bracket in a name is no markup
    return table


def reconstruction(rows: Sequence[Row]) -> Table:
    """Each figure with its interval and what to compare it with, or why there is none."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("measure")
    table.add_column("reconstructed", justify="right", no_wrap=True)
    table.add_column("")
    for row in rows:
        table.add_row(row.metric, _cell(row.value, row.interval), Text(f"left out: {row.reason}" if row.reason else row.note))
    return table


def _cell(value: float | None, interval: tuple[float, float] | None) -> str:
    return number(value) + (f"\n{between(interval)}" if interval and value is not None else "")
