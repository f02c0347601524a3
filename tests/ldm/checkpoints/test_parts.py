"""Parts are plain safetensors, written without a second copy of the state, and read a stretch at a time."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from data_shards import durable
from data_shards.errors import InputError, UnsafeResume
from ldm.checkpoints.commit import USED
from ldm.checkpoints.parts import DTYPES, Part, write_part
from ldm.checkpoints.store import CheckpointStore, Fragment, Reader
from ldm.comm import Alone


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_the_library_reads_what_is_written_and_the_other_way_round(tmp_path: Path, dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(0)
    tensors = {
        "a": (torch.randn(3, 5, generator=rng) * 4).to(dtype),
        "ünïcode": torch.ones(2, 1, 4).to(dtype),
        "scalar": torch.tensor(1).to(dtype),
        "empty": torch.empty(0, 3).to(dtype),
    }
    sha256 = write_part(tmp_path / "ours", tensors, {"shapes": "{}"})
    assert sha256 == durable.sha256_of(tmp_path / "ours")
    save_file(tensors, tmp_path / "theirs", metadata={"shapes": "{}"})
    theirs = load_file(tmp_path / "ours")
    for name, tensor in tensors.items():
        assert torch.equal(theirs[name], tensor) and theirs[name].dtype is dtype
        for part in (Part(tmp_path / "ours"), Part(tmp_path / "theirs")):
            assert part.metadata == {"shapes": "{}"} and part.shapes()[name] == tuple(tensor.shape)
            flat, stop = tensor.reshape(-1), tensor.numel()
            for begin, end in {(0, stop), (0, stop // 2), (stop // 3, stop)}:
                assert torch.equal(part.read(name, begin, end), flat[begin:end])


def test_a_checkpoint_takes_one_copy_of_the_state_and_no_more(tmp_path: Path) -> None:
    """The copy is torch's; what Python allocates beside it is counted here. The library's `save` takes twice the state."""
    state = {f"w{i}": torch.zeros(1 << 20) for i in range(16)}
    store = CheckpointStore(tmp_path, Alone())
    tracemalloc.start()
    store.commit(8, {}, state)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 4 << 20, "of 64 MiB"


def test_whatever_the_layout_of_a_tensor_its_values_are_written(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 4, 5)
    state = {"last": x.contiguous(memory_format=torch.channels_last), "turned": x.mT, "step": torch.tensor(3.0)}
    store = CheckpointStore(tmp_path, Alone())
    store.commit(8, {}, state)
    read = Reader(store.newest(progress_exists=True))
    assert torch.equal(read("last"), x) and torch.equal(read("turned"), x.mT) and read("step") == 3


def test_what_is_used_lies_apart_and_is_found_without_what_only_a_resume_needs(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, Alone(), used=("ema.",))
    state = {"model.w": torch.ones(6), "ema.w": Fragment(torch.arange(6.0), 0, (2, 3)), "ema.b": torch.ones(2)}
    store.commit(8, {}, state)
    newest = store.newest(progress_exists=True)
    assert Reader(newest).shapes.keys() == state.keys() and newest.ranks == 1
    (newest.folder / "rank-00000.safetensors").unlink()
    found = CheckpointStore(tmp_path, Alone()).newest(progress_exists=True, used=True)
    read = Reader(found, used=True)
    assert read("ema.w").tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]] and "model.w" not in read
    with pytest.raises(InputError, match=r"model\.w: missing"):
        read("model.w")
    part = newest.folder / f"rank-00000{USED}"
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    with pytest.raises(UnsafeResume, match="no checkpoint of it can be loaded"):
        store.newest(progress_exists=True, used=True)
