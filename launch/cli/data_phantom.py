"""retinaforge data phantom: eyes that never were, with exact labels."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from data_shards.errors import InputError
from launch.cli.units import made

PEOPLE, CAMERA = "Subjects", "Camera and noise"


def command(
    out: Annotated[Path, typer.Argument(help="Folder of loose cubes to write; an unfinished one is completed.")],
    subjects: Annotated[int, typer.Option(help="People; each has two eyes.", min=1, rich_help_panel=PEOPLE)] = 60,
    visits: Annotated[int, typer.Option(help="Cubes of each eye.", min=1, rich_help_panel=PEOPLE)] = 2,
    biomarker_share: Annotated[
        float, typer.Option(help="Share of subjects with the spectral biomarker.", min=0, max=1, rich_help_panel=PEOPLE)
    ] = 0.3,
    biomarker_strength: Annotated[
        float,
        typer.Option(
            help="Mean extra scattering of their inner retina at 500 nm (natural logarithm, one pass).", min=0, rich_help_panel=PEOPLE
        ),
    ] = 0.06,
    size: Annotated[int, typer.Option(help="Height and width in pixels.", rich_help_panel=CAMERA)] = 96,
    bands: Annotated[
        str,
        typer.Option(
            metavar="NM,…", help="Wavelengths from 440 to 910 nm. Default: the 16 bands from 900 to 465 nm.", rich_help_panel=CAMERA
        ),
    ] = "",
    field_degrees: Annotated[float, typer.Option(help="Field of view.", rich_help_panel=CAMERA)] = 31.5,
    central_disc: Annotated[
        bool, typer.Option("--central-disc", help="A small black disc in the middle, as some cameras leave.", rich_help_panel=CAMERA)
    ] = False,
    noise: Annotated[float, typer.Option(help="Factor on shot and read noise; 0 for none.", min=0, rich_help_panel=CAMERA)] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of everything.", min=0)] = 0,
    anatomy: Annotated[
        Path | None,
        typer.Option(
            metavar="DATASET",
            help="Paint the vessels and nerve heads of these labelled photographs instead; --subjects then has no meaning.",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes.", min=1)] = 1,
) -> None:
    """Make physical phantoms: hyperspectral cubes with exact labels of artery, vein and optic nerve head.

    Each cube is a function of (seed, subject, eye, visit) alone. The same command
    again writes only what is missing; more --subjects or --visits add to it.

    Examples:

    retinaforge data phantom out/phantom --subjects 60 --visits 2 --workers 2

    retinaforge data phantom out/painted --anatomy out/drive --size 672

    Then: retinaforge data pack out/phantom DATASET
    """
    from data_shards.cube import BANDS_16_NM
    from data_shards.importing.wavelengths import parse_wavelengths
    from data_shards.phantom.eyes import PhantomConfig, Phantoms
    from data_shards.phantom.painted import Painted

    try:
        wavelengths_nm = parse_wavelengths(bands) if bands else BANDS_16_NM
    except InputError as error:
        expected = "numbers in nm from 440 to 910, or a text file of them"
        raise InputError(
            f"{bands!r} is no band list", where="--bands", expected=expected, mend="--bands 900,815,730,640,555,465"
        ) from error
    config = PhantomConfig(
        size=size,
        wavelengths_nm=wavelengths_nm,
        seed=seed,
        field_degrees=field_degrees,
        central_disc=central_disc,
        biomarker_share=biomarker_share,
        biomarker_strength=biomarker_strength,
        noise=noise,
    )
    if anatomy:
        build = partial(Painted, config, anatomy, out, visits=visits)
    else:
        build = partial(Phantoms, config, out, subjects=subjects, visits=visits)
    written = made([(f"phantom {out.name}", build)], workers=workers, unit="cube")
    typer.echo(
        f"{out}: {written} cubes written now, {len(config.wavelengths_nm)} bands, {size}x{size}; next: retinaforge data pack {out} DATASET"
    )
