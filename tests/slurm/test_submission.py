"""What is submitted to a real SLURM by the command line, what is refused there, and pipelines. Light commands in place of trainings."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from data_shards.errors import InputError, RetinaforgeError
from slurm.executor import submit
from slurm.history import attempts_path, read_attempts
from slurm.jobs import JobSpec, read_spec
from slurm.local_cluster import LocalCluster
from slurm.logs import log_files
from slurm.queue import UNKNOWN, Queue, read_squeue, squeue
from slurm.records import RECORD_NAME, read_record
from slurm.states import check_free, current
from tests.commands import has_ended, invoke
from tests.runs import NETWORKS
from tests.test_docs import blocks
from tests.test_python import PAGE

pytestmark = pytest.mark.slurm
LONG = pytest.mark.skipif(os.environ.get("FAULTS") != "all", reason="make faults runs it: over a minute")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(cluster, tmp_path, monkeypatch) -> None:
    """With this process's commands pointed to the cluster, and SLURM asked as often as a test likes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    (tmp_path / "site.yaml").write_text("ask_every_seconds: 0.3\n")


def until(true: Callable[[], bool], seconds: float = 90, told: Callable[[], object] = lambda: "") -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, told()
        time.sleep(0.2)


def state_of(job_id: str) -> str:
    return read_squeue(squeue(), [job_id])[job_id][0].state


def python(code: str, tmp_path: Path, **fields) -> JobSpec:
    return JobSpec(**{"name": "job", "command": ("python", "-c", code), "folder": str(tmp_path), **fields})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--partition", "gpu"), "no partition 'gpu' here(.|\n)*main: 2 node"),
        (("--gpus-per-task", "1"), "a node of main has 0 GPUs, the job asks for 1"),
        (("--nodes", "3"), r"main has 2 node\(s\)"),
        (("--cpus-per-task", "5"), "4 cores, the job asks for 5"),
    ],
)
def test_what_the_site_does_not_offer_is_refused_with_what_it_does(tmp_path, words, message):
    with pytest.raises(InputError, match=message):
        invoke("submit", *words, "--name", "refused-by-us", "--", "presets")
    assert not (tmp_path / "runs" / "jobs" / "refused-by-us" / RECORD_NAME).exists() and "refused-by-us" not in squeue()


def test_a_name_in_use_is_refused_until_its_job_has_ended(tmp_path):
    folder = tmp_path / "runs" / "jobs" / "held"
    spec = python("import time; time.sleep(120)", tmp_path, name="held")
    job = submit(spec, folder)
    with pytest.raises(InputError, match=f"name is in use: job {job.job_id} is (PENDING|RUNNING)(.|\n)*retinaforge cancel held ends it"):
        submit(spec, folder)
    with pytest.raises(InputError, match="name is in use"):
        invoke("resume", "held")
    until(lambda: (folder / f"{job.job_id}_0_log.out").exists())
    invoke("cancel", "held")
    until(lambda: state_of(job.job_id) == "CANCELLED" and read_attempts(attempts_path(folder))[0].why == "cancelled")
    check_free(folder)
    again = json.loads(invoke("resume", "held", "--nodes", "1-2", "--json"))
    assert again["job_id"] != job.job_id and json.loads((folder / "job.json").read_text())["most_nodes"] == 2
    until(lambda: len(read_attempts(attempts_path(folder))) == 2)
    told = json.loads(invoke("status", "held", "--json"))["jobs"]["held"]
    assert told["state"] == "RUNNING" and [a["job_id"] for a in told["attempts"]] == [job.job_id, again["job_id"]]
    assert "cancelled" in invoke("status", "held")
    invoke("cancel", "held")


@pytest.mark.parametrize("array", ["0-1%1", None])
def test_an_option_that_is_empty_is_refused_and_starts_nothing_again(tmp_path, array):
    """As an unset variable of a shell leaves it: nothing is not all."""
    folder = tmp_path / "runs" / "jobs" / "held"
    job = submit(python("0", tmp_path, name="held", array=array), folder)
    until(lambda: {state.state for state in read_squeue(squeue(), [job.job_id])[job.job_id]} == {"COMPLETED"})
    record = (folder / RECORD_NAME).read_text()
    for option in ("--array", "--nodes", "--partition"):
        with pytest.raises(InputError, match="array=''|nodes|partition=''"):
            invoke("resume", "held", option, "")
    with pytest.raises(InputError, match="one of both"):
        invoke("resume", "held", "--array", "", "--failed")
    with pytest.raises(InputError, match="array=''"):
        submit(read_spec(folder / "job.json"), folder, only="")
    assert (folder / RECORD_NAME).read_text() == record


def test_two_who_submit_at_once_make_one_job(cluster, tmp_path):
    """Both had seen that the name is free."""
    spec = python("import time; time.sleep(60)", tmp_path, name="at-once")

    def one() -> object:
        try:
            return submit(spec, tmp_path / "job", over="")
        except RetinaforgeError as error:
            return error

    with ThreadPoolExecutor(4) as pool:
        said = list(pool.map(lambda _: one(), range(4)))
    [record] = [one for one in said if not isinstance(one, RetinaforgeError)]
    assert squeue().count("at-once") == 1
    cluster.run("scancel", record.job_id)


def test_a_job_is_submitted_from_python_as_the_page_says(cluster, packed):
    known: dict = {"Path": Path, "run": SimpleNamespace(dataset=packed)}
    for code in blocks(PAGE, "python"):
        if "from slurm import" in code:
            exec(compile(code, PAGE.name, "exec"), known)
    folder = known["JOBS"] / "look"
    record = read_record(folder / "submitted.json")
    assert known["code"] == 0 and record.key == known["record"].key
    until(lambda: has_ended(current([record], fresh=True)[record.name]))
    assert [state.state for state in current([record], fresh=True)[record.name]] == ["COMPLETED"]
    assert "wavelengths_nm" in log_files(folder)["0"].read_text()


HOSTILE = ["-rf", "--wrap=id", "%j %A", "a;b|c&d", "..", "../../up", "ü 96² 🙂", "'\"`$(id)", "x" * 128]


def test_a_hostile_name_is_only_a_name(cluster, tmp_path):
    jobs = {name: json.loads(invoke("submit", f"--name={name}", "--json", "--", "data", "ls", "nowhere")) for name in HOSTILE}
    until(lambda: all(state_of(job["job_id"]) == "FAILED" for job in jobs.values()), told=squeue)
    told = json.loads(invoke("status", "--json"))["jobs"]
    for name, job in jobs.items():
        assert told[name]["state"] == "FAILED" and "no such folder" in invoke("logs", "--", name)
        assert Path(job["folder"]).is_relative_to(tmp_path / "runs" / "jobs")


@pytest.mark.parametrize("name", ["a\nb", "a\\b", "\x1b[31m", " ", "y" * 129, "🙂" * 100])
def test_what_can_be_no_name_is_refused(name):
    with pytest.raises(InputError, match="name="):
        invoke("submit", f"--name={name}", "--", "presets")


def test_a_limit_of_restarts_ends_in_a_clear_failure(cluster, tmp_path):
    """It says 'try again' each time and makes nothing: three attempts, then it has failed, with the reason."""
    folder = tmp_path / "job"
    spec = python("import sys; print('TryAgain: the disk is full'); sys.exit(75)", tmp_path, progress=("made/*",), max_stalls=2)
    job = submit(spec, folder)
    until(lambda: state_of(job.job_id) == "FAILED", told=lambda: (squeue(), read_attempts(attempts_path(folder))))
    attempts = read_attempts(attempts_path(folder))
    assert [attempt.code for attempt in attempts] == [75, 75]
    assert attempts[-1].why == "2 attempts in a row got nowhere, the last one: the disk is full"
    assert "not restarted: 2 attempts in a row got nowhere" in (folder / f"{job.job_id}_batch.out").read_text()


@LONG
@pytest.mark.timeout(600)
def test_a_pipeline_goes_from_shards_to_the_report_and_only_what_is_missing_goes_out_again(cluster, tmp_path, packed):
    """The VQ-GAN's job fails at first, for a file stands in its way: what follows is held, and a rerun mends it."""
    loop = {"samples": 16, "batch": 8, "log_every": 8, "checkpoint_every": 8, "validate_samples": 0}
    config = {"run": "runs/eyes", "data": {"dataset": str(packed)}, "sample": {"count": 12, "shard": 3, "batch": 3}}
    config |= {stage: {**networks, "loop": loop} for stage, networks in NETWORKS.items()}
    config["diffusion"]["sampler"] = {"steps": 2}
    (tmp_path / "eyes.yaml").write_text(yaml.safe_dump(config))
    pipeline = {
        "preset": "eyes.yaml",
        "jobs": {"vqgan": {"nodes": 2}, "diffusion": {"nodes": 2}, "sample": {"tasks": 2, "at_once": 1}, "audit": {"tasks": 2}},
    }
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(pipeline))
    in_the_way = tmp_path / "runs" / "eyes" / "vqgan" / "checkpoints"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("no folder")  # the first job on it fails
    first = {row["stage"]: row for row in json.loads(invoke("submit", "--json", "--", "pipeline", "pipeline.yaml"))["stages"]}
    assert first["data"]["state"] == "finished" and first["report"]["after"] == ["evaluate", "audit"]
    assert all(first[stage]["state"] == "submitted" for stage in list(first)[1:])
    until(lambda: state_of(first["vqgan"]["job_ids"][0]) == "FAILED", 120)
    until(lambda: "DependencyNeverSatisfied" in squeue())
    in_the_way.unlink()
    second = {row["stage"]: row for row in json.loads(invoke("resume", "eyes", "--json"))["stages"]}
    assert all(second[stage]["state"] == "submitted" for stage in list(second)[2:]), "all but data and segmenter"
    held = [first[stage]["job_ids"][0] for stage in list(first)[3:]]
    until(lambda: all(state_of(number) == "CANCELLED" for number in held))
    until(lambda: state_of(second["encode"]["job_ids"][0]) in ("RUNNING", "COMPLETED"), 120)
    third = {row["stage"]: row for row in json.loads(invoke("submit", "--json", "--", "pipeline", "pipeline.yaml"))["stages"]}
    assert third["vqgan"]["state"] == "finished" and third["report"]["state"] == "waits or runs"
    assert third["report"]["job_ids"] == second["report"]["job_ids"], "what waits or runs is left alone"
    record = read_record(tmp_path / "runs" / "jobs" / "eyes" / "report" / RECORD_NAME)
    logs = lambda: [p.read_text()[-1500:] for p in (tmp_path / "runs" / "jobs" / "eyes").rglob("*_log.out")]  # noqa: E731
    until(lambda: has_ended(current([record], Queue(0.3))[record.name]), 240, told=logs)
    assert "gaussian" in (tmp_path / "runs" / "eyes" / "report.html").read_text().lower()
    rows = json.loads(invoke("submit", "--json", "--", "pipeline", "pipeline.yaml"))["stages"]
    assert {row["state"] for row in rows} == {"finished"}
    told = json.loads(invoke("status", "eyes", "--json"))["jobs"]
    assert told["eyes/sample"]["progress"]["done"] == 12 and told["eyes/vqgan"]["progress"]["checkpoint"] == 16


@pytest.fixture(scope="module")
def narrow() -> Iterator[LocalCluster]:
    """A cluster that takes arrays of ten."""
    with LocalCluster(nodes=2, settings={"MaxArraySize": "10"}) as running:
        yield running


def test_an_array_longer_than_the_cluster_takes_goes_as_several(narrow, tmp_path, monkeypatch):
    for name, value in narrow.environ.items():
        monkeypatch.setenv(name, value)
    code = "import sys; open(f'made-{sys.argv[1]}', 'x').close(); sys.exit(4 * (sys.argv[1] == '17'))"
    spec = JobSpec(name="long", command=("python", "-c", code, "{array_task}"), folder=str(tmp_path), array="3-26%3")
    folder = tmp_path / "runs" / "jobs" / "long"
    record = submit(spec, folder)
    assert len(record.job_ids) == 3 and "Dependency=afterany:" in narrow.run("scontrol", "show", "job", record.job_ids[1])
    queue = Queue(0.3)
    until(lambda: has_ended(current([record], queue)["long"]), 120, told=squeue)
    assert sorted(path.name for path in tmp_path.glob("made-*")) == sorted(f"made-{index}" for index in range(3, 27))
    states = {state.job_id.partition("_")[2]: state.state for state in current([record], queue)["long"]}
    assert states == {str(index): "FAILED" if index == 17 else "COMPLETED" for index in range(3, 27)}
    assert read_attempts(attempts_path(folder, "17"))[0].code == 4
    assert "23 COMPLETED, 1 FAILED" in " ".join(invoke("status", "long").split())
    again = json.loads(invoke("resume", "long", "--failed", "--json"))
    until(lambda: len(read_attempts(attempts_path(folder, "17"))) == 2)
    assert [attempt.job_id for attempt in read_attempts(attempts_path(folder, "17"))][1:] == again["job_ids"]
    assert "[17:batch] retinaforge: attempt 0" in invoke("logs", "long", "--rank", "17:batch")
    assert read_spec(folder / "job.json").array == "3-26%3", "one index is not the whole array from now on"
    until(lambda: has_ended(current([read_record(folder / RECORD_NAME)], queue)["long"]))
    assert "23 COMPLETED, 1 FAILED" in " ".join(invoke("status", "long").split())
    with pytest.raises(InputError, match="--array 27: no index 27"):
        invoke("resume", "long", "--array", "27")


def test_a_job_on_another_cluster_is_neither_doubled_nor_denied(cluster, narrow, tmp_path, monkeypatch):
    """Both see the same files; and a site may write its own words over the comment that holds the token."""
    folder = tmp_path / "runs" / "jobs" / "far"
    spec = python("import time; time.sleep(120)", tmp_path, name="far")
    job = submit(spec, folder)
    with monkeypatch.context() as there:
        for name, value in narrow.environ.items():
            there.setenv(name, value)
        with pytest.raises(InputError, match=f"job {job.job_id} was submitted on cluster local-(.|\n)*--force"):
            submit(spec, folder)
        with pytest.raises(InputError, match=f"job {job.job_id} was submitted on cluster local-(.|\n)*on a machine of cluster local-"):
            invoke("cancel", "far")
        assert json.loads(invoke("status", "far", "--json"))["jobs"]["far"]["state"] == UNKNOWN
    cluster.run("scontrol", "update", f"JobId={job.job_id}", "Comment=project 7")
    with pytest.raises(InputError, match="name is in use"):
        submit(spec, folder, force=True)
    assert json.loads(invoke("cancel", "far", "--json")) == {"far": True}
    until(lambda: state_of(job.job_id) == "CANCELLED")
    assert submit(spec, folder, force=False).job_ids != job.job_ids
    invoke("cancel", "far")


def test_python_of_the_submitting_host_runs_the_tasks(cluster, tmp_path):
    job = submit(python("import sys; print(sys.executable)", tmp_path), tmp_path / "job")
    until(lambda: state_of(job.job_id) == "COMPLETED")
    assert sys.executable in (tmp_path / "job" / f"{job.job_id}_0_log.out").read_text()
