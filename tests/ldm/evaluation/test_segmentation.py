"""Dice is what MONAI's is, its interval is of people, and what the labels lack is said."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data_shards.cube import LABELS
from data_shards.errors import InputError
from data_shards.reading.dataset import Dataset
from ldm.checkpoints.segmenter import Segmenter
from ldm.evaluation.regions import STRUCTURES
from ldm.evaluation.segmentation import Segmentation, dice, drawn_without, over_people, pixels
from ldm.models.inference import FP32
from ldm.training.segmenter import UNKNOWN


def test_dice_is_that_of_monai() -> None:
    from monai.metrics import DiceMetric

    draw = np.random.default_rng(0)
    truth_BHW, predicted_BHW = (torch.from_numpy(draw.integers(0, 4, (6, 20, 24)).astype(np.uint8)) for _ in range(2))
    truth_BHW[2][truth_BHW[2] == LABELS["onh"]] = 0
    known_BHW = torch.from_numpy(draw.random((6, 20, 24)) < 0.8)
    ours_BS = dice(*pixels(predicted_BHW, torch.where(known_BHW, truth_BHW, UNKNOWN)))

    one_hot = [torch.stack([(maps == k) & known_BHW for k in range(4)], 1).float() for maps in (predicted_BHW, truth_BHW)]
    metric = DiceMetric(include_background=False, reduction="none")
    theirs_BS = metric(y_pred=one_hot[0], y=one_hot[1]).numpy()
    assert np.isnan(ours_BS[2, STRUCTURES.index("onh")])
    np.testing.assert_allclose(ours_BS, theirs_BS, atol=1e-6, equal_nan=True)
    mean_S = [over_people(ours_BS[:, s], np.arange(6).astype(str)).dice for s in range(3)]
    averaged = DiceMetric(include_background=False, reduction="mean_batch")
    averaged(y_pred=one_hot[0], y=one_hot[1])
    np.testing.assert_allclose(mean_S, averaged.aggregate().numpy(), atol=1e-6)


def test_the_interval_is_of_people_and_one_person_has_none() -> None:
    dice_N = np.random.default_rng(1).uniform(0.6, 0.9, 40)
    alone, twice = (over_people(np.repeat(dice_N, n), np.repeat(np.arange(40).astype(str), n)) for n in (1, 2))
    assert alone.interval == pytest.approx(twice.interval), "a second image of each is no second person"
    assert alone.people == twice.people == 40
    assert alone.interval[0] < alone.dice < alone.interval[1]
    assert over_people(dice_N, np.full(40, "s")).interval is None
    absent = over_people(np.full(3, np.nan), np.array(["a", "b", "c"]))
    assert absent.dice is None and absent.reason == "no image has it in its labels"


class Oracle:
    """Stands for a segmenter: says artery where the first band is bright, as the labels of the made cubes nearly do."""

    digest, inference, data = "o" * 64, FP32, {"wavelengths_nm": (500.0, 520.0, 540.0, 560.0), "scale": 1 / 4095, "offset": 0.0}
    normaliser = SimpleNamespace(mean_C11=torch.zeros(1))
    check = Segmenter.check

    def __call__(self, stored_BCHW: torch.Tensor, fov_BHW: torch.Tensor) -> torch.Tensor:
        return ((stored_BCHW.float().mean(1) > 2400) & fov_BHW).to(torch.uint8)


def test_units_of_held_out_people_come_to_one_result(dataset: Dataset, tmp_path: Path) -> None:
    result = Segmentation(dataset, Oracle(), tmp_path / "segmenter.json").complete()
    held_out = [cube for split in ("val", "test") for cube in dataset.cubes(split)]
    each = [
        2 * (found & there).sum() / (found.sum() + there.sum())
        for cube in held_out
        for found, there in [((cube.data_CHW.astype(np.float32).mean(0) > 2400) & cube.fov_HW, cube.labels_HW == 1)]
        if there.any()
    ]
    assert result.artery.dice == pytest.approx(np.mean(each)) and result.artery.images == len(each)
    assert (result.images, result.splits) == (len(held_out), ("val", "test"))
    assert (result.dataset, result.segmenter) == (dataset.digest, "o" * 64)
    assert result.vein.dice is None and "artery 0." in result.line() and "vein no image has it" in result.line()
    assert Segmentation(dataset, Oracle(), batch=3).complete() == result


def test_a_structure_that_is_drawn_where_there_is_none_is_said_though_dice_leaves_that_image_out(dataset: Dataset) -> None:
    class Generous(Oracle):
        def __call__(self, stored_BCHW: torch.Tensor, fov_BHW: torch.Tensor) -> torch.Tensor:
            labels_BHW = super().__call__(stored_BCHW, fov_BHW)
            labels_BHW[:, 16, 16] = LABELS["vein"]  # no image of the set has one
            return labels_BHW

    plain, generous = (Segmentation(dataset, labeller).complete() for labeller in (Oracle(), Generous()))
    assert (plain.vein.drawn_without, generous.vein.drawn_without) == (0.0, 1.0) and generous.vein.images_without == generous.images
    assert "drawn in 100% of 8 images without it" in generous.line() and "drawn" not in plain.line().split("vein")[1].split(",")[0]
    assert generous.artery.images_without == generous.images - generous.artery.images
    assert drawn_without(np.array([3, 0, 5]), np.array([2, 1, 4])) == {"images_without": 0, "drawn_without": None}


def test_cubes_of_other_bands_or_scale_are_refused(dataset: Dataset) -> None:
    other = Oracle()
    other.data = {**Oracle.data, "wavelengths_nm": (500.0, 520.0, 540.0)}
    with pytest.raises(InputError, match="cubes with wavelengths_nm 500, 520, 540, 560"):
        Segmentation(dataset, other)
    other.data = {**Oracle.data, "scale": 1.0}
    with pytest.raises(InputError, match="cubes with scale"):
        Segmentation(dataset, other)
