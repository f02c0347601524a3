"""SIGKILL at every durable step of a commit: the same command again goes on, and ends bit for bit as if nothing had happened.

`make faults` runs every step under every stage; `make test` a few of them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

from ldm.comm import Alone
from ldm.training.checkpoint import CheckpointStore
from ldm.training.clock import TIMINGS
from ldm.training.loop import read_log

pytest.importorskip("deepspeed", reason="the extra 'deepspeed' is not installed: pip install -c constraints.txt -e '.[deepspeed]'")

ROOT = Path(__file__).parents[2]
ALL = os.environ.get("FAULTS") == "all"
TINY = {
    "vqgan": {
        "model": {"compression": 4, "channels": 8, "layers": 1, "norm_groups": 1, "latent_channels": 4},
        "codebook": {"codes": 32, "kmeans_vectors": 1024, "dead_below": 0.1},
        "discriminator": {"channels": 8, "layers": 2},
        "loss": {"gan_start_samples": 8},
        "loop": {"samples": 48, "batch": 8, "log_every": 8, "checkpoint_every": 8, "background": False},
        "engine": {"tracker": "none"},
    }
}
FROM, TO = 24, 32  # the commit that is killed: at 24 samples one is pruned for the first time


@pytest.fixture(scope="module")
def tiny(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faults") / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "data": {"dataset": str(packed)}}))
    return path


def launch(tiny: Path, name: str, mode: str, *, rank: int = 0, step: int = -1) -> subprocess.CompletedProcess[str]:
    """Train on two ranks; killed at a durable step, if one is given."""
    words = ["train", "vqgan", tiny, f"run={tiny.parent}/{name}", f"vqgan.engine.mode={mode}"]
    module = ["-m", "launch"] if step < 0 else ["-m", "tests.faults.crash", rank, step]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2, *module, *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [str(word) for word in command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def end(tiny: Path, name: str) -> tuple[list[dict[str, float]], list[list[tuple[str, str]]]]:
    """The curve without its timings, and sha256 of every part of the newest checkpoints."""
    folder = tiny.parent / name / "vqgan"
    rows = [{k: v for k, v in row.items() if not k.startswith(TIMINGS)} for row in read_log(folder / "metrics.jsonl")]
    committed = CheckpointStore(folder / "checkpoints", Alone()).committed()
    assert len(committed) == 2 and sorted(p.name for p in (folder / "checkpoints").iterdir()) == sorted(c.folder.name for c in committed)
    return rows, [c.parts for c in committed]


@cache
def steps_of_a_commit(tiny: Path, mode: str) -> dict[int, list[tuple[int, str]]]:
    """Rank → numbered durable steps of the first commit that prunes, as an undisturbed run names them. That run is the yardstick."""
    found = {}
    for rank in (0, 1):
        said = launch(tiny, f"whole-{mode}", mode, rank=rank, step=0) if rank == 0 else launch(tiny, f"again-{mode}", mode, rank=1, step=0)
        assert said.returncode == 0, said.stderr[-3000:]
        named = [(int(n), what) for n, what in re.findall(r"step (\d+): (.*)", said.stderr)]
        # a commit begins with the write of this rank's part; the fourth is that at 24 samples (0, 8, 16, 24)
        begins = [i for i, (_, what) in enumerate(named) if what == f"write rank-{rank:05d}.safetensors"]
        found[rank] = named[begins[3] : begins[4]]
    assert end(tiny, f"whole-{mode}") == end(tiny, f"again-{mode}"), "two undisturbed runs differ"
    return found


def killed_and_resumed(tiny: Path, mode: str, rank: int, step: int) -> None:
    name = f"killed-{mode}-{rank}-{step}"
    killed = launch(tiny, name, mode, rank=rank, step=step)
    assert killed.returncode != 0 and "Signal 9 (SIGKILL)" in killed.stderr, killed.stderr[-2000:]
    folder = tiny.parent / name / "vqgan"
    reached = read_log(folder / "metrics.jsonl")[-1]["samples"]
    newest = CheckpointStore(folder / "checkpoints", Alone()).newest(progress_exists=True)
    assert newest.samples >= reached - TINY["vqgan"]["loop"]["checkpoint_every"], "more than one interval was lost"
    resumed = launch(tiny, name, mode)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert end(tiny, name) == end(tiny, f"whole-{mode}")


@pytest.mark.skipif(ALL, reason="the whole matrix runs")
@pytest.mark.parametrize(("mode", "rank", "what"), [("zero3", 0, "replace COMMIT.json"), ("zero2", 1, "write rank-00001.safetensors")])
def test_a_kill_at_a_step_of_a_commit_loses_nothing(tiny: Path, mode: str, rank: int, what: str) -> None:
    named = steps_of_a_commit(tiny, mode)[rank]
    step = next(n for n, said in named if said.split()[0] == what.split()[0] and said.endswith(what.split()[1]))
    killed_and_resumed(tiny, mode, rank, step)


@pytest.mark.skipif(not ALL, reason="make faults")
@pytest.mark.parametrize("mode", ["ddp", "zero1", "zero2", "zero3"])
def test_a_kill_at_every_step_of_a_commit_loses_nothing(tiny: Path, mode: str) -> None:
    named = steps_of_a_commit(tiny, mode)
    assert len(named[0]) >= 12 and len(named[1]) >= 4, named
    for rank in (0, 1):
        for step, what in named[rank]:
            print(f"{mode}: rank {rank} killed before step {step}: {what}", flush=True)
            killed_and_resumed(tiny, mode, rank, step)
