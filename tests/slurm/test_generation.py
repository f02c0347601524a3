"""A set made by an array on a real SLURM, while a node is lost and an index meets its time limit, is the set of one process."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from data_shards.ledger import holders
from data_shards.manifest import read_manifest
from data_shards.packing.verify import verify
from launch.work import STOPPED
from slurm.history import Attempt, read_all
from slurm.local_cluster import LocalCluster
from slurm.local_daemons import STEP
from tests.commands import invoke, retinaforge
from tests.runs import configured

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
LONG = pytest.mark.skipif(os.environ.get("FAULTS") != "all", reason="make faults runs it: the demo's networks take a quarter of an hour")
DEMO = os.environ.get("DEMO_RUN")
"""A run of the demo that is trained, to be read and left as it is: `DEMO_RUN=runs/demo make faults` saves the training."""


class Set:
    """A set of images that the indices of an array make, in a run of trained networks."""

    def __init__(self, folder: Path, trained: Path, images: int, shard: int) -> None:
        self.cwd, self.images = folder, images
        self.config = {**yaml.safe_load((trained / "run.yaml").read_text()), "sample": {"count": images, "shard": shard, "batch": shard}}
        self.parts = {part: trained / part for part in ("vqgan", "diffusion", "data") if (trained / part).exists()}

    def run(self, name: str) -> Path:
        """A configuration of a run that begins with the networks."""
        run = self.cwd / "runs" / name
        run.mkdir(parents=True)
        for part, place in self.parts.items():
            (run / part).symlink_to(place)
        (self.cwd / f"{name}.yaml").write_text(yaml.safe_dump({**self.config, "run": str(run)}))
        return run / "synthetic"

    def submit(self, indices: int) -> None:
        """An array, each index of which has a node to itself."""
        self.synthetic, self.folder = self.run("array"), self.cwd / "runs" / "jobs" / "array" / "sample"
        words = ["submit", "--json", "--array", f"1-{indices}", "--extra=--exclusive", "--time-minutes", 30]
        self.job_id = json.loads(invoke(*words, "--", "sample", "array.yaml", "--task", f"{{array_task}}/{indices}"))["job_id"]

    def status(self) -> dict[str, Any]:
        status = json.loads(invoke("status", "array", "--json"))["jobs"]["array/sample"]
        assert not {"FAILED", "CANCELLED"} & {job["state"] for job in status["jobs"]}, f"{status}\n{self.logs()}"
        return status

    def ended(self) -> bool:
        return self.status()["state"] == "COMPLETED"

    def attempts(self) -> dict[str, list[Attempt]]:
        return read_all(self.folder)

    def until(self, what: str, true: Callable[[], Any], seconds: float = 180) -> Any:
        """Wait for it."""
        deadline = time.monotonic() + seconds
        while not (value := true()):
            assert time.monotonic() < deadline, f"{what}\n{self.attempts()}\n{self.logs()}"
            time.sleep(0.2)
        return value

    def held(self) -> tuple[str, int] | None:
        """An index, and its process, stopped while it is about a shard."""
        for holder in holders(self.synthetic).values():
            pid = int(holder.rpartition(":")[2])
            index = environ_of(pid).get("SLURM_ARRAY_TASK_ID")
            if index:
                os.kill(pid, signal.SIGSTOP)
                if holder in holders(self.synthetic).values():
                    return index, pid
                os.kill(pid, signal.SIGCONT)
        return None

    def logs(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-2500:]}" for path in sorted(self.folder.glob("*.out")))


def environ_of(pid: int) -> Mapping[str, str]:
    """Of a process; empty where there is none (any more)."""
    try:
        items = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    return dict(item.decode(errors="replace").split("=", 1) for item in items if b"=" in item)


def lose(cluster: LocalCluster, pid: int) -> str:
    """The node that this process is on loses its power: slurmd, and all that runs there, is gone at once. Its name."""
    node = environ_of(pid)["SLURMD_NODENAME"]
    here = {int(path.name): environ_of(int(path.name)) for path in Path("/proc").iterdir() if path.name.isdecimal()}
    conf = cluster.environ["SLURM_CONF"]
    tasks = [one for one, environ in here.items() if (environ.get("SLURMD_NODENAME"), environ.get("SLURM_CONF")) == (node, conf)]
    above = {int(Path(f"/proc/{task}/stat").read_text().rpartition(")")[2].split()[1]) for task in tasks}
    steps = [one for one in above if Path(f"/proc/{one}/comm").read_text().strip() == STEP]
    cluster.kill(f"slurmd-{node}")
    for one in (*steps, *tasks):  # first who would tell of the others' end
        os.kill(one, signal.SIGKILL)
    return node


@pytest.fixture(scope="module")
def tiny(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of both trainers."""
    folder = tmp_path_factory.mktemp("tiny")
    loop = {"samples": 16, "batch": 8, "log_every": 8, "checkpoint_every": 16, "validate_samples": 4}
    tree = configured(loop=loop, engine={"tracker": "none"})
    tree["diffusion"]["sampler"] = {"steps": 4}
    (folder / "tiny.yaml").write_text(yaml.safe_dump({**tree, "run": str(folder / "tiny"), "data": {"dataset": str(packed)}}))
    for verb in (["train", "vqgan"], ["encode"], ["train", "diffusion"]):
        invoke(*verb, folder / "tiny.yaml")
    return folder / "tiny"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's networks, at their full size."""
    if DEMO:
        return Path(DEMO).absolute()
    run = tmp_path_factory.mktemp("demo") / "demo"
    for verb in (["data", "prepare"], ["train", "vqgan"], ["encode"], ["train", "diffusion"]):
        invoke(*verb, "demo", f"run={run}")
    return run


@pytest.fixture
def cluster(four_nodes: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalCluster:
    """In place of the one of two nodes; and what is typed is typed in the folder of the test."""
    monkeypatch.chdir(tmp_path)
    return four_nodes


def test_an_array_that_loses_a_node_and_an_index_to_its_time_limit_makes_the_set_of_one_process(
    cluster: LocalCluster, tiny: Path, tmp_path: Path
) -> None:
    """200 images by three indices. The shard that the lost one was about is not made for a minute: until then the set is unfinished."""
    array = Set(tmp_path, tiny, images=200, shard=10)
    array.submit(indices=3)
    lost, pid = array.until("an index is about a shard", array.held)
    limited = array.until("another one runs", lambda: next((index for index in array.attempts() if index != lost), None))
    status = array.status()
    assert (status["state"], status["progress"]["goal"]) == ("RUNNING", 200), status
    assert f"{socket.gethostname()}:{pid}" in status["progress"]["held"].values(), status
    set_limit(cluster, f"{array.job_id}_{limited}", 60.0)
    node = lose(cluster, pid)
    cluster.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=lost")
    try:
        array.until("it is warned", lambda: array.attempts()[limited][0].code == 75)
        cluster.run("scontrol", "update", f"JobId={array.job_id}_{limited}", "TimeLimit=30")  # else it is warned again as it begins
        array.until("the end", array.ended)
    finally:
        cluster.revive(f"slurmd-{node}")
    came_back(array, lost, limited)
    is_that_of_one_process(array)


@LONG
@pytest.mark.timeout(3600)
def test_two_thousand_of_the_demo_s_images_on_four_nodes(cluster: LocalCluster, demo: Path, tmp_path: Path) -> None:
    """SLURM itself finds out that a node is lost, and the time limit is one of a minute."""
    array = Set(tmp_path, demo, images=2000, shard=20)
    array.submit(indices=4)
    lost, pid = array.until("an index is about a shard", array.held)
    os.kill(pid, signal.SIGCONT)
    began = time.monotonic()
    limited = next(index for index in map(str, range(1, 5)) if index != lost)
    array.until("it runs", lambda: limited in array.attempts())
    set_limit(cluster, f"{array.job_id}_{limited}", 60.0)
    array.until("it is warned", lambda: array.attempts()[limited][0].code == 75)
    cluster.run("scontrol", "update", f"JobId={array.job_id}_{limited}", "TimeLimit=30")
    array.until("a fifth of the set", lambda: array.status()["progress"]["done"] >= 400, 600)
    print(retinaforge("status", "array", cwd=tmp_path))
    node = lose(cluster, pid)
    try:
        array.until("the end", array.ended, 1800)
    finally:
        cluster.revive(f"slurmd-{node}")
    array_s = time.monotonic() - began
    print(retinaforge("status", "array", cwd=tmp_path))
    came_back(array, lost, limited)
    began = time.monotonic()
    is_that_of_one_process(array)
    print(f"2000 images: {array_s:.0f} s by four indices, {time.monotonic() - began:.0f} s by one process, on {os.cpu_count()} cores")


def set_limit(cluster: LocalCluster, job_id: str, seconds: float) -> None:
    """The time limit of a job that runs comes in so many seconds; SLURM looks every half minute, and warns two minutes ahead."""
    end = datetime.now() + timedelta(seconds=seconds)
    cluster.run("scontrol", "update", f"JobId={job_id}", f"EndTime={end:%Y-%m-%dT%H:%M:%S}")


def came_back(array: Set, lost: str, limited: str) -> None:
    """Each index ended well, and the two that something happened to were started again for that very reason."""
    ends = {index: [(attempt.why, attempt.code) for attempt in attempts] for index, attempts in array.attempts().items()}
    assert all(each[-1] == ("done", 0) for each in ends.values()), ends
    assert "node" in ends[lost][0][0] and ends[limited][0] == (STOPPED, 75), ends
    assert all(len(each) == 1 for index, each in ends.items() if index not in (lost, limited)), ends


def is_that_of_one_process(array: Set) -> None:
    """The same manifest, nothing besides it, and nothing to do for the same command again."""
    torch.set_num_threads(1)  # as a task of the array has: rounding follows the number of threads
    alone = array.run("alone")
    invoke("sample", "alone.yaml")
    assert read_manifest(array.synthetic) == read_manifest(alone)
    assert not [fault for _, faults in verify(array.synthetic) for fault in faults]
    assert {path.name for path in array.synthetic.iterdir()} == {path.name for path in alone.iterdir()}
    before = {path: path.stat().st_mtime_ns for path in array.synthetic.iterdir()}
    invoke("sample", "array.yaml")
    assert {path: path.stat().st_mtime_ns for path in array.synthetic.iterdir()} == before
