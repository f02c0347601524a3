"""Judges that fail, refuse or differ: their figures are left out with the reason, and the rest of an evaluation stands."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data_shards.cube import LABELS
from data_shards.errors import InputError
from data_shards.packing.pack import write_dataset
from data_shards.reading.dataset import Dataset
from ldm.checkpoints.segmenter import Segmenter
from ldm.evaluation.evaluate import Evaluation, evaluate
from ldm.evaluation.evaluation_result import EvaluateConfig
from ldm.evaluation.features import EXTRACTORS, SeededConv
from ldm.evaluation.space import Compared, SpaceFigures, disagreements
from ldm.evaluation.tables import rows_of_evaluation
from tests.conftest import made_cube

SIZE = 40  # MS-SSIM needs 33


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("real") / "set"
    people = {"train": range(24), "val": range(24, 44)}
    write_dataset(folder, {split: (made_cube(i, size=SIZE) for i in of) for split, of in people.items()}, shard_mib=1, source={})
    return Dataset(folder)


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Of people that the real set does not have; without label maps."""
    folder = tmp_path_factory.mktemp("synthetic") / "set"
    cubes = (made_cube(i, size=SIZE) for i in range(1000, 1016))
    nobody = (replace(cube, meta=replace(cube.meta, subject_id="synthetic"), fov_HW=None, labels_HW=None) for cube in cubes)
    write_dataset(folder, {"synthetic": nobody}, source={})
    return Dataset(folder)


class Second(SeededConv):
    """Another feature space: other weights."""

    def __init__(self, stats: object) -> None:
        super().__init__(stats, seed=1, kernels=4)


class Blind(Second):
    """Its features are not finite where an image is brighter than another."""

    def __call__(self, reflectance_BCHW: torch.Tensor) -> torch.Tensor:
        features_BD = super().__call__(reflectance_BCHW)
        return torch.where(reflectance_BCHW.mean((1, 2, 3), keepdim=True)[:, :, 0, 0].cpu() > 0.35, torch.nan, features_BD)


class Refused(Second):
    refused = "it cannot tell people apart"


@pytest.fixture(autouse=True)
def _judges(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, kind in (("second", Second), ("blind", Blind), ("refused", Refused)):
        monkeypatch.setitem(EXTRACTORS, name, lambda asked, kind=kind: kind(asked.stats))


class ByBrightness:
    """A labeller: the brighter half of the view is vein, the brightest tenth artery."""

    digest, data = "b" * 64, {"wavelengths_nm": (500.0, 520.0, 540.0, 560.0), "scale": 1 / 4095, "offset": 0.0}
    check = Segmenter.check

    def __call__(self, stored_BCHW: torch.Tensor, fov_HW: torch.Tensor | None) -> torch.Tensor:
        mean_BHW = stored_BCHW.float().mean(1)
        middle, bright = (torch.quantile(mean_BHW.flatten(1), share, dim=1)[:, None, None] for share in (0.5, 0.9))
        labels_BHW = torch.where(mean_BHW > bright, LABELS["artery"], torch.where(mean_BHW > middle, LABELS["vein"], 0))
        return (labels_BHW * fov_HW).to(torch.uint8)


def judged(real: Dataset, synthetic: Dataset, *extractors: str, **more: object) -> dict[str, SpaceFigures]:
    result = evaluate(real, synthetic, EvaluateConfig(extractors=extractors, pairs=4), **more)
    json.dumps(asdict(result), allow_nan=False)
    assert result.spectral.fov.kl_mean is not None and result.ms_ssim.synthetic is not None, "the rest stands"
    assert rows_of_evaluation(result)
    return result.spaces


def test_features_that_are_not_finite_are_left_out_and_other_spaces_stand(real: Dataset, synthetic: Dataset) -> None:
    spaces = judged(real, synthetic, "blind", "second")
    assert spaces["blind"].frechet.value is None and "not finite" in spaces["blind"].reason
    assert spaces["second"].frechet.value > 0 and spaces["second"].reason is None


def test_where_every_judge_is_refused_the_rest_of_the_evaluation_stands(real: Dataset, synthetic: Dataset) -> None:
    spaces = judged(real, synthetic, "refused")
    assert spaces["refused"].reason == Refused.refused and spaces["refused"].kid.value is None


def test_one_labeller_draws_the_maps_of_both_sets(real: Dataset, synthetic: Dataset) -> None:
    config = EvaluateConfig(extractors=("second",), pairs=4)
    without, by_one = evaluate(real, synthetic, config), evaluate(real, synthetic, config, labeller=ByBrightness())
    assert without.labelled_by is None and without.spectral.vein.reason == "the synthetic set has no labels"
    assert by_one.labelled_by == ByBrightness.digest and by_one.spectral.vein.kl_mean > 0 and by_one.spectra["vein"].angle_rad > 0
    assert by_one.spectral.onh.reason.startswith("no pixel of this region")
    assert by_one.vessels["vessel density"].floor is not None and by_one.vessels["vessel density"].synthetic > 0


def test_a_labeller_that_was_trained_on_other_cubes_is_refused(real: Dataset, synthetic: Dataset) -> None:
    other = ByBrightness()
    other.data = {**ByBrightness.data, "scale": 1.0}
    with pytest.raises(InputError, match="cubes with scale"):
        Evaluation(real, synthetic, EvaluateConfig(extractors=("second",), pairs=4), labeller=other)


def test_any_number_of_workers_come_to_the_figures_of_one(real: Dataset, synthetic: Dataset, tmp_path: Path) -> None:
    config = EvaluateConfig(extractors=("second",), pairs=40)

    def units(path: Path | None) -> Evaluation:
        return Evaluation(real, synthetic, config, path, labeller=ByBrightness())

    alone, workers = units(None).complete(), [units(tmp_path / "e.json") for _ in range(3)]
    for rank, worker in enumerate(workers):
        with worker:
            for number in reversed(range(rank, len(worker.names), len(workers))):
                worker.make(number)
    assert len(workers[0].names) > 3
    close_to(asdict(workers[1].finish()), asdict(alone))


def close_to(a: object, b: object) -> None:
    """Equal within 1e-9, all the way down."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            close_to(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            close_to(one, other)
    else:
        assert a == (pytest.approx(b, rel=1e-9, abs=1e-12) if isinstance(a, float) else b)


def test_units_of_other_judges_are_not_taken_for_ones_own(real: Dataset, synthetic: Dataset, tmp_path: Path) -> None:
    asked = (("second", None), ("blind", None), ("second", ByBrightness()))
    configs = [(EvaluateConfig(extractors=(name,), pairs=4), labeller) for name, labeller in asked]
    folders = {Evaluation(real, synthetic, config, tmp_path / "e.json", labeller=labeller).out for config, labeller in configs}
    assert len(folders) == 3


def test_no_judge_or_one_twice_is_refused(real: Dataset, synthetic: Dataset) -> None:
    for extractors in ((), ("second", "second")):
        with pytest.raises(InputError, match="extractors"):
            evaluate(real, synthetic, EvaluateConfig(extractors=extractors))


def test_spaces_that_put_set_and_floor_in_different_orders_say_so() -> None:
    def space(excess: float | None) -> SpaceFigures:
        return SpaceFigures(extractor="x", d=4, frechet=Compared(value=1.0, floor=1.0, excess=excess))

    assert disagreements({"a": space(0.2), "b": space(0.1), "c": space(None)}) == ()
    (line,) = disagreements({"a": space(0.2), "b": space(-0.1)})
    assert "farther from held-out people than other real images are by a, nearer by b" in line


def test_fewer_than_four_people_bear_no_interval_and_the_figure_stays(real: Dataset, synthetic: Dataset) -> None:
    few = evaluate(real, synthetic, EvaluateConfig(extractors=("second",), pairs=4, limit=3)).spaces["second"]
    assert few.people_real == 3 and few.frechet.interval is few.frechet.excess_interval is None
    assert np.isfinite(few.frechet.value) and "6 images of each set" in few.coverage.reason
