"""Evaluation as a whole: order of quality, floors, absent figures, determinism, and the command."""

import json
import shlex
import subprocess
from dataclasses import asdict, replace

import numpy as np
import pytest
import scipy.ndimage
from typer.testing import CliRunner

from data_shards.errors import CorruptData, InputError
from data_shards.folder import write_cube
from data_shards.ledger import LEASE
from data_shards.packing.pack import pack
from data_shards.reading.dataset import Dataset
from launch.cli import app
from launch.run import read_result
from ldm.evaluation.evaluate import Evaluation, evaluate
from ldm.evaluation.evaluation_result import EvaluateConfig, EvaluationResult
from ldm.evaluation.frechet import frechet_distance
from ldm.evaluation.sets import ImagesOfPeople, Part, check_comparable, evenly, real_parts
from ldm.evaluation.tables import NO_INTERVAL, rows_of_evaluation
from tests.conftest import made_cube

SIZE = 40  # MS-SSIM needs 33
SEEDED = "seeded-conv-v1"


def synthetic_set(folder, change, *, labels=False, count=24):
    """Images of people that the real set does not have, changed; without masks, as a generator leaves them."""
    for i in range(count):
        cube = made_cube(i + 1000, size=SIZE)
        data = np.round(change(cube.data_CHW.astype(float))).clip(0, 4095).astype(np.uint16)
        meta = replace(cube.meta, subject_id="synthetic", key=f"{i:09d}")
        write_cube(folder / "loose", replace(cube, data_CHW=data, meta=meta, fov_HW=None, labels_HW=cube.labels_HW if labels else None))
    pack(folder / "loose", folder / "set", splits={"synthetic": 1.0})
    return Dataset(folder / "set")


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    for i in range(80):
        write_cube(folder / "loose", made_cube(i, size=SIZE, split="train" if i < 40 else "val"))
    pack(folder / "loose", folder / "set")
    return Dataset(folder / "set")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return synthetic_set(tmp_path_factory.mktemp("good"), lambda x: x)


@pytest.fixture(scope="module")
def blurred(tmp_path_factory):
    return synthetic_set(tmp_path_factory.mktemp("blurred"), lambda x: scipy.ndimage.gaussian_filter(0.8 * x, (0, 3, 3)))


@pytest.fixture(scope="module")
def of_good(real, good):
    return evaluate(real, good, EvaluateConfig(pairs=30))


def test_images_of_the_same_law_are_at_the_floor(of_good):
    f, s, m = of_good.spaces[SEEDED], of_good.spectral.fov, of_good.ms_ssim
    assert f.frechet.value < 2 * f.frechet.floor
    assert f.kid.interval[0] < 0 < f.kid.interval[1]
    for figure in (f.frechet, f.kid, f.vendi):
        assert figure.excess_interval[0] < 0 < figure.excess_interval[1]
    assert f.precision.excess_interval is f.coverage.excess_interval is None, "halves of 10 images are too small for 5 neighbours"
    assert s.js_mean < 0.05 and s.floor_js_mean < 0.05
    assert m.difference_interval[0] < 0 < m.difference_interval[1]
    assert (f.n_real, f.n_synthetic, f.n_floor, f.d) == (20, 24, 20, 192)
    assert (m.window, m.pairs_real, m.pairs_synthetic) == (3, 30, 30)


def test_worse_images_have_worse_figures(real, blurred, of_good):
    worse = evaluate(real, blurred, EvaluateConfig(pairs=30))
    bad, fair = worse.spaces[SEEDED], of_good.spaces[SEEDED]
    assert bad.frechet.value > 3 * fair.frechet.value and bad.frechet.excess_interval[0] > 0
    assert bad.kid.value > fair.kid.interval[1]
    assert bad.precision.value < fair.precision.value and bad.coverage.value < fair.coverage.value
    assert worse.spectral.fov.js_mean > 3 * of_good.spectral.fov.js_mean
    assert worse.ms_ssim.difference > of_good.ms_ssim.difference
    assert bad.frechet.floor == fair.frechet.floor  # the floor hangs on the real set alone


def test_the_same_call_gives_the_same_result(real, good, of_good):
    assert evaluate(real, good, EvaluateConfig(pairs=30)) == of_good


def test_the_result_is_json_without_nan_and_names_its_data(real, good, of_good):
    assert json.loads(json.dumps(asdict(of_good), allow_nan=False))["format"] == "retinaforge-evaluation-4"
    assert of_good.reference == ImagesOfPeople(path=str(real.path), digest=real.digest, split="val", n=20, subjects=10)
    assert of_good.synthetic.digest == good.digest and of_good.floor_from.split == "val" and of_good.whitened_by.split == "train"
    assert of_good.spaces[SEEDED].extractor.startswith("seeded-conv-v1")


def test_labels_decide_which_regions_are_measured(real, of_good, tmp_path):
    artery = of_good.spectral.artery
    assert artery.kl_mean is None and artery.reason == "the synthetic set has no labels" and artery.floor_kl_mean > 0
    labelled = evaluate(real, synthetic_set(tmp_path, lambda x: x, labels=True), EvaluateConfig(pairs=4)).spectral
    assert labelled.artery.kl_mean > 0 and labelled.artery.reason is None
    assert labelled.onh.reason == "no pixel of this region in the real and the other set"


def test_few_images_give_no_infinity_and_small_images_no_ms_ssim(dataset, tmp_path):
    for i in range(6):
        write_cube(tmp_path / "loose", replace(made_cube(i + 500), fov_HW=None))
    pack(tmp_path / "loose", tmp_path / "set", splits={"synthetic": 1.0})
    result = evaluate(dataset, Dataset(tmp_path / "set"), EvaluateConfig())
    space = result.spaces[SEEDED]
    assert space.infinity.value is None and space.frechet.value > 0 and "6 images" in space.precision.reason
    assert result.ms_ssim.synthetic is None and "32 pixels" in result.ms_ssim.reason
    reasons = {row.metric: row.reason for row in rows_of_evaluation(result)}
    assert reasons[f"{SEEDED}: Fréchet distance, N → ∞"] and reasons["|MS-SSIM difference|"] and not reasons[f"{SEEDED}: Fréchet distance"]


def test_limit_takes_that_many_of_each(real, good):
    result = evaluate(real, good, EvaluateConfig(limit=7, pairs=5))
    assert result.reference.n == result.synthetic.n == result.floor_from.n == 7
    with pytest.raises(InputError, match="limit 1"):
        evaluate(real, good, EvaluateConfig(limit=1))


def test_of_fewer_than_four_people_no_figure_accuses_a_set_however_bad_it_is(real, blurred, tmp_path):
    labelled = synthetic_set(tmp_path, lambda x: 0.7 * x, labels=True)
    for synthetic, limit in ((blurred, 2), (labelled, 3)):
        rows = rows_of_evaluation(evaluate(real, synthetic, EvaluateConfig(limit=limit, pairs=5)))
        assert {row.verdict for row in rows} <= {"", NO_INTERVAL}
        assert {"KL, field of view", "spectral angle, field of view", "|MS-SSIM difference|"} <= {r.metric for r in rows if r.verdict}
        assert all(row.interval is row.excess_interval is None for row in rows)


def test_features_alone_for_a_distance_alone(real, good, of_good):
    reference = real_parts(real, "val", None).reference
    generated = Part(dataset=good, split=check_comparable(real, good), sample_N=evenly(24, None), independent=True)
    measured = Evaluation(real, good, EvaluateConfig(pairs=4), also=[reference, generated])
    measured.complete()
    white = measured.whitening(SEEDED)
    distance = frechet_distance(*(white(measured.features(part, SEEDED)) for part in (reference, generated)))
    assert distance == pytest.approx(of_good.spaces[SEEDED].frechet_all, rel=1e-6)


def folder_of(folder, people, *, images=2):
    """A real set with so many people in each split."""
    for split, (first, count) in people.items():
        for i in range(first * images, (first + count) * images):
            write_cube(folder / "loose", made_cube(i, size=SIZE, subject=f"s{i // images}", split=split))
    pack(folder / "loose", folder / "set")
    return Dataset(folder / "set")


def test_one_person_held_out_leaves_out_that_figure_with_its_reason_and_the_rest_goes_on(good, tmp_path):
    for images in (1, 2):  # one image cannot have a spread; two of one person pretend to have one
        real = folder_of(tmp_path / str(images), {"train": (0, 8), "val": (8, 1)}, images=images)
        result = evaluate(real, good, EvaluateConfig(pairs=4))
        space = result.spaces[SEEDED]
        assert space.frechet.value is None and "one person alone in split 'val'" in space.reason
        assert result.spectral.fov.kl_mean > 0
        shown = {row.metric: row for row in rows_of_evaluation(result)}
        assert shown[f"{SEEDED}: all"].reason == space.reason
        assert "people: only 1" in shown["KL, field of view"].note
        json.dumps(asdict(result), allow_nan=False)


def test_few_people_are_said_beside_the_figure(good, of_good, tmp_path):
    few = evaluate(folder_of(tmp_path, {"train": (0, 8), "val": (8, 3)}), good, EvaluateConfig(pairs=4))
    assert "people: only 3" in rows_of_evaluation(few)[0].note and few.spaces[SEEDED].frechet.value > 0
    assert few.spaces[SEEDED].frechet.interval is None, "halves of three people say nothing"
    assert "people" not in rows_of_evaluation(of_good)[0].note


def test_no_distance_to_the_training_split_is_a_mark_of_quality(real, good, tmp_path):
    result = evaluate(real, good, EvaluateConfig(against="train", pairs=4))
    space = result.spaces[SEEDED]
    assert space.frechet.value is space.kid.value is result.spectral.fov.kl_mean is result.spectra["fov"].sid is None
    assert "copies would come nearest" in space.reason and result.ms_ssim.synthetic is not None


def test_a_distance_rests_on_more_directions_than_the_features_vary_in_as_they_are(of_good):
    f = of_good.spaces[SEEDED]
    assert f.effective_rank < 4 < 10 < f.effective_rank_whitened < f.d


def test_a_slight_blur_that_features_as_they_are_hardly_see_is_seen(real, good, tmp_path):
    blurred = synthetic_set(tmp_path, lambda x: scipy.ndimage.gaussian_filter(x, (0, 0.7, 0.7)))
    sets = (("val", real, "val"), ("train", real, "train"), ("blurred", blurred, "synthetic"))
    parts = {name: Part(dataset=d, split=s, sample_N=evenly(24, None)) for name, d, s in sets}
    measured = Evaluation(real, blurred, EvaluateConfig(pairs=4), also=list(parts.values()))
    measured.complete()
    of, white = {name: measured.features(part, SEEDED) for name, part in parts.items()}, measured.whitening(SEEDED)
    plain, whitened = (
        frechet_distance(by(of["val"]), by(of["blurred"])) / frechet_distance(by(of["val"]), by(of["train"])) for by in (lambda x: x, white)
    )
    assert plain < 1 and whitened > 1.25  # 0.88 and 1.41; what leaks over the rim of the field of view is no part of it


def test_command(real, good, tmp_path):
    words = ["evaluate", "--real", str(real.path), "--synthetic", str(good.path), "--out", str(tmp_path / "e.json"), "--pairs", "4"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "Fréchet distance" in done.output and "floor" in done.output and "not comparable with published FID" in done.output
    assert json.loads((tmp_path / "e.json").read_text())["spaces"][SEEDED]["n_synthetic"] == 24
    as_json = CliRunner().invoke(app, [*words, "--json"])
    assert json.loads(as_json.stdout) == json.loads((tmp_path / "e.json").read_text())
    refused = CliRunner().invoke(app, [*words[:4], str(real.path), *words[5:]])
    assert isinstance(refused.exception, InputError) and refused.exception.exit_code == 2
    no_gpu_word = CliRunner().invoke(app, [*words, "--device", "tpu"])
    assert isinstance(no_gpu_word.exception, InputError)


def test_what_a_shard_left_is_read_again_and_where_it_was_damaged_the_advice_mends_it(real, good, tmp_path):
    first = Evaluation(real, good, EvaluateConfig(pairs=4), tmp_path / "e.json").complete()
    assert read_result(tmp_path / "e.json", EvaluationResult) == first
    (units,) = tmp_path.glob("e.units-*")
    damaged = sorted(units.iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(CorruptData, match="damaged") as caught:
        Evaluation(real, good, EvaluateConfig(pairs=4), tmp_path / "e.json").complete()
    subprocess.run(shlex.split(caught.value.mend.partition(", then")[0]), check=True)
    assert Evaluation(real, good, EvaluateConfig(pairs=4), tmp_path / "e.json").complete() == first


def test_units_of_an_earlier_request_go_unless_somebody_works_there(real, good, tmp_path):
    for seed in (0, 1, 2):
        Evaluation(real, good, EvaluateConfig(pairs=4, seed=seed), tmp_path / "e.json").complete()
        (kept,) = tmp_path.glob("e.units-*")
    (kept / f"{LEASE}unit").write_text("somebody 7\n")
    Evaluation(real, good, EvaluateConfig(pairs=4, seed=3), tmp_path / "e.json").complete()
    assert kept.exists() and len(list(tmp_path.glob("e.units-*"))) == 2
