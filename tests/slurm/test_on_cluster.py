"""Jobs of ours on a real SLURM: two nodes on this machine. Skipped, with the reason, where SLURM is not installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from data_shards.errors import InputError
from data_shards.manifest import read_manifest
from launch import provenance
from slurm.executor import handles, submit
from slurm.history import attempts_path, read_attempts
from slurm.jobs import JobSpec
from slurm.queue import JobState, Queue, read_squeue, squeue
from slurm.records import RECORD_NAME
from slurm.states import current
from tests.commands import has_ended, invoke

pytestmark = pytest.mark.slurm
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}


def wait(job_id: str, until=ENDED, seconds: float = 60) -> list[JobState]:
    """Poll until all indices of the job are in one of the states."""
    deadline = time.monotonic() + seconds
    while True:
        found = read_squeue(squeue(), [job_id])[job_id]
        if all(state.state in until for state in found):
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.3)


def log_lines(folder: Path) -> list[str]:
    return sorted(line for log in folder.glob("*_log.out") for line in log.read_text().splitlines())


def everything_said(folder: Path) -> str:
    return "\n".join(f"{path.name}: {path.read_text()}" for path in sorted(folder.glob("*.out")))


def test_two_nodes_know_their_ranks_and_find_each_other(cluster, tmp_path):
    """The name is hostile, the words are too, and the ranks meet at MASTER_ADDR as torch's would."""
    code = """
import os, socket, sys
e = os.environ
rank, world, port = int(e["RANK"]), int(e["WORLD_SIZE"]), int(e["MASTER_PORT"])
if rank == 0:
    with socket.create_server((e["MASTER_ADDR"], port)) as server:
        peer, _ = server.accept()
        heard = peer.recv(64).decode()
else:
    for _ in range(100):
        try:
            with socket.create_connection((e["MASTER_ADDR"], port)) as peer:
                peer.send(b"hello")
            break
        except ConnectionRefusedError:
            import time; time.sleep(.1)
    heard = "-"
print(rank, world, e["LOCAL_RANK"], e["SLURMD_NODENAME"], e["OMP_NUM_THREADS"], heard, sys.argv[1], "NOT_FOR_THE_JOB" in e)
"""
    name, hostile = 'it\'s "two" $(touch evil) `touch evil` # nodes', "$(touch evil); touch evil"
    spec = JobSpec(name=name, command=("python", "-c", code, hostile), folder=str(tmp_path), nodes=2, cpus_per_task=2)
    folder = tmp_path / "runs of 100%" / "a b"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOT_FOR_THE_JOB", "1")
        job = submit(spec, folder)
    [state] = wait(job.job_id)
    assert state.state == "COMPLETED", everything_said(folder)
    assert state.name == name and state.restarts == 0
    assert log_lines(folder) == [f"0 2 0 n1 2 hello {hostile} False", f"1 2 0 n2 2 - {hostile} False"]
    [handle] = handles(job, folder)
    assert "0 2 0 n1" in handle.paths.stdout.read_text(), "submitit finds the log of rank 0 by its own rule"
    assert handle.state == "COMPLETED" and handle.done()
    assert not list(tmp_path.rglob("evil*")), "no word was run by a shell"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in folder.iterdir()} >= {"job.json", "submitted.json", f"{job.job_id}_submission.sh"}
    assert not list(folder.glob(".submission*"))


def test_nothing_of_the_job_that_a_shell_is_in_reaches_the_jobs_submitted_there(cluster, tmp_path, monkeypatch):
    """From a requeued array task, and with options of sbatch and srun in the environment."""
    strange = {"SLURM_RESTART_COUNT": "5", "SLURM_ARRAY_TASK_ID": "3", "SLURM_CPU_BIND": "quiet,mask_cpu:0x1", "SLURM_GPUS_PER_TASK": "2"}
    strange |= {"SLURM_JOB_ID": "77", "SLURM_PROCID": "1", "SLURM_STRANGE": "1", "SRUN_CPUS_PER_TASK": "64", "SBATCH_ARRAY_INX": "4-9"}
    for name, value in strange.items():
        monkeypatch.setenv(name, value)
    inherited = set(strange) - {"SLURM_JOB_ID", "SLURM_PROCID", "SLURM_CPU_BIND"}  # which SLURM sets itself
    code = f"import os; print(sorted(name for name in os.environ if name in {inherited}), os.environ['SLURM_JOB_ID'])"
    spec = JobSpec(name="inside", command=("python", "-c", code), folder=str(tmp_path))
    job = submit(spec, tmp_path / "job")
    [state] = wait(job.job_id)
    assert (state.state, state.restarts) == ("COMPLETED", 0), everything_said(tmp_path / "job")
    assert log_lines(tmp_path / "job") == [f"[] {job.job_id}"]
    assert (tmp_path / "job" / "attempts.jsonl").exists() and "may use" not in everything_said(tmp_path / "job")
    assert os.environ["SLURM_STRANGE"] == "1", "the shell's own stay as they were"


def test_a_job_runs_the_code_of_its_submitter_as_the_site_wants_it_started(cluster, tmp_path, monkeypatch):
    """From a checkout that is edited after the submission; with set-up lines, a launcher and options of srun. `--wait` ends as the job."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    checkout, home = tmp_path / "checkout", tmp_path / "config" / "retinaforge" / "site.yaml"
    home.parent.mkdir(parents=True)
    home.write_text("ask_every_seconds: 0.3\nsetup: ['SITE=\"a b\" && export SITE', 'false', 'echo $UNSET']\n")
    for package in provenance.PACKAGES:
        shutil.copytree(provenance.ROOT / package, checkout / package, ignore=shutil.ignore_patterns("__pycache__"))
    (checkout / "ldm" / "elsewhere").symlink_to(tmp_path / "config")
    for module in ("slurm/attempts.py", "launch/cli/stages.py"):
        told = f"import os; print('edited {module}', os.environ.get('SITE'), os.environ.get('BY'), sep='|')\n"
        head, main, foot = (checkout / module).read_text().partition('if __name__ == "__main__":')
        (checkout / module).write_text(f"{head}\n{told}{main}{foot}")
    monkeypatch.setattr(provenance, "ROOT", checkout)
    words = (
        "submit",
        "--launcher",
        "env 'BY=it s'",
        "--srun-option=--kill-on-bad-exit=0",
        "--srun-option=--cpu-bind=none",
        "--time",
        "0-00:10:00",
    )
    invoke(*words, "--wait", "--name", "edited", "--", "data", "ls", "nowhere", code=2)
    folder = tmp_path / "runs" / "jobs" / "edited"
    said = everything_said(folder)
    assert "edited slurm/attempts.py|a b|None" in said and "edited launch/cli/stages.py|a b|it s" in said, said
    [code] = folder.glob("code-*")
    assert not (code / "ldm" / "elsewhere").exists() and (code / provenance.KEPT).stat().st_mode & 0o777 == 0o600
    (checkout / "slurm" / "attempts.py").write_text("raise SystemExit('edited after the submission')")
    again = json.loads(invoke("resume", "edited", "--json"))["job_id"]
    assert f"export PYTHONPATH={code}$" in (folder / f"{again}_submission.sh").read_text().replace("${PYTHONPATH", "$")
    invoke("cancel", "edited")
    shutil.rmtree(code)
    with pytest.raises(InputError, match="copy of the packages that this job runs is gone"):
        invoke("resume", "edited")
    assert "PYTHONPATH" not in invoke("submit", "--no-snapshot", "--dry-run", "--", "presets")


def test_a_failing_rank_fails_the_job_and_ends_the_other(cluster, tmp_path):
    code = "import os, sys, time; sys.exit(4) if os.environ['RANK'] == '1' else time.sleep(120)"
    job = submit(JobSpec(name="fails", command=("python", "-c", code), folder=str(tmp_path), nodes=2), tmp_path / "job")
    [state] = wait(job.job_id)
    assert state.state == "FAILED"
    assert "ExitCode=4:0" in cluster.run("scontrol", "show", "job", job.job_id)


def test_try_again_is_requeued_and_runs_the_same_command_in_the_same_folder(cluster, tmp_path):
    """Exit code 75 brings the job back; the second start finds what the first one left, as a trainer finds its checkpoint."""
    code = (
        "import os, sys; first = not os.path.exists('mark'); open('mark', 'a'); print('first' if first else 'again'); sys.exit(75 * first)"
    )
    folder = tmp_path / "job"
    job = submit(JobSpec(name="again", command=("python", "-c", code), folder=str(tmp_path)), folder)
    [state] = wait(job.job_id, seconds=120)
    assert (state.state, state.restarts) == ("COMPLETED", 1), everything_said(folder)
    assert log_lines(folder) == ["again", "first", "retinaforge: restart 1"]


def test_an_array_gives_each_index_its_share(cluster, tmp_path):
    command = ("python", "-c", "import sys; print(sys.argv[1])", "{array_task}/3")
    job = submit(JobSpec(name="array", command=command, folder=str(tmp_path), array="0-2"), tmp_path / "job")
    found = wait(job.job_id)
    assert [state.job_id for state in sorted(found, key=lambda s: s.job_id)] == [f"{job.job_id}_{i}" for i in range(3)]
    assert log_lines(tmp_path / "job") == ["0/3", "1/3", "2/3"]


def test_of_an_array_only_the_index_that_asks_is_restarted_also_the_last(cluster, tmp_path):
    """The last one has the number of the whole array. Index 0 has ended and 1 runs as it asks; files are as the submitter's umask says."""
    code = """
import pathlib, sys, time
index = int(sys.argv[1])
starts = pathlib.Path(f"starts-{index}")
again = starts.exists()
starts.open("a").write("x")
if index == 1:
    until = time.monotonic() + 60
    while time.monotonic() < until and not (pathlib.Path("starts-2").exists() and pathlib.Path("starts-2").read_text() == "xx"):
        time.sleep(0.2)
if index == 2 and not again:
    while not (pathlib.Path("starts-0").exists() and pathlib.Path("starts-1").exists()):
        time.sleep(0.2)
    sys.exit(75)
"""
    before = os.umask(0o002)
    try:
        command = ("python", "-c", code, "{array_task}")
        job = submit(JobSpec(name="last", command=command, folder=str(tmp_path), array="0-2"), tmp_path / "job")
    finally:
        os.umask(before)
    until = time.monotonic() + 90
    while not (states := current([job], Queue(0.5))["last"]) or not has_ended(states):
        assert time.monotonic() < until, everything_said(tmp_path / "job")
        time.sleep(0.5)
    assert [(tmp_path / f"starts-{index}").read_text() for index in range(3)] == ["x", "x", "xx"], everything_said(tmp_path / "job")
    assert [state.state for state in states] == ["COMPLETED"] * 3
    assert (tmp_path / "starts-0").stat().st_mode & 0o777 == 0o664 and (tmp_path / "job").stat().st_mode & 0o777 == 0o700


def test_a_job_that_slurm_cancels_to_preempt_it_commits_and_comes_back(cluster, tmp_path):
    """PreemptMode=CANCEL: `--requeue` does nothing there. Two of it never write at once."""
    code = """
import os, signal, sys, time
os.open("writing", os.O_CREAT | os.O_EXCL)
again = os.path.exists("committed")
def stop(*_):
    time.sleep(0.5)
    open("committed", "x").close()
    os.remove("writing")
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
print("again" if again else "first", flush=True)
while not again:
    time.sleep(0.1)
os.remove("writing")
"""
    cluster.run("scontrol", "update", "PartitionName=scavenge", "PreemptMode=CANCEL")
    try:
        spec = JobSpec(name="gives-way", command=("python", "-c", code), folder=str(tmp_path), partition="scavenge", cpus_per_task=4)
        job = submit(spec, folder := tmp_path / "job")
        log, until = folder / f"{job.job_id}_0_log.out", time.monotonic() + 60
        while not (log.exists() and "first" in log.read_text()):
            assert time.monotonic() < until, everything_said(folder)
            time.sleep(0.1)
        cluster.run("sbatch", "--partition=main", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
        [state] = wait(job.job_id, seconds=90)
    finally:
        cluster.run("scontrol", "update", "PartitionName=scavenge", "PreemptMode=REQUEUE")
    assert (state.state, state.restarts) == ("COMPLETED", 1), everything_said(folder)
    assert [(attempt.why, attempt.code) for attempt in read_attempts(attempts_path(folder))] == [("preempted", 75), ("done", 0)]


@pytest.mark.parametrize("name", ["USR1", "USR2"])
def test_a_signal_to_the_script_is_a_wish_to_stop_and_no_end_of_the_job(cluster, tmp_path, name):
    """To the script alone nothing happens; with `--full` the tasks commit, and the job comes back."""
    code = """
import os, signal, sys, time
again = os.path.exists("committed")
def stop(*_):
    open("committed", "x").close()
    sys.exit(75)
signal.signal(signal.SIGUSR1, stop)
signal.signal(signal.SIGUSR2, stop)
print("again" if again else "first", flush=True)
while not (again or os.path.exists("enough")):
    time.sleep(0.1)
"""
    job = submit(JobSpec(name="told", command=("python", "-c", code), folder=str(tmp_path)), folder := tmp_path / "job")
    log, until = folder / f"{job.job_id}_0_log.out", time.monotonic() + 60
    while not (log.exists() and "first" in log.read_text()):
        assert time.monotonic() < until, everything_said(folder)
        time.sleep(0.1)
    cluster.run("scancel", "--batch", f"--signal={name}", job.job_id)
    time.sleep(1.0)
    assert wait(job.job_id, until={"RUNNING"})[0].restarts == 0 and not (tmp_path / "committed").exists()
    cluster.run("scancel", "--full", f"--signal={name}", job.job_id)
    [state] = wait(job.job_id, seconds=90)
    assert (state.state, state.restarts) == ("COMPLETED", 1), everything_said(folder)
    assert [attempt.code for attempt in read_attempts(attempts_path(folder))] == [75, 0]


def test_what_sbatch_refuses_is_said_in_its_words(cluster, tmp_path):
    spec = JobSpec(name="nowhere", command=("python", "-V"), folder=str(tmp_path), partition="no-such-partition")
    with pytest.raises(InputError, match="invalid partition specified: no-such-partition"):
        submit(spec, tmp_path / "job")
    assert not list((tmp_path / "job").glob(".submission*"))


def test_a_number_slurm_never_gave_is_unknown_and_no_error(cluster):
    assert read_squeue(squeue(), ["4000000"]) == {"4000000": [JobState(job_id="4000000")]}


def test_torch_ranks_on_two_nodes_add_up(cluster, tmp_path):
    code = """
import torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor([10.0 ** dist.get_rank()])
dist.all_reduce(total)
print(dist.get_rank(), dist.get_world_size(), total.item())
dist.destroy_process_group()
"""
    folder = tmp_path / "job"
    job = submit(JobSpec(name="gloo", command=("python", "-c", code), folder=str(tmp_path), nodes=2), folder)
    [state] = wait(job.job_id)
    assert state.state == "COMPLETED", everything_said(folder)
    assert [line for line in log_lines(folder) if line[0] in "01"] == ["0 2 11.0", "1 2 11.0"]


def test_mpi_by_srun_sees_one_world_and_the_one_slurm_made(cluster):
    pytest.importorskip("mpi4py")
    code = "from slurm.rank import *; c = MpiCommunicator(); print(c.rank, c.world, placement().source, c.broadcast(c.rank))"
    said = cluster.run("srun", "--mpi=pmi2", "--nodes=2", "--ntasks-per-node=1", "--label", sys.executable, "-c", code)
    assert sorted(said.split("\n")[:2]) == ["0: 0 2 mpi 0", "1: 1 2 mpi 0"]


def test_tasks_of_srun_make_a_set_in_units_that_is_the_set_of_one_process(cluster, tmp_path):
    data = {"phantom": {"size": 32, "wavelengths_nm": [555.0, 640.0]}, "subjects": 12, "visits": 1}
    launchers = {"one": [], "tasks": ["srun", "--nodes=2", "--ntasks=2", "--kill-on-bad-exit"]}
    for name, launcher in launchers.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"run": str(tmp_path / name), "data": data}))
        words = [*launcher, sys.executable, "-m", "launch", "data", "prepare", str(tmp_path / f"{name}.yaml")]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
        assert done.stdout.count("dataset: ") == 1, "one process tells of it"
    one, tasks = (read_manifest(tmp_path / name / "data") for name in launchers)
    assert one == tasks and one.splits["train"]["count"] > 2
    assert not list((tmp_path / "tasks").glob("**/.[!.]*"))


def test_logs_are_followed_to_the_end_and_a_job_is_cancelled_by_its_name(cluster, tmp_path, monkeypatch):
    """By the command line, as a person would; another job of the same number is not taken for ours."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    (tmp_path / "site.yaml").write_text("ask_every_seconds: 1\n")
    code = "import os, time\nfor i in range(3): print('line', i, os.environ['RANK'], flush=True); time.sleep(1)"
    submit(JobSpec(name="talks", command=("python", "-c", code), folder=str(tmp_path), nodes=2), tmp_path / "runs" / "jobs" / "talks")
    told = [line for line in invoke("logs", "talks", "-f").splitlines() if "line" in line]
    assert sorted(told) == [f"[{rank}] line {i} {rank}" for rank in range(2) for i in range(3)]
    assert invoke("logs", "talks", "--rank", 1, "-n", 1) == "[1] line 2 1\n"
    code = "import time; time.sleep(300)"
    sleeper = submit(JobSpec(name="sleeps", command=("python", "-c", code), folder=str(tmp_path)), tmp_path / "runs" / "jobs" / "sleeps")
    wait(sleeper.job_id, until={"RUNNING"})
    assert json.loads(invoke("cancel", "sleeps", "talks", "--json")) == {"sleeps": True, "talks": False}
    [state] = wait(sleeper.job_id)
    assert state.state == "CANCELLED"
    record = tmp_path / "runs" / "jobs" / "talks" / RECORD_NAME
    record.write_text(json.dumps({**json.loads(record.read_text()), "job_ids": [sleeper.job_id]}))
    assert json.loads(invoke("status", "talks", "--json"))["jobs"]["talks"]["state"] == "COMPLETED", "by its own note"
