"""Codebooks from latents: the same vectors whatever the world, exact after a kill, and refused where they do not belong."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from data_shards.errors import CorruptData, InputError
from data_shards.reading.dataset import Dataset
from launch import build
from launch.tree import load
from ldm.comm import Alone
from ldm.kmeans.fit import FitConfig, FittedCodebook, drawn, fit_codebook
from ldm.training.engine import Engine
from tests.threads import Threads

ROOT = Path(__file__).parents[3]
MPIEXEC = shutil.which("mpiexec", path=str(Path(sys.executable).parent))
CONFIG = FitConfig(codes=16, vectors=600, iterations=12, tolerance=-1.0)


def test_the_same_vectors_are_drawn_whatever_the_world(latents: Dataset) -> None:
    z, ids = drawn(latents, CONFIG, 0, 1)
    assert 500 < len(z) < 700 and len(set(ids.tolist())) == len(ids)
    for world in (2, 3, 50):
        parts = [drawn(latents, CONFIG, rank, world) for rank in range(world)]
        together = np.concatenate([i for _, i in parts])
        order = np.argsort(together)
        assert np.array_equal(together[order], np.sort(ids))
        assert torch.equal(torch.cat([v for v, _ in parts])[order], z[np.argsort(ids)])
    everything, _ = drawn(latents, dataclasses.replace(CONFIG, vectors=10**6), 0, 1)
    assert len(everything) == 40 * 64


def test_a_fit_is_written_found_again_and_the_same_on_any_number_of_ranks(latents: Dataset, tmp_path: Path) -> None:
    one = fit_codebook(latents, tmp_path / "one", CONFIG, Alone())
    assert one.about["done"] and one.about["made"] == 12 and one.about["dataset"] == "d" * 64
    results = Threads(3).run(lambda comm: fit_codebook(latents, tmp_path / "three", CONFIG, comm))
    for found in results:
        torch.testing.assert_close(found.codes_KD, one.codes_KD, rtol=1e-5, atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "three"]
    again = fit_codebook(latents, tmp_path / "one", CONFIG, Alone(), report=lambda *_: pytest.fail("fitted anew"))
    assert torch.equal(again.codes_KD, one.codes_KD)
    results = Threads(2).run(lambda comm: fit_codebook(latents, tmp_path / "one", dataclasses.replace(CONFIG, seed=1), comm))
    assert all(isinstance(found, InputError) and "another codebook stands here" in str(found) for found in results)


@pytest.mark.parametrize("at", [1, 5, 12])
def test_a_killed_fit_goes_on_to_the_very_same_codes(latents: Dataset, tmp_path: Path, at: int) -> None:
    straight = fit_codebook(latents, tmp_path / "straight", CONFIG, Alone())
    said: list[int] = []
    real = FittedCodebook.write

    def stop(fitted: FittedCodebook, path: Path) -> None:
        real(fitted, path)
        if fitted.about["made"] == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        patch.setattr(FittedCodebook, "write", stop)
        fit_codebook(latents, tmp_path / "cut", CONFIG, Alone())
    assert [path.name for path in tmp_path.iterdir() if "cut" in path.name] == [".cut.unfinished"]
    found = fit_codebook(latents, tmp_path / "cut", CONFIG, Alone(), report=lambda done, inertia: said.append(done))
    assert said == list(range(at + 1, 13)) and found.about["made"] == 12 and torch.equal(found.codes_KD, straight.codes_KD)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "straight"]
    if at < 12:
        assert (tmp_path / "cut").read_bytes() == (tmp_path / "straight").read_bytes()


def test_a_fault_on_one_rank_ends_all(latents: Dataset, tmp_path: Path) -> None:
    for path in latents.path.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    shard, row = Dataset(tmp_path).locate("train", 1)  # rank 1 reads it, rank 0 does not
    content = bytearray(shard.path.read_bytes())
    content[int(shard.index.offset_NM[row, shard.index.payload(row)[0]]) + 100] ^= 1
    shard.path.write_bytes(content)
    damaged = Dataset(tmp_path)
    results = Threads(2).run(lambda comm: fit_codebook(damaged, tmp_path / "out", CONFIG, comm))
    assert all(isinstance(found, CorruptData) and "sample z001" in str(found) for found in results), results
    if MPIEXEC:
        command = [MPIEXEC, "-n", "2", *words(damaged, tmp_path / "out")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == CorruptData.exit_code and "sample z001" in done.stderr, done.stderr[-2000:]


def words(latents: Dataset, out: Path) -> list[str]:
    fit = ["codebook", "fit", "--latents", str(latents.path), "--out", str(out), "--codes", "16", "--vectors", "600"]
    return [sys.executable, "-m", "launch", *fit, "--iterations", "12", "--tolerance", "-1"]


@pytest.mark.parametrize("launcher", ["mpiexec", "torchrun"])
def test_the_verb_under_a_launcher(latents: Dataset, tmp_path: Path, launcher: str) -> None:
    if launcher == "mpiexec" and MPIEXEC is None:
        pytest.skip("no mpiexec beside this Python: pip install 'retinaforge[mpi]'")
    one = fit_codebook(latents, tmp_path / "one", CONFIG, Alone())
    python, *rest = words(latents, tmp_path / "two")
    before = [MPIEXEC, "-n", "2", python] if launcher == "mpiexec" else [python, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    rest = rest if launcher == "mpiexec" else rest[1:]
    before = before if launcher == "mpiexec" else [*before, "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*before, *rest], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "16 codes, inertia" in done.stdout and "iteration 12: inertia" in done.stderr and done.stderr.count("iteration 12") == 1
    torch.testing.assert_close(FittedCodebook.read(tmp_path / "two").codes_KD, one.codes_KD, rtol=1e-5, atol=1e-5)


def test_a_sigkill_loses_an_iteration_at_most(latents: Dataset, tmp_path: Path) -> None:
    command = words(latents, tmp_path / "out")
    command[command.index("12")] = "100000"
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("iteration 3:"):
            break
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert FittedCodebook.read(tmp_path / ".out.unfinished").about["made"] >= 2 and not (tmp_path / "out").exists()


def test_damaged_files_are_found_and_others_refused(latents: Dataset, packed: Path, tmp_path: Path) -> None:
    fit_codebook(latents, tmp_path / "codes", CONFIG, Alone())
    content = (tmp_path / "codes").read_bytes()
    for cut in (0, 5, 40, len(content) - 1):
        (tmp_path / "cut").write_bytes(content[:cut])
        with pytest.raises(CorruptData):
            FittedCodebook.read(tmp_path / "cut")
    fitted = FittedCodebook.read(tmp_path / "codes")
    fitted.codes_KD[3, 1] = float("nan")
    fitted.write(tmp_path / "nan")
    with pytest.raises(CorruptData, match="damaged"):
        FittedCodebook.read(tmp_path / "nan")
    with pytest.raises(InputError, match="cannot be read"):
        FittedCodebook.read(tmp_path / "none")
    for name, tensors, told in (
        ("deep", {"codes": torch.zeros(2, 2)}, "[" * 100_000),
        ("float8", {"codes": torch.zeros(2, 2).to(torch.float8_e4m3fn), "counts": torch.zeros(2)}, "{}"),
        ("bare", {"codes": torch.zeros(2, 2), "counts": torch.zeros(2, dtype=torch.float64)}, '{"format": "retinaforge-codebook-1"}'),
    ):
        (tmp_path / name).write_bytes(save(tensors, {"retinaforge": told}))
        with pytest.raises(CorruptData, match="codebook"):
            FittedCodebook.read(tmp_path / name)
    (tmp_path / ".y.unfinished").write_bytes(content[:-9])
    assert fit_codebook(latents, tmp_path / "y", CONFIG, Alone()).about["made"] == 12, "it begins anew"
    with pytest.raises(InputError, match="a dataset of cubes"):
        fit_codebook(Dataset(packed), tmp_path / "x", CONFIG, Alone())
    with pytest.raises(InputError, match="codes 16, vectors 3"):
        FitConfig(codes=16, vectors=3)


def test_training_begins_with_a_fitted_codebook_and_refuses_one_from_elsewhere(dataset: Dataset, tmp_path: Path) -> None:
    small = load("demo").vqgan
    path = tmp_path / "codes"
    stage = dataclasses.replace(
        small,
        codebook=dataclasses.replace(small.codebook, codes=16, kmeans="never", kmeans_vectors=512, start=str(path)),
        loop=dataclasses.replace(small.loop, batch=4),
        engine=dataclasses.replace(small.engine, tracker="none"),
    )
    trainer, *_ = build.vqgan_trainer(stage, dataset, Engine(stage.engine))
    codes, counts = torch.randn(16, 8), torch.arange(1.0, 17.0, dtype=torch.float64)
    about = {"dataset": dataset.digest, "metric": "euclidean", "done": True, "made": 3, "inertia": 1.0}
    for wrong, message in (
        ({"dataset": "elsewhere"}, "a codebook of 16 codes"),
        ({"codes": torch.randn(16, 7)}, "of 7 channels"),
        ({"codes": torch.randn(17, 8)}, "a codebook of 17 codes"),
        ({"done": False}, "not finished"),
        ({"metric": "cosine"}, "of directions"),
    ):
        other = wrong.pop("codes", codes)
        FittedCodebook(other, torch.ones(len(other), dtype=torch.float64), {**about, **wrong}).write(path)
        with pytest.raises(InputError, match=message):
            trainer.start_epoch(0)
    FittedCodebook(codes, counts, about).write(path)
    trainer.start_epoch(0)
    assert torch.equal(trainer.codebook.codes_KD, codes)
    torch.testing.assert_close(trainer.codebook.share_K.double(), counts * 16 / counts.sum())
    trainer.codebook.config = dataclasses.replace(trainer.codebook.config, kmeans="first", kmeans_iterations=1, warmup_epochs=0)
    told = trainer.start_epoch(0)
    assert told["kmeans/fresh"] == 0, "the first k-means goes on from what was given"


def test_left_to_itself_the_verb_writes_beside_the_latents_and_a_url_has_no_beside(latents: Dataset, tmp_path: Path) -> None:
    shutil.copytree(latents.path, tmp_path / "latents")
    command = [sys.executable, "-m", "launch", "codebook", "fit", "--codes", "4", "--latents"]
    done = subprocess.run([*command, str(tmp_path / "latents")], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert len(FittedCodebook.read(tmp_path / "codebook.safetensors").codes_KD) == 4
    done = subprocess.run([*command, "http://127.0.0.1:1/latents"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == InputError.exit_code and "without --out" in done.stderr, done.stderr
