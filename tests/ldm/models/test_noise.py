"""Noise is a function of seed, number and attempt: of no batch, no order, no number of threads; its words are those that are published."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from ldm.models.noise import SAMPLES, TRAINING, normal_at, threefry

# key, counter and words of threefry2x32 with 20 rounds: kat_vectors of Random123 (D. E. Shaw Research)
KNOWN = [
    ((0x00000000, 0x00000000), (0x00000000, 0x00000000), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
]


def words(*numbers: int) -> torch.Tensor:
    """(1, 2) of 32-bit words."""
    return torch.from_numpy(np.array([numbers], np.uint32).view(np.int32))


@pytest.mark.parametrize(("key", "counter", "expected"), KNOWN)
def test_the_words_are_the_published_ones(key: tuple[int, int], counter: tuple[int, int], expected: tuple[int, int]) -> None:
    made = threefry(words(*key), words(*counter))
    assert tuple(int(word) & 0xFFFFFFFF for word in made) == expected


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 3), (4, 7, 9), (8, 84, 84)])
def test_noise_of_an_image_does_not_depend_on_its_batch_nor_on_threads(shape: tuple[int, ...]) -> None:
    ids, rng, threads = np.arange(1_000_000, 1_000_030), np.random.default_rng(0), torch.get_num_threads()
    together = normal_at(5, ids, shape, SAMPLES)
    assert together.shape == (30, *shape) and together.dtype == torch.float32
    for _ in range(8):
        chosen = rng.choice(30, rng.integers(1, 12), replace=False)
        assert torch.equal(normal_at(5, ids[chosen], shape, SAMPLES), together[chosen])
    try:
        torch.set_num_threads(2)
        assert torch.equal(normal_at(5, ids, shape, SAMPLES), together)
    finally:
        torch.set_num_threads(threads)


def test_seed_number_stream_and_attempt_tell_noise_apart() -> None:
    attempts = normal_at(1, np.array([7, 7]), (4, 4), SAMPLES, attempt=np.array([0, 3]))
    others = [
        normal_at(1, np.array([7]), (4, 4), TRAINING),
        normal_at(2, np.array([7]), (4, 4), SAMPLES),
        normal_at(1, np.array([8]), (4, 4), SAMPLES),
    ]
    kinds = torch.cat([attempts, *others]).flatten(1)
    assert torch.equal(kinds[0], normal_at(1, np.array([7]), (4, 4), SAMPLES).flatten())
    assert len({tuple(kind.tolist()) for kind in kinds}) == len(kinds)


def test_noise_is_standard_normal_and_its_values_are_independent() -> None:
    noise = normal_at(0, np.arange(500), (4, 33, 31), SAMPLES).double().flatten(1)
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3
    assert stats.kurtosis(noise.flatten()) == pytest.approx(0, abs=0.02)
    n = noise.numel()
    for a, b in ((noise[:-1], noise[1:]), (noise[:, :-1], noise[:, 1:]), (noise[:, :2046], noise[:, 2046:])):
        assert abs((a * b[:, : a.shape[1]]).mean()) < 5 / n**0.5, "neighbours, or the two values of a pair, are correlated"
