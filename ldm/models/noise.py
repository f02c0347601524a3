"""Gaussian noise by number: the noise of sample i is a function of (seed, i), of no batch, rank or device, and is made on the device.

A counter goes through Threefry-2×32 with 20 rounds (Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"):
additions, rotations and exclusive ors of 32-bit words, which every device computes alike to the bit. Box and Muller (1958) make two normal
values of two words. Their logarithm and cosine round by device: values of two devices differ by some 1e-6.
Legend: B sample, N pairs of values of a sample.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from torch import Tensor

from data_shards.reading.order import hash64

TRAINING, TIMES, DISCRETE_TIMES, GAUSSIAN_LATENTS, SAMPLES, PENALTY, ATTACK = range(7)
"""Streams: what a number needs randomness for. Image 7 does not start from the noise of the training's sample 7."""
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA
PAIRS_AT_ONCE = 1 << 15  # on a processor, of the samples of a batch: what its cache holds
LANES = 16  # pairs are made in multiples of it: the last ones of a vector instruction's width round as the others do


def normal_at(
    seed: int,
    ids: np.ndarray,
    shape: tuple[int, ...],
    stream: int,
    *,
    attempt: int | np.ndarray = 0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Standard normal noise of each id, (len(ids), *shape), float32, on the device. |values| ≤ 6.8.

    Args:
        stream: what the noise is for, such as SAMPLES.
        attempt: of each id, or of all: tells apart what is made in place of what was refused.
    """
    device, values = torch.device(device), math.prod(shape)
    half = -(-values // 2)
    pairs = -(-half // LANES) * LANES
    counter_N2 = torch.stack([torch.arange(pairs, dtype=torch.int32), torch.zeros(pairs, dtype=torch.int32)], dim=1).to(device)
    at_once = max(1, PAIRS_AT_ONCE // pairs) if device.type == "cpu" else len(ids)
    key_B2 = torch.from_numpy(np.atleast_1d(hash64(seed, np.asarray(ids), stream, attempt)).view(np.int32).reshape(-1, 2)).to(device)
    parts = []
    for keys in key_B2.split(at_once):
        cosines_BN, sines_BN = box_muller(*threefry(keys, counter_N2))
        parts.append(torch.cat([cosines_BN[:, :half], sines_BN[:, : values - half]], dim=1))
    return torch.cat(parts).reshape(len(ids), *shape)


def threefry(key_B2: Tensor, counter_N2: Tensor) -> tuple[Tensor, Tensor]:
    """Two random words, (B, N) int32 each, of these counters under each key."""
    first, second = key_B2[:, :1], key_B2[:, 1:]
    keys = first, second, first ^ second ^ PARITY
    x, y = counter_N2[:, 0] + keys[0], counter_N2[:, 1] + keys[1]
    high = torch.empty_like(y)
    for group in range(5):
        for bits in ROTATIONS[group % 2]:
            x += y
            torch.bitwise_left_shift(y, bits, out=high)
            y.bitwise_right_shift_(32 - bits).bitwise_and_((1 << bits) - 1)  # a shift to the right keeps the sign
            y.bitwise_or_(high).bitwise_xor_(x)
        x += keys[(group + 1) % 3]
        y += keys[(group + 2) % 3] + (group + 1)
    return x, y


def box_muller(a_BN: Tensor, b_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Two normal values, (B, N) each, of two random words."""
    radius = fraction(a_BN).log_().mul_(-2).sqrt_()
    angle = b_BN.float().mul_(2 * math.pi / 2**32)
    return angle.cos().mul_(radius), angle.sin_().mul_(radius)


def fraction(word: Tensor) -> Tensor:
    """A word as a number in (0, 1], float32, finest near 0, where the logarithm is steep."""
    signed = word.float().mul_(2**-32)
    return signed.add_((signed < 0).float()).add_(2**-33).clamp_(max=1)


def normal_at_before(
    seed: int, ids: np.ndarray, shape: tuple[int, ...], *, attempt: int | np.ndarray = 0, device: torch.device | str = "cpu"
) -> Tensor:
    """The noise of sets that versions before 0.2 began, from a generator of the processor: what such a set lacks comes of it too."""
    assert not np.any(attempt), "these sets know no gate"
    states = np.atleast_1d(hash64(seed, np.asarray(ids), TRAINING)) >> np.uint64(1)
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(int(state))) for state in states]).to(device)


NOISES = {"threefry2x32-20": partial(normal_at, stream=SAMPLES), "mt19937": normal_at_before}
"""Of images, by the name that a set states; the first is that of new sets, the last that of sets that state none."""
