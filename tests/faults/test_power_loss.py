"""Power may go at any moment: what was committed stays, on any state of the disk that POSIX allows."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from data_shards import durable
from ldm.checkpoints.store import CheckpointStore, Fragment, Reader
from ldm.comm import Alone
from tests.faults.disk import EXTREMES, Disk
from tests.threads import Rank, Threads


@pytest.mark.parametrize("extreme", EXTREMES)
def test_what_was_committed_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extreme: str) -> None:
    """Two ranks, four commits of which two are kept; the disk is looked at before each of their operations."""
    root, out = tmp_path / "run", tmp_path / "after"
    root.mkdir()
    promised, moments = [-1], [0]

    def look() -> None:
        moments[0] += 1
        disk.after_power_loss(extreme, out)
        store = CheckpointStore(out / "vqgan" / "checkpoints", Alone())
        newest = store.newest(progress_exists=False) if promised[0] >= 0 or store.committed() else None
        assert (newest.samples if newest else -1) >= promised[0], f"{promised[0]} was committed"
        if newest:
            assert Reader(newest)("w").tolist() == [newest.samples] * 6
        shutil.rmtree(out)

    disk = Disk(root, monkeypatch, look)

    def commits(rank: Rank) -> None:
        store = CheckpointStore(root / "vqgan" / "checkpoints", rank)
        for samples in (0, 8, 16, 24):
            half = Fragment(torch.full((3,), float(samples)), 3 * rank.rank, (6,))
            store.commit(samples, {"epoch": 0, "best": {"samples": 8, "value": 1.0}}, {"w": half})
            promised[0] = samples

    assert Threads(2).run(commits) == [None, None]
    disk.look()
    assert moments[0] > 50


@pytest.mark.parametrize("extreme", EXTREMES)
def test_a_file_is_the_old_one_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extreme: str) -> None:
    root, out, allowed = tmp_path / "run", tmp_path / "after", [None, b"1"]
    root.mkdir()

    def look() -> None:
        disk.after_power_loss(extreme, out)
        found = (out / "a.json").read_bytes() if (out / "a.json").exists() else None
        assert found in allowed
        shutil.rmtree(out)

    disk = Disk(root, monkeypatch, look)
    for i in range(1, 4):
        durable.write_bytes(root / "a.json", str(i).encode())
        allowed[:] = [str(i).encode()]
        disk.look()
        allowed.append(str(i + 1).encode())


@pytest.mark.parametrize("extreme", EXTREMES)
def test_a_published_folder_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extreme: str) -> None:
    root, out, published = tmp_path / "run", tmp_path / "after", [False]
    root.mkdir()

    def look() -> None:
        disk.after_power_loss(extreme, out)
        final = out / "sets" / "a"
        assert final.exists() or not published[0]
        if final.exists():
            assert {p.name: p.read_bytes() for p in final.rglob("*") if p.is_file()} == {"one": b"1" * 5000, "two": b"22"}
        shutil.rmtree(out)

    disk = Disk(root, monkeypatch, look)
    with durable.writing_folder(root / "sets" / "a") as part:
        (part / "one").write_bytes(b"1" * 5000)
        (part / "below").mkdir()
        durable.write_bytes(part / "below" / "two", b"22")
    published[0] = True
    disk.look()
