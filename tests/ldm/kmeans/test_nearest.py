"""The nearest code: by every way there is, on any number of threads, and the same sums whatever that number."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from ldm.kmeans import nearest
from ldm.kmeans.lloyd import _packed_sums
from ldm.kmeans.nearest import nearest_code, parts_of
from ldm.threads import in_parts


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def vectors(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("few", [0, 1 << 20], ids=["products", "faiss"])
@pytest.mark.parametrize(("n", "k", "d"), [(1, 1, 1), (7, 1000, 3), (9000, 33, 16), (300, 5000, 17), (70_000, 64, 8), (500, 300, 256)])
def test_no_code_is_nearer(two_threads: None, monkeypatch: pytest.MonkeyPatch, few: int, n: int, k: int, d: int) -> None:
    monkeypatch.setattr(nearest, "FEW", few)
    z, codes = vectors(n, d), vectors(2 * k, d, 1)[::2]  # not contiguous
    found = nearest_code(z, codes)
    apart = torch.cdist(z.double(), codes.double(), compute_mode="donot_use_mm_for_euclid_dist")
    assert found.shape == (n,) and found.dtype == torch.int64
    assert (apart.gather(1, found[:, None])[:, 0] - apart.min(1).values).max() < 1e-5


def test_the_sums_of_parts_take_no_more_memory_than_the_vectors() -> None:
    z = torch.empty(1 << 19, 8, device="meta")
    for k in (4096, 16384, 65536):
        assert len(parts_of(z, least=2 * k)) * k * 8 <= 4 * len(z), "float64 sums of all parts, against float32 vectors"


def test_no_vectors_are_no_error() -> None:
    assert nearest_code(torch.empty(0, 4), vectors(3, 4)).shape == (0,)


@pytest.mark.parametrize("d", [8, 40])
def test_sums_are_the_same_bits_on_any_number_of_threads_and_those_of_the_definition(two_threads: None, d: int) -> None:
    z, codes = vectors(50_000, d), vectors(100, d, 1)
    two = _packed_sums(z, codes)
    torch.set_num_threads(1)
    assert torch.equal(_packed_sums(z, codes), two)
    expected = torch.zeros(100, d, dtype=torch.float64).index_add_(0, nearest_code(z, codes), z.double())
    torch.testing.assert_close(two[:, :-1], expected, rtol=1e-12, atol=1e-9)
    assert float(two[:, -1].sum()) == 50_000


def test_parts_come_back_in_order_each_on_one_thread_and_an_error_of_one_is_raised(two_threads: None) -> None:
    seen, both = set(), threading.Barrier(2, timeout=10)

    def work(part: int) -> tuple[int, int]:
        if part < 2:
            both.wait()  # passes only if two are at work
        seen.add(threading.get_ident())
        return part, torch.get_num_threads()

    assert in_parts(work, range(9)) == [(part, 1) for part in range(9)]
    assert len(seen) == 2 and torch.get_num_threads() == 2

    def failing(part: int) -> None:
        raise ArithmeticError(part)

    with pytest.raises(ArithmeticError):
        in_parts(failing, range(3))
    assert torch.get_num_threads() == 2
