"""The physical retinal phantom: hyperspectral cubes of eyes that never were, with exact labels.

Legend: C band, H W pixels, S S pixels of the finer raster on which the anatomy is drawn.

A cube is a pure function of its config and of (subject, eye, visit). Subject, eye and visit have random streams of
their own, so that the anatomy of an eye stays the same over visits and sizes, and asking for more subjects changes none.
Anatomy: `vessels`, `fundus`. Who and when: `persons`. Optics: `spectra`, `camera`. Real anatomy instead: `painted`.
"""

from __future__ import annotations

import functools
import json
from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_shards import durable
from data_shards.cube import LABELS, Cube, CubeMeta
from data_shards.errors import InputError, UnsafeResume, moved_aside
from data_shards.folder import PHANTOM_RECORD, note_wanted, write_cube
from data_shards.ledger import Units
from data_shards.phantom.camera import FIELD_SHARE, field_of_view, render
from data_shards.phantom.drawing import VEIN_REFLEX, Footprint, rasterise
from data_shards.phantom.fundus import Fundus, layers, make_fundus
from data_shards.phantom.persons import EYE, TEXTURE, VESSELS, PhantomConfig, View, person, stream, view
from data_shards.phantom.spectra import Person, Tissue
from data_shards.phantom.vessels import MM_PER_DEGREE, Branch, Disc, grow_trees

__all__ = ["PhantomConfig", "phantom_cube", "write_phantoms"]

EYES = ("OD", "OS")
FINE_RASTER = 280  # smaller images are drawn on at least so many pixels and averaged
RECORD = PHANTOM_RECORD
Watch = Callable[[Iterable[int]], Iterable[int]]  # wraps what passes as cubes are written, to show progress


@dataclass(frozen=True, kw_only=True)
class Eye:
    """The anatomy of one eye, in mm."""

    fundus: Fundus
    trees: dict[str, list[Branch]]


@functools.lru_cache(maxsize=4)
def make_eye(seed: int, subject: int, side: int, age_years: float) -> Eye:
    """The anatomy, as a right eye; `side` 0 right, 1 left, drawn apart but with a person's likeness of disc and calibre."""
    shared = stream(seed, subject, EYE)
    rng = stream(seed, subject, side, EYE)
    large, tortuous, calibre = shared.normal(1, 0.07), shared.uniform(0.6, 1.5), shared.normal(1, 0.06)
    disc = Disc(
        x_mm=shared.normal(4.5, 0.12) + rng.normal(0, 0.06),
        y_mm=shared.normal(0.5, 0.14) + rng.normal(0, 0.08),
        half_width_mm=0.88 * large * rng.normal(1, 0.02),  # Quigley et al. 1990: 1.77 by 1.88 mm
        half_height_mm=0.94 * large * rng.normal(1, 0.02),
    )
    fundus = make_fundus(stream(seed, subject, side, TEXTURE), disc, age_years)
    return Eye(fundus=fundus, trees=grow_trees(stream(seed, subject, side, VESSELS), disc, tortuous, calibre))


def raster(config: PhantomConfig, seen: View, side: int, centre_mm: tuple[float, float]) -> tuple[int, float, np.ndarray, np.ndarray]:
    """The finer raster on which an eye is drawn.

    Returns: (finer pixels for one pixel, their size in mm, matrix, offset); matrix and offset take (x, y) in mm to
    (row, column).
    """
    finer = max(1, -(-FINE_RASTER // config.size))
    pixels = finer * config.size
    mm = config.field_degrees * MM_PER_DEGREE / (FIELD_SHARE * pixels)
    cos, sin, mirror = np.cos(seen.turn_rad), np.sin(seen.turn_rad), -1.0 if side else 1.0
    to_column_row = np.array([[mirror * cos, -sin * mirror], [-sin, -cos]]) / mm
    matrix = to_column_row[::-1].copy()
    offset = np.full(2, (pixels - 1) / 2) - matrix @ (np.array(centre_mm) + seen.shift_mm)
    return finer, mm, matrix, offset


def mean_over(field_SS: np.ndarray, finer: int) -> np.ndarray:
    """Mean over blocks of `finer` by `finer`."""
    size = len(field_SS) // finer
    return field_SS.reshape(size, finer, size, finer).mean((1, 3), dtype=np.float32) if finer > 1 else field_SS


def _mean_path(vessel: Footprint, finer: int) -> tuple[np.ndarray, np.ndarray]:
    """Share covered, and the mean path through the blood of the covered part."""
    covered = mean_over(vessel.covered, finer)
    return covered, mean_over(vessel.covered * vessel.path_mm, finer) / np.maximum(covered, 1e-6)


def tissue_of(eye: Eye, config: PhantomConfig, seen: View, side: int) -> Tissue:
    """Draw the anatomy on the pixels of one view."""
    centre_mm = (0.5 * eye.fundus.disc.x_mm, 0.35 * eye.fundus.disc.y_mm)
    finer, mm, matrix, offset = raster(config, seen, side, centre_mm)
    pixels = finer * config.size
    drawn = {kind: rasterise(tree, (matrix, offset), mm, pixels) for kind, tree in eye.trees.items()}
    back = np.linalg.inv(matrix)
    row, column = np.arange(pixels, dtype=np.float32)[:, None] - offset[0], np.arange(pixels, dtype=np.float32)[None, :] - offset[1]
    x_mm, y_mm = (back[k, 0] * row + back[k, 1] * column for k in (0, 1))
    rest = {name: mean_over(field_SS, finer) for name, field_SS in layers(eye.fundus, x_mm, y_mm).items()}
    artery, artery_mm = _mean_path(drawn["artery"], finer)
    vein, vein_mm = _mean_path(drawn["vein"], finer)
    reflex = mean_over(np.maximum(drawn["artery"].reflex, VEIN_REFLEX * drawn["vein"].reflex), finer)
    return Tissue(artery=artery, vein=vein, artery_mm=artery_mm, vein_mm=vein_mm, reflex=reflex, mm_per_pixel=mm * finer, **rest)


def label_map(tissue: Tissue, fov_HW: np.ndarray) -> np.ndarray:
    """Labels by majority: the class that covers half of the pixel, vessels over the nerve head, the larger share where two cross.

    Vessels thinner than a pixel would break into dots by that rule alone: where a vessel's share is the largest among
    its neighbours across (its centre line) a third of the pixel is enough.
    """
    labels_HW = np.where(tissue.onh >= 0.5, LABELS["onh"], LABELS["background"]).astype(np.uint8)
    either = np.maximum(tissue.artery, tissue.vein)
    ridge = np.zeros(either.shape, bool)
    padded = np.pad(either, 1)
    for a, b in (((0, 1), (2, 1)), ((1, 0), (1, 2)), ((0, 0), (2, 2)), ((0, 2), (2, 0))):
        first, second = (padded[y : y + len(either), x : x + either.shape[1]] for y, x in (a, b))
        ridge |= (either >= first) & (either >= second)
    vessel = (either >= 0.5) | (ridge & (either >= 1 / 3))
    labels_HW[vessel] = np.where(tissue.artery >= tissue.vein, LABELS["artery"], LABELS["vein"])[vessel]
    labels_HW[~fov_HW] = LABELS["background"]
    return labels_HW


def phantom_cube(config: PhantomConfig, *, subject: int, eye: str, visit: int) -> Cube:
    """One cube, a pure function of its arguments.

    Args:
        subject: number of the person, 0 or above. eye: 'OD' or 'OS'. visit: 0 or above.

    Returns: Cube with uint16 data of 12 bits, exact labels and field of view; key as s0007-OD-v1.

    Raises:
        InputError: no such eye, or negative numbers.
    """
    if eye not in EYES or subject < 0 or visit < 0:
        raise InputError(f"subject {subject}, eye {eye!r}, visit {visit}", expected="numbers from 0, eye 'OD' or 'OS'")
    side = EYES.index(eye)
    who, seen = person(config, subject), view(config, subject, side, visit)
    tissue = tissue_of(make_eye(config.seed, subject, side, who.age_years), config, seen, side)
    fov_HW = field_of_view(config)
    data_CHW = render(tissue, who, seen, fov_HW, (config.seed, subject, side, visit), config)
    meta = meta_of(config, who, key=key_of(subject, eye, visit), subject_id=f"s{subject:04d}", eye=eye, visit=visit)
    return Cube(data_CHW=data_CHW, meta=meta, labels_HW=label_map(tissue, fov_HW), fov_HW=fov_HW)


def meta_of(config: PhantomConfig, who: Person, *, key: str, subject_id: str, eye: str, visit: int, **notes: Any) -> CubeMeta:
    """The sample's metadata; its notes say what the subject is made of."""
    truth = {name: round(value, 4) for name, value in vars(who).items() if name != "biomarker"}
    return CubeMeta(
        key=key,
        wavelengths_nm=config.wavelengths_nm,
        scale=config.full_scale / 4095,
        subject_id=subject_id,
        eye=eye,
        acquired=str(visit),
        notes={"source": "phantom", "biomarker": who.biomarker > 0, "biomarker_strength": round(who.biomarker, 4), **truth, **notes},
    )


def key_of(subject: int, eye: str, visit: int) -> str:
    """As s0007-OD-v1."""
    return f"s{subject:04d}-{eye}-v{visit}"


class LooseCubes(Units):
    """Loose cubes in units: those of one eye or photograph. A cube is there once its metadata are, which are written last.

    Args:
        out: folder; `phantom.json` in it holds `record`. More cubes may be asked for later.
        units: the keys of each unit, by its name.

    Raises:
        InputError: a place that cannot be written. UnsafeResume: it holds phantoms of another config, or other files.
    """

    def __init__(self, out: Path, record: dict[str, Any], units: dict[str, list[str]]) -> None:
        self.out, self.names, self.keys = Path(out), list(units), list(units.values())
        claim(self.out, record, cubes=sum(map(len, self.keys)))
        self.missing = sum(not is_whole(self.out, key) for keys in self.keys for key in keys)

    def size(self, number: int) -> int:
        return len(self.keys[number])

    def published(self, number: int) -> bool:
        """Whether all cubes of a unit are there."""
        return all(is_whole(self.out, key) for key in self.keys[number])

    def make(self, number: int) -> None:
        """Write the cubes that are missing of a unit."""
        for visit, key in enumerate(self.keys[number]):
            if not is_whole(self.out, key):
                write_cube(self.out, self.cube(number, visit))

    @abstractmethod
    def cube(self, number: int, visit: int) -> Cube:
        """A cube of a unit."""

    def finish(self) -> int:
        """Remove what killed processes left; how many cubes were missing when this one began."""
        durable.sweep_published(self.out)
        return self.missing


class Phantoms(LooseCubes):
    """Phantoms of both eyes of each subject at each visit, in units of an eye; what is already there stays.

    Raises:
        InputError: no subjects or visits; and as LooseCubes.
    """

    def __init__(self, config: PhantomConfig, out: Path, *, subjects: int, visits: int = 2) -> None:
        if subjects < 1 or visits < 1:
            raise InputError(f"{subjects} subjects, {visits} visits", expected="1 or more of each", mend="--subjects 60 --visits 2")
        self.config, self.eyes = config, [(subject, eye) for subject in range(subjects) for eye in EYES]
        units = {f"s{subject:04d}-{eye}": [key_of(subject, eye, v) for v in range(visits)] for subject, eye in self.eyes}
        super().__init__(out, {"phantom": config.record()}, units)

    def cube(self, number: int, visit: int) -> Cube:
        subject, eye = self.eyes[number]
        return phantom_cube(self.config, subject=subject, eye=eye, visit=visit)


def write_phantoms(config: PhantomConfig, out: Path, *, subjects: int, visits: int = 2, watch: Watch = iter) -> int:
    """Phantoms by this process alone; how many cubes were written now."""
    return Phantoms(config, out, subjects=subjects, visits=visits).complete(watch)


def claim(out: Path, record: dict[str, Any], *, cubes: int) -> None:
    """Write down what `out` will hold, and how many cubes, so that nobody takes a part for the whole; or see that it holds the same.

    Raises:
        UnsafeResume: it holds something else. InputError: the place cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise InputError(
            "a file, where a folder of cubes has to stand", where=out, expected="an absent or empty folder", mend="choose another OUT"
        )
    with durable.explained(out):
        durable.make_folder(out)
        others = [path for path in out.iterdir() if not path.name.startswith(".") and path.name != RECORD]
        if others and not (out / RECORD).exists():  # in this order: whoever fills the folder writes the record first
            raise UnsafeResume(
                "the folder is not empty and no phantoms stand in it",
                where=out,
                expected="an absent or empty folder",
                mend="choose another OUT",
            )
        durable.write_bytes(out / RECORD, durable.readable_json(record), keep_first=True)
        there = (out / RECORD).read_bytes()
    try:
        held = json.loads(there)
    except ValueError:
        held = None
    if held != json.loads(durable.canonical_json(record)):
        raise UnsafeResume(
            f"phantoms of another configuration: {_difference(held, record)}",
            where=out / RECORD,
            expected="the same options",
            mend=f"choose another OUT, or {moved_aside(out)}",
        )
    note_wanted(out, cubes)


def _difference(held: Any, record: dict[str, Any]) -> str:
    """The settings that differ, as 'size 96, now 64'."""
    words = []
    for part, ours in record.items():
        theirs = held.get(part) if isinstance(held, dict) else None
        if isinstance(theirs, dict) and isinstance(ours, dict):
            words += [
                f"{name} {theirs.get(name)!r}, now {ours.get(name)!r}"
                for name in sorted({*ours, *theirs})
                if theirs.get(name) != ours.get(name)
            ]
        elif theirs != ours:
            words.append(f"{part} {theirs!r}, now {ours!r}")
    return "; ".join(words) or "other parts"


def is_whole(out: Path, key: str) -> bool:
    """KEY.json is written last, so it marks a whole sample."""
    return (out / f"{key}.json").exists() and (out / f"{key}.npy").exists()
