"""The codebook keeps its promises: nearest codes, EMA that ignores batch size, revival that lasts, resets without a past."""

from __future__ import annotations

import pytest
import torch

from data_shards.errors import InputError
from ldm.models.codebook import EMACodebook, usage_and_perplexity
from ldm.models.config import CodebookConfig


def made(codes: int = 16, channels: int = 4, **options) -> EMACodebook:
    return EMACodebook(CodebookConfig(codes=codes, kmeans_vectors=1024, **options), channels=channels, seed=3)


def latents(n: int = 2, channels: int = 4, side: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, channels, side, side, generator=torch.Generator().manual_seed(seed))


def test_each_latent_gets_its_nearest_code() -> None:
    book, h = made(), latents()
    quantised, index = book(h)
    z = h.movedim(1, -1).reshape(-1, 4)
    assert torch.equal(index.flatten(), torch.cdist(z.double(), book.codes_KD.double()).argmin(1))
    torch.testing.assert_close(quantised, book.codes_KD[index].movedim(-1, 1))


def test_the_gradient_passes_straight_through() -> None:
    h = latents().requires_grad_()
    (made()(h)[0] * 3).sum().backward()
    assert torch.equal(h.grad, torch.full_like(h, 3.0))


def test_state_is_fp32_buffers_and_no_parameter() -> None:
    book = made()
    assert not list(book.parameters())
    assert {b.dtype for b in book.buffers()} == {torch.float32}


def test_the_moving_average_does_not_depend_on_batch_size() -> None:
    """The same latents, three times over: the same step."""
    books = [made(), made()]
    for book, h in zip(books, (latents(2), latents(2).repeat(3, 1, 1, 1)), strict=True):
        book.update(book.statistics(h, book(h)[1]))
    torch.testing.assert_close(books[0].codes_KD, books[1].codes_KD)


def test_statistics_of_parts_add_up_to_those_of_the_whole() -> None:
    book, h = made(), latents(4)
    index = book(h)[1]
    parts = book.statistics(h[:1], index[:1]) + book.statistics(h[1:], index[1:])
    torch.testing.assert_close(parts, book.statistics(h, index), rtol=1e-12, atol=1e-12)


def test_codes_move_to_the_mean_of_their_latents() -> None:
    book, h = made(decay=0.5), latents(8)
    for _ in range(60):
        index = book(h)[1]
        book.update(book.statistics(h, index))
    z, index = h.movedim(1, -1).reshape(-1, 4), book(h)[1].flatten()
    used = index.unique()
    means = torch.stack([z[index == k].mean(0) for k in used])
    torch.testing.assert_close(book.codes_KD[used], means, rtol=1e-3, atol=1e-3)


def test_a_revived_code_is_not_pulled_back_by_its_past() -> None:
    book = made(dead_below=0.1, decay=0.9)
    book.reset(book.codes_KD.index_fill(0, torch.tensor([3]), 100.0), torch.ones(16))  # code 3 is nobody's nearest
    h = latents(4)
    for _ in range(60):
        book.update(book.statistics(h, book(h)[1]))
    assert 3 in book.dead()
    place = h[0, :, 0, 0]
    book.revive(torch.tensor([3]), place[None])
    assert torch.equal(book.codes_KD[3], place)
    book.update(book.statistics(h, book(h)[1]))
    assert (book.codes_KD[3] - place).norm() < 3 and 3 not in book.dead()


def test_a_reset_leaves_no_stale_average() -> None:
    book, codes, counts = made(), torch.randn(16, 4), torch.arange(1.0, 17.0)
    book.reset(codes, counts)
    torch.testing.assert_close(book.sum_KD / book.share_K[:, None], codes)
    assert book.share_K.mean() == pytest.approx(1.0)


def test_usage_and_perplexity() -> None:
    assert usage_and_perplexity(torch.tensor([4.0, 4, 0, 0])) == pytest.approx((0.5, 2.0))
    assert usage_and_perplexity(torch.ones(64))[1] == pytest.approx(64)


def test_impossible_codebooks_are_refused() -> None:
    with pytest.raises(InputError, match="at least as many as codes"):
        CodebookConfig(codes=1024, kmeans_vectors=1000)
    with pytest.raises(InputError, match="decay"):
        CodebookConfig(decay=1.0)


def test_autocast_does_not_coarsen_the_assignment() -> None:
    book, h = made(codes=512), latents(n=8)
    plain = book(h)[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(book(h)[1], plain)
