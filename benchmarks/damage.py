"""Whether the measures measure: sets of honest phantoms, damaged in one way and by three grades, and which figures see it.

Reference, floor, set, and whom the encoder is trained on and the features are whitened by, are phantoms of four groups of people. The
set's label maps are the true ones of what its images still show, so that no segmenter stands between damage and figure. A figure sees a
damage where its interval excludes the floor. Asked is that certain figures see the middle grade and put the grades in order, and that
others do not see it: a change of the veins' spectra must not move the nerve head's. A grade 0 in front, the set undamaged, says what chance
makes of each figure; it is drawn several times, each time of other people in reference, floor and set.

Not a benchmark of time: `ours` counts the figures that see the middle grade, `other` those that accuse an undamaged set, and `equal` says
whether what was asked holds.

Legend: C band, H W pixels.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import scipy.ndimage
from rounds import finish
from skimage.morphology import skeletonize

from data_shards.cube import LABELS, Cube
from data_shards.packing.pack import write_dataset
from data_shards.phantom.eyes import phantom_cube
from data_shards.phantom.persons import PhantomConfig
from data_shards.reading.dataset import Dataset
from launch.cli.display import Terminal
from launch.run import Run
from launch.stages import STAGES
from launch.stages.training import train
from launch.tree import load
from ldm.evaluation.evaluate import Evaluation
from ldm.evaluation.evaluation_result import EvaluateConfig
from ldm.evaluation.tables import Row, excess_bounds, rows_of_evaluation

VESSELS = (LABELS["artery"], LABELS["vein"])
EIGHT = np.ones((3, 3), int)  # neighbours along edges and corners
AROUND_PX = 3.0  # deviation of the weights by which the ground beneath an erased vessel is guessed
SPACES = ("seeded-conv-v1", "learned")
SEES = ("worse than real", "unlike real", "less varied than real", "more varied than real")


def blurred(cube: Cube, sigma_px: float, number: int) -> Cube:
    """As by a decoder that averages."""
    return changed(cube, scipy.ndimage.gaussian_filter(cube.data_CHW.astype(float), (0, sigma_px, sigma_px)))


def noisy(cube: Cube, share: float, number: int) -> Cube:
    """Independent noise; its deviation is this share of each band's within the field of view."""
    rng, deviation_C = np.random.default_rng((number, 1)), cube.data_CHW[:, cube.fov_HW].std(1)
    return changed(cube, cube.data_CHW + rng.normal(size=cube.data_CHW.shape) * share * deviation_C[:, None, None])


def veins_tilted(cube: Cube, strength: float, number: int) -> Cube:
    """The longest band of veins brighter, the shortest darker, by this share; nothing else is touched."""
    tilt_C = np.interp(cube.meta.wavelengths_nm, (min(cube.meta.wavelengths_nm), max(cube.meta.wavelengths_nm)), (-1.0, 1.0))
    vein_HW = cube.labels_HW == LABELS["vein"]
    return changed(cube, np.where(vein_HW, cube.data_CHW * (1 + strength * tilt_C[:, None, None]), cube.data_CHW))


def thin_erased(cube: Cube, share: float, number: int) -> Cube:
    """This share of the vessels no wider than two pixels gone, pieces between branchings drawn by lot; the ground goes on beneath them."""
    vessel_HW = np.isin(cube.labels_HW, VESSELS)
    line_HW, to_edge_HW = skeletonize(vessel_HW), scipy.ndimage.distance_transform_edt(vessel_HW)
    meeting_HW = line_HW & (scipy.ndimage.convolve(line_HW.astype(int), EIGHT, mode="constant") > 3)
    piece_HW, pieces = scipy.ndimage.label(line_HW & ~meeting_HW, EIGHT)
    width_N = 2 * scipy.ndimage.mean(to_edge_HW, piece_HW, np.arange(1, pieces + 1)) - 1
    thin_N = np.flatnonzero(width_N <= 2) + 1
    gone_N = np.random.default_rng((number, 2)).permutation(thin_N)[: round(share * len(thin_N))]
    # every vessel pixel goes with the nearest pixel of the centre line
    near = scipy.ndimage.distance_transform_edt(piece_HW == 0, return_distances=False, return_indices=True)
    erased_HW = vessel_HW & np.isin(piece_HW[tuple(near)], gone_N)
    edges_HW = scipy.ndimage.binary_dilation(erased_HW, EIGHT) & ~(vessel_HW & ~erased_HW)  # a vessel's light reaches beyond its label
    ground_HW = (cube.fov_HW & ~vessel_HW & ~edges_HW).astype(float)
    weight_HW = np.maximum(scipy.ndimage.gaussian_filter(ground_HW, AROUND_PX), 1e-9)
    beneath_CHW = scipy.ndimage.gaussian_filter(cube.data_CHW * ground_HW, (0, AROUND_PX, AROUND_PX)) / weight_HW
    labels_HW = np.where(erased_HW, LABELS["background"], cube.labels_HW).astype(np.uint8)
    return replace(changed(cube, np.where(edges_HW & cube.fov_HW, beneath_CHW, cube.data_CHW)), labels_HW=labels_HW)


def changed(cube: Cube, data_CHW: np.ndarray) -> Cube:
    """The cube with other values, in its counts."""
    return replace(cube, data_CHW=np.round(data_CHW).clip(0, 4095).astype(np.uint16))


def each(change: Callable[[Cube, float, int], Cube]) -> Callable[[Sequence[Cube], float], list[Cube]]:
    """A damage of every image by itself."""
    return lambda honest, grade: [change(cube, grade, number) for number, cube in enumerate(honest)]


def repeated(honest: Sequence[Cube], share: float) -> list[Cube]:
    """This share of the set are repeats of the rest, in turn."""
    different = max(2, round((1 - share) * len(honest)))
    return [honest[i % different] for i in range(len(honest))]


class Modes:
    """Images of the brightest people alone, each seen so often that the set keeps its size: no image is there twice."""

    def __init__(self, config: PhantomConfig) -> None:
        self.config = config

    def __call__(self, honest: Sequence[Cube], dropped: float) -> list[Cube]:
        bright = sorted(honest, key=lambda cube: -float(cube.data_CHW[:, cube.fov_HW].mean()))
        people = [int(cube.meta.subject_id[1:]) for cube in bright[: max(2, round((1 - dropped) * len(honest)))]]
        seen = ((eye, visit) for visit in range(len(honest)) for eye in ("OD", "OS"))
        views = ((who, eye, visit) for eye, visit in seen for who in people)
        return [phantom_cube(self.config, subject=who, eye=eye, visit=visit) for (who, eye, visit), _ in zip(views, honest, strict=False)]


@dataclass(frozen=True, kw_only=True)
class Damage:
    """What is done to a set.

    Attributes:
        of: the damaged set, of honest cubes and a grade.
        grades: from slight to severe.
        seen_by: figures that must see the middle grade, and put the grades in order. A word stands for all whose names hold it; one of
            them is enough. unseen_by: figures that must not see any grade.
    """

    of: Callable[[Sequence[Cube], float], list[Cube]]
    grades: tuple[float, float, float]
    seen_by: tuple[str, ...]
    unseen_by: tuple[str, ...] = ()


def damages(config: PhantomConfig) -> dict[str, Damage]:
    """By name."""
    return {
        "blur": Damage(of=each(blurred), grades=(0.5, 1.0, 2.0), seen_by=("Fréchet distance", "KID")),
        "noise": Damage(of=each(noisy), grades=(0.1, 0.25, 0.5), seen_by=("Fréchet distance", "KID")),
        "veins' spectra tilted": Damage(
            of=each(veins_tilted), grades=(0.05, 0.15, 0.4), seen_by=("KL, vein", "spectral angle, vein"), unseen_by=("KL, onh",)
        ),
        "thin vessels erased": Damage(of=each(thin_erased), grades=(0.25, 0.5, 1.0), seen_by=("vessel density", "Fréchet distance")),
        "modes dropped": Damage(of=Modes(config), grades=(0.5, 0.75, 0.9), seen_by=("Vendi", "coverage")),
        "repeats": Damage(of=repeated, grades=(0.25, 0.5, 0.9), seen_by=("Vendi", "coverage")),
    }


def phantoms(config: PhantomConfig, first: int, count: int) -> Iterator[Cube]:
    """One image of each of some people."""
    return (phantom_cube(config, subject=first + i, eye="OD", visit=0) for i in range(count))


def drawn(folder: Path, config: PhantomConfig, people: int, number: int) -> tuple[Dataset, list[Cube]]:
    """A real set, and an honest one beside it. The training people are the same in all draws, the others in none."""
    first = people * (1 + 3 * number)
    splits = {"train": phantoms(config, 0, people)}
    splits |= {split: phantoms(config, first + n * people, people) for n, split in enumerate(("val", "test"))}
    write_dataset(folder, splits, source={"phantom": config.record()})
    return Dataset(folder), list(phantoms(config, first + 2 * people, people))


def trained_encoder(folder: Path, real: Dataset, samples: int) -> Path:
    """The demo's feature encoder, trained for so many samples on the training people."""
    loop = (f"features.loop.{name}={samples}" for name in ("samples", "checkpoint_every"))
    run = Run(load("demo", [f"run={folder}", f"data.dataset={real.path}", "features.engine.tracker=none", *loop]))
    train(STAGES["features"], run, Terminal())
    return run.features


def rows_of(real: Dataset, made: Dataset, *, config: EvaluateConfig, learned: Path) -> list[Row]:
    """All figures of a set. What was measured of the real images for another set beside them is taken from there."""
    units = Evaluation(real, made, config, made.path.with_suffix(".json"), learned=learned)
    of_set, kept = (f"{made.digest[:8]}-", "pairs-synthetic"), real.path.with_suffix(".units")
    shutil.copytree(kept, units.out) if kept.exists() else units.out.mkdir()
    found = units.complete()
    if not kept.exists():
        shutil.copytree(units.out, kept, ignore=lambda _, names: [name for name in names if name.startswith(of_set)])
    return rows_of_evaluation(found)


def synthetic(folder: Path, cubes: Sequence[Cube]) -> Dataset:
    """The cubes as a generator's set: numbered, of nobody."""
    numbered = (replace(cube, meta=replace(cube.meta, key=f"{i:09d}", subject_id="synthetic"), fov_HW=None) for i, cube in enumerate(cubes))
    write_dataset(folder, {"synthetic": numbered}, source={})
    return Dataset(folder)


def farness(row: Row) -> float:
    """How far a figure lies on the side that is worse."""
    if row.worse == "both" or row.metric == "MS-SSIM of pairs":
        return abs(row.value - row.floor)
    return row.value if row.worse == "above" else -row.value


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What one figure makes of the grades of a damage, 0 first.

    Attributes:
        rows: one a grade, without those that have no value.
    """

    rows: tuple[Row, ...]

    @property
    def by_grade(self) -> tuple[bool, ...]:
        """Whether it sees it."""
        return tuple(row.verdict in SEES for row in self.rows)

    @property
    def ordered(self) -> bool:
        """The worse the grade, the worse the figure; what is there already in the undamaged set is the first of them."""
        far = [farness(row) for row in self.rows]
        return all(a <= b for a, b in pairwise(far))

    @property
    def marks(self) -> str:
        """● where it sees a grade; a tilde where it does not order them."""
        return "".join("●" if seen else "·" for seen in self.by_grade[1:]) + ("" if self.ordered else "~")


def seen(grades: Sequence[Sequence[Row]]) -> dict[str, Seen]:
    """By figure, of those that have a value, a floor and an interval at every grade."""
    by_name = [{row.metric: row for row in rows if None not in (row.value, row.floor, excess_bounds(row))} for rows in grades]
    return {name: Seen(rows=tuple(rows[name] for rows in by_name)) for name in by_name[0] if all(name in rows for rows in by_name)}


def holds(damage: Damage, figures: dict[str, Seen]) -> tuple[bool, list[str]]:
    """Whether what was asked of a damage is so, and what is not."""
    missed = [
        f"not seen, or not in order, by {word}"
        for word in damage.seen_by
        if not any(word in name and figure.by_grade[2] and figure.ordered for name, figure in figures.items())
    ]
    missed += [f"seen by {word}" for word in damage.unseen_by if any(word in name and any(figures[name].by_grade) for name in figures)]
    return not missed, missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two damages, fewer images, within 50 s: what is asked may not hold")
    args = parser.parse_args()
    size, people, pairs, samples, draws = (64, 16, 16, 64, 1) if args.quick else (96, 64, 96, 1280, 5)
    config, began = PhantomConfig(size=size, seed=18), time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        real, honest = drawn(folder / "0", config, people, 0)
        learned = trained_encoder(folder / "run", real, samples)
        judged = partial(rows_of, config=EvaluateConfig(extractors=SPACES, pairs=pairs), learned=learned)
        print(f"encoder trained ({time.monotonic() - began:.0f} s)", flush=True)
        undamaged = [judged(real, synthetic(folder / "honest", honest))]
        for number in range(1, draws):
            others, set_of_others = drawn(folder / f"{number}", config, people, number)
            undamaged.append(judged(others, synthetic(folder / f"honest-{number}", set_of_others)))
        accused = [{row.metric for row in rows if row.verdict in SEES} for rows in undamaged]
        print(f"undamaged, accused by: {'; '.join(', '.join(sorted(names)) or 'none' for names in accused)}", flush=True)
        by_damage: dict[str, dict[str, Seen]] = {}
        rows, chosen = [], damages(config)
        for name, damage in list(chosen.items())[2:4] if args.quick else chosen.items():
            grades = [undamaged[0]]
            for number, grade in enumerate(damage.grades):
                grades.append(judged(real, synthetic(folder / f"{name}-{number}", damage.of(honest, grade))))
            by_damage[name] = figures = seen(grades)
            right, missed = holds(damage, figures)
            print(f"{name}: {'as asked' if right else '; '.join(missed)} ({time.monotonic() - began:.0f} s)", flush=True)
            middle, none = sum(figure.by_grade[2] for figure in figures.values()), sum(map(len, accused)) / len(accused)
            rows.append({"case": name, "ours": middle, "other": none, "unit": "figures", "ratio": middle / max(none, 1), "equal": right})
    show(by_damage, {name: chosen[name].grades for name in by_damage}, accused)
    finish("damage", rows)


def show(by_damage: dict[str, dict[str, Seen]], grades: dict[str, tuple[float, float, float]], accused: Sequence[set[str]]) -> None:
    """The table of docs/quality.md: a row a figure, a column a damage."""
    titles = (f"{name}: {', '.join(f'{grade:g}' for grade in grades[name])}" for name in by_damage)
    print(f"| figure | undamaged | floor | accused of {len(accused)} | {' | '.join(titles)} |")
    print("|---|---|---|---|" + "---|" * len(by_damage))
    first = next(iter(by_damage.values()))
    for name, figure in first.items():
        row = figure.rows[0]
        cells = (f"{figures[name].marks} {figures[name].rows[2].value:.3g}" if name in figures else "–" for figures in by_damage.values())
        times = sum(name in names for names in accused)
        print(f"| {name} | {row.value:.3g} | {row.floor:.3g} | {times} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
