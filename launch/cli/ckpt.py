"""retinaforge ckpt …: what checkpoints a run has, whether they are whole, and weights for others to use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from data_shards.errors import CorruptData, InputError
from launch.cli.data import AsJson

app = typer.Typer(help="Checkpoints of a run: list, verify, prune, export, convert.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or the folder of one of its trainings.")]
STAGES = ("segmenter", "vqgan", "diffusion", "features", "copies")


def stores(folder: Path) -> dict[str, object]:
    """The checkpoint stores under a run folder, by training.

    Raises:
        InputError: there is none.
    """
    from ldm.checkpoints.store import CheckpointStore
    from ldm.comm import Alone

    places = {folder.name: folder} if (folder / "checkpoints").is_dir() else {stage: folder / stage for stage in STAGES}
    found = {name: CheckpointStore(place / "checkpoints", Alone()) for name, place in places.items() if (place / "checkpoints").is_dir()}
    if not found:
        raise InputError("no checkpoints here", where=folder, expected="RUN/vqgan/checkpoints or RUN/diffusion/checkpoints")
    return found


@app.command()
def ls(run: Folder, as_json: AsJson = False) -> None:
    """Committed checkpoints, newest first: samples, ranks that wrote them, size, the best. What was not committed is named too."""
    from ldm.checkpoints.commit import read_commit

    rows = []
    for name, store in stores(run).items():
        told = next((c.state.get("best") for c in store.committed()), None) or {}
        for folder in sorted(store.folder.glob("samples-*"), reverse=True):
            checkpoint = read_commit(folder)
            size = sum(path.stat().st_size for path in folder.iterdir())
            rows.append({"training": name, "folder": str(folder), "samples": int(folder.name.split("-")[1]), "bytes": size})
            rows[-1] |= {"ranks": checkpoint.ranks, "committed": True} if checkpoint else {"ranks": 0, "committed": False}
            rows[-1]["best"] = told["value"] if told.get("samples") == rows[-1]["samples"] else None
    if as_json:
        typer.echo(json.dumps(rows))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"checkpoints of {run}")
    for column, justify in (("training", "left"), ("samples", "right"), ("ranks", "right"), ("MiB", "right"), ("state", "left")):
        table.add_column(column, justify=justify)
    for row in rows:
        state = "committed" if row["committed"] else "not committed: ended while it was written, or changed since"
        state += f"; best validation loss, {row['best']:.4g}" if row["best"] is not None else ""
        table.add_row(row["training"], f"{row['samples']:,}", str(row["ranks"]), f"{row['bytes'] / 2**20:.1f}", state)
    Console().print(table)


@app.command()
def verify(run: Folder, as_json: AsJson = False) -> None:
    """Compare every part of every committed checkpoint with its sha256. Exit code 4 when one differs."""
    from ldm.checkpoints.commit import faults_of, unreadable

    faults, whole = [], 0
    for store in stores(run).values():
        faults += unreadable(store.folder)
        for checkpoint in store.committed():
            found = faults_of(checkpoint)
            whole, faults = whole + (not found), faults + found
    if as_json:
        typer.echo(json.dumps({"whole": whole, "faults": faults}))
    if faults:
        raise CorruptData(
            f"{len(faults)} faults:" + "".join(f"\n  {fault}" for fault in faults),
            where=run,
            mend="nothing need be done: training resumes from the newest checkpoint that verifies",
        )
    if not as_json:
        typer.echo(f"{run}: {whole} checkpoints verified, no fault")


@app.command()
def prune(run: Folder, keep: Annotated[int, typer.Option(help="Newest checkpoints to keep of each training.", min=1)] = 2) -> None:
    """Remove old checkpoints. The newest one that verifies and the best one are never removed. Not while the run trains."""
    from ldm.checkpoints.commit import faults_of

    for name, store in stores(run).items():
        committed = store.committed()
        good = next((c for c in committed if not faults_of(c)), None)
        best = (good.state.get("best") or {}).get("samples") if good else None
        for checkpoint in committed[keep:]:
            if checkpoint is not good and checkpoint.samples != best:
                store.remove(checkpoint.folder)
                typer.echo(f"{name}: removed {checkpoint.folder}")


@app.command()
def export(
    run: Folder,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write, one training each below it; must not exist.")],
    best: Annotated[bool, typer.Option("--best", help="Of the best validation loss, in place of the newest.")] = False,
) -> None:
    """Weights for others: diffusers folders (VQModel; UNet2DModel with its scheduler) and plain safetensors with a JSON.

    From the newest checkpoint that verifies, or the best, whatever ZeRO stage or number of ranks wrote it.
    """
    from ldm.checkpoints.export import export_autoencoder, export_denoiser, export_segmenter
    from ldm.checkpoints.segmenter import load_segmenter
    from ldm.checkpoints.trained import load_autoencoder, load_denoiser

    exports = {
        "segmenter": (load_segmenter, export_segmenter),
        "vqgan": (load_autoencoder, export_autoencoder),
        "diffusion": (load_denoiser, export_denoiser),
    }
    for name, store in stores(run).items():
        if name not in exports:
            typer.echo(f"{name}: left out, it serves evaluations alone")
            continue
        load, write = exports[name]
        write(load(store.folder.parent, best=best), out / name)
        typer.echo(f"{name}: {out / name}")


@app.command()
def convert(
    run: Folder,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write, TRAINING/NETWORK below it; must not exist.")],
) -> None:
    """DeepSpeed universal checkpoints: every network with its optimizer, to be carried on in plain DeepSpeed.

    Resuming here never needs them: checkpoints are already independent of ZeRO stage and number of ranks. From the newest
    checkpoint that verifies; an engine loads OUT/TRAINING/NETWORK with {"checkpoint": {"load_universal": true}}.
    """
    from ldm.checkpoints.universal import write_universal

    for folder in write_universal(stores(run), out):
        typer.echo(f"{folder.parent.name}: {folder}")
