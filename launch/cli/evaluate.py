"""retinaforge evaluate, audit: how good a synthetic set is, and whether it holds copies of its training images."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from data_shards.errors import InputError
from data_shards.stores import place_of
from launch.cli.options import Overrides, Task, resolved, task_of
from launch.cli.stages import make
from launch.cli.units import made
from launch.run import Run

if TYPE_CHECKING:
    from ldm.authenticity.audit import AuditResult
    from ldm.authenticity.audit_result import SpaceVerdicts
    from ldm.evaluation.tables import Row

OfRun = Annotated[
    str | None, typer.Argument(metavar="[PRESET]", help="A run, as `retinaforge run` takes it, in place of --real and --synthetic.")
]
Real = Annotated[str | None, typer.Option("--real", help="The packed real dataset.", show_default=False)]
Synthetic = Annotated[str | None, typer.Option("--synthetic", help="The packed synthetic set.", show_default=False)]
Against = Annotated[str, typer.Option("--against", help="Split of the real dataset, best of people held out of training.")]
Limit = Annotated[int | None, typer.Option("--limit", help="At most this many images of each set, evenly spaced.", min=2)]
Device = Annotated[str, typer.Option("--device", help="cpu or cuda.")]
EXTRACTORS_HELP = "A feature space; again for another: seeded-conv-v1, learned, efficientnet-lite0[:NM,NM,NM], torchscript:PATH."
SPACES_HELP = "A space to search in; again for another: pooled, contrast, copies, identity, or an extractor of `evaluate --extractor`."
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of a table.")]


def evaluate(
    context: typer.Context,
    preset: OfRun = None,
    overrides: Overrides = None,
    real: Real = None,
    synthetic: Synthetic = None,
    out: Annotated[Path, typer.Option("--out", help="File for the result.")] = Path("evaluate.json"),
    against: Against = "val",
    limit: Limit = None,
    seed: Annotated[int, typer.Option("--seed", help="Of subsets, pairs and resamples.")] = 0,
    pairs: Annotated[int, typer.Option("--pairs", help="Pairs of images for MS-SSIM.", min=2)] = 1000,
    extractor: Annotated[list[str] | None, typer.Option("--extractor", help=EXTRACTORS_HELP, show_default="seeded-conv-v1")] = None,
    learned: Annotated[Path | None, typer.Option("--features", help="Folder of a trained feature encoder, RUN/features.")] = None,
    segmenter: Annotated[Path | None, typer.Option("--segmenter", help="Folder of a trained segmenter, which labels both sets.")] = None,
    task: Task = "1/1",
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Compare a synthetic set with real images: Fréchet distance, KID, band histograms, MS-SSIM, each beside its floor.

    Of a run: also how well its autoencoder rebuilds held-out people, and the baseline of decoded Gaussian latents; into its folder.
    """
    if preset:
        _of_run(context, "evaluate", preset, overrides, real or synthetic, task)
        return
    real, synthetic = _sets(real, synthetic)
    from data_shards.reading.dataset import Dataset
    from ldm.checkpoints.segmenter import load_segmenter
    from ldm.evaluation.evaluate import Evaluation
    from ldm.evaluation.evaluation_result import EvaluateConfig
    from ldm.evaluation.tables import rows_of_evaluation

    spaces = tuple(extractor or ("seeded-conv-v1", *(("learned",) if learned else ())))
    config = EvaluateConfig(against=against, limit=limit, seed=seed, pairs=pairs, extractors=spaces, device=checked_device(device))
    judges = {"learned": learned, "labeller": load_segmenter(segmenter, config.device) if segmenter else None}
    units = Evaluation(Dataset(place_of(real)), Dataset(place_of(synthetic)), config, out, **judges)
    result = made([("evaluate", lambda: units)], task=task_of(task))
    if as_json:
        typer.echo(json.dumps(asdict(result)))
        return
    reference, floor = result.reference, result.floor_from
    title = f"{synthetic} against {reference.n} images of {reference.subjects} people (split {reference.split!r})"
    show(title, rows_of_evaluation(result))
    source = f"{floor.n} other real images of {floor.subjects} people, {result.floor_is}," if floor else "no other people: no floor"
    typer.echo(f"floor: {source} in place of the synthetic ones (MS-SSIM of pairs: the reference's own)")
    for line in result.disagreements:
        typer.echo(line)
    features = "; ".join(space.extractor for space in result.spaces.values())
    typer.echo(f"features: {features}; not comparable with published FID\nresult: {out}")


def audit(
    context: typer.Context,
    preset: OfRun = None,
    overrides: Overrides = None,
    real: Real = None,
    synthetic: Synthetic = None,
    out: Annotated[Path, typer.Option("--out", help="File for the result.")] = Path("audit.json"),
    train: Annotated[str, typer.Option("--train", help="Split that the generator was trained on.")] = "train",
    against: Annotated[
        list[str] | None, typer.Option("--against", help="A split of people held out; again for another.", show_default="all")
    ] = None,
    space: Annotated[list[str] | None, typer.Option("--space", help=SPACES_HELP, show_default="pooled, contrast")] = None,
    learned: Annotated[
        Path | None, typer.Option("--features", help="Folder of a trained feature encoder: searches `learned`, too.")
    ] = None,
    copies: Annotated[
        Path | None, typer.Option("--copies", help="Folder of a trained copy-detection head, RUN/copies: searches `copies`, too.")
    ] = None,
    rate: Annotated[float, typer.Option("--rate", help="Share of honest images that may lie below the threshold.")] = 0.01,
    limit: Annotated[int | None, typer.Option("--limit", help="At most this many synthetic images, evenly spaced.", min=1)] = None,
    closest: Annotated[int, typer.Option("--closest", help="Closest pairs to list.", min=1)] = 12,
    backend: Annotated[str, typer.Option("--backend", help="Search: faiss, torch or auto.")] = "auto",
    remove: Annotated[Path | None, typer.Option("--remove", help="Write the set without the flagged images to this folder.")] = None,
    task: Task = "1/1",
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Search a synthetic set for copies of training images, with distances between real people as the yardstick.

    Of a run: its set, into its folder. All flagged images stand in a table beside the result, audit.flagged.csv.
    """
    if preset:
        _of_run(context, "audit", preset, overrides, real or synthetic, task)
        if remove:
            run = Run(resolved(preset, overrides))
            _remove(run.folder / "audit.json", str(run.synthetic), remove)
        return
    real, synthetic = _sets(real, synthetic)
    from data_shards.reading.dataset import Dataset
    from ldm.authenticity.audit import Audit, AuditConfig

    of_encoders = (*(("copies",) if copies else ()), *(("learned", "identity") if learned else ()))
    among = {"train": train, "against": tuple(against or ()), "spaces": tuple(space or ("pooled", "contrast", *of_encoders)), "rate": rate}
    config = AuditConfig(**among, limit=limit, closest=closest, backend=backend, device=checked_device(device))
    units = Audit(Dataset(place_of(real)), Dataset(place_of(synthetic)), config, out, learned=learned, copies=copies)
    result = made(units.phases(), task=task_of(task))
    if as_json:
        typer.echo(json.dumps(asdict(result)))
    else:
        show_audit(result, synthetic)
        typer.echo(f"{result.caveat}\nresult: {out}")
    if remove:
        _remove(out, synthetic, remove)


def show_audit(result: AuditResult, synthetic: str) -> None:
    """Figures of all spaces, the closest pairs of the first, and the verdicts."""
    from ldm.authenticity.tables import rows_of_audit

    train = result.train
    searched = f"{train.n} training images of {train.subjects} people"
    show(f"{synthetic}: {result.synthetic.n} images searched for copies of {searched}", rows_of_audit(result))
    held = ", ".join(f"{part.n} of {part.subjects} people (split {part.split!r})" for part in result.held_out)
    typer.echo(f"floor: of an honest set, by real images of people held out: {held or 'nobody was'}")
    show_closest(*next(iter(result.descriptors.items())))
    for name, of_space in result.descriptors.items():
        doubles = of_space.floor_doubles
        if doubles.images:
            pairs = "; ".join(" and ".join(pair.keys) for pair in doubles.pairs)
            typer.echo(f"{name}: {doubles.images} real images left out of the yardstick, one picture under two names: {pairs}")
        for line in of_space.verdict:
            typer.echo(f"{name}: {line}")


def _remove(result: Path, synthetic: str, out: Path) -> None:
    """Write the set without what an audit flagged."""
    from data_shards.packing.removing import removing
    from data_shards.reading.dataset import Dataset
    from ldm.authenticity.audit import FORMAT
    from ldm.authenticity.flagged import flagged_keys

    keys = flagged_keys(result, Dataset(place_of(synthetic)), FORMAT)
    if not keys:
        typer.echo("no image is flagged: nothing is removed, and nothing was written", err=True)
        return
    because = {"audit": hashlib.sha256(result.read_bytes()).hexdigest()}
    manifest = made([("remove", lambda: removing(synthetic, out, keys, because=because))])
    left = sum(size["count"] for size in manifest.splits.values())
    typer.echo(f"{out}: {left} images, without {len(keys)} that were flagged", err=True)


OF_A_RUN = ("preset", "overrides", "task", "remove")  # what may stand beside a run


def _of_run(context: typer.Context, what: str, preset: str, overrides: list[str] | None, sets: str | None, task: str) -> None:
    """What `retinaforge run` does of it, unless it has been done."""
    if sets:
        raise InputError("a run, and sets beside it", expected=f"retinaforge {what} PRESET, or --real SET --synthetic SET")
    given = [name for name in context.params if context.get_parameter_source(name).name == "COMMANDLINE" and name not in OF_A_RUN]
    if given:
        raise InputError(
            f"{', '.join(given)} of a run",
            expected="what the run's configuration says; these options are for two sets",
            mend=f"retinaforge {what} --real DATASET --synthetic RUN/synthetic, with them",
        )
    make(what, resolved(preset, overrides), task_of(task))


def _sets(real: str | None, synthetic: str | None) -> tuple[str, str]:
    if not (real and synthetic):
        raise InputError("no sets to compare", expected="--real SET --synthetic SET, or a run's PRESET")
    return real, synthetic


def checked_device(device: str) -> str:
    """The device, where this machine has it.

    Raises:
        InputError: unknown, or no such device here.
    """
    import torch

    if device != "cpu" and not (device == "cuda" and torch.cuda.is_available()):
        raise InputError(
            f"--device {device}",
            expected="cpu" + (" or cuda" if torch.cuda.is_available() else " (no GPU is to be seen here)"),
            mend="retinaforge doctor",
        )
    return device


def show(title: str, rows: list[Row]) -> None:
    """The table that people see: every value beside its floor, its 95 % interval beneath, and the interval of its excess, on which
    verdicts rest; then what could not be measured, and why."""
    from ldm.evaluation.tables import between, excess_bounds, missing, number

    def cell(value: float | None, interval: tuple[float, float] | None) -> str:
        return number(value) + (f"\n[dim]{between(interval)}[/]" if interval and value is not None else "")

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("metric")
    with_n, with_excess = len({row.n for row in rows}) > 1, any(map(excess_bounds, rows))
    for column in ("synthetic", "floor, real", *(["excess"] if with_excess else []), *(["N"] if with_n else [])):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        metric = f"{row.metric} [dim]({row.note})[/]" if row.note else row.metric
        further = [between(excess_bounds(row))] * with_excess + [row.n] * with_n
        table.add_row(metric, cell(row.value, row.interval), cell(row.floor, row.floor_interval), *further)
    Console().print(table)
    for reason, metrics in missing(rows).items():
        typer.echo(f"not measured: {reason} ({'; '.join(metrics)})")


def show_closest(name: str, space: SpaceVerdicts) -> None:
    """The closest pairs; who a training image is of stands only where the pair is flagged."""
    from ldm.evaluation.tables import number

    table = Table(title=f"closest pairs ({name})", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("synthetic", "training", "person", "distance", "of real median", ""):
        table.add_column(column, justify="right" if column in ("distance", "of real median") else "left")
    for pair in space.closest:
        marks = {"mirrored": pair.mirrored, "exact": pair.exact, "flagged": pair.flagged}
        table.add_row(
            pair.synthetic_key,
            pair.train_key or f"image {pair.train_index}",
            pair.subject or "–",
            number(pair.distance),
            number(pair.of_floor_median),
            ", ".join(name for name, holds in marks.items() if holds),
        )
    Console().print(table)
