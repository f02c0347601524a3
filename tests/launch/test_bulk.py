"""A hundredth of the bulk benchmark: workers are killed, stopped and deceived, and every image is there once."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from data_shards import durable
from data_shards.ledger import Ledger
from data_shards.packing.units import record_path
from launch.work import work

ROOT = Path(__file__).parents[2]


def test_every_image_is_made_once_whatever_happens_to_those_who_make_them() -> None:
    words = ["--images", "10000", "--shard", "250", "--kills", "5", "--workers", "3", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "bulk.py", *words], capture_output=True, text=True, timeout=240, check=True, cwd=ROOT
    )
    rows = {row["case"]: row["equal"] for row in json.loads(done.stdout.splitlines()[-1])["rows"]}
    assert all(rows.values()) and {"3_workers_5_kills", "publish_vs_plain_tar", "memory_of_10000_vs_1000"} <= {*rows}, done.stdout


@pytest.fixture
def bulk(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    spec = importlib.util.spec_from_file_location("bulk", ROOT / "benchmarks" / "bulk.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_who_sees_the_folder_late_makes_a_unit_again_and_changes_nothing(bulk: ModuleType, tmp_path: Path) -> None:
    """What a network file system may show: names that others made are not there yet, until a link to one fails."""
    units, shard = bulk.Toys(tmp_path, 20, 10), tmp_path / "synthetic-000000.tar"
    units.make(0)
    inode, record = shard.stat().st_ino, record_path(shard).read_bytes()
    with bulk.StaleView(tmp_path, 600.0) as view:
        assert not units.published(0) and not shard.exists() and not list(tmp_path.iterdir()) and view.hidden
        units.make(0)
        units.make(1)
        assert units.published(0) and units.published(1)
    assert shard.stat().st_ino == inode and record_path(shard).read_bytes() == record
    assert units.finish().splits == {"synthetic": {"count": 20, "subjects": 1}}


def test_who_sees_late_that_a_unit_is_there_outlives_that_its_own_is_swept(
    bulk: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others have finished the set, and sweep; this process is writing a shard of it that it does not see yet."""
    units, real, swept = bulk.Toys(tmp_path, 10, 10), bulk.toy, []
    units.make(0)

    def sweeping(i: int) -> object:
        for left in tmp_path.glob(f"{durable.PART}*.tar"):
            left.unlink()
            swept.append(left)
        return real(i)

    monkeypatch.setattr(bulk, "toy", sweeping)
    with bulk.StaleView(tmp_path, 2.0):
        work(units, Ledger(tmp_path), poll_s=0.1)
    assert swept and units.published(0)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".index", ".tar", ".unit"]
