"""Checkpoints promise: whole or absent, never fewer than two that are whole, nothing left of what a kill or a full disk cut short."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as save_bytes

from data_shards import durable
from data_shards.errors import InputError, TryAgain, UnsafeResume
from ldm.checkpoints.commit import COMMIT, Checkpoint, read_commit
from ldm.checkpoints.store import SHAPES, CheckpointStore, Fragment, Reader
from ldm.comm import Alone
from tests.threads import Threads


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.full((5,), value)}


def names(store: CheckpointStore) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


def test_the_newest_are_kept_and_load(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", Alone())
    for samples in (0, 8, 16):
        store.commit(samples, {"epoch": 0}, tensors(samples))
    assert [c.samples for c in store.committed()] == [16, 8]
    assert Reader(store.newest(progress_exists=True))("w").tolist() == [16.0] * 5


def test_what_a_kill_in_the_middle_of_pruning_left_goes_with_the_next_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", Alone())
    for samples in (8, 16):
        store.commit(samples, {"epoch": 0}, tensors(samples))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shutil, "rmtree", killed)
        store.commit(24, {"epoch": 0}, tensors(24))
    assert [c.samples for c in store.committed()] == [24, 16]
    assert len(names(store)) == 3, "8 was un-committed, and still lies there"
    store.commit(32, {"epoch": 0}, tensors(32))
    assert names(store) == ["samples-000000000024", "samples-000000000032"]


@pytest.mark.parametrize("full_at", ["rank-00000.safetensors", COMMIT])
def test_a_full_disk_leaves_no_part_of_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_at: str) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", Alone())
    store.commit(8, {"epoch": 0}, tensors(8))
    writing = durable.writing

    def full(final: Path, **options: bool):
        if final.name == full_at:
            raise TryAgain("writing failed: No space left on device", where=final)
        return writing(final, **options)

    with monkeypatch.context() as patched, pytest.raises(TryAgain):
        patched.setattr(durable, "writing", full)
        store.commit(16, {"epoch": 0}, tensors(16))
    assert names(store) == ["samples-000000000008"]
    assert store.newest(progress_exists=True).samples == 8


def test_a_fault_in_the_newest_is_not_loaded(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", Alone())
    for samples in (8, 16):
        store.commit(samples, {"epoch": 0}, tensors(samples))
    (store.folder / "samples-000000000016" / "rank-00000.safetensors").write_bytes(b"")
    assert store.newest(progress_exists=True).samples == 8
    store.commit(16, {"epoch": 0}, tensors(3))
    assert Reader(store.newest(progress_exists=True))("w").tolist() == [3.0] * 5


def test_a_damaged_newest_takes_no_kept_place_from_what_can_be_loaded(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", Alone())
    for samples in (8, 16, 24):
        store.commit(samples, {"epoch": 0}, tensors(samples))
    (store.folder / "samples-000000000024" / "rank-00000.safetensors").write_bytes(b"cut short")
    assert store.newest(progress_exists=True).samples == 16
    store.commit(20, {"epoch": 0}, tensors(20))  # resumed at 16, stopped by a signal at 20
    assert {c.samples for c in store.committed()} >= {16, 20}
    store.commit(24, {"epoch": 0}, tensors(24.5))
    assert Reader(store.newest(progress_exists=True))("w").tolist() == [24.5] * 5


def two_commits(folder: Path) -> CheckpointStore:
    store = CheckpointStore(folder / "checkpoints", Alone())
    for samples in (8, 16):
        store.commit(samples, {"epoch": samples, "note": "x" * 40}, tensors(samples))
    return store


@pytest.mark.parametrize("name", ["rank-00000.safetensors", COMMIT])
def test_whatever_is_cut_flipped_or_zeroed_is_found(tmp_path: Path, name: str) -> None:
    """Every truncation of the file, every byte of it changed, every stretch of zeros: 16 is not taken any more, 8 is."""
    store = two_commits(tmp_path)
    path = store.folder_at(16) / name
    whole = path.read_bytes()
    spoiled = [whole[:i] for i in range(len(whole))]
    for i in range(len(whole)):
        spoiled += [whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1 :], whole[:i] + bytes(16) + whole[i + 16 :]]
    for content in spoiled:
        path.write_bytes(content)
        taken = store.newest(progress_exists=True).samples == 16
        assert not taken or (name == COMMIT and json.loads(content) == json.loads(whole)), content  # white space means nothing
    path.write_bytes(whole)
    assert store.newest(progress_exists=True).samples == 16


def test_a_foreign_pickle_is_never_opened(tmp_path: Path) -> None:
    """Not beside the parts, nor in the place of one, nor where a forged commit names it, here or elsewhere."""
    marker = tmp_path / "opened"
    bomb = pickle.dumps(Bomb(str(marker)))
    store = two_commits(tmp_path)
    folder, part = store.folder_at(16), store.folder_at(16) / "rank-00000.safetensors"
    (folder / "mp_rank_00_model_states.pt").write_bytes(bomb)
    assert store.newest(progress_exists=True).samples == 16
    part.write_bytes(bomb)
    assert store.newest(progress_exists=True).samples == 8
    forged = json.loads((folder / COMMIT).read_text())
    (store.folder / "bomb.pt").write_bytes(bomb)
    for name in ("../bomb.pt", str(store.folder / "bomb.pt"), "mp_rank_00_model_states.pt"):
        assert forge(folder, forged, name, bomb) is None
    with pytest.raises(UnsafeResume, match="no safetensors file"):
        Reader(forge(folder, forged, part.name, bomb))
    assert not marker.exists()


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self):
        return open, (self.marker, "w")


def forge(folder: Path, commit: dict, name: str, content: bytes) -> Checkpoint | None:
    """A commit that names this part, with digests that are right."""
    told = {k: v for k, v in commit.items() if k != "sha256"} | {"parts": [[name, hashlib.sha256(content).hexdigest()]]}
    told["sha256"] = hashlib.sha256(durable.canonical_json(told)).hexdigest()
    (folder / COMMIT).write_text(json.dumps(told))
    return read_commit(folder)


def test_a_torn_commit_alone_is_progress_that_cannot_be_loaded(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", Alone())
    store.commit(8, {"epoch": 0}, tensors(8))
    (store.folder_at(8) / COMMIT).write_bytes(b"{")
    with pytest.raises(UnsafeResume, match="not a commit of format"):
        store.newest(progress_exists=False)
    shutil.rmtree(store.folder_at(8))
    with pytest.raises(UnsafeResume, match="shows progress"):
        store.newest(progress_exists=True)
    assert store.newest(progress_exists=False) is None


def test_what_a_killed_writer_left_is_gone_before_anyone_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 takes its time to remove it, and still finds nothing of the others' there."""
    store = CheckpointStore(tmp_path / "checkpoints", Alone())
    store.folder_at(8).mkdir(parents=True)
    (store.folder_at(8) / "rank-00003.safetensors").write_bytes(b"left over")
    remove = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda *words, **more: (time.sleep(0.5), remove(*words, **more)))
    results = Threads(2).run(
        lambda rank: CheckpointStore(store.folder, rank).commit(8, {}, {f"w{rank.rank}": torch.ones(2), "z": torch.ones(3)})
    )
    assert results == [store.folder_at(8)] * 2
    assert sorted(p.name for p in store.folder_at(8).iterdir()) == [COMMIT, "rank-00000.safetensors", "rank-00001.safetensors"]


def test_the_best_stays_and_the_newest_two(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", Alone())
    for samples in (8, 16, 24, 32, 40):
        store.commit(samples, {"best": {"value": 0.1, "samples": min(samples, 16)}}, tensors(samples))
    assert [c.samples for c in store.committed()] == [40, 32, 16]


def test_stretches_of_several_ranks_are_put_together_for_any_other_cut(tmp_path: Path) -> None:
    whole = torch.arange(11, dtype=torch.float32)
    folder = tmp_path / "samples-000000000008"
    parts = []
    for rank, (start, stop) in enumerate([(0, 4), (4, 9), (9, 11)]):
        share = {f"w@{start}": whole[start:stop], **({"b": torch.tensor([5.0])} if rank == 1 else {})}
        content = save_bytes(share, metadata={SHAPES: json.dumps({"w": [11]})})
        durable.write_bytes(folder / f"rank-{rank:05d}.safetensors", content)
        parts.append((f"rank-{rank:05d}.safetensors", hashlib.sha256(content).hexdigest()))
    read = Reader(Checkpoint(folder, 8, {}, parts))
    assert torch.equal(read("w", shape=(11,)), whole)
    for start, stop in [(0, 11), (0, 6), (3, 10), (8, 11), (4, 9), (5, 5)]:
        assert torch.equal(read("w", shape=(11,), start=start, stop=stop), whole[start:stop])
    assert read("b").tolist() == [5.0]
    with pytest.raises(InputError, match=r"w: shape \(11,\)"):
        read("w", shape=(12,))
    with pytest.raises(InputError, match="v: missing"):
        read("v")
    with pytest.raises(UnsafeResume, match="values from 4 on are in no part"):
        Reader(Checkpoint(folder, 8, {}, [parts[0], parts[2]]))("w")


def test_a_stretch_goes_and_comes_back_with_whole_tensors_beside_it(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", Alone())
    state = {"w": Fragment(torch.arange(6.0), 0, (2, 3)), "step": torch.tensor(7), "mean@x": torch.ones(2, 2)}
    store.commit(8, {"epoch": 0}, state)
    read = Reader(store.newest(progress_exists=True))
    assert read("w", shape=(2, 3)).tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert int(read("step", shape=())) == 7
    assert torch.equal(read("mean@x", shape=(2, 2)), torch.ones(2, 2))
