"""A training submitted by the command line: on two nodes of a real SLURM it gives what it gives without SLURM."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from ldm.training.clock import TIMINGS

TINY = {
    "model": {"compression": 4, "channels": 16, "layers": 1, "norm_groups": 4, "latent_channels": 4},
    "codebook": {"codes": 32, "kmeans_vectors": 1024},
    "discriminator": {"channels": 8, "layers": 2},
    "loop": {"samples": 48, "batch": 8, "log_every": 8, "checkpoint_every": 24},
}


def retinaforge(*words: object, cwd: Path, code: int = 0) -> str:
    program = Path(sys.executable).with_name("retinaforge")
    done = subprocess.run([program, *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def curve(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "vqgan" / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith(TIMINGS)} for row in rows]


def config(folder: Path, packed: Path, name: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"vqgan": TINY, "run": str(folder / name), "data": {"dataset": str(packed)}}))
    return path


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_nodes_of_slurm_train_what_two_local_processes_train(cluster, tmp_path, packed):
    said = retinaforge("submit", "--nodes", 2, "--json", "--", "train", "vqgan", config(tmp_path, packed, "slurm"), cwd=tmp_path)
    job = json.loads(said)
    deadline = time.monotonic() + 240
    while (state := json.loads(retinaforge("status", job["name"], "--json", cwd=tmp_path))[job["name"]][0]["state"]) != "COMPLETED":
        logs = "\n".join(path.read_text()[-2000:] for path in Path(job["folder"]).glob("*.out"))
        assert state in ("PENDING", "RUNNING", "COMPLETING") and time.monotonic() < deadline, f"{state}\n{logs}"
        time.sleep(2)
    retinaforge(
        "submit", "--local", "--nodes", 2, "--name", "here", "--", "train", "vqgan", config(tmp_path, packed, "local"), cwd=tmp_path
    )
    assert curve(tmp_path / "slurm") == curve(tmp_path / "local")
    assert curve(tmp_path / "slurm")[-1]["samples"] == TINY["loop"]["samples"]
