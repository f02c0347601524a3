"""Mixtures: shares as stated, every dataset read through before it begins anew, a pure function of the position."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.errors import InputError
from data_shards.packing.pack import write_dataset
from data_shards.reading.dataset import Dataset
from data_shards.reading.mixture import PERIOD, Mixture
from data_shards.reading.stream import CubeStream
from tests.conftest import made_cube


def written(folder: Path, numbers: range, **changed) -> Dataset:
    cubes = [made_cube(i, **{k: v for k, v in changed.items() if k in ("bands", "size")}) for i in numbers]
    if "scale" in changed:
        cubes = [replace(cube, meta=replace(cube.meta, scale=changed["scale"])) for cube in cubes]
    write_dataset(folder, {"train": cubes}, source={})
    return Dataset(folder)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[Dataset]:
    folder = tmp_path_factory.mktemp("mixed")
    return [written(folder / str(n), range(100 * n, 100 * n + count)) for n, count in enumerate((5, 8, 3))]


@settings(max_examples=25, deadline=None)
@given(weights=st.lists(st.floats(0.01, 10), min_size=3, max_size=3), seed=st.integers(0, 1 << 40), first=st.integers(0, 50))
def test_each_dataset_has_its_share_of_every_period(three, weights, seed: int, first: int) -> None:
    mixture = Mixture(three, weights)
    sample_B, _ = mixture.place("train", first * PERIOD + np.arange(PERIOD), seed)
    part_B = np.searchsorted([5, 13], sample_B, side="right")
    assert np.abs(np.bincount(part_B, minlength=3) / PERIOD - np.array(weights) / sum(weights)).max() <= 1 / PERIOD


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1 << 40))
def test_every_sample_comes_once_before_any_comes_again(three, seed: int) -> None:
    mixture = Mixture(three, [1, 2, 4])
    sample_B, epoch_B = mixture.place("train", np.arange(2 * PERIOD), seed)
    for first, count in ((0, 5), (5, 8), (13, 3)):
        mine = (sample_B >= first) & (sample_B < first + count)
        for epoch in range(int(epoch_B[mine].max())):
            assert sorted(sample_B[mine & (epoch_B == epoch)]) == list(range(first, first + count))


def test_ranks_and_resumes_read_the_one_sequence(three) -> None:
    mixture = Mixture(three, [1, 1, 1])

    def keys(world: int, consumed: int, steps: int) -> list[str]:
        parts = [
            islice(CubeStream(mixture, "train", batch_size=6 // world, rank=r, world=world).batches(consumed), steps) for r in range(world)
        ]
        got = {int(g): k for batches in zip(*parts, strict=True) for b in batches for g, k in zip(b.position_B, b.keys, strict=True)}
        return [got[g] for g in sorted(got)]

    whole = keys(1, 0, 6)
    assert whole == keys(1, 0, 2) + keys(2, 12, 1) + keys(3, 18, 3)
    assert {int(key[1:]) // 100 for key in whole} == {0, 1, 2}, "of every dataset"
    (batch,) = islice(CubeStream(mixture, "train", batch_size=6).batches(0), 1)
    for b, key in enumerate(batch.keys):
        assert np.array_equal(batch.cubes_BCHW[b].numpy(), made_cube(int(key[1:])).data_CHW), "the cube that it names"


@pytest.mark.parametrize(
    ("changed", "said"), [({"bands": 3}, "shape"), ({"size": 16}, "shape"), ({"scale": 0.5}, "scale")], ids=["bands", "size", "scale"]
)
def test_datasets_of_another_kind_are_refused(three, tmp_path: Path, changed, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Mixture([three[0], written(tmp_path / "other", range(900, 903), **changed)], [1, 1])


def test_other_wavelengths_are_refused(three, tmp_path: Path) -> None:
    moved = [replace(c, meta=replace(c.meta, wavelengths_nm=(1.0, 2.0, 3.0, 4.0))) for c in (made_cube(i) for i in range(4))]
    write_dataset(tmp_path / "other", {"train": moved}, source={})
    with pytest.raises(InputError, match=r"wavelengths_nm[\s\S]*have one wavelengths_nm"):
        Mixture([three[0], Dataset(tmp_path / "other")], [1, 1])


@pytest.mark.parametrize("weights", [[1, 1], [1, 0, 1], [1, -1, 1], [1, float("nan"), 1], [1, 1, 1e-9]])
def test_weights_that_leave_a_dataset_out_are_refused(three, weights) -> None:
    with pytest.raises(InputError):
        Mixture(three, weights)


def test_the_same_dataset_twice_is_refused(three) -> None:
    with pytest.raises(InputError, match="twice"):
        Mixture([three[0], three[0]], [1, 1])


def test_the_seed_decides_which_dataset_comes_when(three) -> None:
    mixture = Mixture(three, [1, 1, 1])
    parts = [np.searchsorted([5, 13], mixture.place("train", np.arange(200), seed)[0], side="right") for seed in range(4)]
    assert all((a != b).mean() > 0.3 for a, b in combinations(parts, 2))


def test_the_seed_decides_in_which_order_each_dataset_is_read(three, monkeypatch: pytest.MonkeyPatch) -> None:
    mixture, seeds, real = Mixture(three, [1, 1, 1]), set(), Dataset.place
    monkeypatch.setattr(Dataset, "place", lambda self, split, at, seed: (seeds.add(seed), real(self, split, at, seed))[1])
    for seed in range(4):
        mixture.place("train", np.arange(200), seed)
    assert len(seeds) == 12, "one of its own for each seed and dataset"
