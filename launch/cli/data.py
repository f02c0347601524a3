"""retinaforge data …: phantoms, import, packing, checking."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from data_shards.errors import CorruptData, InputError
from data_shards.manifest import Manifest, read_manifest
from data_shards.stores import is_url, place_of
from launch.cli import data_import, data_phantom, stages
from launch.cli.progress import progress
from launch.cli.units import made

app = typer.Typer(help="Cubes on disk: make or import them, pack them into shards, check and describe them.", no_args_is_help=True)
app.command("phantom")(data_phantom.command)
app.command("import")(data_import.command)
app.command()(stages.prepare)


SetPath = Annotated[str, typer.Argument(help="A packed dataset: the folder with dataset.json, or a URL.")]
CODECS = "raw, npy, tiles (stored, for crops), blosc2 (fast), pcodec (small), near (small, with --max-error)."
Codec = Annotated[str, typer.Option(help=f"Payload codec: {CODECS}")]
Tile = Annotated[int, typer.Option(help="Lay the array in squares of so many pixels, for random crops; 0: in rows (tiles: 96).", min=0)]
MaxError = Annotated[int, typer.Option(help="Of the codec near: no stored count is further off than this.", min=0)]
Workers = Annotated[int, typer.Option(help="Threads, each on a shard of its own.", min=1)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]


def split_option(text: str | None) -> dict[str, float] | None:
    """'train=0.8,val=0.2' → {'train': 0.8, 'val': 0.2}."""
    if text is None:
        return None
    try:
        return {name.strip(): float(share) for name, share in (part.split("=") for part in text.split(","))}
    except ValueError as error:
        raise InputError(f"--splits {text}", expected="NAME=FRACTION,…", mend="--splits train=0.8,val=0.1,test=0.1") from error


@app.command()
def pack(
    source: Annotated[
        str, typer.Argument(help="A folder of loose cubes (from `data phantom` or `data import`), or a dataset to pack anew.")
    ],
    out: Annotated[Path, typer.Argument(help="The dataset to write; absent, or this very dataset.")],
    splits: Annotated[
        str | None,
        typer.Option(help="Fractions by subject, as train=0.8,val=0.1,test=0.1 (the default), unless the samples state a split."),
    ] = None,
    splits_from: Annotated[
        str | None,
        typer.Option(
            "--splits-from",
            metavar="DATASET",
            help="People of this packed set keep their split; the others keep the one they state, or are divided.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 0,
    codec: Codec = "raw",
    max_error: MaxError = 0,
    tile: Tile = 0,
    shard_mib: Annotated[int, typer.Option(help="Close a shard before it grows over this many MiB of raw counts.", min=1)] = 1024,
    workers: Workers = 1,
) -> None:
    """Pack cubes into WebDataset shards with index, manifest, splits by subject and band statistics.

    The same cubes give the same bytes, whatever --workers is. Killed, the same command goes on behind the shards it finished.
    """
    from data_shards.packing.pack import packing
    from data_shards.packing.units import stats_split_of
    from data_shards.reading.dataset import Dataset
    from data_shards.reading.fields_of_view import unlike

    build = partial(
        packing,
        place_of(source),
        out,
        splits=split_option(splits),
        splits_from=splits_from,
        seed=seed,
        codec=codec,
        max_error=max_error,
        tile=tile,
        shard_mib=shard_mib,
    )
    manifest = made([(f"pack {out.name}", build)], workers=workers, unit="cube")
    typer.echo(f"{out}: {_told(manifest)}")
    dataset = Dataset(out)
    if different := unlike(dataset, stats_split_of(dataset.splits)):
        typer.secho(f"note: {different}", fg="yellow", err=True)


@app.command()
def recode(
    source: SetPath,
    out: Annotated[Path, typer.Argument(help="The dataset to write; absent, or this very dataset.")],
    codec: Annotated[str, typer.Argument(help=CODECS)],
    max_error: MaxError = 0,
    tile: Tile = 0,
    workers: Workers = 1,
) -> None:
    """Write a dataset anew in another codec or in tiles: the same samples, splits and shards. `data bench` says which suits."""
    from data_shards.packing.pack import recoding

    build = partial(recoding, place_of(source), out, codec=codec, max_error=max_error, tile=tile)
    manifest = made([(f"recode {out.name}", build)], workers=workers, unit="cube")
    before, after = (sum(s.bytes for s in m.shards) for m in (read_manifest(place_of(source)), manifest))
    typer.echo(f"{out}: {_told(manifest)}; {before / after:.2f} times smaller")


@app.command()
def decode(
    source: SetPath,
    out: Annotated[Path, typer.Argument(help="The set to write, of pixels; absent, or begun by this command.")],
    autoencoder: Annotated[Path, typer.Option("--autoencoder", metavar="RUN/vqgan", help="The training folder of the set's decoder.")],
    workers: Annotated[int, typer.Option(help="Processes, each on a shard of its own.", min=1)] = 1,
) -> None:
    """Write a synthetic set of codes (sample.payload=codes) as pixels: the set that `sample` would have made of pixels, to the byte.

    Any number of processes work at it. Killed, the same command goes on.
    """
    from launch.report.card import write_decoded_card
    from launch.run import device
    from ldm.generation.decode import decoding

    codes = place_of(source)
    manifest = made([(f"decode {out.name}", partial(decoding, codes, autoencoder, out, device()))], workers=workers)
    write_decoded_card(codes, out)
    typer.echo(f"{out}: {_told(manifest)}")


@app.command()
def bench(
    source: Annotated[str, typer.Argument(help="A packed dataset or a folder of loose cubes: the kind that will be stored.")],
    at: Annotated[Path, typer.Option(help="A folder on the storage to try; what is written there is removed again.")] = Path("."),
    samples: Annotated[int, typer.Option(help="Cubes to try.", min=1)] = 16,
    max_error: MaxError = 0,
    crop: Annotated[int, typer.Option(help="Read square crops of so many pixels, and try tiles too; 0: whole cubes.", min=0)] = 0,
    threads: Annotated[int, typer.Option(help="Reading threads, as data.read.threads.", min=1)] = 2,
    seconds: Annotated[float, typer.Option(help="How long each codec is read, from the disk and then from the cache.", min=0)] = 2.0,
    as_json: AsJson = False,
) -> None:
    """Which codec suits this machine's storage: size and speed of each, cold and from the page cache."""
    from dataclasses import asdict
    from itertools import islice

    from data_shards.packing.bench import compare_codecs
    from data_shards.reading.dataset import cubes_of

    cubes = list(islice(cubes_of(place_of(source)), samples))
    speeds = compare_codecs(cubes, at, threads=threads, max_error=max_error, crop=crop, seconds=seconds)
    rows = list(progress(speeds, title="bench", unit="codec"))
    best = max((row for row in rows if not row.encoding.max_error), key=lambda row: row.cold_s).encoding
    tile = f" --tile {best.tile}" if best.tile else ""
    if as_json:
        found = [{**asdict(row), **asdict(row.encoding)} for row in rows]
        fastest = {"codec": best.codec, "tile": best.tile}
        typer.echo(json.dumps({"samples": len(cubes), "crop": crop, "threads": threads, "codecs": found, "fastest_cold": fastest}))
        return
    read, unit = (f"crops of {crop} x {crop}", "crops/s") if crop else ("whole", "cubes/s")
    table = Table(title=f"{len(cubes)} cubes of {cubes[0].data_CHW.shape}, {read}, {threads} threads, at {at.resolve()}")
    for column in ("codec", "times smaller", f"cold, {unit}", f"page cache, {unit}", "encoding, cubes/s"):
        table.add_column(column, justify="left" if column == "codec" else "right", no_wrap=column == "codec")
    for row in rows:
        table.add_row(str(row.encoding), f"{row.compression:.2f}", *(f"{rate:.1f}" for rate in (row.cold_s, row.warm_s, row.encode_s)))
    Console().print(table)
    typer.echo(f"fastest from this storage: {best}.  retinaforge data recode DATASET OUT {best.codec}{tile}")


def _told(manifest: Manifest) -> str:
    sizes = ", ".join(f"{name} {v['count']} cubes of {v['subjects']} subjects" for name, v in manifest.splits.items())
    bound = f"; no count further off than {manifest.max_error}" if manifest.max_error else ""
    return f"{sizes}; {len(manifest.shards)} shards; digest {manifest.digest[:12]}{bound}"


@app.command()
def index(
    folder: Annotated[Path, typer.Argument(help="A folder of SPLIT-NUMBER.tar shards, ours or written by stock webdataset.")],
    changed: Annotated[
        bool,
        typer.Option("--changed", help="Take shards that are not those of dataset.json: they were written, added or removed on purpose."),
    ] = False,
) -> None:
    """Write the index of each shard, band statistics and dataset.json for shards that lie there without.

    Where they stand already, the shards have to be those that were indexed: one with a flipped bit is refused (exit code 4).
    """
    from data_shards.packing.existing import index_folder

    manifest = index_folder(folder, changed=changed)
    typer.echo(f"{folder}: {sum(s.count for s in manifest.shards)} cubes in {len(manifest.shards)} shards; digest {manifest.digest[:12]}")


@app.command()
def verify(dataset: SetPath, as_json: AsJson = False) -> None:
    """Check every byte of a dataset; faults are named by shard and sample. Exit code 4 when there is one."""
    from data_shards.packing.verify import mend_of
    from data_shards.packing.verify import verify as verify_set

    shards = len(read_manifest(place_of(dataset)).shards)
    faults = dict(progress(verify_set(place_of(dataset)), total=shards + 1, title=f"verify {dataset}", unit="file"))
    faults = {name: found for name, found in faults.items() if found}
    if as_json:
        typer.echo(json.dumps({"dataset": str(dataset), "shards": shards, "faults": faults}))
    if faults:
        lines = "\n".join(f"  {name}: {fault}" for name, found in faults.items() for fault in found)
        said = f"{sum(map(len, faults.values()))} faults:\n{lines}"
        raise CorruptData(said, where=dataset, mend=mend_of(faults, place_of(dataset)))
    if not as_json:
        typer.echo(f"{dataset}: {shards} shards verified, no fault")


@app.command()
def stats(dataset: SetPath, as_json: AsJson = False) -> None:
    """Per-band reflectance statistics of the training split; computed and recorded when the manifest has none."""
    from dataclasses import asdict, replace

    from data_shards.manifest import write_manifest
    from data_shards.packing.pack import band_stats
    from data_shards.reading.dataset import Dataset

    data = Dataset(place_of(dataset))
    if data.manifest.stats is None and isinstance(data.path, Path):
        write_manifest(data.path, replace(data.manifest, stats=band_stats(data, lambda it: progress(it, title="stats", unit="cube"))))
        data = Dataset(data.path)
    if as_json:
        typer.echo(json.dumps({"wavelengths_nm": data.wavelengths_nm, **asdict(data.stats)}))
        return
    table = Table(title=f"{dataset}: reflectance over {data.stats.values:,} pixels a band of split '{data.stats.split}'")
    for column in ("band", "nm", "mean", "std", "min", "max"):
        table.add_column(column, justify="right")
    rows = zip(data.wavelengths_nm, data.stats.mean_C, data.stats.std_C, data.stats.min_C, data.stats.max_C, strict=True)
    for c, (nm, *values) in enumerate(rows):
        table.add_row(str(c), f"{nm:g}", *(f"{v:.4f}" for v in values))
    Console().print(table)


@app.command()
def ls(
    path: Annotated[str, typer.Argument(help="A packed dataset or a folder of loose cubes.")],
    samples: Annotated[int, typer.Option(help="Also list this many samples of each split.", min=0)] = 0,
    as_json: AsJson = False,
) -> None:
    """What a dataset or a folder of cubes holds."""
    from data_shards import folder as loose
    from data_shards.manifest import NAME
    from data_shards.reading.dataset import Dataset

    if not is_url(path) and not (Path(path) / NAME).exists():
        keys = loose.keys_in(Path(path))
        first = loose.read_cube(Path(path), keys[0])
        summary = {
            "loose cubes": len(keys),
            "shape": first.data_CHW.shape,
            "wavelengths_nm": first.meta.wavelengths_nm,
            "first": keys[:samples],
        }
    else:
        data = Dataset(place_of(path))
        summary = {
            "payload": data.payload,
            "shape": data.shape,
            "dtype": data.manifest.dtype,
            "wavelengths_nm": data.wavelengths_nm,
            "splits": data.manifest.splits,
            "shards": len(data.manifest.shards),
            "max_error": data.manifest.max_error,
            "bytes": sum(s.bytes for s in data.manifest.shards),
            "digest": data.digest,
        }
        if data.payload == "codes":
            summary["decoder"] = data.manifest.source.get("decoder")
        if samples:
            summary["samples"] = {
                s: list(zip(data.keys(s), data.subjects(s), strict=True))[:samples] for s, info in data.splits.items() if info.count
            }
    if as_json:
        typer.echo(json.dumps(summary))
        return
    table = Table(title=str(path), show_header=False)
    for name, value in summary.items():
        table.add_row(name, ", ".join(f"{v:g}" for v in value) if name == "wavelengths_nm" else str(value))
    Console().print(table)
