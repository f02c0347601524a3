"""A codebook fitted by a job on two nodes of a real SLURM is the one that a single process fits. Trainings: test_faults.py."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from ldm.comm import Alone
from ldm.kmeans.fit import FitConfig, FittedCodebook, fit_codebook
from tests.commands import retinaforge


def completed(job: dict, folder: Path) -> dict:
    """The job's state, once it has ended well."""
    deadline = time.monotonic() + 240
    while True:
        state = json.loads(retinaforge("status", job["name"], "--json", cwd=folder))["jobs"][job["name"]]["jobs"][0]
        if state["state"] == "COMPLETED":
            return state
        logs = "\n".join(path.read_text()[-2000:] for path in Path(job["folder"]).glob("*.out"))
        assert state["state"] in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED") and time.monotonic() < deadline, f"{state}\n{logs}"
        time.sleep(1)


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_codebook_is_fitted_on_two_nodes_and_goes_on_after_a_requeue(cluster, tmp_path, latents):
    """Requeued in the midst of its iterations: the codes are those that one process finds without a stop."""
    (tmp_path / "site.yaml").write_text("ask_every_seconds: 0.5\n")
    out, iterations = tmp_path / "codes.safetensors", 1500
    config = FitConfig(codes=16, vectors=600, iterations=iterations, tolerance=-1.0)
    words = [
        "codebook",
        "fit",
        "--latents",
        latents.path,
        "--out",
        out,
        "--codes",
        16,
        "--vectors",
        600,
        "--iterations",
        iterations,
        "--tolerance",
        "-1",
    ]
    job = json.loads(retinaforge("submit", "--nodes", 2, "--json", "--name", "fit", "--", *words, cwd=tmp_path))
    kept = tmp_path / ".codes.safetensors.unfinished"
    while not kept.exists() or FittedCodebook.read(kept).about["made"] < 3:
        assert not out.exists(), "it was over before it could be stopped"
        time.sleep(0.05)
    cluster.run("scontrol", "requeue", job["job_id"])
    assert completed(job, tmp_path)["restarts"] == 1
    alone = fit_codebook(latents, tmp_path / "alone", config, Alone())
    fitted = FittedCodebook.read(out)
    assert fitted.about["made"] == iterations and not kept.exists()
    torch.testing.assert_close(fitted.codes_KD, alone.codes_KD, rtol=1e-5, atol=1e-5)
    told = [int(line.split()[1][:-1]) for line in said_by(job) if line.startswith("iteration")]
    assert len(told) < 1.5 * iterations, "it began anew"


def said_by(job: dict) -> list[str]:
    return [line for log in Path(job["folder"]).glob("*") if log.suffix in (".out", ".err") for line in log.read_text().splitlines()]
