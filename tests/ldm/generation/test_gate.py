"""What is published was looked at: a gate refuses what is no image, honest images at the stated rate at most, and says what it refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data_shards.cube import Cube
from data_shards.errors import InputError
from ldm.generation import images as by_number
from ldm.generation.gate import Envelope, Gate, envelope_of
from ldm.generation.images import Generator
from ldm.models.config import ObjectiveConfig, SamplerConfig
from ldm.models.inference import FP32

FOV_HW = np.ones((4, 4), bool)
HOW = {"seed": 0, "sampler": SamplerConfig(steps=2), "batch": 3}
DENOISER = SimpleNamespace(
    autoencoder="a", objective=ObjectiveConfig(target="flow"), inference=FP32, normaliser=SimpleNamespace(mean_C11=torch.zeros(1))
)


def enveloped(spectra_NC: np.ndarray, bound_N: np.ndarray | None = None) -> Envelope:
    bound_N = np.zeros(len(spectra_NC)) if bound_N is None else bound_N
    return envelope_of(spectra_NC, bound_N, dataset="d", people=len(spectra_NC))


def gate(envelope: Envelope | None = None, most: float = np.inf, at_a_bound: float = 0.5) -> Gate:
    return Gate(rate=0.01, envelope=envelope, most=most, at_a_bound=at_a_bound, scale=1 / 1000, offset=0.0, fov_HW=FOV_HW)


def test_deviations_are_those_from_the_mean_of_the_others() -> None:
    x_NC = np.random.default_rng(0).normal(3, [0.1, 2, 5], (20, 3))
    envelope = enveloped(x_NC)
    expected = []
    for i in range(20):
        others_NC = np.delete(x_NC, i, axis=0)
        expected.append(np.max(np.abs(x_NC[i] - others_NC.mean(0)) / others_NC.std(0, ddof=1)))
    assert envelope.deviations == pytest.approx(sorted(expected))


@pytest.mark.parametrize(("n", "rate"), [(200, 0.01), (99, 0.05), (30, 0.1)])
def test_honest_images_are_refused_at_the_stated_rate_at_most(n: int, rate: float) -> None:
    rng, refused = np.random.default_rng(1), []
    for _ in range(200):
        spectra_NC = np.exp(rng.normal(0, 0.3, (n + 20, 1)) + rng.normal(0, 0.1, (n + 20, 6)))
        envelope = enveloped(spectra_NC[:n])
        refused += [envelope.deviation(x_C) > envelope.bound(rate) for x_C in spectra_NC[n:]]
    assert rate / 3 < np.mean(refused) < rate + 3 * (rate / 200) ** 0.5


@pytest.mark.parametrize(("n", "rate", "bears"), [(99, 0.01, True), (98, 0.01, False), (3, 0.25, True), (3, 0.24, False)])
def test_too_few_images_bear_no_bound(n: int, rate: float, bears: bool) -> None:
    envelope = enveloped(np.random.default_rng(0).normal(size=(n, 2)))
    assert (envelope.bound(rate) is not None) == bears
    assert not bears or envelope.bound(rate) == max(envelope.deviations)


def test_a_band_that_never_changes_and_too_few_images() -> None:
    spectra_NC = np.column_stack([np.arange(9.0), np.full(9, 0.4)])
    envelope = enveloped(spectra_NC)
    assert envelope.deviation(np.array([4.0, 0.4])) < 1e-3 and envelope.deviation(np.array([4.0, 0.5])) > 1e6
    for n in (1, 2):
        assert enveloped(spectra_NC[:n]).bound(0.5) is None


def test_causes() -> None:
    envelope = enveloped(np.random.default_rng(0).normal(0.5, 0.01, (50, 2)))
    fine = np.full((2, 4, 4), 500, np.uint16)
    look = gate(envelope, 5.0)
    assert look.refuses(np.zeros((1, 2, 2)), fine) is None
    assert look.refuses(np.array([[[np.nan]]]), fine) == look.refuses(np.array([[[np.inf]]]), fine) == "not finite"
    assert look.refuses(np.zeros(1), fine * 0) == look.refuses(np.zeros(1), np.full_like(fine, 65535)) == "range"
    dark = np.where(np.arange(4) > 0, 0, fine).astype(np.uint16)
    assert look.refuses(np.zeros(1), dark) == "range"
    shares = np.linspace(0, 0.8, 50)
    known = enveloped(np.random.default_rng(0).normal(0.1, 0.1, (50, 2)), shares)
    painter = Painter({})
    assert Gate.of(known, 0.05, painter).at_a_bound == 0.8 and Gate.of(known, 0, painter).at_a_bound == 0.5
    for wrong in (None, replace(known, dataset="another")):
        with pytest.raises(InputError, match=r"those of d(.|\n)*sample\.gate=0"):
            Gate.of(wrong, 0.05, painter)
    assert gate(at_a_bound=0.8).refuses(np.zeros(1), dark) is None, "as in training"
    assert look.refuses(np.zeros(1), fine * 2) == "spectrum" and gate().refuses(np.zeros(1), fine * 2) is None


class Painter:
    """Stands for both networks: image i at attempt a is a function of them; some are black at some attempts."""

    fov_HW, shown_HW, inference = torch.ones(4, 4, dtype=torch.bool), np.ones((4, 4), bool), FP32

    def __init__(self, black: dict[int, int]) -> None:
        self.black, self.batches = black, []
        self.digest = "a"
        self.data = {"digest": "d", "wavelengths_nm": (500.0, 600.0), "scale": 1 / 4095, "offset": 0.0}

    def decode(self, made_B2: torch.Tensor, *, quantise: bool) -> torch.Tensor:
        self.batches.append(made_B2[:, :2].tolist())
        value_B = torch.tensor([0 if attempt < self.black.get(i, 0) else 100 + 10 * i + attempt for i, attempt in self.batches[-1]])
        return value_B[:, None, None, None].expand(-1, 2, 4, 4).to(torch.uint16)


@pytest.fixture
def painted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        by_number, "latents_of", lambda _, ids, *, attempt, **how: torch.stack([torch.from_numpy(np.array(v)) for v in (ids, attempt)], 1)
    )

    def paint(black: dict[int, int], ids: list[int]) -> tuple[Iterator[Cube], Painter]:
        painter = Painter(black)
        return Generator(autoencoder=painter, denoiser=DENOISER, gate=gate(), **HOW).images(ids), painter

    return paint


def test_what_is_refused_is_made_again_at_its_place_and_its_number(painted) -> None:
    cubes, painter = painted({1: 2, 4: 1}, list(range(6)))
    cubes = list(cubes)
    assert [cube.meta.notes["image"] for cube in cubes] == list(range(6))
    assert [int(cube.data_CHW[0, 0, 0]) for cube in cubes] == [100, 112, 120, 130, 141, 150]
    assert [cube.meta.notes.get("refused", []) for cube in cubes] == [[], ["range"] * 2, [], [], ["range"], []]
    assert len(painter.batches) == 4 and all(len(batch) == 3 for batch in painter.batches), "two are begun before the first is seen"
    alone, _ = painted({1: 2, 4: 1}, [4, 1])
    assert [cube.meta for cube in alone] == [cubes[4].meta, cubes[1].meta], "whichever others are made with them"


def test_an_image_that_never_passes_ends_it_with_the_causes(painted) -> None:
    cubes, _ = painted({2: 99}, [0, 1, 2])
    with pytest.raises(InputError, match="image 2: all of 16 attempts were refused \\(16 for 'range'\\)") as error:
        list(cubes)
    assert "sample.gate=0" not in error.value.mend, "it would not help"
    assert "sample.gate=0.001" in by_number.refused_too_often(1, ["spectrum"]).mend
