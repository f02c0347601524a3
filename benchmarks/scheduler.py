"""What jobs cost the scheduler, how long `status` takes, how soon a training trains again after a fault; on a real SLURM of this machine.

    array_task_vs_plain_srun    controller time a task of an array, against the same array whose script is one srun; by sdiag, which also
                                counts how long a request waited for a core
    array_task_cpu_vs_plain_srun    the same in slurmctld's processor time, the followers' squeue calls among it
    calls_a_minute_vs_two       squeue calls while eight followers wait for that array, against the two a minute that are allowed
    status_of_200_vs_a_second   `retinaforge status` of 200 trainings, one squeue among them, against a second
    again_after_*               from the fault to the first step that is logged anew, against the part of it until SLURM started the job

Needs: apt-get install --no-install-recommends slurm-wlm munge
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from rounds import arguments, finish

from ldm.checkpoints.commit import COMMIT, digest_of, folder_name
from slurm.executor import submit
from slurm.history import holder_path, read_attempts
from slurm.jobs import JobSpec
from slurm.local_cluster import LocalCluster, missing
from slurm.queue import Queue
from slurm.states import current, is_live

FOLLOWERS = 8
PROGRAM = Path(sys.executable).with_name("retinaforge")


def controller(cluster: LocalCluster) -> dict[str, tuple[int, int]]:
    """Calls and microseconds of slurmctld by kind of request, since the last reset."""
    text = cluster.run("sdiag").partition("by message type")[2].partition("by user")[0]
    found = re.findall(r"(\w+)\s*\(\s*\d+\) count:(\d+)\s+ave_time:\d+\s+total_time:(\d+)", text)
    return {kind: (int(count), int(microseconds)) for kind, count, microseconds in found}


def cpu_ms(cluster: LocalCluster) -> float:
    """Processor time of slurmctld so far."""
    fields = Path(f"/proc/{cluster.daemons['slurmctld'].pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


def array(cluster: LocalCluster, folder: Path, tasks: int) -> list[dict[str, Any]]:
    """Ours and a plain one, one after the other; eight programs wait for ours, as `logs -f` does."""
    cluster.run("sdiag", "--reset")
    began_ms = cpu_ms(cluster)
    plain = f"#!/bin/sh\n#SBATCH --array=0-{tasks - 1} --output=/dev/null\nsrun true\n"
    (folder / "plain.sh").write_text(plain)
    cluster.run("sbatch", str(folder / "plain.sh"))
    until(lambda: not cluster.run("squeue", "--noheader", "--states=PENDING,RUNNING,COMPLETING"), every_s=5.0)
    others = controller(cluster)
    plain_ms = cpu_ms(cluster) - began_ms
    cluster.run("sdiag", "--reset")
    began, queue = time.monotonic(), Queue()
    record = submit(JobSpec(name="short", command=("true",), folder=str(folder), array=f"0-{tasks - 1}"), folder / "short")

    def follow() -> None:
        until(lambda: not is_live(current([record], Queue())["short"]), every_s=0.5)

    followers = [threading.Thread(target=follow) for _ in range(FOLLOWERS)]
    for follower in followers:
        follower.start()
    for follower in followers:
        follower.join()
    minutes, ours = (time.monotonic() - began) / 60, controller(cluster)
    calls = ours.get("REQUEST_JOB_INFO", (0, 0))[0] - 1  # the first stands at the beginning of the first half minute
    done = [state.state for state in current([record], queue, fresh=True)["short"]].count("COMPLETED")
    spent = [sum(us for kind, (_, us) in found.items() if kind != "REQUEST_JOB_INFO") / tasks / 1000 for found in (ours, others)]
    ours_ms = cpu_ms(cluster) - began_ms - plain_ms
    plainly = f"(plain srun: {spent[1]:.2f})"
    print(f"{tasks} tasks in {minutes:.1f} min, {calls + 1} squeue calls, {spent[0]:.2f} ms of slurmctld a task {plainly}")
    return [
        row("array_task_vs_plain_srun", spent[0], spent[1], "ms", done == tasks),
        row("array_task_cpu_vs_plain_srun", ours_ms / tasks, plain_ms / tasks, "ms", done == tasks),
        row("calls_a_minute_vs_two", calls / minutes, 2.0, "calls/min", done == tasks),
    ]


def status(folder: Path, runs: int, rounds: int) -> dict[str, Any]:
    """The verb as a person calls it, for so many trainings with logs, commits and attempts; squeue is asked each time."""
    for i in range(runs):
        name, run = f"run{i:03d}/vqgan", folder / "runs" / f"run{i:03d}"
        job = folder / "runs" / "jobs" / f"run{i:03d}" / "vqgan"
        commit = run / "vqgan" / "checkpoints" / folder_name(960)
        for made in (job, commit):
            made.mkdir(parents=True)
        (job / "submitted.json").write_text(json.dumps({"job_ids": [str(900000 + i)], "name": name, "submitted_unix_s": time.time() - 60}))
        (job / "target.json").write_text(json.dumps({"run": str(run), "stage": "vqgan", "goal": 4800, "every": 960}))
        attempt = {"job_id": str(900000 + i), "restart": 0, "nodes": "n1", "began_unix_s": 0.0, "before": ""}
        (job / "attempts.jsonl").write_text(json.dumps(attempt) + "\n")
        rows = [json.dumps({"samples": 40 * step, "samples_per_s": 17.0, "loss": 1.0, "time/step": 0.9}) for step in range(1, 121)]
        (run / "vqgan" / "metrics.jsonl").write_text("\n".join(rows) + "\n")
        told = {"format": "retinaforge-checkpoint-3", "samples": 960, "world": 8, "state": {}, "parts": []}
        (commit / COMMIT).write_text(json.dumps({**told, "sha256": digest_of(told)}))
    times = []
    for _ in range(rounds + 1):
        environ = {**os.environ, "XDG_CACHE_HOME": tempfile.mkdtemp(dir=folder)}
        began = time.monotonic()
        said = subprocess.run([PROGRAM, "status", "--json"], cwd=folder, env=environ, capture_output=True, text=True, check=True).stdout
        times.append(time.monotonic() - began)
    told = json.loads(said)["jobs"]
    whole = len(told) == runs and all(job["progress"]["checkpoint"] == 960 and job["progress"]["done"] == 4800 for job in told.values())
    return row(f"status_of_{runs}_vs_a_second", sorted(times[1:])[rounds // 2], 1.0, "s", whole)


def again(cluster: LocalCluster, folder: Path) -> list[dict[str, Any]]:
    """A tiny VQ-GAN on two nodes: seconds from each fault to the first row that is logged after it."""
    subprocess.run([PROGRAM, "data", "phantom", "cubes", "--subjects", "8", "--visits", "1", "--size", "32"], cwd=folder, check=True)
    subprocess.run([PROGRAM, "data", "pack", "cubes", "set"], cwd=folder, check=True)
    config = {"run": "runs/tiny", "data": {"dataset": "set"}}
    config["vqgan"] = {
        "model": {"compression": 4, "channels": 16, "layers": 1, "norm_groups": 4, "latent_channels": 4},
        "codebook": {"codes": 32, "kmeans_vectors": 512},
        "discriminator": {"channels": 8, "layers": 2},
        "loop": {"samples": 200_000, "batch": 4, "log_every": 4, "checkpoint_every": 40, "validate_samples": 0},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    words = ["submit", "--nodes", "2", "--partition", "scavenge", "--json", "--", "train", "vqgan", "tiny.yaml"]
    job = json.loads(subprocess.run([PROGRAM, *words], cwd=folder, capture_output=True, text=True, check=True).stdout)
    log, place = folder / "runs" / "tiny" / "vqgan" / "metrics.jsonl", Path(job["folder"])
    commits = folder / "runs" / "tiny" / "vqgan" / "checkpoints"
    pause = "--wrap=sleep 2"

    def last_rank() -> int:
        marks = (f"RETINAFORGE_HOLDER={holder_path(place)}".encode(), b"RANK=1")
        for proc in Path("/proc").glob("[0-9]*"):
            try:
                environ = (proc / "environ").read_bytes().split(b"\0")
                words = (proc / "cmdline").read_bytes()
            except OSError:
                continue
            if all(mark in environ for mark in marks) and b"vqgan" in words:
                return int(proc.name)
        raise RuntimeError("rank 1 is not there")

    def lose_a_node() -> None:
        node = cluster.run("scontrol", "show", "hostnames", read_attempts(place / "attempts.jsonl")[-1].nodes).split()[1]
        lost.append(f"slurmd-{node}")
        os.kill(last_rank(), signal.SIGKILL)
        cluster.kill(f"slurmd-{node}")

    lost: list[str] = []
    faults: dict[str, Callable[[], Any]] = {
        "requeue": lambda: cluster.run("scontrol", "requeue", job["job_id"]),
        "preemption": lambda: cluster.run("sbatch", "--partition=main", "--nodes=4", "--exclusive", "--output=/dev/null", pause),
        "killed_rank": lambda: os.kill(last_rank(), signal.SIGKILL),
        "lost_node_and_rank": lose_a_node,
    }
    rows = []
    for restart, (name, fault) in enumerate(faults.items(), start=1):
        before = newest(commits)
        until(lambda known=before: newest(commits) > known)
        began = time.time()
        fault()
        until(lambda count=restart: len(read_attempts(place / "attempts.jsonl")) > count)
        started = read_attempts(place / "attempts.jsonl")[-1].began_unix_s
        until(lambda since=started: log.stat().st_mtime > since + 1.0)
        seconds, waited = time.time() - began, started - began
        print(f"{name:20} {seconds:6.1f} s, of which {waited:5.1f} s until SLURM started it again")
        rows.append(row(f"again_after_{name}", seconds, waited, "s", True))
    cluster.run("scancel", job["job_id"])
    for daemon in lost:
        cluster.revive(daemon)
    return rows


def newest(commits: Path) -> str:
    """The folder of the newest checkpoint by name, '' before there is one."""
    return max((path.parent.name for path in commits.glob(f"samples-*/{COMMIT}")), default="")


def row(case: str, ours: float, other: float, unit: str, equal: bool) -> dict[str, Any]:
    """`ratio` as everywhere: above 1 means that ours is less."""
    print(f"{case:32} ours {ours:8.3f} {unit}   other {other:8.3f} {unit}   ratio {other / ours:7.2f}   equal {equal}", flush=True)
    return {"case": case, "ours": ours, "other": other, "unit": unit, "ratio": other / ours, "cpu_ratio": None, "equal": equal}


def until(true: Callable[[], bool], every_s: float = 0.1) -> None:
    """Wait, for an hour at most."""
    deadline = time.monotonic() + 3600
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError("an hour has passed")
        time.sleep(every_s)


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    if reason := missing():
        finish("scheduler", [], {"all": reason})
        return
    rows: list[dict[str, Any]] = []
    with LocalCluster(nodes=4) as cluster, tempfile.TemporaryDirectory(prefix="rf-", dir="/tmp") as place:
        os.environ.update(cluster.environ, XDG_CACHE_HOME=f"{place}/cache", XDG_CONFIG_HOME=f"{place}/config")
        for part in ("status", "array", "again"):
            (Path(place) / part).mkdir()
        rows.append(status(Path(place) / "status", 200, options.rounds))
        rows += array(cluster, Path(place) / "array", 40 if options.quick else 1000)
        if not options.quick:
            rows += again(cluster, Path(place) / "again")
    finish("scheduler", rows, {"again_after_*": "takes minutes: without --quick"} if options.quick else {})


if __name__ == "__main__":
    main()
