"""The trainers through the real command line: two ranks equal one, and no kill changes the curve."""

from __future__ import annotations

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from data_shards.cube import Cube
from data_shards.errors import InputError
from data_shards.folder import keys_in, write_cube
from data_shards.manifest import read_manifest, write_manifest
from data_shards.packing.pack import pack, write_dataset
from data_shards.packing.splits import held_out_split
from data_shards.packing.verify import verify
from data_shards.reading.dataset import Dataset, SplitInfo
from launch.build import check_fit
from launch.run import Run
from launch.stages import STAGES
from launch.stages.outdated import check_outdated
from launch.stages.training import trained
from launch.tree import from_tree
from launch.worked import working_seconds
from ldm.checkpoints.commit import USED, faults_of
from ldm.checkpoints.store import CheckpointStore
from ldm.checkpoints.trained import load_autoencoder, trained_digest
from ldm.training.clock import TIMINGS
from ldm.training.log import read_log
from tests.commands import invoke
from tests.conftest import made_cube
from tests.ranks import shared
from tests.runs import MONITOR, NETWORKS
from tests.users import as_nobody, open_way_to

ROOT = Path(__file__).parents[2]

TINY = {
    "segmenter": {**NETWORKS["segmenter"], "loop": {"samples": 32, "batch": 4, "log_every": 8, "checkpoint_every": 16}},
    "vqgan": {
        **NETWORKS["vqgan"],
        "loss": {"gan_start_samples": 24},
        "optimizer": {"lr": 1.0e-5},  # see tests/runs.py: rounding between worlds must not grow
        "loop": {"samples": 96, "batch": 8, "log_every": 8, "checkpoint_every": 24},
    },
    "diffusion": {
        **NETWORKS["diffusion"],
        "loop": {"samples": 256, "batch": 8, "log_every": 8, "checkpoint_every": 64},
        "sampler": {"steps": 4},
    },
    "features": {**NETWORKS["features"], "loop": {"samples": 16, "batch": 8, "log_every": 8, "checkpoint_every": 16}},
    "copies": {**NETWORKS["copies"], "loop": {"samples": 16, "batch": 8, "log_every": 8, "checkpoint_every": 16}},
    "sample": {"count": 10, "shard": 4, "batch": 4},
}
LONG = pytest.mark.skipif(os.environ.get("FAULTS") != "all", reason="make faults runs it: half a minute each")
SAMPLE = {"count": 10, "shard": 2, "batch": 2}


def configured(tmp_path: Path, packed: Path, name: str) -> Path:
    """A YAML of a tiny run in tmp_path/name."""
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**TINY, "run": str(tmp_path / name), "data": {"dataset": str(packed)}}))
    return path


def command(*words: object) -> list[str]:
    """In a process of its own, to be signalled."""
    return [sys.executable, "-m", "launch", *map(str, words)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def run(*words: object, ranks: int = 1, expect: int = 0) -> str:
    """What is said by the command line with these words."""
    with tempfile.NamedTemporaryFile("r") as log:
        codes = shared().run(Path(log.name), list(words), ranks)
        said = log.read()
    assert codes == [expect] * ranks, said[-3000:]
    return said


def curve(folder: Path) -> list[dict[str, float]]:
    rows = read_log(folder / "metrics.jsonl")
    assert rows, f"no curve in {folder}"
    return [{k: v for k, v in row.items() if not k.startswith(TIMINGS)} for row in rows]


def digest(folder: Path) -> dict[int, list[tuple[str, str]]]:
    """sha256 of every part of every kept checkpoint: weights, optimizers, EMA, codebook and counts, bit for bit."""
    store = CheckpointStore(folder / "checkpoints", comm=None)
    return {c.samples: c.parts for c in store.committed()}


@pytest.fixture(scope="module")
def uninterrupted(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of both trainers that nobody disturbed."""
    tmp_path = tmp_path_factory.mktemp("uninterrupted")
    config = configured(tmp_path, packed, "whole")
    run("train", "vqgan", config)
    run("encode", config)
    run("train", "diffusion", config)
    return tmp_path / "whole"


def test_two_ranks_give_the_losses_of_one(uninterrupted: Path, packed: Path, tmp_path: Path) -> None:
    config = configured(tmp_path, packed, "two")
    run("train", "vqgan", config, ranks=2)
    # the second trainer's ranks read the latents of the one-rank run: the comparison is of the training alone
    (tmp_path / "same").mkdir()
    for name in ("latents", "vqgan"):
        (tmp_path / "same" / name).symlink_to(uninterrupted / name)
    run("train", "diffusion", configured(tmp_path, packed, "same"), ranks=2)
    for stage, folder in (("vqgan", "two"), ("diffusion", "same")):
        one, two = curve(uninterrupted / stage), curve(tmp_path / folder / stage)
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            assert a.keys() == b.keys()
            # two epochs and their k-means to rounding; later, a gradient at a kink (of |x|, of a leaky ReLU) may take either side
            early = a["samples"] <= 72
            for name in (name for name in a if early or not name.startswith(("gan/adaptive_weight", "grad_norm"))):
                tolerance = 0.02 if name.startswith(MONITOR) else 2e-5 if early else 1e-3
                close = math.isclose(a[name], b[name], rel_tol=tolerance, abs_tol=1e-7)
                assert close, (stage, a["samples"], name, a[name], b[name])


def test_crops_of_a_set_at_a_url_train_the_same_on_two_ranks_and_after_a_stop(packed: Path, tmp_path: Path) -> None:
    """Crops, epochs of another length and k-means over them, shards through a cache: all functions of the position alone."""
    read = {"dataset": f"file://{packed}", "cache": str(tmp_path / "cache"), "cache_gib": 0.1}
    loop = {**TINY["vqgan"]["loop"], "epoch_samples": 40}
    for name in ("one", "two", "stopped"):
        tree = {**TINY, "vqgan": {**TINY["vqgan"], "crop": 16, "loop": loop}, "data": read, "run": str(tmp_path / name)}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    run("train", "vqgan", tmp_path / "one.yaml")
    run("train", "vqgan", tmp_path / "two.yaml", ranks=2)
    run("train", "vqgan", tmp_path / "stopped.yaml", "vqgan.loop.samples=48")
    run("train", "vqgan", tmp_path / "stopped.yaml")
    one, two = curve(tmp_path / "one" / "vqgan"), curve(tmp_path / "two" / "vqgan")
    assert sum("kmeans/inertia" in row for row in one) == 3, "epochs of 40 samples in 96"
    for a, b in zip(one, two, strict=True):
        for name in a:
            assert math.isclose(a[name], b[name], rel_tol=2e-5, abs_tol=1e-7), (a["samples"], name, a[name], b[name])
    assert digest(tmp_path / "one" / "vqgan")[96] == digest(tmp_path / "stopped" / "vqgan")[96]
    assert list((tmp_path / "cache").rglob("*-0")), "pieces of shards"


def test_a_mixture_trains_the_same_on_two_ranks_and_another_is_not_its_continuation(packed: Path, tmp_path: Path) -> None:
    for i in range(100, 112):
        write_cube(tmp_path / "cubes", made_cube(i))
    pack(tmp_path / "cubes", tmp_path / "other", splits={"train": 1.0})
    for name, weight in (("one", 0.5), ("two", 0.5), ("odd", 2.0)):
        loop = {"samples": 32, "batch": 8, "log_every": 8, "checkpoint_every": 16}
        tree = {
            **TINY,
            "vqgan": {**TINY["vqgan"], "loop": loop, "mix": {str(tmp_path / "other"): weight}},
            "data": {"dataset": str(packed)},
        }
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**tree, "run": str(tmp_path / name)}))
    run("train", "vqgan", tmp_path / "one.yaml")
    run("train", "vqgan", tmp_path / "two.yaml", ranks=2)
    one, two = curve(tmp_path / "one" / "vqgan"), curve(tmp_path / "two" / "vqgan")
    for a, b in zip(one, two, strict=True):
        # the adaptive weight, a ratio of two norms, was seen to differ by 2.6e-5
        assert all(math.isclose(a[name], b[name], rel_tol=1e-4, abs_tol=1e-7) for name in a)
    shutil.copytree(tmp_path / "one" / "vqgan", tmp_path / "odd" / "vqgan")
    said = run("train", "vqgan", tmp_path / "odd.yaml", "vqgan.loop.samples=40", expect=3)
    assert "mix" in said


def test_a_share_of_unreadable_samples_is_trained_around_and_one_more_is_exit_4(packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed, tmp_path / "set")
    dataset = Dataset(tmp_path / "set")
    for i in (3, 17):
        shard, row = dataset.locate("train", i)
        content = bytearray(shard.path.read_bytes())
        content[int(shard.index.offset_NM[row, shard.index.payload(row)[0]]) + 50] ^= 4
        shard.path.write_bytes(content)
    config = configured(tmp_path, tmp_path / "set", "bad")
    said = run("train", "vqgan", config, "data.read.bad_share=0.04", expect=4)
    assert "at most 1 of 32" in said and "retinaforge data verify" in said
    said = run("train", "vqgan", config, "data.read.bad_share=0.07")
    assert said.count("another takes its place") == 2
    assert curve(tmp_path / "bad" / "vqgan")[-1]["data/unreadable"] == 2.0


def interrupted(words: list[str], folder: Path, how: signal.Signals, *, commits: bool = True) -> int:
    """Start, wait for the first checkpoint (unless `commits` is False) and one more logged step, send the signal; the exit status."""
    process = subprocess.Popen(words, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        last = max((int(c.parent.name.split("-")[1]) for c in folder.glob("checkpoints/*/COMMIT.json")), default=0)
        if (last or not commits) and len(read_log(folder / "metrics.jsonl")) > last // 8:
            process.send_signal(how)
            break
        time.sleep(0.005)
    return process.wait(60)


@pytest.mark.parametrize("stage", ["vqgan", "diffusion"])
def test_a_killed_run_continues_as_if_nothing_had_happened(uninterrupted: Path, packed: Path, tmp_path: Path, stage: str) -> None:
    config = configured(tmp_path, packed, "killed")
    if stage == "diffusion":
        (tmp_path / "killed").mkdir()
        for name in ("latents", "vqgan"):
            (tmp_path / "killed" / name).symlink_to(uninterrupted / name)
    folder = tmp_path / "killed" / stage
    assert interrupted(command("train", stage, config), folder, signal.SIGKILL) == -signal.SIGKILL
    killed_at = read_log(folder / "metrics.jsonl")[-1]["samples"]
    run("train", stage, config)
    assert killed_at < TINY[stage]["loop"]["samples"], "the kill came after the end: the test showed nothing"
    assert curve(folder) == curve(uninterrupted / stage)
    assert digest(folder) == digest(uninterrupted / stage)


def test_a_run_killed_before_its_first_interval_continues(uninterrupted: Path, packed: Path, tmp_path: Path) -> None:
    config = configured(tmp_path, packed, "early")
    folder = tmp_path / "early" / "vqgan"
    words = command("train", "vqgan", config, "vqgan.loop.checkpoint_every=96")
    assert interrupted(words, folder, signal.SIGKILL, commits=False) == -signal.SIGKILL
    assert read_log(folder / "metrics.jsonl")[-1]["samples"] < TINY["vqgan"]["loop"]["samples"], "killed too late: the test showed nothing"
    with pytest.raises(InputError, match="no trained vqgan"):  # the first commit holds nothing that was trained
        load_autoencoder(folder)
    run("train", "vqgan", config)
    assert curve(folder) == curve(uninterrupted / "vqgan")


def test_a_signal_commits_and_asks_to_be_run_again(uninterrupted: Path, packed: Path, tmp_path: Path) -> None:
    config = configured(tmp_path, packed, "asked")
    folder = tmp_path / "asked" / "vqgan"
    assert interrupted(command("train", "vqgan", config), folder, signal.SIGTERM) == 75
    committed = CheckpointStore(folder / "checkpoints", comm=None).committed()
    assert committed and committed[0].samples == read_log(folder / "metrics.jsonl")[-1]["samples"]
    assert not faults_of(committed[0])
    stopped_s = working_seconds(tmp_path / "asked")
    run("train", "vqgan", config)
    assert 0 < stopped_s < working_seconds(tmp_path / "asked"), "both attempts count"
    assert curve(folder) == curve(uninterrupted / "vqgan")


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(uninterrupted: Path, packed: Path, tmp_path: Path) -> None:
    config = configured(tmp_path, packed, "damaged")
    run("train", "vqgan", config, "vqgan.loop.samples=72")
    newest = max((tmp_path / "damaged/vqgan/checkpoints").iterdir())
    part = newest / "rank-00000.safetensors"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    run("train", "vqgan", config)
    assert curve(tmp_path / "damaged/vqgan") == curve(uninterrupted / "vqgan")


def test_latents_of_an_earlier_autoencoder_are_refused_before_training(uninterrupted: Path, packed: Path, tmp_path: Path) -> None:
    config = configured(tmp_path, packed, "stale")
    run("train", "vqgan", config, "vqgan.loop.samples=24")
    (tmp_path / "stale" / "latents").symlink_to(uninterrupted / "latents")
    done = run("train", "diffusion", config, "vqgan.loop.samples=24", expect=2)
    assert "earlier state of the autoencoder" in done and "retinaforge encode" in done


def test_progress_without_a_loadable_checkpoint_is_exit_3(packed: Path, tmp_path: Path) -> None:
    config = configured(tmp_path, packed, "lost")
    run("train", "vqgan", config, "vqgan.loop.samples=48")
    for part in (tmp_path / "lost/vqgan/checkpoints").glob("*/*.safetensors"):
        part.write_bytes(b"")
    done = run("train", "vqgan", config, expect=3)
    assert "no checkpoint of it can be loaded" in done and f"mv {tmp_path}/lost/vqgan {tmp_path}/lost/vqgan.old-1" in done


def test_a_damaged_last_checkpoint_is_not_taken_for_a_finished_training(uninterrupted: Path, tmp_path: Path) -> None:
    config = from_tree({**yaml.safe_load((uninterrupted / "run.yaml").read_text()), "run": str(tmp_path)})
    shutil.copytree(uninterrupted / "vqgan", tmp_path / "vqgan")
    assert trained(Run(config), "vqgan")
    (max((tmp_path / "vqgan/checkpoints").iterdir()) / f"rank-00000{USED}").write_bytes(b"")
    assert not trained(Run(config), "vqgan")


def test_a_start_that_was_refused_can_be_corrected_in_the_same_folder(tmp_path: Path) -> None:
    first, second = (from_tree({"run": str(tmp_path), "vqgan": {"discriminator": {"layers": n}}}) for n in (5, 2))
    Run(first).freeze()
    (tmp_path / "vqgan" / "tensorboard").mkdir(parents=True)  # as far as a refused start comes
    Run(second).freeze()
    (tmp_path / "vqgan" / "checkpoints").mkdir()
    with pytest.raises(InputError, match=r"vqgan\.discriminator\.layers"):
        Run(first).freeze()


@pytest.mark.parametrize(
    ("counts", "chosen"),
    [
        ({"train": 9, "val": 2, "test": 2}, "val"),
        ({"train": 9, "val": 0, "test": 2}, "test"),
        ({"train": 9, "clinic-b": 4}, "clinic-b"),
        ({"train": 9, "val": 0}, "train"),
        ({"train": 9, "val": 1, "test": 2}, "test"),  # one person has no spread
        ({"train": 9, "val": 1, "test": 1}, "val"),
    ],
)
def test_held_out_people_are_compared_with_where_there_are_any(counts: dict[str, int], chosen: str) -> None:
    assert held_out_split(SimpleNamespace(splits={name: SplitInfo(count, count) for name, count in counts.items()})) == chosen


def test_a_run_folder_may_be_moved(tmp_path: Path) -> None:
    Run(from_tree({"run": str(tmp_path / "a")})).freeze()
    (tmp_path / "a").rename(tmp_path / "b")
    Run(from_tree({"run": str(tmp_path / "b")})).freeze()
    assert yaml.safe_load((tmp_path / "b" / "run.yaml").read_text())["run"] == str(tmp_path / "b")


@pytest.mark.parametrize(
    ("cube", "message"),
    [
        (made_cube(0, size=32), "64 latents in the training split for 1024 codes"),
        (made_cube(0, size=30), "cubes of 30×30"),
        (made_cube(0, size=16), "at least 24 pixels"),
        (replace(made_cube(0), data_CHW=made_cube(0).data_CHW.astype(np.float32)), "a dataset of latents"),
    ],
)
def test_cubes_that_do_not_fit_are_refused_before_training(tmp_path: Path, cube: Cube, message: str) -> None:
    write_dataset(tmp_path / "set", {"train": [cube]}, source={})
    stage = from_tree({"vqgan": {"model": {"compression": 4}}}).vqgan
    with pytest.raises(InputError, match=message):
        check_fit(stage, Dataset(tmp_path / "set"))


def test_another_configuration_in_the_same_run_folder_is_refused(packed: Path, tmp_path: Path) -> None:
    config = configured(tmp_path, packed, "other")
    run("train", "vqgan", config, "vqgan.loop.samples=24")
    done = run("train", "vqgan", config, "vqgan.loop.samples=24", "vqgan.optimizer.lr=0.5", expect=2)
    assert "vqgan.optimizer.lr" in done and "run=runs/NAME" in done


def test_a_longer_run_says_both_learning_rates_and_the_way_back_it_names_works(packed: Path, tmp_path: Path) -> None:
    config = configured(tmp_path, packed, "longer")
    words = ("train", "vqgan", config, "vqgan.optimizer.decay=cosine", "vqgan.loop.checkpoint_every=48")
    run(*words, "vqgan.loop.samples=48")
    shutil.copytree(tmp_path / "longer", tmp_path / "kept")
    said = run(*words, "vqgan.loop.samples=96")
    rates = {row["samples"]: row["lr/vqgan"] for row in curve(tmp_path / "longer" / "vqgan")}
    assert rates[56] > 5 * rates[48]
    assert f"vqgan {rates[48]:.3g} → " in said and "vqgan.optimizer.decay_samples=48" in said
    said = run(*words, "vqgan.loop.samples=96", "vqgan.optimizer.decay_samples=48", f"run={tmp_path / 'kept'}")
    assert "learning rate" not in said
    rates = {row["samples"]: row["lr/vqgan"] for row in curve(tmp_path / "kept" / "vqgan")}
    assert rates[56] <= rates[48] and rates[96] == pytest.approx(1e-7)


def test_bands_of_another_dataset_are_refused(packed: Path, tmp_path: Path) -> None:
    done = run("train", "vqgan", configured(tmp_path, packed, "bands"), "vqgan.model.bands=16", expect=2)
    assert "vqgan.model.bands = 16" in done and "4" in done


def times_in(folder: Path) -> dict[Path, int]:
    """When each file and folder of a run was last written, in nanoseconds; not what links lead to."""
    return {path: path.lstat().st_mtime_ns for path in (folder, *folder.rglob("*"))}


def test_sampling_in_tasks_gives_the_same_bytes_as_at_once(uninterrupted: Path, packed: Path, tmp_path: Path) -> None:
    """Shards by task, one of them killed and restarted, against one process: the same digest; rerunning writes nothing."""
    config = yaml.safe_load((uninterrupted / "run.yaml").read_text())
    folders = []
    for name in ("once", "tasks"):
        folder = tmp_path / name
        folder.mkdir()
        for part in ("vqgan", "diffusion"):
            (folder / part).symlink_to(uninterrupted / part)
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**config, "run": str(folder)}))
        folders.append(folder)
    run("sample", tmp_path / "once.yaml")
    for task in ("2/3", "1/3", "3/3", "2/3"):
        run("sample", tmp_path / "tasks.yaml", "--task", task)
    one, many = (read_manifest(folder / "synthetic") for folder in folders)
    assert one.digest == many.digest
    assert one.splits == {"synthetic": {"count": 10, "subjects": 1}}
    before = times_in(folders[1])
    run("sample", tmp_path / "tasks.yaml")
    assert times_in(folders[1]) == before, "nothing is written, nor counted as work"
    open_way_to(tmp_path)
    open_way_to(uninterrupted)
    modes = {path: path.stat().st_mode for path in (folders[1], *folders[1].rglob("*")) if not path.is_symlink()}
    for path, mode in modes.items():
        path.chmod(mode & 0o555)
    with as_nobody():
        invoke("sample", tmp_path / "tasks.yaml")
    for path, mode in modes.items():
        path.chmod(mode)
    assert "sample.seed" in run("sample", tmp_path / "tasks.yaml", "sample.seed=5", expect=2)
    said = run("sample", tmp_path / "tasks.yaml", "--ids", "9,1000042,3", "--out", tmp_path / "again")
    assert [line.partition(": ")[2] for line in said.splitlines() if line.startswith("0")] == [
        "made; the set holds the same, to the bit",
        "made; the set does not hold it",
        "made; the set holds the same, to the bit",
    ], said
    assert keys_in(tmp_path / "again") == ["000000003", "000000009", "001000042"]
    said = run("sample", tmp_path / "tasks.yaml", "sample.batch=3", "--ids", "3", "--out", tmp_path / "threes")
    assert "the same, to the bit" in said or "that was made 4 at a time, now 3" in said
    assert times_in(folders[1]) == before


@pytest.mark.parametrize("ids", ["", "-1", "7,", "7,7", "x", str(1 << 63)])
def test_numbers_of_no_image_are_refused(tmp_path: Path, ids: str) -> None:
    with pytest.raises(InputError, match="--ids"):
        invoke("sample", "demo", f"run={tmp_path}/run", "--ids", ids, "--out", tmp_path / "again")
    assert not list(tmp_path.iterdir())


def made_from(uninterrupted: Path, folder: Path, *parts: str, **more: object) -> Path:
    """A configuration like that run's, in a folder that begins with these parts of it."""
    config = yaml.safe_load((uninterrupted / "run.yaml").read_text())
    folder.mkdir()
    for part in parts:
        (folder / part).symlink_to(uninterrupted / part)
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump({**config, "run": str(folder), **more}))
    return path


UNIT_STAGES = tuple(name for name, stage in STAGES.items() if stage.in_units and name != "data")
APART = """
import functools, sys
from data_shards.ledger import Ledger
from launch import work
from launch.cli.options import resolved
from launch.cli.stages import make
work.Ledger = functools.partial(Ledger, still_s=1.0, beat_s=0.1)  # a dead one's lease is given up sooner than after a minute
for name in sys.argv[2:]:
    make(name, resolved(sys.argv[1], []))
"""


def outcome(folder: Path) -> dict[str, Any]:
    """What the unit stages of a run left: the bytes of their sets, and what was measured on them."""
    sets = {name: read_manifest(folder / name) for name in ("latents", "synthetic", "gaussian-latents")}
    results = {
        name: json.loads((folder / f"{name}.json").read_text()) for name in ("health", "reconstruction", "evaluate", "audit", "metrics")
    }
    results["metrics"].pop("seconds", None)
    for judged in (results["evaluate"], results["audit"]):
        judged["synthetic"].pop("path")
    return sets | results


@pytest.fixture(scope="module")
def by_one(uninterrupted: Path) -> dict[str, Any]:
    """The same from one process."""
    path = made_from(uninterrupted, uninterrupted.parent / "one", "vqgan", "diffusion", sample=SAMPLE)
    for stage in UNIT_STAGES:
        run(stage, path)
    return outcome(uninterrupted.parent / "one")


def test_ranks_of_a_launcher_make_in_units_what_one_process_makes(uninterrupted: Path, by_one: dict[str, Any], tmp_path: Path) -> None:
    path = made_from(uninterrupted, tmp_path / "ranks", "vqgan", "diffusion", sample=SAMPLE)
    for stage in UNIT_STAGES:
        run(stage, path, ranks=3)
    assert outcome(tmp_path / "ranks") == by_one
    assert not [fault for _, faults in verify(tmp_path / "ranks" / "synthetic") for fault in faults]
    assert not list((tmp_path / "ranks").glob("**/.lease-*"))


@pytest.mark.parametrize("processes", [2, *(pytest.param(n, marks=LONG) for n in (1, 3, 5))])
def test_processes_that_are_killed_and_one_that_is_started_twice_make_in_units_what_one_makes(
    uninterrupted: Path, by_one: dict[str, Any], tmp_path: Path, processes: int
) -> None:
    path = made_from(uninterrupted, tmp_path / "apart", "vqgan", "diffusion", sample=SAMPLE)

    def started() -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", APART, path, *UNIT_STAGES], cwd=ROOT, stdout=subprocess.DEVNULL, env=environment())

    chance, running = random.Random(processes), [started() for _ in range(processes + 1)]
    for _ in range(2):
        time.sleep(chance.uniform(5, 9))
        victim = chance.randrange(len(running))
        running[victim].kill()
        running[victim].wait()
        running[victim] = started()
    assert {process.wait(timeout=300) for process in running} == {0}
    assert outcome(tmp_path / "apart") == by_one
    assert not list((tmp_path / "apart").glob("**/.lease-*"))


def test_a_set_of_codes_is_judged_as_its_pixels_are_and_decoded_to_them(
    uninterrupted: Path, by_one: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made_from(uninterrupted, tmp_path / "codes", "vqgan", "diffusion", sample={**SAMPLE, "payload": "codes", "licence": "CC0-1.0"})
    subprocess.run([sys.executable, "-c", APART, path, *UNIT_STAGES, "report"], cwd=ROOT, check=True, env=environment())
    found = outcome(tmp_path / "codes")
    kept, expected = found.pop("synthetic"), {name: value for name, value in by_one.items() if name != "synthetic"}
    assert kept.payload == "codes" and sum(shard.bytes for shard in kept.shards) < sum(shard.bytes for shard in by_one["synthetic"].shards)
    for judged, as_pixels in ((found, kept), (expected, by_one["synthetic"])):
        for name in ("evaluate", "audit"):
            assert judged[name]["synthetic"]["digest"] == as_pixels.digest
            judged[name] = {**judged[name], "synthetic": None}
    assert found == expected
    invoke("data", "decode", tmp_path / "codes" / "synthetic", tmp_path / "pixels", "--autoencoder", tmp_path / "codes" / "vqgan")
    assert read_manifest(tmp_path / "pixels") == by_one["synthetic"]
    of_pixels = (tmp_path / "pixels" / "README.md").read_text()
    assert "license: CC0-1.0" in of_pixels and "cube.raw" in of_pixels and f"decoded from the set of codes `{kept.digest}`" in of_pixels
    card = (tmp_path / "codes" / "synthetic" / "README.md").read_text().replace("RUN/vqgan", "../vqgan").replace('"cuda"', '"cpu"')
    monkeypatch.chdir(tmp_path / "codes" / "synthetic")
    for code in re.findall(r"^```python\n(.*?)^```", card, re.DOTALL | re.MULTILINE):
        exec(code, known := {})
    assert known["codes"].shape == kept.shape[1:]


def test_a_whole_run_on_two_ranks_comes_to_its_report_and_again_does_nothing(tmp_path: Path, monkeypatch) -> None:
    data = {"phantom": {"size": 32, "wavelengths_nm": [555.0, 640.0, 730.0, 815.0]}, "subjects": 12, "visits": 1}
    path = tmp_path / "whole.yaml"
    path.write_text(yaml.safe_dump({**TINY, "run": str(tmp_path / "whole"), "data": data}))
    said = run("run", path, ranks=2)
    assert said.count("report: ") == 1 and (tmp_path / "whole" / "report.html").exists()
    assert not list((tmp_path / "whole").glob("**/.lease-*"))
    before = {path: path.stat().st_mtime_ns for name in ("data", "latents", "synthetic") for path in (tmp_path / "whole" / name).iterdir()}
    run("run", path, ranks=2)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    whole = tmp_path / "whole" / "synthetic"
    segmenter = trained_digest(tmp_path / "whole" / "segmenter")
    assert read_manifest(whole).source["sample"]["segmenter"] == segmenter
    for cube in Dataset(whole).cubes("synthetic"):
        assert cube.meta.notes["labels"] == "predicted" and cube.meta.notes["segmenter"] == segmenter
        assert not cube.labels_HW[~cube.fov_HW].any()
    card = (whole / "README.md").read_text()
    assert f"as segmenter `{segmenter}` predicts them" in card
    assert "# 10 synthetic" in card and "search for copies (pooled): " in card and "codes in use" in card and "Licence: not stated" in card
    monkeypatch.chdir(tmp_path / "whole" / "synthetic")
    for code in re.findall(r"^```python\n(.*?)^```", card, re.DOTALL | re.MULTILINE):
        exec(code, found := {})
        assert found["cube" if "cube" in found else "cubes"].shape in ((4, 32, 32), (2, 4, 32, 32))


def test_latents_that_a_kill_left_unfinished_are_gone_on_with_and_those_of_another_autoencoder_are_outdated(
    uninterrupted: Path, tmp_path: Path
) -> None:
    path = made_from(uninterrupted, tmp_path / "cut", "vqgan")
    latents, built = tmp_path / "cut" / "latents", Run(from_tree(yaml.safe_load(path.read_text())))
    run("encode", path)
    whole = read_manifest(latents)
    (latents / "dataset.json").unlink()
    min(latents.glob("*.unit")).unlink()
    check_outdated(built)
    run("encode", path)
    assert read_manifest(latents) == whole
    (latents / "dataset.json").unlink()
    (latents / "request.json").write_text(json.dumps({"encode": {"dataset": "d", "autoencoder": "another"}}))
    with pytest.raises(InputError, match="made from an earlier state of what it depends on: latents"):
        check_outdated(built)


def test_a_run_says_where_its_parts_are(packed: Path, tmp_path: Path) -> None:
    built = Run(from_tree({"run": str(tmp_path / "r"), "data": {"dataset": str(packed)}}))
    assert (built.dataset, built.vqgan) == (packed, tmp_path / "r" / "vqgan")
    built.freeze()
    assert json.loads((tmp_path / "r" / "environment.json").read_text())["packages"]["torch"]


def test_a_run_may_ask_for_more_images_and_another_batch_but_not_for_fewer_than_stand(packed: Path, tmp_path: Path) -> None:
    tree = {"run": str(tmp_path / "r"), "data": {"dataset": str(packed)}}
    Run(from_tree({**tree, "sample": {"count": 6, "shard": 4}})).freeze()
    for i in range(6):
        cube = made_cube(i, subject="synthetic")
        write_cube(tmp_path / "loose", cube)
    standing = pack(tmp_path / "loose", tmp_path / "r" / "synthetic", splits={"synthetic": 1.0})
    write_manifest(tmp_path / "r" / "synthetic", replace(standing, source={"sample": {"count": 6, "shard": 4}}))
    Run(from_tree({**tree, "sample": {"count": 8, "shard": 4, "batch": 2}})).check()
    frozen = (tmp_path / "r" / "run.yaml").read_bytes()
    for sample, message in (({"count": 4, "shard": 4}, "a set of 6 images stands"), ({"count": 6, "shard": 3}, r"sample\.shard")):
        with pytest.raises(InputError, match=message) as refused:
            Run(from_tree({**tree, "sample": sample})).freeze()
        assert ("Another set of the same models" in refused.value.mend) == ("shard" in message)
    assert (tmp_path / "r" / "run.yaml").read_bytes() == frozen
