"""Stage report: report.html from what stands in the run folder."""

from __future__ import annotations

from pathlib import Path

from data_shards.manifest import NAME
from launch.report.card import write_card
from launch.run import Run, figures, record_seconds
from launch.stages.stage import Stage
from launch.work import Display

FROM = ("evaluate.json", "audit.json")


class Report(Stage):
    name, verb, after = "report", "report", ("evaluate", "audit")
    reads, writes = "the folder", "`report.html`, and the set's card anew"

    def check(self, run: Run) -> None:
        run.open(run.dataset)

    def done(self, run: Run) -> bool:
        report, results = run.folder / "report.html", [run.folder / name for name in FROM]
        return all(path.exists() and report.exists() and report.stat().st_mtime >= path.stat().st_mtime for path in results)

    def make(self, run: Run, display: Display, place: tuple[int, int] = (0, 1)) -> list[str]:
        from launch.report.build import build_report

        if figures(run):
            record_seconds(run)
        build_report(run)
        if (run.synthetic / NAME).exists():
            write_card(run)
        return []

    def where(self, run: Run) -> str:
        return f"report: {run.folder / 'report.html'}"

    def standing(self, run: Path) -> str:
        return "done" if (run / "report.html").exists() else ""
