"""The gate of a generated set refuses copies of training images, and of honest ones no more than is said."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from data_shards.folder import write_cube
from data_shards.packing.pack import pack
from data_shards.reading.dataset import Dataset
from ldm.authenticity.gate import CopyGate, TrainingSide
from ldm.generation.gate import AT_A_BOUND, Gate
from tests.conftest import made_cube


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """32 training images of 16 people, one image of each of 40 people held out."""
    folder = tmp_path_factory.mktemp("real")
    for i in range(32):
        write_cube(folder / "loose", made_cube(i, split="train"))
    for i in range(40):
        write_cube(folder / "loose", made_cube(i + 100, subject=f"v{i:02d}", split="val"))
    pack(folder / "loose", folder / "set")
    return Dataset(folder / "set")


def gate_at(real: Dataset, rate: float) -> CopyGate:
    side = TrainingSide(real, real.path.parent / f"copy-bounds-{rate:g}.json", rate, device="cpu")
    for units in side.phases():
        bounds = units.complete()
    return CopyGate(side=side, settled=bounds)


def test_copies_are_refused_and_made_again(real: Dataset) -> None:
    copies = gate_at(real, 0.05)
    how = {"scale": real.scale, "offset": real.offset, "fov_HW": made_cube(0).fov_HW}
    gate = Gate(rate=0, envelope=None, most=None, at_a_bound=AT_A_BOUND, copies=copies, **how)
    stored_CHW, rng = made_cube(3).data_CHW, np.random.default_rng(0)
    noisy_CHW = (stored_CHW + rng.normal(0, 5, stored_CHW.shape)).round().clip(0, 4095).astype(np.uint16)
    for copy_CHW in (stored_CHW, np.ascontiguousarray(stored_CHW[..., ::-1]), noisy_CHW):
        assert gate.refuses(np.zeros((1, 2, 2)), copy_CHW) == "copy"
    assert gate.refuses(np.zeros((1, 2, 2)), made_cube(900).data_CHW) is None
    assert replace(gate, copies=None).refuses(np.zeros((1, 2, 2)), stored_CHW) is None
    assert gate.bounds["copies"]["rate"] == 0.05 and "copies" not in replace(gate, copies=None).bounds


def test_honest_images_are_refused_no_more_often_than_is_said(real: Dataset) -> None:
    """At 0.2 in two spaces, half of each for the threshold: two of 40 people bear it; what they bear is kept."""
    copies, images = gate_at(real, 0.2), 80
    refused = np.mean([copies.refuses(made_cube(2000 + i).data_CHW) for i in range(images)])
    assert all(space.threshold is not None for space in copies.settled.spaces.values())
    assert refused <= 0.2 + 2 * np.sqrt(0.2 * 0.8 / images)


def test_too_few_people_bear_no_threshold_but_what_is_the_same_is_refused(real: Dataset) -> None:
    copies = gate_at(real, 0.01)
    assert all(space.threshold is None for space in copies.settled.spaces.values()) and copies.settled.people == 40
    assert copies.refuses(made_cube(7).data_CHW) and not copies.refuses(made_cube(900).data_CHW)
