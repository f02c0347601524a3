"""retinaforge data import: photographs and cubes of others become a folder of cubes."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from data_shards.errors import InputError
from launch.cli.progress import progress

if TYPE_CHECKING:
    from data_shards.importing.importer import ImportSummary, Item

FILES, PIXELS, MAPS, PEOPLE, SHAPE, SAFETY = "Reading", "Values and bands", "Labels and masks", "Subjects", "Size", "Limits"


class PixelOrder(str, enum.Enum):
    """How the pixels of a matrix follow each other."""

    rows = "rows"
    columns = "columns"


class MapOrientation(str, enum.Enum):
    """What the maps of a turned image were drawn on."""

    shown = "shown"
    stored = "stored"


def command(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="A file, or a folder of TIFF, PNG, JPEG, PPM, ENVI .hdr, HDF5, MATLAB .mat or .npy files.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of cubes to write; it appears when all of it is whole.")],
    pattern: Annotated[str, typer.Option(help="Which files of SRC ('**/*.tif' also looks into its folders).", rich_help_panel=FILES)] = "*",
    per_band: Annotated[
        bool,
        typer.Option(
            "--per-band",
            help="Each folder in SRC is one cube: one single-band image for each wavelength, as …555nm….tif.",
            rich_help_panel=FILES,
        ),
    ] = False,
    variable: Annotated[
        str, typer.Option("--variable", "--dataset", help="Name of the array in an HDF5 or MATLAB file.", rich_help_panel=FILES)
    ] = "",
    axes: Annotated[
        str,
        typer.Option(
            help="Order of the array's axes: CHW (.npy, HDF5), HWC (MATLAB, as size() shows it); CP or PC with --reshape.",
            rich_help_panel=FILES,
        ),
    ] = "",
    reshape: Annotated[
        str, typer.Option(metavar="HxW", help="The array is a matrix of bands and pixels; this is the image's size.", rich_help_panel=FILES)
    ] = "",
    pixel_order: Annotated[
        PixelOrder | None,
        typer.Option(help="With --reshape: pixels run along rows (numpy, C) or down columns (MATLAB).", rich_help_panel=FILES),
    ] = None,
    wavelengths: Annotated[
        str,
        typer.Option(
            metavar="LIST|FILE|hdf5:NAME",
            help="Band centres in nm: '610,545,465' (or '0.61,0.545um'), 'linspace:380:2500:198', with '/1-3,7' to leave out channels "
            "(from 1), a file, or hdf5:NAME, a data set or variable of the HDF5 or MATLAB file itself. "
            "Default: the file's own; colour photographs 610, 545, 465, noted as nominal.",
            rich_help_panel=PIXELS,
        ),
    ] = "",
    full_scale: Annotated[
        float | None,
        typer.Option(
            help="Value that means reflectance 1, e.g. 4095. Default: as the file says; else the dtype's largest; floats: 1.",
            rich_help_panel=PIXELS,
        ),
    ] = None,
    offset: Annotated[
        float | None,
        typer.Option(
            help="Reflectance of the value 0: reflectance = value / N + X. Default: as the file says; else 0.", rich_help_panel=PIXELS
        ),
    ] = None,
    nodata: Annotated[
        str | None,
        typer.Option(
            metavar="VALUE|none",
            help="Value of pixels that were not measured ('-9999', 'nan', several with commas); they leave the field of view. "
            "none: every value was measured. Default: as the file says.",
            rich_help_panel=PIXELS,
        ),
    ] = None,
    nodata_any: Annotated[
        bool,
        typer.Option(
            "--nodata-any",
            help="A pixel that lacks one band lies outside the field of view. Default: refused where bands differ.",
            rich_help_panel=PIXELS,
        ),
    ] = False,
    bad_bands: Annotated[
        str | None,
        typer.Option(metavar="LIST|none", help="Bands to leave out, from 1: '1-3,7'. Default: as the file says.", rich_help_panel=PIXELS),
    ] = None,
    float_range: Annotated[
        str,
        typer.Option(
            metavar="LO:HI",
            help="Reflectances that the stored 0 and 65535 mean, for float files (default 0:1), and for bands of different scales.",
            rich_help_panel=PIXELS,
        ),
    ] = "",
    nan_as: Annotated[
        float | None, typer.Option(help="Reflectance in place of NaN and infinity. Default: refuse them.", rich_help_panel=PIXELS)
    ] = None,
    labels: Annotated[
        str, typer.Option(metavar="DIR|GLOB", help="Label maps (PNG, GIF, TIFF, BMP, PGM, PPM), matched by name.", rich_help_panel=MAPS)
    ] = "",
    label_map: Annotated[
        str,
        typer.Option(
            metavar="V=CLASS,…",
            help="What their values mean: background, artery, vein or onh; colours as '#ff0000=artery'. Other values are refused.",
            rich_help_panel=MAPS,
        ),
    ] = "",
    onh: Annotated[
        str, typer.Option(metavar="DIR|GLOB", help="Masks of the optic disc; vessels stay on top of it.", rich_help_panel=MAPS)
    ] = "",
    onh_values: Annotated[
        str,
        typer.Option(
            metavar="VALUES",
            help="Values inside the --onh masks: 1,2 or 128-255 or #ff0000. Default: the brighter of two, refused where there are more.",
            rich_help_panel=MAPS,
        ),
    ] = "",
    onh_circles: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="Optic discs as circles: column file, key or image_id, and --onh-columns.", rich_help_panel=MAPS),
    ] = None,
    onh_columns: Annotated[
        str, typer.Option(metavar="X,Y,DIAMETER", help="Columns of --onh-circles, in pixels of the source image.", rich_help_panel=MAPS)
    ] = "x,y,diameter",
    fov: Annotated[str, typer.Option(metavar="DIR|GLOB", help="Masks of the field of view.", rich_help_panel=MAPS)] = "",
    fov_values: Annotated[
        str, typer.Option(metavar="VALUES", help="Values inside the --fov masks, as --onh-values.", rich_help_panel=MAPS)
    ] = "",
    map_orientation: Annotated[
        MapOrientation | None,
        typer.Option(
            help="Where an orientation tag turns an image: its maps were drawn on it as viewers show it, or as the file stores it. "
            "Default: as their sizes tell.",
            rich_help_panel=MAPS,
        ),
    ] = None,
    resize_labels: Annotated[
        bool, typer.Option("--resize-labels", help="Bring maps of another size to their image's, thin vessels whole.", rich_help_panel=MAPS)
    ] = False,
    match: Annotated[
        str,
        typer.Option(
            metavar="REGEX",
            help="Pair files whose names give the same first group. Default: the leading words in common.",
            rich_help_panel=MAPS,
        ),
    ] = "",
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Import images that lack a map or a row.", rich_help_panel=MAPS)
    ] = False,
    subjects: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            help="Columns file (or key), subject_id, optional eye, acquired, split; others are kept as notes.",
            rich_help_panel=PEOPLE,
        ),
    ] = None,
    subject_pattern: Annotated[
        str,
        typer.Option(
            metavar="REGEX",
            help="Subject from the file name: the first group, or groups subject, eye, acquired. Default: the name.",
            rich_help_panel=PEOPLE,
        ),
    ] = "",
    crop: Annotated[
        str, typer.Option(metavar="WINDOW", help="y0:y1,x0:x1 | center:HxW | fov (the box around the mask).", rich_help_panel=SHAPE)
    ] = "",
    pad_square: Annotated[
        bool, typer.Option("--pad-square", help="Then pad to a square, outside the field of view.", rich_help_panel=SHAPE)
    ] = False,
    resize: Annotated[
        str,
        typer.Option(
            metavar="HxW|H", help="Then resize: area mean (bilinear when enlarging); maps keep thin vessels whole.", rich_help_panel=SHAPE
        ),
    ] = "",
    max_values: Annotated[int, typer.Option(help="Refuse files that hold more values than this.", min=1, rich_help_panel=SAFETY)] = 2**30,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show which files belong together.", rich_help_panel=SAFETY)] = False,
) -> None:
    """Import photographs and cubes of others: bands first, uint16, with labels, field of view and subject.

    Integers are kept bit for bit. What was matched, cropped, resized or rounded
    stands in each sample's notes. The same command again continues after a kill.

    Examples:

    retinaforge data import DRIVE/images out/drive \\
      --labels DRIVE/av --label-map 0=background,1=artery,2=vein,3=background \\
      --onh DRIVE/optic_disc --fov DRIVE/fov

    retinaforge data import jasper.mat out/jasper --variable Y \\
      --reshape 100x100 --pixel-order columns --full-scale 5000 \\
      --wavelengths linspace:380:2500:224/1-3,108-112,154-166,220-224

    retinaforge data import scans out/scans --pattern '*.hdr' \\
      --subjects people.csv --crop fov --pad-square --resize 672x672

    Then: retinaforge data pack out/drive DATASET
    """
    from data_shards.formats import ReadOptions
    from data_shards.importing.config import ImportConfig
    from data_shards.importing.geometry import Geometry, parse_size
    from data_shards.importing.importer import import_cubes, plan
    from data_shards.importing.wavelengths import parse_wavelengths

    inside = wavelengths.partition(":")[2] if wavelengths.startswith(("hdf5:", "mat:")) else ""
    config = ImportConfig(
        source=source,
        pattern=pattern,
        per_band=per_band,
        read=ReadOptions(
            variable=variable,
            axes=axes,
            reshape_HW=parse_size(reshape, "--reshape") if reshape else None,
            pixel_order=pixel_order.value if pixel_order else "",
            max_values=max_values,
            centres=inside,
        ),
        wavelengths_nm=parse_wavelengths(wavelengths) if wavelengths and not inside else None,
        full_scale=full_scale,
        offset=offset,
        nodata=nodata,
        nodata_any=nodata_any,
        bad_bands=bad_bands,
        float_range=_float_range(float_range) if float_range else None,
        nan_as=nan_as,
        labels=labels,
        label_map=label_map,
        onh=onh,
        onh_values=onh_values,
        fov_values=fov_values,
        map_orientation=map_orientation.value if map_orientation else "",
        onh_circles=onh_circles,
        onh_columns=_columns(onh_columns),
        fov=fov,
        resize_labels=resize_labels,
        match=match,
        allow_missing=allow_missing,
        subjects=subjects,
        subject_pattern=subject_pattern,
        geometry=Geometry(crop=crop, pad_square=pad_square, resize=resize),
    )
    if dry_run:
        Console().print(pairs_table(plan(config)))
        return
    show(import_cubes(config, out, track=lambda items: progress(items, title=f"import {out.name}", unit="cube")), out)


def _float_range(text: str) -> tuple[float, float]:
    try:
        low, high = map(float, text.split(":"))
    except ValueError as error:
        raise InputError(f"range {text!r}", where="--float-range", expected="LO:HI", mend="--float-range 0:1") from error
    return low, high


def _columns(text: str) -> tuple[str, str, str]:
    names = tuple(name.strip() for name in text.split(","))
    if len(names) != 3 or not all(names):
        raise InputError(
            f"columns {text!r}", where="--onh-columns", expected="three names: X,Y,DIAMETER", mend="--onh-columns x,y,diameter"
        )
    return names


def pairs_table(items: list[Item]) -> Table:
    """What --dry-run shows: each image with its maps and its person."""
    roles = [role for role in ("labels", "onh", "fov") if any(role in item.maps for item in items)]
    table = Table(title=f"{len(items)} images")
    for name in ("key", "image", *roles, "subject", "eye", "split"):
        table.add_column(name, overflow="fold")
    for item in items:
        files = [item.maps[role].name if role in item.maps else "-" for role in roles]
        table.add_row(item.key, item.image.name, *files, item.person.subject_id, item.person.eye or "-", item.person.split or "-")
    return table


def show(summary: ImportSummary, out: Path) -> None:
    """One table of what stands in OUT, and what to do next."""
    table = Table(title=str(out), show_header=False)
    nm = summary.wavelengths_nm
    rows = {
        "cubes": f"{summary.cubes} ({summary.written} written now)",
        "bands": f"{len(nm)}: " + (", ".join(f"{w:g}" for w in nm) if len(nm) <= 16 else f"{nm[0]:g} … {nm[-1]:g}") + " nm",
        "values": "; ".join(summary.values),
        "height x width": ", ".join(
            f"{h}x{w}" + (f" ({n})" if len(summary.sizes) > 1 else "") for (h, w), n in sorted(summary.sizes.items())
        ),
        "subjects": str(summary.subjects) + "".join(f", {n} cubes in {name}" for name, n in sorted(summary.splits.items())),
        "with": ", ".join(f"{role} {n}" for role, n in sorted(summary.with_maps.items())),
        "pixels by label": ", ".join(f"{name} {share:.2%}" for name, share in summary.label_share.items()),
        "paired, e.g.": "; ".join(f"{option} {pair}" for option, pair in summary.pairs.items()),
        "left aside": f"{len(summary.ignored)} files of other kinds, e.g. {summary.ignored[0]}" if summary.ignored else "",
    }
    for name, text in rows.items():
        if text:
            table.add_row(name, text)
    Console().print(table)
    if summary.assumed:
        typer.echo(f"assumed: {summary.assumed}")
    if summary.joined:
        typer.secho(
            f"note: {len(summary.joined)} subjects have images in several folders, first {summary.joined[0]!r}; each counts as one person. "
            "If they are different people, state them: --subjects CSV",
            fg="yellow",
            err=True,
        )
    if len(summary.sizes) > 1:
        typer.echo("several sizes: a dataset needs one; import again with --resize (and --crop fov --pad-square)")
    else:
        typer.echo(f"next: retinaforge data pack {out} DATASET")
