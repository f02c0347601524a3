"""Collect what a run left in its folder and write report.html. Parts that a run has not reached are left out by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

import launch
from data_shards import durable
from data_shards.errors import without_credentials
from data_shards.manifest import NAME
from launch.headline import stated
from launch.report.likeness import likeness
from launch.report.parts import (
    Report,
    audit_part,
    image_part,
    map_part,
    metric_part,
    reconstruction_part,
    script_json,
    spectra_part,
    training_part,
)
from launch.run import Run, figures
from launch.tree import to_public_yaml

SECTIONS = {"images": "Images", "spectra": "Spectra", "metrics": "Measures", "map": "Map of features", "rebuilt": "Reconstructions"} | {
    "training": "Training", "audit": "Authenticity", "configuration": "Configuration"}  # fmt: skip


def build_report(run: Run) -> Path:
    """Write runs/NAME/report.html: one file that asks no network for anything."""
    of = Report(run)
    near = likeness(run, of.real, of.synthetic)
    parts: dict[str, Any] = {"outdated": []}
    parts |= image_part(of, near)
    parts |= spectra_part(of)
    for name, needs, make in (
        ("metrics", "evaluate.json", metric_part),
        ("map", f"synthetic/{NAME}", lambda of: map_part(of, near)),
        ("rebuilt", "reconstruction.json", reconstruction_part),
        ("training", "vqgan/metrics.jsonl", training_part),
        ("audit", "audit.json", audit_part),
    ):
        part = make(of) if (run.folder / needs).exists() else {}
        if part is None:
            parts["outdated"].append(needs)
            of.absent[name] = f"{needs} is of an earlier version"
        elif part:
            parts |= part
        else:
            of.absent.setdefault(name, f"the run has no {needs} yet")
    folder, frozen = resources.files("launch.report"), run.folder / "run.yaml"
    template = jinja2.Template(folder.joinpath("report.html").read_text(), autoescape=True, undefined=jinja2.StrictUndefined)
    html = template.render(
        run=run.folder.name,
        config=without_credentials(frozen.read_text()) if frozen.exists() else to_public_yaml(run.config),
        version=launch.__version__,
        cards=cards(figures(run)),
        sections={name: title for name, title in SECTIONS.items() if name not in of.absent},
        absent={SECTIONS[name]: why for name, why in of.absent.items()},
        style=folder.joinpath("report.css").read_text(),
        script=folder.joinpath("report.js").read_text(),
        plotly=get_plotlyjs(),
        charts=script_json(of.charts),
        **parts,
    )
    path = run.folder / "report.html"
    durable.write_bytes(path, html.encode())
    return path


@dataclass(frozen=True, kw_only=True)
class Card:
    """A figure that stands first: its value in words (None: left out), what is said beneath, and how it is shown."""

    title: str
    value: str | None
    words: str
    verdict: str
    style: str


def cards(figures: Mapping[str, Any]) -> list[Card]:
    """The figures that stand first; only one that is better than wanted has the colour of good ones."""
    styles = {True: "reached", False: "missed", None: "plain"}
    return [
        Card(
            title=figure.title,
            value=None if value is None else figure.form.format(value),
            words=figure.meaning,
            verdict=words,
            style="missed" if value is None else styles[figure.reached(value)],
        )
        for figure, value, words in stated(figures)
    ]
