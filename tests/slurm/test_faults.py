"""A training on a real SLURM meets what jobs meet, and comes out as if nothing had been. Longer ones run by `make faults`."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from ldm.checkpoints.commit import COMMIT, read_commit
from ldm.training.clock import TIMINGS
from slurm.history import Attempt, attempts_path, holder_path, read_attempts
from slurm.local_cluster import LocalCluster
from slurm.preempt import HOLDER
from slurm.queue import JobState, read_squeue, squeue
from tests.commands import retinaforge
from tests.runs import NETWORKS

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(600)]
LONG = pytest.mark.skipif(os.environ.get("FAULTS") != "all", reason="make faults runs it: over a minute each")
LOOP = {"samples": 640, "batch": 8, "log_every": 8, "checkpoint_every": 16, "validate_samples": 0}


@pytest.fixture
def cluster(four_nodes: LocalCluster) -> LocalCluster:
    """In place of the one of two nodes."""
    return four_nodes


class Job:
    """A submitted training of the run `name` in a folder."""

    def __init__(self, folder: Path, packed: Path, name: str, *options: object, mode: str = "ddp", **loop: int) -> None:
        self.name, self.cwd, self.run = f"{name}/vqgan", folder, folder / "runs" / name
        engine = {} if mode == "ddp" else {"mode": mode}
        config = {"run": f"runs/{name}", "data": {"dataset": str(packed)}}
        config["vqgan"] = {**NETWORKS["vqgan"], "loop": {**LOOP, **loop}, "engine": engine}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
        words = ["submit", *options, "--json", "--", "train", "vqgan", f"{name}.yaml"]
        self.said = json.loads(retinaforge(*words, cwd=folder)) if "--local" not in options else retinaforge(*words, cwd=folder)
        self.folder = folder / "runs" / "jobs" / name / "vqgan"

    @property
    def id(self) -> str:
        return self.said["job_id"]

    def state(self) -> JobState:
        return read_squeue(squeue(), [self.id])[self.id][0]

    def newest(self) -> int:
        """Samples of the newest commit, 0 before there is one."""
        found = sorted((self.run / "vqgan" / "checkpoints").glob(f"samples-*/{COMMIT}"), reverse=True)
        return next((commit.samples for path in found if (commit := read_commit(path.parent))), 0)

    def attempts(self) -> list[Attempt]:
        return read_attempts(attempts_path(self.folder))

    def until(self, what: str, true: Callable[[], bool], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            state = self.state()
            assert state.state not in ("FAILED", "CANCELLED", "TIMEOUT"), f"{what}: {state}\n{self.logs()}"
            assert time.monotonic() < deadline, f"{what}: {state}\n{self.attempts()}\n{self.logs()}"
            time.sleep(0.2)

    def trains_on(self, after: int | None = None) -> None:
        """Wait until a checkpoint beyond the newest is committed by the attempt that runs now."""
        before = self.newest() if after is None else after
        self.until(f"a checkpoint beyond {before}", lambda: self.newest() > before)

    def started_again(self, restarts: int) -> None:
        self.until(f"restart {restarts}", lambda: any(a.restart == restarts for a in self.attempts()))

    def completes(self, seconds: float = 240) -> None:
        self.until("the end", lambda: self.state().state == "COMPLETED", seconds)

    def logs(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-2500:]}" for path in sorted(self.folder.glob("*.out")))

    def curve(self) -> list[dict]:
        rows = [json.loads(line) for line in (self.run / "vqgan" / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in row.items() if not key.startswith(TIMINGS)} for row in rows]

    def ranks(self) -> dict[int, int]:
        """Process ids of its tasks, by rank."""
        found = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal():
                try:
                    environ = dict(item.split(b"=", 1) for item in (folder / "environ").read_bytes().split(b"\0") if b"=" in item)
                    words = (folder / "cmdline").read_bytes()
                except OSError:
                    continue
                if environ.get(HOLDER.encode()) == str(holder_path(self.folder)).encode() and b"RANK" in environ and b"vqgan" in words:
                    found[int(environ[b"RANK"])] = int(folder.name)
        return found


@pytest.fixture(scope="module")
def undisturbed(faulty_cluster, tmp_path_factory, packed) -> Callable[..., Job]:
    """The same training without SLURM, once for each mode, length and number of tasks a node."""
    done: dict[tuple, Job] = {}

    def run(mode: str = "ddp", tasks: int = 1, **loop: int) -> Job:
        key = (mode, tasks, *sorted(loop.items()))
        if key not in done:
            options = ("--local", "--nodes", 2, "--tasks-per-node", tasks)
            done[key] = Job(tmp_path_factory.mktemp("alone"), packed, "alone", *options, mode=mode, **loop)
        return done[key]

    return run


def test_a_training_meets_a_requeue_a_preemption_and_a_killed_rank(cluster, tmp_path, packed, undisturbed):
    """Three attempts are ended from outside, each in another way; the fourth ends the run, and its curve is that of a run left alone."""
    job = Job(tmp_path, packed, "met", "--nodes", 2, "--partition", "scavenge")
    job.trains_on()
    cluster.run("scontrol", "requeue", job.id)
    job.started_again(1)
    job.trains_on()
    cluster.run(
        "sbatch", "--partition=main", "--nodes=4", "--ntasks-per-node=1", "--cpus-per-task=4", "--output=/dev/null", "--wrap=sleep 2"
    )
    job.started_again(2)
    job.trains_on()
    os.kill(job.ranks()[1], signal.SIGKILL)
    job.started_again(3)
    job.completes()
    whys = [attempt.why for attempt in job.attempts()]
    assert whys[:2] == ["scontrol requeue", "preempted"] and "rank 1" in whys[2] and whys[3] == "done", whys
    assert job.curve() == undisturbed().curve()
    told = json.loads(retinaforge("status", "met", "--verify", "--json", cwd=tmp_path))["jobs"]["met/vqgan"]
    assert told["state"] == "COMPLETED" and told["jobs"][0]["restarts"] == 3
    assert (told["progress"]["done"], told["progress"]["checkpoint"], told["progress"]["faults"]) == (640, 640, [])


def test_two_copies_of_a_job_never_write_one_checkpoint(cluster, tmp_path, packed, undisturbed):
    """SLURM loses sight of both nodes, whose tasks live on, and starts the job elsewhere: the elder copy ends itself."""
    job = Job(tmp_path, packed, "torn", "--nodes", 2)
    job.trains_on()
    nodes = cluster.run("scontrol", "show", "hostnames", job.state().why).split()
    elder = job.ranks()
    assert sorted(elder) == [0, 1]
    for pid in elder.values():
        os.kill(pid, signal.SIGSTOP)  # else a fast machine ends the run before the nodes are given up
    for node in nodes:
        cluster.kill(f"slurmd-{node}")
        cluster.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=lost")
    try:
        job.started_again(1)
        for pid in elder.values():
            os.kill(pid, signal.SIGCONT)
        job.completes()
        assert "ended: a younger attempt of this job has taken over" in job.logs()
        assert not any(pid in job.ranks().values() for pid in elder.values())
    finally:
        for node in nodes:
            cluster.revive(f"slurmd-{node}")
    assert [attempt.restart for attempt in job.attempts()] == [0, 1]
    assert job.curve() == undisturbed().curve()
    assert job.newest() == LOOP["samples"]


@LONG
def test_a_rank_dies_while_the_controller_is_away(cluster, tmp_path, packed, undisturbed):
    """The training does not notice that slurmctld is gone; the job that wants to be restarted asks until it is back."""
    job = Job(tmp_path, packed, "alone", "--nodes", 2)
    job.trains_on()
    cluster.kill("slurmctld")
    before, until = job.newest(), time.monotonic() + 60
    while job.newest() == before:
        assert time.monotonic() < until, "it trains on"
        time.sleep(0.1)
    os.kill(job.ranks()[1], signal.SIGKILL)
    while not job.attempts()[0].ended_unix_s:
        assert time.monotonic() < until + 60, job.logs()
        time.sleep(0.1)
    cluster.revive("slurmctld")
    job.started_again(1)
    job.completes()
    assert job.curve() == undisturbed().curve()


@LONG
@pytest.mark.parametrize("mode", ["ddp", "zero2", "zero3"])
def test_two_tasks_on_each_of_two_nodes_train_as_without_slurm(cluster, tmp_path, packed, undisturbed, mode):
    """Requeued in the midst, from its ZeRO checkpoint."""
    job = Job(tmp_path, packed, "four", "--nodes", 2, "--tasks-per-node", 2, mode=mode, samples=320)
    job.trains_on()
    assert sorted(job.ranks()) == [0, 1, 2, 3]
    cluster.run("scontrol", "requeue", job.id)
    job.started_again(1)
    job.completes()
    assert job.curve() == undisturbed(mode, tasks=2, samples=320).curve()


@LONG
def test_a_time_limit_is_met_by_a_commit_and_another_attempt(cluster, tmp_path, packed, undisturbed):
    """SLURM warns up to half a minute early: 35 to 65 s after the start here, when the training listens and has not ended."""
    length = {"samples": 4800, "log_every": 80, "checkpoint_every": 160}
    job = Job(tmp_path, packed, "limited", "--nodes", 2, "--time-minutes", 2, "--signal-seconds", 55, **length)
    job.completes(400)
    first = job.attempts()[0]
    assert first.code == 75 and "stopped by SIGUSR1" in first.why and "the state is committed" in first.why
    assert job.curve() == undisturbed(**length).curve()


@LONG
def test_a_lost_node_is_replaced(cluster, tmp_path, packed, undisturbed):
    """slurmd is gone and with it, as when a node loses power, the task; SLURM finds out by itself."""
    job = Job(tmp_path, packed, "lost", "--nodes", 2)
    job.trains_on()
    nodes = cluster.run("scontrol", "show", "hostnames", job.state().why).split()
    pid = job.ranks()[1]
    os.kill(pid, signal.SIGSTOP)
    cluster.kill(f"slurmd-{nodes[1]}")
    try:
        job.started_again(1)
        assert nodes[1] not in job.attempts()[1].nodes
        job.completes()
    finally:
        os.kill(pid, signal.SIGKILL)
        cluster.revive(f"slurmd-{nodes[1]}")
    assert job.attempts()[0].why == "node failure" and job.curve() == undisturbed().curve()


@LONG
def test_a_job_for_any_number_of_nodes_takes_what_is_free(cluster, tmp_path, packed):
    """One node at first, two after a requeue, with two tasks on each."""
    others = cluster.run("sbatch", "--parsable", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap=sleep 300")
    job = Job(tmp_path, packed, "elastic", "--nodes", "1-2", "--tasks-per-node", 2)
    job.trains_on()
    assert sorted(job.ranks()) == [0, 1]
    first = job.attempts()[0].nodes
    cluster.run("scancel", others.strip())
    job.until("three free nodes", lambda: cluster.run("sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N").count("\n") == 3)
    cluster.run("scontrol", "requeue", job.id)
    job.started_again(1)
    job.until("four ranks", lambda: sorted(job.ranks()) == [0, 1, 2, 3])
    job.completes()
    nodes = [len(cluster.run("scontrol", "show", "hostnames", nodes).split()) for nodes in (first, job.attempts()[1].nodes)]
    assert nodes == [1, 2]
    assert [row["samples"] for row in job.curve()] == list(range(8, 641, 8))
