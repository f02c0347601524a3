"""A sweep: autoencoders are shared, nothing is made twice, hopeless runs are stopped by a stated rule, the front is drawn."""

from __future__ import annotations

import csv
import json
import pickle
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import yaml

import launch.sweep.pieces
import launch.work
from data_shards import durable
from data_shards.errors import InputError
from data_shards.ledger import Ledger, Units
from launch.cli.display import Hidden, Terminal
from launch.config import Config
from launch.machine import device_key
from launch.run import read_result
from launch.sweep.axes import Axes, Cell, cost_of, impossible, in_order, sampler_named, set_name
from launch.sweep.figure import draw
from launch.sweep.pieces import Paces, Pieces, phases, try_again
from launch.sweep.results import Measure, Row, _frechet, _size, comparable, front_of, ranks, results_of
from launch.sweep.runs import Sweep, base_of
from launch.sweep.stopping import Hopeless, Rules, Stopped, Watched, stopped_in
from launch.tree import load
from launch.work import work
from ldm.evaluation.space import Compared, SpaceFigures
from ldm.generation.speed import Pace, Speed
from ldm.models.config import ObjectiveConfig, SamplerConfig
from ldm.models.objective import noised, schedule, white_loss
from tests.commands import invoke

TINY = {
    "data": {"phantom": {"size": 64, "seed": 1}, "subjects": 10, "visits": 1, "splits": {"train": 0.6, "val": 0.2, "test": 0.2}},
    "vqgan": {
        "model": {"channels": 8, "layers": 1, "norm_groups": 1},
        "codebook": {"codes": 16, "kmeans_vectors": 256},
        "discriminator": {"channels": 8, "layers": 2},
        "loss": {"gan": 0.0, "perceptual": 0.001},
        "optimizer": {"lr": 5.0e-3},
        "loop": {"samples": 96, "batch": 4, "log_every": 32, "checkpoint_every": 48},
        "engine": {"tracker": "none"},
    },
    "diffusion": {
        "model": {"layers": 1},
        "alignment": 0.1,
        "optimizer": {"lr": 4.0e-3},
        "loop": {"samples": 512, "batch": 8, "log_every": 64, "checkpoint_every": 128},
        "sampler": {"name": "flow-euler", "steps": 2, "sigma_min": 0.5},
        "engine": {"tracker": "none"},
    },
    "features": {
        "model": {"channels": 8, "levels": 2, "dimension": 16},
        "loop": {"samples": 32, "batch": 16},
        "engine": {"tracker": "none"},
    },
    "segmenter": {"model": {"channels": 4}, "loop": {"samples": 16, "batch": 8}, "engine": {"tracker": "none"}},
    "sample": {"count": 16, "batch": 2, "gate": 0.0},
}
GRID = ("--compression", "8", "--latent-channels", "4", "--channels", "8,16")
FORGIVING = ("--least-gain", "0")
AXES = Axes(compression=(8,), latent_channels=(8,), channels=(8, 16, 24, 32), samplers=(SamplerConfig(),))


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose lease stands still for a second is taken for dead."""
    monkeypatch.setattr(launch.work, "Ledger", partial(Ledger, still_s=1.0, beat_s=0.2))


def base(**sampler: object) -> Config:
    config = load("demo")
    return replace(config, diffusion=replace(config.diffusion, sampler=replace(config.diffusion.sampler, **sampler)))


# --- the grid ---------------------------------------------------------------------------------------------------------


def test_a_killed_sweep_goes_on_and_makes_nothing_twice(tiny: Path, tmp_path: Path, impatient: None) -> None:
    out = tmp_path / "grid"
    words = ["sweep", str(tiny), f"run={out}", *GRID, *FORGIVING]
    first = subprocess.Popen([Path(sys.executable).with_name("retinaforge"), *words], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    begun = out / "f8-z4-c16" / "diffusion" / "checkpoints"
    until = time.monotonic() + 200
    try:
        while not list(begun.glob("samples-*[1-9]*/COMMIT.json")):  # the cheaper one is done, the other is being trained
            assert first.poll() is None and time.monotonic() < until
            time.sleep(0.05)
    finally:  # also where it took too long: nothing is left behind
        first.send_signal(signal.SIGKILL)
        first.wait()
    kept = [p for p in out.rglob("*") if p.is_file() and not p.is_symlink() and set(p.parts) & {"data", "ae-f8-z4", "f8-z4-c8"}]
    before = {p: p.stat().st_mtime_ns for p in kept if "worked" not in p.parts}
    assert (out / "f8-z4-c8" / "sets" / "flow-euler-2" / "evaluate.json") in before

    said = invoke(*words)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert (out / "f8-z4-c16" / "vqgan").resolve() == out / "ae-f8-z4" / "vqgan"  # one autoencoder for both
    results = json.loads((out / "results.json").read_text())
    assert [row["reason"] for row in results["rows"]] == [None, None] and results["recommended"] in results["front"]
    assert results["recommended"] in said
    assert list(results["titles"])[:2] == ["frechet:seeded-conv-v1", "frechet:learned"]
    pace = read_result(out / "f8-z4-c8" / "sets" / "flow-euler-2" / "speed.json", Pace)
    assert pace.alone and pace.shards == 5 and pace.quartiles[0] <= pace.images_per_s <= pace.quartiles[1] and pace.device
    assert not list(out.rglob(".lease-*"))

    untimed = out / "f8-z4-c8" / "sets" / "flow-euler-2" / "speed.json"
    untimed.unlink()  # as a kill before its pace was measured leaves it
    made = [p for p in out.rglob("*.json") if p.parent != out and "worked" not in p.parts and p.name != "environment.json"]
    stamps = {p: p.stat().st_mtime_ns for p in made}
    invoke(*words)  # a finished sweep is looked at, and drawn
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    assert read_result(untimed, Pace).shards == 5 and not (untimed.parent / "timed").exists()
    with pytest.raises(InputError, match="another grid: axes.channels") as refusal:
        invoke("sweep", tiny, f"run={out}", *GRID[:4], *FORGIVING, "--channels", "8,24")
    assert "--channels 8,16" in str(refusal.value) and "run=runs/NAME" in str(refusal.value)
    with pytest.raises(InputError, match="another configuration: config.diffusion.loop.samples"):
        invoke(*words, "diffusion.loop.samples=640")


def test_an_autoencoder_below_the_bound_stops_all_that_would_be_made_of_it(tiny: Path, packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "grid"
    said = invoke("sweep", tiny, f"run={out}", f"data.dataset={packed}", "vqgan.loop.samples=4", "vqgan.optimizer.lr=1e-6", *GRID)
    stopped = stopped_in(out / "ae-f8-z4")
    assert stopped.figure < stopped.bound == Rules().psnr_gain_db
    assert not list(out.glob("f8-*/diffusion")) and said.count("stopped: PSNR of people held out") == 2
    assert "no set was finished and timed" in said and f"bound {stopped.bound:.3g}" in (out / "results.csv").read_text()
    ElementTree.fromstring((out / "sweep.svg").read_bytes())


def test_what_cannot_be_is_refused_before_anything_is_made(tiny: Path, tmp_path: Path) -> None:
    out, words = tmp_path / "grid", ("--latent-channels", "4", "--compression", "4,8,16")
    said = invoke("sweep", tiny, f"run={out}", "data.phantom.size=96", *words, "--channels", "8,20", "--dry-run")
    assert "f4-z4-c8 " in said and "cannot be: f16-z4-c8: latents of 6×6" in said and "cannot be: f4-z4-c20: channels 20" in said
    with pytest.raises(InputError, match="4 of 6 configurations cannot be"):
        invoke("sweep", tiny, f"run={out}", "data.phantom.size=96", *words, "--channels", "8,20")
    for wrong in (["--channels", "8,8"], ["--channels", "a"], ["--samplers", "flow-heun"], ["--samplers", "ddim:4"]):
        with pytest.raises(InputError):
            invoke("sweep", tiny, f"run={out}", *wrong)
    assert not out.exists()


def test_a_plain_run_is_no_sweep(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("{}")
    with pytest.raises(InputError, match="a run stands here, and no sweep"):
        invoke("sweep", tiny, f"run={tmp_path}", *GRID)


def test_the_cheapest_come_first_and_a_shared_autoencoder_costs_once(tmp_path: Path) -> None:
    cells = Axes(compression=(8,), latent_channels=(4, 8), channels=(16, 8), samplers=(SamplerConfig(),)).cells()
    costs = {cell: cost_of(cell.config(base(), tmp_path)) for cell in cells}
    first, second, *_ = in_order(cells, costs)
    assert first.channels == second.channels - 8 == 8 and first.autoencoder == second.autoencoder
    assert costs[second].denoiser_parameters > costs[first].denoiser_parameters


def test_what_the_discriminator_cannot_see_is_no_configuration(tmp_path: Path) -> None:
    cell = Cell(compression=4, latent_channels=4, channels=8)
    config = base()
    deep = replace(config, vqgan=replace(config.vqgan, discriminator=replace(config.vqgan.discriminator, layers=3)))
    assert "below 24 pixels" in impossible(deep, cell, (16, 16, 16), tmp_path)
    assert impossible(deep, cell, (16, 96, 96), tmp_path) is None


def test_solvers_keep_the_share_of_their_last_step() -> None:
    own = base(name="flow-heun", steps=8, sigma_min=0.125).diffusion.sampler
    euler = sampler_named("flow-euler:16", own, "flow")
    assert (euler.sigma_min, euler.shift, set_name(euler, "flow")) == (0.0625, own.shift, "flow-euler-16")
    assert set_name(SamplerConfig(steps=5), "flow") == "flow-heun-5"


def test_a_job_of_a_sweep_gets_on_by_what_its_pieces_commit(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job = json.loads(invoke("submit", "--array", "1-4", "--dry-run", "--json", "--", "sweep", tiny, "run=grid", *GRID))["job"]
    grid = tmp_path / "grid"
    for made in ("ae-f8-z4/vqgan", "f8-z4-c8/diffusion"):
        commit = grid / made / "checkpoints" / "samples-000000008" / "COMMIT.json"
        commit.parent.mkdir(parents=True)
        commit.touch()
        assert any(commit in Path("/").glob(pattern.lstrip("/")) for pattern in job["progress"])
    assert job["command"][1:3] == ["sweep", str(tiny)] and job["array"] == "1-4"


def test_ranks_are_no_way_to_share_a_sweep(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="a sweep by 2 ranks") as refusal:
        invoke("sweep", tiny, f"run={tmp_path / 'grid'}", *GRID)
    assert "--array" in str(refusal.value) and not (tmp_path / "grid").exists()


def test_further_processes_can_be_given_the_work(tiny: Path, packed: Path, tmp_path: Path) -> None:
    words = [f"run={tmp_path}", f"data.dataset={packed}", "sample.gate=0.5"]
    grid = Sweep(base=base_of(str(tiny), words), axes=AXES)
    builds = {title: pickle.loads(pickle.dumps(build)) for title, build in phases(grid, Terminal())}
    assert list(builds) == ["training spectra", "sweep"]
    assert builds["training spectra"]().names and builds["sweep"]().names == Pieces(grid, Hidden()).names


def test_what_found_no_memory_is_tried_again_by_the_next_process_and_what_a_rule_gave_up_is_not(
    tiny: Path, packed: Path, tmp_path: Path
) -> None:
    grid = Sweep(base=base_of(str(tiny), [f"run={tmp_path}", f"data.dataset={packed}"]), axes=AXES)
    pieces = Pieces(grid, Hidden())
    first, second = (number for number, name in enumerate(pieces.names) if name in ("f8-z8-c8", "f8-z8-c16"))
    Stopped(rule="no memory", passing=True).write(pieces.pieces[first].run.folder)
    Stopped(rule="a rule", figure=1.2, bound=1.0).write(pieces.pieces[second].run.folder)
    assert pieces.published(first) and pieces.published(second)
    try_again(grid)
    assert not pieces.published(first) and pieces.published(second)


def test_a_pace_is_measured_by_one_process_of_a_device_at_a_time(
    tiny: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch.sweep.pieces, "POLL_S", 0.02)
    axes = replace(AXES, channels=(8,))
    paces = Paces(Sweep(base=base_of(str(tiny), [f"run={tmp_path}", f"data.dataset={packed}"]), axes=axes))
    entered = threading.Event()

    def measure() -> None:
        with paces:
            entered.set()

    other = threading.Thread(target=measure)
    with Ledger(tmp_path).lease(f"pace-{device_key('cpu')}") as mine:
        other.start()
        assert mine and not entered.wait(0.2)
    other.join(10)
    assert entered.is_set() and not list(tmp_path.glob(".lease-*"))
    speed, beside_others = paces.pieces[0].run.folder / "speed.json", row(8, 100, 4.0).pace
    durable.write_json(speed, asdict(replace(beside_others, alone=False)))
    assert not paces.published(0), "measured while other pieces were being made"
    durable.write_json(speed, asdict(beside_others))
    assert paces.published(0)


class Chain(Units):
    """Each unit is made from the one before, which comes later in the list."""

    def __init__(self, out: Path) -> None:
        self.out, self.names, self.made = out, ["c", "b", "a"], []

    def published(self, number: int) -> bool:
        return number in self.made

    def ready(self, number: int) -> bool:
        return number == 2 or number + 1 in self.made

    def make(self, number: int) -> None:
        self.made.append(number)


def test_a_unit_waits_for_what_it_is_made_from(tmp_path: Path) -> None:
    units = Chain(tmp_path)
    work(units, Ledger(tmp_path), poll_s=0.01)
    assert units.made == [2, 1, 0]


# --- rules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [{}, {"times": "uniform"}, {"target": "v"}, {"target": "epsilon"}], ids=str)
def test_the_loss_of_who_takes_latents_for_noise_is_that_of_the_best_linear_answer(words: dict[str, str]) -> None:
    """Against least squares on drawn latents, at each of 400 drawn times."""
    objective = ObjectiveConfig(**words)
    z = torch.randn(400, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    x, _, wanted = noised(z, np.arange(400), objective, seed=3, scheduler=schedule(objective.target))
    slope = (x * wanted).sum((1, 2, 3), keepdim=True) / x.square().sum((1, 2, 3), keepdim=True)
    assert float((wanted - slope * x).square().mean()) == pytest.approx(white_loss(objective), rel=0.07)


@pytest.mark.parametrize(
    ("samples", "share", "ended"), [(20, 1.2, False), (25, 0.99, False), (25, 1.0, True), (80, 1.2, True), (25, float("nan"), True)]
)
def test_a_denoiser_is_given_up_from_a_quarter_on_where_it_has_learnt_nothing(samples: int, share: float, ended: bool) -> None:
    with Watched(Hidden(), Rules(), ObjectiveConfig()).training("diffusion", 100) as report:
        report(samples, {"loss": 9.0})  # what is not judged decides nothing
        row = {"val/loss": share * white_loss(ObjectiveConfig())}
        if not ended:
            report(samples, row)
            return
        with pytest.raises(Hopeless, match="bound 1") as why:
            report(samples, row)
    assert why.value.stopped.samples == samples and why.value.stopped.bound == 1.0


def test_a_denoiser_that_learns_nothing_is_a_row_with_its_reason(tiny: Path, packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "grid"
    words = [
        "sweep",
        tiny,
        f"run={out}",
        f"data.dataset={packed}",
        *GRID[:4],
        "--channels",
        "8",
        "--least-gain",
        "-100",
        "vqgan.loop.samples=8",
    ]
    words += ["diffusion.optimizer.lr=1e-12", "diffusion.loop.samples=32"]
    said = invoke(*words)
    stopped = stopped_in(out / "f8-z4-c8")
    assert stopped.figure >= stopped.bound and stopped.samples == 8 and f"({stopped.samples} samples)" in said
    again = (out / "f8-z4-c8" / "stopped.json").stat().st_mtime_ns
    assert invoke(*words).count("stopped: ") == 1 and (out / "f8-z4-c8" / "stopped.json").stat().st_mtime_ns == again


# --- pace and results -------------------------------------------------------------------------------------------------


def test_a_pace_is_the_median_of_whole_shards_without_the_first() -> None:
    speed = Speed()
    speed.shards = [(8, 99.0), (8, 1.0), (8, 2.0), (8, 4.0), (3, 0.001)]
    assert speed.pace("a processor") is None  # nothing was generated
    speed.generator = type("", (), {"batch": 4, "denoiser": type("", (), {"inference": type("", (), {"precision": "fp32"})})})
    pace = speed.pace("a processor")
    assert (pace.images_per_s, pace.shards, pace.images, pace.quartiles) == (4.0, 3, 8, (3.0, 6.0))
    speed.shards = speed.shards[:3]
    assert speed.pace("a processor") is None


def row(channels: int, per_s: float, frechet: float | None, kl: float | None = 1.0, device: str = "A", **more: object) -> Row:
    pace = Pace(
        device=device, precision="fp32", batch=1, images=1, shards=5, images_per_s=per_s, quartiles=(per_s * 0.9, per_s * 1.1), alone=True
    )
    measures = {"frechet:a": Measure(value=frechet, floor=0.1), "kl_vein": Measure(value=kl), "kl_onh": Measure(reason="no labels")}
    measures |= more.pop("measures", {})
    cell = Cell(compression=8, latent_channels=8, channels=channels)
    return Row(cell=cell, sampler="flow-euler-2", denoiser_parameters=1, pace=pace, measures=measures, **more)


def test_the_front_holds_who_no_other_beats() -> None:
    rows = [row(8, 100, 4.0), row(16, 50, 2.0), row(24, 40, 3.0), row(32, 10, 1.0)]
    assert [r.cell.channels for r in front_of(rows, ["frechet:a"])] == [8, 16, 32]
    assert [r.cell.channels for r in front_of([row(8, 1, 1.0), row(16, 1, 1.0)], ["frechet:a"])] == [
        8,
        16,
    ]  # of equals none beats the other
    assert [r.cell.channels for r in front_of([*rows[:3], row(32, 50, 2.0, kl=0.5)], ["frechet:a", "kl_vein"])] == [8, 32]


def test_the_recommended_set_has_the_lowest_ranks_of_the_front_and_says_so() -> None:
    rows = [row(8, 100, 4.0, 0.4), row(16, 50, 2.0, 0.2), row(24, 40, 3.0, 0.3), row(32, 5, 1.0, 0.1)]
    results = results_of(AXES, rows, ("a",))
    assert results.compared == ("frechet:a", "kl_vein")  # what not all have is not compared
    assert results.front == tuple(rows[i].name for i in (0, 1, 3))
    assert results.recommended == rows[1].name  # the best is below a tenth of the fastest
    assert "sum of ranks 4" in results.why and "0.5 of the fastest" in results.why and rows[0].name in results.why
    assert "one of 3 sets of 4 that no other beats" in results.why and "bare values: Fréchet, a, KL vein" in results.why


def test_sets_whose_intervals_overlap_do_not_outrank_one_another_and_measures_of_a_kind_count_once() -> None:
    def measured(channels: int, per_s: float, frechet: float, half: float, kl: float) -> Row:
        distance = Measure(value=frechet, interval=(frechet - half, frechet + half))
        return row(
            channels, per_s, frechet, kl, measures={"frechet:a": distance, "kl_onh": Measure(value=kl), "kl_artery": Measure(value=kl)}
        )

    rows = [
        measured(8, 90, 4.0, 0.1, 1.0),
        measured(16, 50, 2.1, 0.2, 1.0),
        measured(24, 40, 2.0, 0.2, 1.0),
        measured(32, 30, 3.0, 0.1, 0.9),
    ]
    by_kind = ranks(rows, ["frechet:a", "kl_artery", "kl_vein", "kl_onh"])
    assert [by_kind[r.name]["Fréchet"] for r in rows] == [4, 1, 1, 3]
    assert [by_kind[r.name]["KL"] for r in rows] == [2, 2, 2, 1], "three structures, one rank"
    results = results_of(AXES, rows, ("a",))
    assert results.recommended == rows[1].name, "not told apart from the third, and faster"
    assert "Fréchet rank 1 (2.1); KL rank 2 (1, 1, 1)" in results.why


def test_each_feature_space_is_a_column_and_where_they_disagree_is_said() -> None:
    line = "the feature spaces disagree: nearer by a"
    rows = [
        row(8, 100, 4.0, measures={"frechet:b": Measure(value=1.0)}, disagreements=(line,)),
        row(16, 50, 2.0, measures={"frechet:b": Measure(value=3.0)}),
        row(24, 20, 1.0, measures={"frechet:b": Measure(value=0.5)}, disagreements=(line,)),
    ]
    results = results_of(AXES, rows, ("a", "b"))
    assert list(results.titles.values())[:2] == ["Fréchet, a", "Fréchet, b"] and results.compared == ("frechet:a", "frechet:b", "kl_vein")
    assert results.disagreements == (
        "the feature spaces disagree: a and b put 1 of 3 pairs of sets in other orders",
        f"{line} ({rows[0].name}, {rows[2].name})",
    )
    refused = row(32, 10, 0.9, measures={"frechet:b": _frechet(SpaceFigures(extractor="b", d=1, reason="it tells nobody apart"))})
    without = results_of(AXES, [*rows, refused], ("a", "b"))
    assert without.compared == ("frechet:a", "kl_vein"), "no other space takes the place of one that is no judge"
    assert _frechet(None).reason and results.floor("frechet:a") == 0.1 and results.floor("frechet:b") is None


def test_an_interval_is_of_the_value_and_that_of_a_size_ends_at_nought() -> None:
    compared = Compared(value=5.0, floor=3.0, excess=2.0, excess_interval=(1.0, 4.0), interval=(4.9, 5.1))
    assert _frechet(SpaceFigures(extractor="x", d=1, frechet=compared)).bounds == (4.0, 7.0)
    assert _frechet(SpaceFigures(extractor="x", d=1, frechet=replace(compared, floor=None, excess_interval=None))).bounds == (4.9, 5.1)
    assert [_size(signed) for signed in ((-0.2, 0.1), (-0.3, -0.1), (0.1, 0.4), None)] == [(0, 0.2), (0.1, 0.3), (0.1, 0.4), None]


def test_sets_of_different_devices_are_not_compared() -> None:
    rows = [row(8, 100, 4.0), row(16, 50, 2.0), row(24, 9000, 0.1, device="B"), row(32, 1, 9.0, reason="stopped: x")]
    results = results_of(AXES, rows, ("a",))
    beside_others = replace(rows[1], pace=replace(rows[1].pace, alone=False))
    assert comparable([rows[0], beside_others]) == rows[:1], "nor one that was timed while other pieces were being made"
    assert comparable(rows) == rows[:2] and results.devices == ("A", "B") and rows[2].name not in results.front
    drawn = draw(results, "svg").decode()
    assert "timed on A" in drawn and "sets timed on B" in drawn and "2 of 4 sets are not shown" in drawn


def test_the_figure_has_a_panel_a_measure_says_what_is_missing_and_is_the_same_bytes_again() -> None:
    results = results_of(AXES, [row(8, 100, 4.0), row(16, 50, 2.0)], ("a",))
    drawn = draw(results, "svg")
    ElementTree.fromstring(drawn)
    assert all(title.partition(" ")[0] in drawn.decode() for title in results.titles.values())
    assert "not measured: no labels" in drawn.decode() and drawn == draw(results, "svg") and len(drawn) < 300_000
    assert (
        results_of(AXES, [], ("a",)).why == "no set was finished and timed"
        and draw(results_of(AXES, [], ("a", "b")), "png")[:4] == b"\x89PNG"
    )
    assert results_of(AXES, [row(8, 1, None, None)], ("a",)).recommended is None


def test_a_table_for_spreadsheets_has_a_line_a_set() -> None:
    from launch.sweep.results import as_csv

    stopped = row(16, 50, 2.0, reason=f"stopped: {Stopped(rule='a rule', figure=1.25, bound=1.0, samples=1000)}")
    lines = list(csv.DictReader(as_csv(results_of(AXES, [row(8, 100, 4.0), stopped], ("a",))).splitlines()))
    assert [line["state"] for line in lines] == ["done", "stopped: a rule: 1.25, bound 1 (1,000 samples)"]
    assert lines[0]["frechet:a"] == "4.0" and lines[0]["kl_onh"] == "" and lines[0]["kl_onh_reason"] == "no labels"
