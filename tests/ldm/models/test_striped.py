"""Frames in stripes: what the whole pass gives, in memory that is bounded."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from data_shards.errors import InputError
from ldm.models import striped
from ldm.models.config import VQGANConfig
from ldm.models.striped import decode_in_stripes, encode_in_stripes
from ldm.models.vqgan import VQGAN

WAYS = {
    "decode": (VQGAN.decode, decode_in_stripes, striped.decode),
    "encode": (VQGAN.encode, encode_in_stripes, striped.encode),
}


@pytest.fixture(autouse=True)
def _no_gradient() -> Iterator[None]:
    with torch.no_grad():
        yield


def network(compression: int = 8, bands: int = 3, channels: int = 8) -> VQGAN:
    """With weights that let every layer count: those it begins with zero the branches."""
    vqgan = VQGAN(VQGANConfig(bands=bands, compression=compression, latent_channels=4, channels=channels, layers=1, norm_groups=4)).eval()
    generator = torch.Generator().manual_seed(compression + bands)
    for parameter in vqgan.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return vqgan


def given(way: str, vqgan: VQGAN, frames: int = 1, size: tuple[int, int] = (5, 3)) -> Tensor:
    """Input of `size` latent pixels."""
    config, generator = vqgan.config, torch.Generator().manual_seed(1)
    if way == "decode":
        return torch.randn(frames, config.latent_channels, *size, generator=generator)
    return torch.randn(frames, config.bands, *(config.compression * side for side in size), generator=generator)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("compression", "bands"), [(4, 3), (8, 16), (16, 1)])
def test_stripes_of_any_height_give_what_the_whole_pass_gives(way: str, compression: int, bands: int) -> None:
    whole, in_stripes, _ = WAYS[way]
    vqgan = network(compression, bands)
    x = given(way, vqgan, frames=2)
    whole32 = whole(vqgan, x)
    exact = whole(vqgan.double(), x.double())
    for rows in (1, 3 * compression + 1, 1000):  # of one latent row, of three and two left over, of all
        assert torch.allclose(in_stripes(vqgan.double(), x.double(), rows=rows), exact, rtol=0, atol=1e-11)
        stripes32 = in_stripes(vqgan.float(), x, rows=rows)
        assert (stripes32 - exact).abs().max() <= 2 * (whole32 - exact).abs().max(), "rounds worse than the whole pass"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("autocast", [True, False])
def test_in_bfloat16_they_are_as_near_to_float32_as_the_whole_pass_is(way: str, autocast: bool) -> None:
    whole, in_stripes, _ = WAYS[way]
    vqgan = network()
    x = given(way, vqgan)
    exact = whole(vqgan, x)
    if not autocast:
        vqgan, x = vqgan.bfloat16(), x.bfloat16()
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        at_once, stripes = whole(vqgan, x), in_stripes(vqgan, x, rows=16)
    assert stripes.dtype == at_once.dtype == torch.bfloat16
    assert (stripes - exact).abs().mean() <= 1.5 * (at_once - exact).abs().mean()


def test_the_variance_of_activations_far_from_zero_is_not_lost() -> None:
    norm = torch.nn.GroupNorm(2, 4)
    x = 3000 + torch.randn(1, 4, 64, 50, generator=torch.Generator().manual_seed(0))
    frame = striped._Frame(iter(x.split(8, dim=2)), norm, torch.device("cpu"))
    stripes = torch.cat(list(frame.activated(frame.once())), dim=2)
    assert torch.allclose(stripes.double(), torch.nn.functional.silu(norm.double()(x.double())), atol=1e-3)


@pytest.mark.parametrize("way", WAYS)
def test_a_frame_is_the_same_to_the_bit_whatever_its_batch(way: str) -> None:
    _, in_stripes, _ = WAYS[way]
    vqgan = network()
    x = given(way, vqgan, frames=3)
    assert torch.equal(in_stripes(vqgan, x)[2:], in_stripes(vqgan, x[2:]))


@pytest.mark.parametrize("way", WAYS)
def test_frames_up_to_a_size_go_whole_and_larger_ones_in_stripes(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, in_stripes, chosen = WAYS[way]
    vqgan = network()
    x = given(way, vqgan)
    monkeypatch.setattr(striped, "WHOLE_PIXELS", 40 * 24)
    assert torch.equal(chosen(vqgan, x), whole(vqgan, x))
    monkeypatch.setattr(striped, "WHOLE_PIXELS", 40 * 24 - 1)
    assert torch.equal(chosen(vqgan, x), in_stripes(vqgan, x))
    with pytest.raises(InputError, match="bands"):
        striped.encode(vqgan, torch.zeros(1, 4, 40, 24))


@pytest.mark.parametrize("way", WAYS)
def test_where_the_device_has_too_little_memory_activations_go_to_the_host(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, in_stripes, chosen = WAYS[way]
    kept_on = []

    def scarce(vqgan: VQGAN, x: Tensor, *, keep: torch.device) -> Tensor:
        kept_on.append(keep)
        if len(kept_on) == 1:
            raise torch.OutOfMemoryError
        return in_stripes(vqgan, x, keep=keep)

    vqgan = network()
    x = given(way, vqgan)
    monkeypatch.setattr(striped, "WHOLE_PIXELS", 0)
    monkeypatch.setattr(striped, in_stripes.__name__, scarce)
    assert torch.equal(chosen(vqgan, x), in_stripes(vqgan, x))
    assert kept_on == [x.device, torch.device("cpu")]


class Memory(TorchDispatchMode):
    """The most that tensors take at one time which were made meanwhile, in values of float32."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        results = op(*args, **(kwargs or {}))
        for tensor in results if isinstance(results, (tuple, list)) else (results,):
            if isinstance(tensor, Tensor):
                self.count(tensor.untyped_storage())
        return results

    def count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes() // 4
        if key not in self.seen:
            self.seen.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self.gone, key, size)

    def gone(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


class Host(deque):
    """Stands for the memory of a host: what is kept there counts for nothing on the device."""

    def append(self, x: Tensor) -> None:
        super().append(x.numpy().copy())

    def popleft(self) -> Tensor:
        return torch.tensor(super().popleft())

    def __iter__(self) -> Iterator[Tensor]:
        return map(torch.tensor, super().__iter__())


def most_of(run: Callable[[], Tensor]) -> float:
    with Memory() as memory:
        run()
    return memory.most


@pytest.mark.parametrize(("way", "kept", "whole_kept"), [("decode", 3, 6), ("encode", 2, 3)])
def test_memory_is_two_activations_of_a_block_and_on_the_device_some_stripes(
    way: str, kept: int, whole_kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, in_stripes, _ = WAYS[way]
    vqgan = network(compression=4, channels=16)
    x = given(way, vqgan, size=(32, 16))
    activation = 16 * x.shape[2] * x.shape[3] * (16 if way == "decode" else 1)  # of the first level
    most = {rows: most_of(lambda rows=rows: in_stripes(vqgan, x, rows=rows)) / activation for rows in (4, 8)}
    ends = 2 * vqgan.config.bands / 16  # the frame's stripes, and the frame
    assert all(peak <= kept + ends + 14 * rows / 128 for rows, peak in most.items())
    assert most_of(lambda: whole(vqgan, x)) / activation >= whole_kept

    monkeypatch.setattr(striped, "deque", Host)
    frames = [given(way, vqgan, size=(side, 16)) for side in (16, 32)]
    on_device = [most_of(lambda x=x: in_stripes(vqgan, x, rows=4)) for x in frames]
    more = (on_device[1] - on_device[0]) / (activation / 2)  # for each further pixel
    assert more <= 1.25, "of a frame the device holds more than itself, or what attention makes at the latent's resolution"
