"""What a sweep found: a row for each set, which of them no other beats, and the one that is recommended."""

from __future__ import annotations

import csv
import io
import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from data_shards import durable
from launch.run import read_result
from launch.stages.sample import SPEED
from launch.sweep.axes import Axes, Cell
from launch.sweep.runs import Sweep
from launch.sweep.stopping import stopped_in
from launch.worked import working_seconds
from ldm.evaluation.evaluation_result import EvaluationResult
from ldm.evaluation.reconstruction import ReconstructionResult
from ldm.evaluation.space import SpaceFigures
from ldm.generation.speed import Pace

FORMAT = "retinaforge-sweep-results-2"
LEAST_SHARE = 0.1  # of the fastest set's pace, that a recommended one has
FRECHET = "frechet:"  # and the name of a feature space
OTHERS = {"ms_ssim": "|ΔMS-SSIM|", "kl_artery": "KL artery", "kl_vein": "KL vein", "kl_onh": "KL disc"}
RULE = (
    f"Of the sets that no other beats, and that are at least {LEAST_SHARE:g} as fast as the fastest, the one with the lowest sum of three "
    "ranks: by Fréchet distance, as a mean over feature spaces; by MS-SSIM; by KL, as a mean over structures. Sets whose intervals "
    "overlap do not outrank one another. Of equals the faster."
)


def measures_of(spaces: Sequence[str]) -> dict[str, str]:
    """By key: the measures of the reference's panels, with a Fréchet distance in each feature space; KL in nats. Lower is better."""
    return {FRECHET + space: f"Fréchet, {space.rpartition('/')[2]}" for space in spaces} | OTHERS


def kind_of(key: str) -> str:
    """What a measure tells of: those of one kind, by other features or of other structures, are ranked as one."""
    return "Fréchet" if key.startswith(FRECHET) else "KL" if key.startswith("kl_") else OTHERS[key]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A figure of a set.

    Attributes:
        value, floor: of the set, and of other real people in its place.
        interval: what the value may be: 99 %, of its excess over the floor; without a floor 95 %, of itself; None: not known.
        reason: why there is no value.
    """

    value: float | None = None
    floor: float | None = None
    interval: tuple[float, float] | None = None
    reason: str | None = None

    @property
    def bounds(self) -> tuple[float, float]:
        """Its interval, or without one the value alone."""
        return self.interval or (self.value, self.value)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A set, or why there is none.

    Attributes:
        cell: of the networks.
        sampler: its name in the folder, such as flow-heun-8.
        reason: why there is no set: given up, or not made yet; None where there is one.
        denoiser_parameters: weights.
        psnr_gain_db: of the autoencoder, on people held out, above the training mean image.
        trained_s: working time of the denoiser's training, of all processes.
        pace: of the whole path; until it was measured alone, that of the set as it was made, or None.
        measures: by the keys of `measures_of`.
        disagreements: of the feature spaces, whether the set is nearer than other real images are.
    """

    cell: Cell
    sampler: str
    reason: str | None = None
    denoiser_parameters: int
    psnr_gain_db: float | None = None
    trained_s: float | None = None
    pace: Pace | None = None
    measures: Mapping[str, Measure] = field(default_factory=dict)
    disagreements: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.cell.name} {self.sampler}"

    def value(self, key: str) -> float | None:
        return self.measures.get(key, Measure()).value


@dataclass(frozen=True, kw_only=True)
class Results:
    """results.json.

    Attributes:
        titles: of the measures, by key.
        rows: of all sets, in the order of the axes.
        compared: keys of the measures that all finished sets have; the front and the recommendation are of these.
        front: names of the sets that no other beats: as fast, and as good in each measure compared, and better in one of them.
        recommended: name of one of them; None where none was finished.
        why: the reason, or why there is none.
        disagreements: of the feature spaces about the order of the sets, and about single ones.
        rule: by which it was chosen.
        devices: on which sets were timed; with several, sets are compared on that of most sets alone.
    """

    format: str = FORMAT
    axes: Axes
    titles: Mapping[str, str]
    rows: tuple[Row, ...]
    compared: tuple[str, ...]
    front: tuple[str, ...]
    recommended: str | None
    why: str
    disagreements: tuple[str, ...] = ()
    rule: str = RULE
    devices: tuple[str, ...]

    def floor(self, key: str) -> float | None:
        """What other real people reach in place of a set, the median over the sets; None where none has it."""
        floors = [row.measures[key].floor for row in self.rows if key in row.measures]
        return statistics.median_low(found) if (found := [floor for floor in floors if floor is not None]) else None


def read_evaluation(path: Path, spaces: Sequence[str]) -> tuple[dict[str, Measure], tuple[str, ...]]:
    """The measures of a set out of its evaluate.json, and where its feature spaces disagree: the one place that knows its form.

    A Fréchet distance is at the number of images that the floor has, so that both compare. In a space that is no judge there is none:
    another in its place would make a column of two measures.
    """
    result = read_result(path, EvaluationResult)
    if result is None:
        return dict.fromkeys(measures_of(spaces), Measure(reason="an evaluation of an earlier version")), ()
    found = {FRECHET + space: _frechet(result.spaces.get(space)) for space in spaces}
    m = result.ms_ssim
    found["ms_ssim"] = Measure(value=m.difference, floor=m.difference_floor, interval=_size(m.difference_interval), reason=m.reason)
    for name in ("artery", "vein", "onh"):
        r = result.spectral.regions[name]
        interval = _of_value(r.kl_excess_interval, r.floor_kl_mean) or r.kl_interval
        found[f"kl_{name}"] = Measure(value=r.kl_mean, floor=r.floor_kl_mean, interval=interval, reason=r.reason)
    return found, result.disagreements


def _frechet(space: SpaceFigures | None) -> Measure:
    if space is None:
        return Measure(reason="the set was not judged in this feature space")
    f = space.frechet
    interval = _of_value(f.excess_interval, f.floor) or f.interval
    return Measure(value=f.value, floor=f.floor, interval=interval, reason=space.reason or f.reason)


def _of_value(excess: tuple[float, float] | None, floor: float | None) -> tuple[float, float] | None:
    """Bounds of a value, of those of its excess over the floor."""
    return None if excess is None or floor is None else (floor + excess[0], floor + excess[1])


def _size(signed: tuple[float, float] | None) -> tuple[float, float] | None:
    """Bounds of |x|, of those of x."""
    if signed is None:
        return None
    low, high = sorted(map(abs, signed))
    return (0.0 if signed[0] <= 0 <= signed[1] else low), high


def rows_of(sweep: Sweep) -> Iterator[Row]:
    """A row for each configuration and solver, whatever of it there is."""
    for cell in sweep.axes.cells():
        denoiser, autoencoder = sweep.denoiser(cell), sweep.autoencoder(cell)
        rebuilt = read_result(autoencoder.folder / "reconstruction.json", ReconstructionResult)
        stopped = stopped_in(autoencoder.folder) or stopped_in(denoiser.folder)
        of_networks = {
            "cell": cell,
            "denoiser_parameters": sweep.costs[cell].denoiser_parameters,
            "psnr_gain_db": rebuilt.psnr_gain_db if rebuilt else None,
            "trained_s": working_seconds(denoiser.folder) or None,
        }
        for sampler in sweep.axes.samplers:
            run = sweep.set_of(cell, sampler)
            pace, evaluated = read_result(run.folder / SPEED, Pace), run.folder / "evaluate.json"
            why = stopped or stopped_in(run.folder)
            reason = f"stopped: {why}" if why else None if evaluated.exists() else "not made yet"
            measures, disagreements = ({}, ()) if reason else read_evaluation(evaluated, sweep.base.evaluate.extractors)
            yield Row(
                **of_networks,
                sampler=run.folder.name,
                reason=reason,
                pace=pace,
                measures=measures,
                disagreements=disagreements,
            )


def front_of(rows: Sequence[Row], keys: Sequence[str]) -> list[Row]:
    """The sets that no other beats (Pareto): at least as fast, at least as good in each measure, and better in one of these."""

    def costs(row: Row) -> tuple[float, ...]:
        return (-row.pace.images_per_s, *(row.value(key) for key in keys))

    def beaten(row: Row) -> bool:
        mine = costs(row)
        others = (costs(other) for other in rows)
        return any(other != mine and all(a <= b for a, b in zip(other, mine, strict=True)) for other in others)

    return [row for row in rows if not beaten(row)]


def comparable(rows: Sequence[Row]) -> list[Row]:
    """The finished sets that were timed alone, on one device, that of most of them."""
    finished = [row for row in rows if row.reason is None and row.pace and row.pace.alone]
    devices = [row.pace.device for row in finished]
    most = max(sorted(set(devices)), key=devices.count, default=None)
    return [row for row in finished if row.pace.device == most]


def results_of(axes: Axes, rows: Sequence[Row], spaces: Sequence[str]) -> Results:
    """The front and the recommendation, of rows.

    Args:
        spaces: feature spaces, each a column.
    """
    sets, titles = comparable(rows), measures_of(spaces)
    keys = tuple(key for key in titles if sets and all(row.value(key) is not None for row in sets))
    front = front_of(sets, keys) if keys else []
    recommended, why = recommendation(front, sets, {key: titles[key] for key in keys})
    return Results(
        axes=axes,
        titles=titles,
        rows=tuple(rows),
        compared=keys,
        front=tuple(row.name for row in front),
        recommended=recommended,
        why=why,
        disagreements=tuple(disagreements(sets)),
        devices=tuple(sorted({row.pace.device for row in rows if row.pace})),
    )


def ranks(sets: Sequence[Row], keys: Sequence[str]) -> dict[str, dict[str, float]]:
    """Ranks by the name of each set and kind of measure, the mean over the measures of the kind.

    In a measure a set's rank is 1 and one more for each set that is surely better: whose whole interval lies below its own.
    """

    def rank(row: Row, key: str) -> int:
        return 1 + sum(other.measures[key].bounds[1] < row.measures[key].bounds[0] for other in sets)

    kinds = {kind: list(of_kind) for kind, of_kind in itertools.groupby(keys, kind_of)}
    return {row.name: {kind: statistics.mean(rank(row, key) for key in of_kind) for kind, of_kind in kinds.items()} for row in sets}


def recommendation(front: Sequence[Row], sets: Sequence[Row], compared: Mapping[str, str]) -> tuple[str | None, str]:
    """A set by RULE, and the reason in a sentence.

    Args:
        compared: titles of the measures that all sets have, by key.
    """
    if not sets:
        return None, "no set was finished and timed"
    if not compared:
        return None, "the finished sets have no measure in common"
    fastest = max(row.pace.images_per_s for row in sets)
    fast = [row for row in front if row.pace.images_per_s >= LEAST_SHARE * fastest]
    of_kind = ranks(sets, list(compared))
    total = {row.name: sum(of_kind[row.name].values()) for row in fast}
    first, *others = sorted(fast, key=lambda row: (total[row.name], -row.pace.images_per_s))
    stated = "; ".join(
        f"{kind} rank {rank:.3g} ({', '.join(f'{first.value(key):.3g}' for key in compared if kind_of(key) == kind)})"
        for kind, rank in of_kind[first.name].items()
    )
    second = f"; next comes {others[0].name} with {total[others[0].name]:.3g}" if others else ""
    unsure = [title for key, title in compared.items() if any(row.measures[key].interval is None for row in sets)]
    without = f"; without intervals, by bare values: {', '.join(unsure)}" if unsure else ""
    share = first.pace.images_per_s / fastest
    return first.name, (
        f"{first.name}, one of {len(front)} sets of {len(sets)} that no other beats: sum of ranks {total[first.name]:.3g}: {stated}; "
        f"{first.pace.images_per_s:.3g} images/s, {share:.2g} of the fastest{second}{without}"
    )


def disagreements(sets: Sequence[Row]) -> Iterator[str]:
    """Where feature spaces put sets in another order, and where they differ on whether a set is nearer than other real images are."""
    spaces = [key for key in (sets[0].measures if sets else ()) if key.startswith(FRECHET)]
    for one, other in itertools.combinations(spaces, 2):
        having = [row for row in sets if row.value(one) is not None and row.value(other) is not None]
        pairs = list(itertools.combinations(having, 2))
        apart = sum((a.value(one) - b.value(one)) * (a.value(other) - b.value(other)) < 0 for a, b in pairs)
        if apart:
            names = " and ".join(key.removeprefix(FRECHET) for key in (one, other))
            yield f"the feature spaces disagree: {names} put {apart} of {len(pairs)} pairs of sets in other orders"
    for line in dict.fromkeys(line for row in sets for line in row.disagreements):
        yield f"{line} ({', '.join(row.name for row in sets if line in row.disagreements)})"


def write_results(sweep: Sweep) -> Results:
    """results.json and results.csv, of what stands in the folder."""
    results = results_of(sweep.axes, list(rows_of(sweep)), sweep.base.evaluate.extractors)
    durable.write_json(sweep.folder / "results.json", asdict(results))
    durable.write_bytes(sweep.folder / "results.csv", as_csv(results).encode())
    return results


def as_csv(results: Results) -> str:
    """A line a set, for spreadsheets; empty where there is no figure."""
    out = io.StringIO()
    columns = [column for key in results.titles for column in (key, f"{key}_low", f"{key}_high", f"{key}_floor", f"{key}_reason")]
    writer = csv.writer(out, lineterminator="\n")
    head = ("compression", "latent_channels", "channels", "sampler", "state", "denoiser_parameters", "psnr_gain_db", "trained_s")
    writer.writerow((*head, "images_per_s", "images_per_s_low", "images_per_s_high", "device", "front", "recommended", *columns))
    for row in results.rows:
        pace = (row.pace.images_per_s, *row.pace.quartiles, row.pace.device) if row.pace else ("",) * 4
        measures = [row.measures.get(key, Measure()) for key in results.titles]
        figures = ["" if v is None else v for m in measures for v in (m.value, *(m.interval or (None, None)), m.floor, m.reason)]
        networks = ["" if v is None else v for v in (row.denoiser_parameters, row.psnr_gain_db, row.trained_s)]
        place = (row.cell.compression, row.cell.latent_channels, row.cell.channels, row.sampler, row.reason or "done")
        marks = (int(row.name in results.front), int(row.name == results.recommended))
        writer.writerow((*place, *networks, *pace, *marks, *figures))
    return out.getvalue()
