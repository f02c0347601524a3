"""Which sample comes at which position: a pure function of (seed, epoch, position), of no library's generator.

A training run sees one endless sequence of global positions g = 0, 1, 2, …; epoch e = g // N holds each of the N
samples once. The whole data state of a run is therefore one integer, the samples consumed.
"""

from __future__ import annotations

import numpy as np


def mix64(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser (Steele, Lea, Flood 2014): a bijection of 64-bit integers that scatters every bit."""
    x = np.asarray(x, np.uint64)
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hash64(*words: object) -> np.ndarray:
    """Hash of integers (arrays broadcast): the same on every machine and numpy version."""
    state = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        for word in words:
            state = mix64(state + np.uint64(0x9E3779B97F4A7C15) + mix64(np.asarray(word).astype(np.uint64)))
    return np.asarray(state, np.uint64)


def sample_at(g: np.ndarray, *, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Global positions → (sample, epoch).

    Each epoch is a pseudo-random permutation: a six-round Feistel network on the smallest even number of bits that
    holds `count`, walked along its cycle until it falls below `count` (Black and Rogaway 2002). Any position is
    computed by itself, so a resume costs nothing and no permutation is held in memory.
    """
    g = np.asarray(g, np.int64)
    epoch = g // count
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    x = (g % count).astype(np.uint64)
    todo = np.ones(x.shape, bool)
    while todo.any():
        left, right = x[todo] >> np.uint64(half), x[todo] & mask
        for round_ in range(6):
            left, right = right, left ^ (hash64(seed, epoch[todo], round_, right) & mask)
        x[todo] = (left << np.uint64(half)) | right
        todo = x >= np.uint64(count)
    return x.astype(np.int64), epoch


def rank_positions(consumed: int, batch_size: int, *, rank: int, world: int) -> np.ndarray:
    """Global positions of one rank's share of the global batch that begins at `consumed`: every world-th, from its rank on."""
    return consumed + rank + world * np.arange(batch_size, dtype=np.int64)
