"""A rank that dies or hangs: the others end within a minute, with its name, and the run goes on from its last checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_shards.durable import claimed
from data_shards.errors import TryAgain
from ldm.training.engine import free_port
from ldm.training.loop import read_log

ROOT = Path(__file__).parents[2]
ALL = os.environ.get("FAULTS") == "all"
CASES = [(signal.SIGSTOP, 1), (signal.SIGKILL, 1), (signal.SIGSTOP, 0), (signal.SIGKILL, 0)]


@pytest.mark.parametrize(("how", "victim"), CASES if ALL else CASES[:1])
def test_the_others_end_with_the_name_of_the_one_that_is_lost(packed: Path, tmp_path: Path, how: signal.Signals, victim: int) -> None:
    """Started without a launcher: torchrun would end the others by itself, srun and mpiexec may not."""
    tiny = ["vqgan.model.channels=8", "vqgan.codebook.codes=32", "vqgan.codebook.kmeans_vectors=1024", "vqgan.loop.samples=1000000"]
    words = [sys.executable, "-m", "launch", "train", "vqgan", "demo", f"run={tmp_path}/run", f"data.dataset={packed}", *tiny]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port("127.0.0.1")), "OMP_NUM_THREADS": "1"}
    ranks = []
    for rank in range(2):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
        with open(tmp_path / f"{rank}.log", "w") as said:
            ranks.append(subprocess.Popen(words, cwd=ROOT, env={**os.environ, **world, **place}, stdout=said, stderr=said))
    try:
        until = time.monotonic() + 120
        while not read_log(tmp_path / "run" / "vqgan" / "metrics.jsonl"):
            assert time.monotonic() < until and ranks[0].poll() is None, (tmp_path / "0.log").read_text()[-3000:]
            time.sleep(0.2)
        ranks[victim].send_signal(how)
        began = time.monotonic()
        other = ranks[1 - victim]
        assert other.wait(60) == 75, (tmp_path / f"{1 - victim}.log").read_text()[-3000:]
        assert time.monotonic() - began < 60
        assert f"rank {victim} is gone" in (tmp_path / f"{1 - victim}.log").read_text()
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


def test_two_trainings_in_one_folder_are_refused(packed: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "launch", "train", "vqgan", "demo", f"run={tmp_path}/run", f"data.dataset={packed}"]
    with claimed(tmp_path / "run" / "vqgan" / ".training", "training in this folder"):
        second = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
        with pytest.raises(TryAgain, match="another process is waiting"), claimed(tmp_path / "run" / "vqgan" / ".training", "waiting"):
            pass
    assert second.returncode == TryAgain.exit_code and "another process is training in this folder" in second.stderr
    assert not (tmp_path / "run" / "run.yaml").exists()
