"""What a sweep found: a row for each set, which of them no other beats, and the one that is recommended."""

from __future__ import annotations

import csv
import io
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
from ldm.generation.speed import Pace

FORMAT = "retinaforge-sweep-results-1"
LEAST_SHARE = 0.1  # of the fastest set's pace, that a recommended one has
MEASURES = {
    "frechet": "Fréchet",
    "ms_ssim": "|ΔMS-SSIM|",
    "kl_artery": "KL artery",
    "kl_vein": "KL vein",
    "kl_onh": "KL disc",
}
"""By key: the measures of the reference's five panels, in their order; KL in nats. Lower is better."""
RULE = (
    f"Of the sets that no other beats, and that are at least {LEAST_SHARE:g} as fast as the fastest, the one with the lowest sum of ranks "
    "over the measures that all sets have; of equals the faster."
)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A figure of a set: its value, the same of other real people in its place, and why there is none."""

    value: float | None = None
    floor: float | None = None
    reason: str | None = None


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
        pace: of the whole path.
        measures: by the keys of MEASURES.
    """

    cell: Cell
    sampler: str
    reason: str | None = None
    denoiser_parameters: int
    psnr_gain_db: float | None = None
    trained_s: float | None = None
    pace: Pace | None = None
    measures: Mapping[str, Measure] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.cell.name} {self.sampler}"

    def value(self, key: str) -> float | None:
        return self.measures.get(key, Measure()).value


@dataclass(frozen=True, kw_only=True)
class Results:
    """results.json.

    Attributes:
        rows: of all sets, in the order of the axes.
        compared: keys of the measures that all finished sets have; the front and the recommendation are of these.
        front: names of the sets that no other beats: as fast, and as good in each measure compared, and better in one of them.
        recommended: name of one of them; None where none was finished.
        why: the reason, or why there is none.
        rule: by which it was chosen.
        devices: on which sets were timed; with several, sets are compared on that of most sets alone.
    """

    format: str = FORMAT
    axes: Axes
    rows: tuple[Row, ...]
    compared: tuple[str, ...]
    front: tuple[str, ...]
    recommended: str | None
    why: str
    rule: str = RULE
    devices: tuple[str, ...]


def read_evaluation(path: Path) -> dict[str, Measure]:
    """The measures of MEASURES out of an evaluate.json: the one place that knows its form.

    The Fréchet distance is at the number of images that the floor has, so that both compare.
    """
    result = read_result(path, EvaluationResult)
    if result is None:
        return dict.fromkeys(MEASURES, Measure(reason="an evaluation of an earlier version"))
    m, regions = result.ms_ssim, result.spectral.regions
    space = next((space for space in result.spaces.values() if not space.reason), next(iter(result.spaces.values())))
    return {
        "frechet": Measure(value=space.frechet.value, floor=space.frechet.floor, reason=space.reason),
        "ms_ssim": Measure(value=m.difference, floor=m.difference_floor, reason=m.reason),
        **{
            f"kl_{name}": Measure(value=regions[name].kl_mean, floor=regions[name].floor_kl_mean, reason=regions[name].reason)
            for name in ("artery", "vein", "onh")
        },
    }


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
            reason = f"stopped: {why}" if why else None if pace and evaluated.exists() else "not made yet"
            yield Row(
                **of_networks,
                sampler=run.folder.name,
                reason=reason,
                pace=pace,
                measures={} if reason else read_evaluation(evaluated),
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
    """The finished sets that were timed on one device, that of most of them."""
    finished = [row for row in rows if row.reason is None and row.pace]
    devices = [row.pace.device for row in finished]
    most = max(sorted(set(devices)), key=devices.count, default=None)
    return [row for row in finished if row.pace.device == most]


def results_of(axes: Axes, rows: Sequence[Row]) -> Results:
    """The front and the recommendation, of rows."""
    sets = comparable(rows)
    keys = tuple(key for key in MEASURES if sets and all(row.value(key) is not None for row in sets))
    front = front_of(sets, keys) if keys else []
    recommended, why = recommendation(front, sets, keys)
    return Results(
        axes=axes,
        rows=tuple(rows),
        compared=keys,
        front=tuple(row.name for row in front),
        recommended=recommended,
        why=why,
        devices=tuple(sorted({row.pace.device for row in rows if row.pace})),
    )


def recommendation(front: Sequence[Row], sets: Sequence[Row], keys: Sequence[str]) -> tuple[str | None, str]:
    """A set by RULE, and the reason in a sentence."""
    if not sets:
        return None, "no set was finished"
    if not keys:
        return None, "the finished sets have no measure in common"
    fastest = max(row.pace.images_per_s for row in sets)
    fast = [row for row in front if row.pace.images_per_s >= LEAST_SHARE * fastest]
    rank = {row.name: {key: 1 + sum(other.value(key) < row.value(key) for other in sets) for key in keys} for row in fast}
    first, *others = sorted(fast, key=lambda row: (sum(rank[row.name].values()), -row.pace.images_per_s))
    ranks = ", ".join(f"{MEASURES[key]} {first.value(key):.3g} (rank {rank[first.name][key]} of {len(sets)})" for key in keys)
    second = f"; next comes {others[0].name} with {sum(rank[others[0].name].values())}" if others else ""
    share = first.pace.images_per_s / fastest
    return first.name, (
        f"{first.name}: no set beats it; sum of ranks {sum(rank[first.name].values())}: {ranks}; {first.pace.images_per_s:.3g} images/s, "
        f"{share:.2g} of the fastest{second}"
    )


def write_results(sweep: Sweep) -> Results:
    """results.json and results.csv, of what stands in the folder."""
    results = results_of(sweep.axes, list(rows_of(sweep)))
    durable.write_json(sweep.folder / "results.json", asdict(results))
    durable.write_bytes(sweep.folder / "results.csv", as_csv(results).encode())
    return results


def as_csv(results: Results) -> str:
    """A line a set, for spreadsheets; empty where there is no figure."""
    out = io.StringIO()
    columns = [column for key in MEASURES for column in (key, f"{key}_floor", f"{key}_reason")]
    writer = csv.writer(out, lineterminator="\n")
    head = ("compression", "latent_channels", "channels", "sampler", "state", "denoiser_parameters", "psnr_gain_db", "trained_s")
    writer.writerow((*head, "images_per_s", "images_per_s_low", "images_per_s_high", "device", "front", "recommended", *columns))
    for row in results.rows:
        pace = (row.pace.images_per_s, *row.pace.quartiles, row.pace.device) if row.pace else ("",) * 4
        measures = [row.measures.get(key, Measure()) for key in MEASURES]
        figures = ["" if v is None else v for m in measures for v in (m.value, m.floor, m.reason)]
        networks = ["" if v is None else v for v in (row.denoiser_parameters, row.psnr_gain_db, row.trained_s)]
        place = (row.cell.compression, row.cell.latent_channels, row.cell.channels, row.sampler, row.reason or "done")
        marks = (int(row.name in results.front), int(row.name == results.recommended))
        writer.writerow((*place, *networks, *pace, *marks, *figures))
    return out.getvalue()
