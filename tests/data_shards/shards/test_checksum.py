"""The checksum of many pieces, from the checksum of each, equals the one taken over all of them."""

from __future__ import annotations

import numpy as np
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.shards.checksum import of_concatenation


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=20))
def test_pieces_joined(parts: list[bytes]) -> None:
    crc_K = np.array([crc32c(part) for part in parts], np.uint32)
    assert of_concatenation(crc_K, tuple(map(len, parts))) == crc32c(b"".join(parts))


def test_large_pieces() -> None:
    parts = [np.random.default_rng(n).bytes(65_536 - 64 * (n % 5)) for n in range(40)]
    crc_K = np.array([crc32c(part) for part in parts], np.uint32)
    assert of_concatenation(crc_K, tuple(map(len, parts))) == crc32c(b"".join(parts))
