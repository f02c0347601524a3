"""Figures of the report that are worked out there, its words, and that a run always comes to it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from data_shards.folder import write_cube
from data_shards.packing.pack import pack
from launch import headline
from launch.report.build import cards
from launch.report.parts import metric_part, time_spent
from ldm.evaluation.tables import Row, verdict
from tests.commands import invoke
from tests.conftest import made_cube
from tests.runs import configured


def test_shares_of_time_weigh_each_row_by_its_own_time() -> None:
    slow = {"samples": 10, "samples_per_s": 1.0, "time/data": 0.5, "time/forward": 0.2}
    fast = {"samples": 30, "samples_per_s": 10.0, "time/data": 0.1, "time/validate": 0.3}
    spent = time_spent([slow, fast])
    assert spent["samples_per_s"] == pytest.approx(30 / 12)
    assert spent["data"] == pytest.approx((10 * 0.5 + 2 * 0.1) / 12)
    assert spent["validate"] == pytest.approx(2 * 0.3 / 12) and spent["step"] == 0


FIGURES = {"psnr_gain_db": 12.0, "codes_used": 0.4, "frechet_over_gaussian_latents": 0.62, "seconds": 570.0, "left_out": {}}


def test_only_a_figure_better_than_wanted_has_the_colour_of_good_ones_and_each_target_stands_beside_it() -> None:
    found = {card.title: card for card in cards(FIGURES)}
    ratio = found["Fréchet distance ratio"]
    assert (ratio.style, ratio.value, ratio.verdict) == ("missed", "0.62", "wanted: at most 0.33, NOT reached")
    assert found["codes in use"].style == "missed" and found["working time"].style == "plain"
    assert found["reconstruction above the training mean image"].verdict == "wanted: at least 6.0 dB, reached"
    better = cards({**FIGURES, "frechet_over_gaussian_latents": 0.2, "cautions": {"frechet_over_gaussian_latents": "only 3 people"}})
    assert better[2].style == "reached" and better[2].verdict.endswith("only 3 people")


def test_a_figure_that_was_left_out_says_why() -> None:
    figures = {**FIGURES, "frechet_over_gaussian_latents": None, "left_out": {"frechet_over_gaussian_latents": "1 person held out"}}
    card = cards(figures)[2]
    assert (card.value, card.style, card.verdict) == (None, "missed", "left out: 1 person held out")
    assert "left out: 1 person held out" in "\n".join(headline.lines(figures))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"value": 0.001, "interval": (0, 0.002), "floor": 0.01, "floor_interval": (0, 0.02)},
            "not told apart here",
        ),  # below the floor: no praise
        ({"value": 0.5, "interval": (0.4, 0.6), "floor": 0.3, "floor_interval": (0.2, 0.41)}, "not told apart here"),
        ({"value": 0.5, "interval": (0.4, 0.6), "floor": 0.3, "floor_interval": (0.2, 0.39)}, "worse than real"),
        ({"value": 0.5, "floor": 0.4}, "no interval, no verdict"),
        ({"value": 0.5, "floor": None}, "no floor to compare with"),
        ({"value": None, "floor": None, "reason": "one person"}, ""),
        (
            {"metric": "MS-SSIM of pairs", "value": 0.9, "floor": 0.5, "excess_interval": (0.2, 0.6)},
            "less varied than real",
        ),
        (
            {"metric": "MS-SSIM of pairs", "value": 0.3, "floor": 0.5, "excess_interval": (-0.39, -0.01)},
            "more varied than real",
        ),
    ],
)
def test_a_metric_blames_or_abstains_and_never_praises(changed: dict, said: str) -> None:
    assert verdict(Row(**{"metric": "KL, field of view", "n": "8 / 8", **changed})) == said


def test_a_run_whose_people_bear_no_figure_ends_with_its_report_and_the_reasons(tmp_path: Path) -> None:
    """One person held out, and then nobody: after hours of training every figure that can be had stands in the report."""
    for name, held_out in (("one", ("val",)), ("nobody", ())):
        for i in range(9):
            write_cube(tmp_path / name / "loose", made_cube(i, subject=f"s{i}", split=held_out[0] if i == 8 and held_out else "train"))
        pack(tmp_path / name / "loose", tmp_path / name / "set")
        loop = {"samples": 16, "batch": 8, "log_every": 8, "checkpoint_every": 16, "validate_samples": 4}
        tree = {**configured(loop=loop, engine={"tracker": "none"}), "sample": {"count": 4, "shard": 4, "batch": 4}}
        tree["diffusion"]["sampler"] = {"steps": 2}
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**tree, "data": {"dataset": str(tmp_path / name / "set")}}))
        said = invoke("run", tmp_path / "tiny.yaml", f"run={tmp_path / name / 'run'}")
        figures = json.loads((tmp_path / name / "run" / "metrics.json").read_text())
        assert figures["frechet_over_gaussian_latents"] is None and "left out" in said
        html = (tmp_path / name / "run" / "report.html").read_text()
        assert "held out of training, at least 2 wanted" in html and "left out: " in html
        evaluation = json.loads((tmp_path / name / "run" / "evaluate.json").read_text())
        assert evaluation["spaces"]["seeded-conv-v1"]["frechet"]["value"] is None
        assert (evaluation["spectral"]["fov"]["kl_mean"] is None) == (name == "nobody")
        assert (figures["psnr_gain_db"] is None) == (name == "nobody")
    before = (tmp_path / "nobody" / "run" / "evaluate.json").stat().st_mtime_ns
    invoke("run", tmp_path / "tiny.yaml", f"run={tmp_path / 'nobody' / 'run'}")
    assert (tmp_path / "nobody" / "run" / "evaluate.json").stat().st_mtime_ns == before, "what was left out has been judged"


def test_a_ratio_that_an_earlier_version_measured_to_the_training_images_is_no_figure_of_today() -> None:
    earlier = {"psnr_gain_db": 12.0, "codes_used": 0.6, "frechet_over_gaussian_latents": 0.01, "seconds": 570.0}
    psnr, codes, ratio, seconds = cards(earlier)
    assert (ratio.value, ratio.style) == (None, "missed") and "earlier version" in ratio.verdict
    assert psnr.style == codes.style == "reached" and seconds.value == "570 s"
    assert "left out: of an earlier version" in "\n".join(headline.lines(earlier))


def test_results_of_an_earlier_version_are_named_not_shown(tmp_path: Path) -> None:
    (tmp_path / "evaluate.json").write_text('{"format": "retinaforge-evaluation-1"}')
    assert metric_part(SimpleNamespace(run=SimpleNamespace(folder=tmp_path))) is None
