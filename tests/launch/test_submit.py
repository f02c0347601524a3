"""`retinaforge submit` and `status`, as far as they go without a cluster."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from data_shards.errors import InputError
from data_shards.ledger import Ledger
from launch.cli.resume import _limited
from launch.cli.status import pace, summary
from launch.provenance import ROOT
from launch.run import Run
from launch.stages import STAGES
from launch.stages.outdated import check_outdated
from launch.submit.frozen import Progress, Target, check_time, progress_of
from launch.submit.graph import run_here
from launch.submit.pipeline import missing
from launch.submit.site import minutes_of, queue
from launch.tree import load
from slurm.foreground import run_local
from slurm.jobs import JobSpec
from slurm.queue import JobState
from slurm.rank import Placement
from slurm.records import RECORD_NAME
from slurm.task import few_cores, read_secrets, task_environ
from tests.commands import invoke


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "no-config"))


def test_a_dry_run_prints_the_script_and_writes_nothing(tmp_path):
    text = invoke("submit", "--nodes", "2", "--time-minutes", "60", "--dry-run", "--", "run", "demo", "--dry-run", "data.subjects=3")
    assert text.startswith("#!/bin/bash") and "#SBATCH --nodes=2" in text
    config = tmp_path / "runs" / "jobs" / "demo" / "run" / "config.yaml"
    assert f'# ["retinaforge", "run", "{config}", "--dry-run"]' in text, "what follows -- belongs to the job"
    assert f"# {config}:\n#   run: runs/demo\n" in text and "#     subjects: 3\n" in text, "the configuration is frozen with it"
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
    assert not list(tmp_path.iterdir())


def test_json_holds_the_job(tmp_path):
    said = json.loads(invoke("submit", "--name", "a/b", "--dry-run", "--json", "--", "run", "demo"))
    folder = tmp_path / "runs" / "jobs" / "a" / "b"
    assert said["folder"] == str(folder) and said["job"]["folder"] == str(tmp_path)
    assert said["job"]["command"] == ["retinaforge", "run", str(folder / "config.yaml")] and said["config"]["run"] == "runs/demo"


def test_what_a_site_says_holds_unless_an_option_says_otherwise(tmp_path, monkeypatch):
    """The user's file, then the folder's; in each what is for one verb over what is for all."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    (tmp_path / "config" / "retinaforge").mkdir(parents=True)
    home = "partition: long\naccount: retina\nverbs:\n  run: {time_minutes: 600, nodes: 1, most_nodes: 4}\n  sample: {qos: low}\n"
    (tmp_path / "config" / "retinaforge" / "site.yaml").write_text(home)
    (tmp_path / "site.yaml").write_text("partition: gpu\nextra: [--gres-flags=enforce-binding]\n")
    job = json.loads(invoke("submit", "--time-minutes", "30", "--dry-run", "--json", "--", "run", "demo"))["job"]
    said = {name: job[name] for name in ("partition", "account", "time_minutes", "nodes", "most_nodes", "qos", "extra", "exports")}
    assert said == {
        "partition": "gpu",
        "account": "retina",
        "time_minutes": 30,
        "nodes": 1,
        "most_nodes": 4,
        "qos": None,
        "extra": ["--gres-flags=enforce-binding"],
        "exports": ["NCCL_SOCKET_IFNAME"],
    }
    assert "#SBATCH --nodes=2-3\n" in invoke("submit", "--nodes", "2-3", "--dry-run", "--", "run", "demo")


def test_the_closer_word_counts_however_it_is_spelled(tmp_path):
    home = tmp_path / "no-config" / "retinaforge" / "site.yaml"
    home.parent.mkdir(parents=True)
    home.write_text("time: '1-00:00:00'\ngpus_per_task: a100:2\nverbs:\n  presets: {time_minutes: 60}\n  run: {gpus_per_task: 1}\n")

    def job(*words: str) -> tuple:
        said = json.loads(invoke("submit", *words[:-1], "--dry-run", "--json", "--", *words[-1].split()))["job"]
        return said["time_minutes"], said["gpus_per_task"], said["gpus_per_node"], said["gpu_type"]

    assert job("presets") == (60, 2, 0, "a100") and job("run demo") == (1440, 1, 0, None)
    (tmp_path / "site.yaml").write_text("time: '2:00:00'\n")
    assert job("presets") == (120, 2, 0, "a100") and job("--time-minutes", "30", "presets")[0] == 30
    assert job("--gpus-per-task", "h100:1", "--gpus-per-node", "4", "presets")[1:] == (1, 4, "h100")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--time", "1:00:00", "--time-minutes", "5"), "time and time_minutes(.|\n)*one of both"),
        (("--gpus-per-task", "a100:1", "--gpus-per-node", "h100:4"), "2 types: a100, h100"),
    ],
)
def test_one_thing_is_not_said_in_two_ways(words, message):
    with pytest.raises(InputError, match=message):
        invoke("submit", *words, "--dry-run", "--", "presets")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("exports: HF_HOME", r"exports: 'HF_HOME'(.|\n)*a list, also of one: \[HF_HOME\]"),
        ("extra: --hold", "extra: '--hold'(.|\n)*a list"),
        ("partitoin: gpu", "unknown key 'partitoin'(.|\n)*did you mean 'partition'"),
        ("name: all-the-same", "unknown key 'name'"),
        ("verbs: {run: {gpus: 1}}", "verbs: run(.|\n)*did you mean|unknown key 'gpus'"),
        ("verbs: {smaple: {}}", "unknown verb 'smaple'(.|\n)*'sample'"),
        ("- partition", "in place of keys and values"),
        ("nodes: two", "site.yaml(.|\n)*1-4"),
        ("nodes: 1-4\nmost_nodes: 3", "nodes: 1-4 and most_nodes(.|\n)*site.yaml"),
        ("nodes: true", "nodes: True"),
        ("account: 123", 'account: 123(.|\n)*site.yaml(.|\n)*account: "123"'),
        ("verbs: {run: {partition: on}}", "partition: True(.|\n)*verbs: run(.|\n)*in quotes"),
        ("memory: 64", 'memory: 64(.|\n)*site.yaml(.|\n)*memory: "64"'),
        ("snapshot: maybe", "snapshot: 'maybe'(.|\n)*site.yaml(.|\n)*true or false"),
        *(
            (f"ask_every_seconds: {every}", "ask_every_seconds: (.|\n)*site.yaml(.|\n)*above 0")
            for every in ("0", "-1", "often", ".inf", ".nan")
        ),
        ("partition: [", "not YAML"),
    ],
)
def test_a_site_file_with_a_mistake_is_named(tmp_path, monkeypatch, text, message):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    (tmp_path / "site.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        invoke("submit", "--dry-run", "--", "run", "demo")


def test_a_verb_that_is_not_there_is_refused_before_it_queues():
    with pytest.raises(InputError, match="no verb 'sampel'(.|\n)*'sample'"):
        invoke("submit", "--dry-run", "--", "sampel", "demo")


@pytest.mark.parametrize(
    "words",
    [
        ("--memory", "much"),
        ("--nodes", "1-x"),
        ("--nodes", "0"),
        ("--extra", "--nodes=2"),
        ("--export", "HF_TOKEN"),
        ("--time-minutes", "1"),
        ("--name", "a\nb"),
    ],
)
def test_bad_options_are_refused(words):
    with pytest.raises(InputError):
        invoke("submit", *words, "--dry-run", "--", "run", "demo")


@pytest.mark.parametrize("option", ["name", "nodes", "partition", "array", "dependency", "time"])
@pytest.mark.parametrize("words", [("presets",), ("pipeline", "p.yaml")])
def test_an_option_that_is_empty_is_not_taken_for_one_that_is_left_out(tmp_path, option, words):
    (tmp_path / "p.yaml").write_text(PIPELINE)
    with pytest.raises(InputError, match=f"{option}(_minutes)?=''|{option}: ''|--{option} ?|options of a job"):
        invoke("submit", f"--{option}", "", "--dry-run", "--", *words)


def test_an_empty_preset_is_refused_before_it_queues():
    with pytest.raises(InputError, match="unknown preset ''"):
        invoke("submit", "--dry-run", "--", "train", "vqgan", "")


def test_a_name_that_would_show_a_password_is_refused_and_not_shown():
    with pytest.raises(InputError, match="holds a password") as caught:
        invoke("submit", "--name", "s3://me:hunter2@host/set", "--dry-run", "--", "presets")
    assert "hunter2" not in str(caught.value)


def test_local_runs_the_verb_here_and_hands_on_its_exit_code(capfd):
    invoke("submit", "--local", "--name", "here", "--", "presets")
    assert "demo" in capfd.readouterr().out
    invoke("submit", "--local", "--name", "wrong", "--", "data", "ls", "nowhere", code=2)
    with pytest.raises(InputError, match="unknown preset"):
        invoke("submit", "--local", "--name", "worse", "--", "run", "no-such-preset")
    assert not Path("runs/jobs/worse").exists(), "refused before anything is written"
    assert Path("runs/jobs/here/job.json").exists()
    with pytest.raises(InputError, match="name is in use"):
        invoke("submit", "--local", "--name", "here", "--", "run", "demo")


def test_a_user_without_a_name_or_a_home_goes_on(tmp_path):
    """As in containers of some sites: no entry in /etc/passwd, no HOME."""
    unnamed = ["env", "-u", "HOME", "-u", "USER", "-u", "LOGNAME", "-u", "XDG_CONFIG_HOME", "unshare", "--user", "--map-user=54321"]
    if subprocess.run([*unnamed, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces here")
    program = str(Path(sys.executable).with_name("retinaforge"))
    for words in (("submit", "--dry-run", "--", "presets"), ("submit", "--local", "--", "presets"), ("status",), ("runs",)):
        done = subprocess.run([*unnamed, program, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [*unnamed, program, "slurm-local", "start", "--root", tmp_path / "c"], capture_output=True, text=True, check=False
    )
    assert (done.returncode == 2 and "has no name" in done.stderr + done.stdout) or "cannot be started" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@pytest.mark.parametrize(
    ("text", "minutes"), [("90", 90), ("90:30", 91), ("1:30:00", 90), ("2-0", 2880), ("2-12:30", 3630), ("1-02:03:04", 1564), (45, 45)]
)
def test_a_time_limit_is_read_as_slurm_reads_it(text, minutes):
    assert minutes_of(text) == minutes


@pytest.mark.parametrize(("text", "minutes"), [("1:30:00", 90), ("12:30", 13), ("90", 90), ("1-12:00:00", 2160)])
def test_a_time_limit_without_quotes_is_read_as_slurm_reads_it(tmp_path, text, minutes):
    (tmp_path / "site.yaml").write_text(f"time: {text}\n")
    assert f"#SBATCH --time={minutes}\n" in invoke("submit", "--dry-run", "--", "presets")
    (tmp_path / "site.yaml").unlink()
    (tmp_path / "p.yaml").write_text(f"preset: demo\njobs:\n  vqgan: {{time: {text}}}\n")
    stages = json.loads(invoke("submit", "--dry-run", "--json", "--", "pipeline", "p.yaml"))["stages"]
    assert stages["vqgan"]["job"]["time_minutes"] == minutes


def test_what_needs_no_quotes_is_read_without(tmp_path):
    (tmp_path / "site.yaml").write_text("umask: 0027\naccount: 0123\nnodes: 1-4\nverbs: {run: {nodes: 2}}\n")
    job = json.loads(invoke("submit", "--dry-run", "--json", "--", "presets"))["job"]
    assert (job["umask"], job["account"], job["nodes"], job["most_nodes"]) == ("0027", "0123", 1, 4)
    job = json.loads(invoke("submit", "--dry-run", "--json", "--", "run", "demo"))["job"]
    assert (job["nodes"], job["most_nodes"]) == (2, None), "the closer word counts"


def test_a_dry_run_shows_the_umask_that_the_job_would_have(tmp_path):
    before = os.umask(0o027)
    try:
        assert "\numask 0027\n" in invoke("submit", "--dry-run", "--", "presets")
        (tmp_path / "site.yaml").write_text('umask: "0002"\n')
        assert "\numask 0002\n" in invoke("submit", "--dry-run", "--", "presets")
    finally:
        os.umask(before)


def test_what_a_site_needs_is_quoted_and_shown(tmp_path):
    home = tmp_path / "no-config" / "retinaforge" / "site.yaml"
    home.parent.mkdir(parents=True)
    home.write_text("setup: [module load cuda]\nlauncher: apptainer exec 'my image.sif'\ngpus_per_task: a100:2\ntime: '1-00:00:00'\n")
    (tmp_path / "site.yaml").write_text("srun_options: [--cpu-bind=none]\nmail_type: END\n")
    text = invoke("submit", "--tasks-per-node", "2", "--dry-run", "--", "presets")
    assert "\nmodule load cuda\nset +e\ncd " in text and " --cpu-bind=none \\\n  apptainer exec 'my image.sif' " in text
    assert "--gpus-per-node=a100:4\n" in text and "--time=1440\n" in text and "--mail-type=END\n" in text
    assert f"# time_minutes: 1440  says {home}" in text
    assert "--gpus-per-node=h100:8\n" in invoke("submit", "--gpus-per-node", "h100:8", "--dry-run", "--", "presets")
    (tmp_path / "site.yaml").write_text("srun_options: [--task-pro=/tmp/evil]\n")
    with pytest.raises(InputError, match="'srun_options' in the site.yaml of a folder"):
        invoke("submit", "--dry-run", "--", "presets")


def test_an_export_whose_value_holds_a_password_is_refused(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://ann:hunter2@proxy:3128")
    with pytest.raises(InputError, match="holds a password(.|\n)*--secrets FILE") as caught:
        invoke("submit", "--export", "HTTPS_PROXY", "--dry-run", "--", "presets")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("words", [("run",), ("pipeline",), ("submit", "--local", "--", "run")], ids=" ".join)
def test_what_a_longer_training_would_outdate_is_refused_before_it_begins(place, tmp_path, words):
    """Latents of the shorter VQ-GAN stand in the run folder; the mend, followed, leads on."""
    run = tmp_path / "a run"
    shutil.copytree(place.run("first", "vqgan"), run)
    settings = [f"run={run}", "vqgan.loop.samples=96"]
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump({"preset": str(place.folder / "tiny.yaml"), "overrides": settings}))
    command = ["submit", "--dry-run", "--", "pipeline", "pipeline.yaml"] if words == ("pipeline",) else [*words, place.folder / "tiny.yaml"]
    before = (run / "run.yaml").read_bytes()
    with pytest.raises(InputError, match="earlier state(.|\n)*latents(.|\n)*mkdir") as caught:
        invoke(*command, *(settings if words != ("pipeline",) else ()))
    assert (run / "run.yaml").read_bytes() == before, "refused before anything is written"
    mend = next(line.partition("mend:")[2] for line in str(caught.value).splitlines() if "mend:" in line)
    subprocess.run(["bash", "-ec", mend], check=True)
    assert (run / "earlier" / "latents" / "dataset.json").exists() and not (run / "latents").exists()
    check_outdated(Run(load(str(place.folder / "tiny.yaml"), settings)))
    check_outdated(Run(load(str(place.folder / "tiny.yaml"), [f"run={place.run('first', 'vqgan')}"])))


def test_status_of_nothing_says_so():
    assert "nothing was submitted" in invoke("status")
    assert json.loads(invoke("status", "--json")) == {"as_of_unix_s": None, "jobs": {}}
    with pytest.raises(InputError, match="no job 'x'"):
        invoke("status", "x")


def test_a_job_on_a_run_is_named_by_it_and_keeps_its_configuration(tmp_path, capfd):
    """What is edited after the submission changes nothing of a requeued job: it reads the configuration in its own folder."""
    (tmp_path / "mine.yaml").write_text("run: runs/mine\nsample: {count: 8, shard: 4}\n")
    invoke("submit", "--local", "--", "run", "mine.yaml", "sample.seed=5", "--dry-run")
    assert "seed: 5" in capfd.readouterr().out, "the task's, which read the frozen configuration"
    folder = tmp_path / "runs" / "jobs" / "mine" / "run"
    job = json.loads((folder / "job.json").read_text())
    assert job["name"] == "mine/run" and job["command"] == ["retinaforge", "run", str(folder / "config.yaml"), "--dry-run"]
    assert load(str(folder / "config.yaml")).sample.seed == 5
    assert json.loads((folder / "target.json").read_text()) | {"goal": 0} == {
        "run": str(tmp_path / "runs" / "mine"),
        "stage": "run",
        "goal": 0,
        "every": 0,
        "shard": 0,
    }
    assert set(json.loads((folder / "environment.json").read_text())) >= {"commit", "diff", "packages"}
    assert folder.stat().st_mode & 0o777 == 0o700
    with pytest.raises(InputError, match="name is in use: a job on run of(.|\n)*--name"):
        invoke("submit", "--local", "--", "run", "mine.yaml", "run=elsewhere/mine", "--dry-run")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "vqgan", "demo", "vqgan.loop.sampels=3"), "did you mean 'samples'"),
        (("train", "vqgan", "demo", "--bogus"), "No such option: --bogus"),
        (("train", "vqgna", "demo"), "no verb 'train vqgna'(.|\n)*'vqgan'"),
        (("train",), "no verb"),
        (("encode",), "(?i)missing (parameter|argument)"),
        (("codebook", "fit", "--codes", "many"), "many"),
        (("status",), "no verb 'status'"),
        (("train", "vqgan", "demo", "run=runs/a{array_task}"), "within the configuration"),
    ],
)
def test_what_the_verb_would_refuse_is_refused_before_it_queues(tmp_path, words, message):
    with pytest.raises(InputError, match=message):
        invoke("submit", "--dry-run", "--", *words)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_refused_before_it_queues(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"):
        invoke("submit", "--local", "--", "train", "vqgan", "demo", "run=file/run")
    with pytest.raises(InputError, match="cannot write"):
        invoke("submit", "--local", "--jobs", "file/jobs", "--", "presets")


def test_secrets_come_from_a_file_of_one_s_own_and_are_shown_to_nobody(tmp_path, capfd):
    path = tmp_path / "secrets"
    path.write_text("# keys\nWANDB_API_KEY=abc=123\n\nOTHER=x y\n")
    path.chmod(0o644)
    words = ("submit", "--secrets", str(path), "--name", "s", "--local", "--", "doctor")
    with pytest.raises(InputError, match="mode 644(.|\n)*chmod 600"):
        invoke(*words)
    path.chmod(0o600)
    assert read_secrets(path) == {"WANDB_API_KEY": "abc=123", "OTHER": "x y"}
    text = invoke("submit", "--secrets", str(path), "--dry-run", "--", "run", "demo")
    assert f"# WANDB_API_KEY=***  from {path}" in text and "abc" not in text
    said = invoke("submit", "--secrets", str(path), "--dry-run", "--json", "--", "run", "demo")
    assert json.loads(said)["secrets"] == {"WANDB_API_KEY": "***", "OTHER": "***"} and "abc" not in said
    text = invoke("submit", "--dry-run", "--name", "t", "--", "data", "ls", "s3://me:hunter2@host/set")
    assert "hunter2" not in text and "s3://me:***@host/set" in text
    for form in ((), ("--json",)):
        text = invoke("submit", "--dry-run", *form, "--", "encode", "demo", "data.dataset=s3://me:hunter2@host/set")
        assert "hunter2" not in text and "s3://me:***@host/set" in text
    path.write_text("no value here\n")
    with pytest.raises(InputError, match="secrets:1") as told:
        invoke(*words)
    assert "no value" not in str(told.value)
    invoke("submit", "--name", "safe", "--local", "--no-snapshot", "--", "presets")
    assert "abc" not in "".join(file.read_text() for file in (tmp_path / "runs" / "jobs").rglob("*") if file.is_file())


def test_a_task_sees_the_secrets(tmp_path, capfd):
    path = tmp_path / "secrets"
    path.touch(0o600)
    path.write_text("TOLD=in confidence\n")
    spec = JobSpec(name="t", folder=str(tmp_path), command=("python", "-c", "import os; print(os.environ['TOLD'])"), secrets=str(path))
    assert run_local(spec, tmp_path / "job") == 0
    assert capfd.readouterr().out == "in confidence\n" and "confidence" not in (tmp_path / "job" / "job.json").read_text()


def test_a_task_that_may_use_fewer_cores_than_it_asked_for_says_so():
    spec = JobSpec(name="t", folder="/", command=("python",), cpus_per_task=8)
    assert few_cores(spec, 8) is None and "may use 2 of the 8 cores" in few_cores(spec, 2)
    assert task_environ(spec, Placement(), cores=2)["OMP_NUM_THREADS"] == "2"


def test_how_often_slurm_is_asked_is_the_site_s_to_say(tmp_path):
    (tmp_path / "site.yaml").write_text("ask_every_seconds: 90\npartition: gpu\n")
    assert queue().ask_every_s == 90
    assert "--partition=gpu" in invoke("submit", "--dry-run", "--", "run", "demo"), "no field of a job"
    (tmp_path / "site.yaml").write_text("ask_every_seconds: often\n")
    with pytest.raises(InputError, match="ask_every_seconds: 'often'"):
        queue()


def test_a_limit_before_the_first_checkpoint_is_refused_where_the_pace_is_known(tmp_path):
    target = Target(run=str(tmp_path), stage="vqgan", goal=100_000, every=12_000)
    spec = JobSpec(name="t", folder="/", command=("python",), time_minutes=10, signal_seconds=120)
    check_time(spec, target)  # nothing is known yet
    (tmp_path / "vqgan").mkdir()
    rows = [json.dumps({"samples": 100 * i, "samples_per_s": 10.0}) for i in range(9)]
    (tmp_path / "vqgan" / "metrics.jsonl").write_text("\n".join(rows) + '\n{"samples": 900, "sam')
    progress = progress_of(target)
    assert (progress.done, progress.per_s, progress.eta_s, progress.checkpoint) == (800, 10.0, 9920.0, None)
    with pytest.raises(InputError, match="take 20 minutes(.|\n)*above 22 minutes(.|\n)*checkpoint_every=2400"):
        check_time(spec, target)
    check_time(dataclasses.replace(spec, time_minutes=30), target)


def test_a_growing_set_says_how_fast_it_grows_and_who_makes_what(tmp_path):
    folder = tmp_path / "synthetic"
    folder.mkdir()
    for k in range(5):
        (folder / f"synthetic-{k:06d}.tar").touch()
        os.utime(folder / f"synthetic-{k:06d}.tar", (0, 1e9 + 20 * k))
    with Ledger(folder).lease("synthetic-000005"):
        progress = progress_of(Target(run=str(tmp_path), stage="sample", goal=1000, shard=10))
    assert (progress.done, progress.per_s, progress.eta_s) == (50, 0.5, 1900)
    assert progress.held == {"synthetic-000005": f"{socket.gethostname()}:{os.getpid()}"}


def test_the_ends_of_smaller_sets_are_no_progress_of_a_larger_one(tmp_path):
    (tmp_path / "synthetic").mkdir()
    for name in ("synthetic-000000.tar", "synthetic-000001.first2.tar", ".part-0a-synthetic-000002.tar"):
        (tmp_path / "synthetic" / name).touch()
    done = [progress_of(Target(run=str(tmp_path), stage="sample", goal=goal, shard=4)).done for goal in (4, 6, 8, 10)]
    assert done == [4, 6, 4, 4]


@pytest.mark.parametrize("words", [("--", "pipeline", "p.yaml"), ("--local", "--", "doctor")])
def test_waiting_for_what_is_no_one_job_of_slurm_is_refused(tmp_path, words):
    (tmp_path / "p.yaml").write_text(PIPELINE)
    with pytest.raises(InputError, match="--wait with"):
        invoke("submit", "--wait", *words)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("verb", [("encode",), ("sample",), ("train", "diffusion"), ("evaluate",), ("audit",)])
def test_a_verb_without_what_comes_before_it_leaves_nothing(tmp_path, packed, verb):
    with pytest.raises(InputError, match="no trained vqgan|no packed dataset|no synthetic set"):
        invoke(*verb, "demo", f"data.dataset={packed}", "run=runs/none")
    assert not (tmp_path / "runs").exists()


PIPELINE = "preset: demo\noverrides: [run=runs/p]\njobs:\n  vqgan: {nodes: 2, time_minutes: 60}\n  sample: {tasks: 6, at_once: 2}\n"


def test_a_pipeline_s_stages_wait_for_each_other(tmp_path):
    (tmp_path / "p.yaml").write_text(PIPELINE)
    stages = json.loads(invoke("submit", "--dry-run", "--json", "--", "pipeline", "p.yaml", "sample.count=12"))["stages"]
    order = ["data", "segmenter", "features", "copies", "vqgan", "encode", "diffusion", "sample", "evaluate", "audit", "report"]
    assert list(stages) == order
    assert stages["vqgan"]["job"]["nodes"] == 2 and stages["vqgan"]["job"]["name"] == "p/vqgan"
    assert stages["sample"]["job"]["array"] == "1-6%2" and stages["sample"]["config"]["sample"]["count"] == 12
    assert stages["sample"]["job"]["command"][-2:] == ["--task", "{array_task}/6"]
    text = invoke("submit", "--dry-run", "--name", "q", "--", "pipeline", "p.yaml")
    assert "# ---- vqgan: q/vqgan\n#!/bin/bash" in text and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("presets: demo\n", (), "unknown key 'presets'(.|\n)*'preset'"),
        ("overrides: []\n", (), "preset: None"),
        ("preset: demo\njobs: {vqgna: {}}\n", (), "unknown stage 'vqgna'(.|\n)*'vqgan'"),
        ("preset: demo\njobs: {vqgan: {node: 2}}\n", (), "unknown field 'node'(.|\n)*'nodes'"),
        ("preset: demo\njobs: {vqgan: {tasks: 2}}\n", (), "unknown field 'tasks'"),
        ("preset: demo\njobs: {sample: {tasks: many}}\n", (), "tasks: 'many'"),
        ("preset: demo\njobs: {vqgan: {nodes: two}}\n", (), "nodes"),
        ("preset: dmeo\n", (), "unknown preset"),
        ("preset: demo\noverrides: run=x\n", (), "overrides: 'run=x'"),
        ("- a\n", (), "in place of keys"),
        (PIPELINE, ("--nodes", "2"), "options of a job"),
    ],
)
def test_a_pipeline_that_cannot_be_is_refused_whole(tmp_path, text, words, message):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        invoke("submit", *words, "--dry-run", "--", "pipeline", "p.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["p.yaml"]


def test_behind_a_missing_stage_all_is_missing(monkeypatch):
    looked: list[str] = []

    def found(done: dict[str, bool], left_out: tuple[str, ...] = ()) -> list[str]:
        looked.clear()
        for name, stage in STAGES.items():
            monkeypatch.setattr(stage, "done", lambda _, name=name: looked.append(name) or done.get(name, True))
            monkeypatch.setattr(stage, "left_out", lambda _, name=name: "no labels" if name in left_out else None)
        return missing(SimpleNamespace(config=load("demo")))

    assert found({}) == []
    assert found({"diffusion": False}) == ["diffusion", "sample", "evaluate", "audit", "report"]
    assert found({"audit": False}) == ["audit", "report"]
    assert found({"segmenter": False}) == ["segmenter", "sample", "evaluate", "audit", "report"]
    assert found({"segmenter": False}, left_out=("segmenter",)) == [], "what a run goes without holds nothing up"
    assert found({"features": False}) == ["features", "evaluate", "audit", "report"]
    assert found({"copies": False}) == ["copies", "audit", "report"]
    assert found({"vqgan": False}) == [name for name in STAGES if name not in ("data", "segmenter", "features", "copies")]
    assert looked == ["data", "segmenter", "features", "copies", "vqgan"], "what stands behind a missing stage may not even be readable"


@pytest.mark.parametrize("verb", ["resume", "logs", "cancel", "status"])
def test_what_was_never_submitted_is_said_and_what_was_is_listed(tmp_path, verb):
    with pytest.raises(InputError, match="no job 'x'(.|\n)*mend: +retinaforge status lists them"):
        invoke(verb, "x")
    with pytest.raises(InputError, match=f"no job 'x'(.|\n)*retinaforge status --jobs {tmp_path}/other lists them"):
        invoke(verb, "x", "--jobs", tmp_path / "other")


@pytest.mark.parametrize("logs", [("7_batch.out", "7_0_log.out", "7_1_log.out"), ("7_3_batch.out", "7_3_0_log.out"), ()])
def test_a_rank_that_there_is_not_is_refused_with_those_there_are(tmp_path, logs):
    folder = tmp_path / "runs" / "jobs" / "job"
    folder.mkdir(parents=True)
    (folder / RECORD_NAME).write_text(json.dumps({"job_ids": ["7"], "name": "job", "submitted_unix_s": 1.0}))
    for name in logs:
        (folder / name).touch()  # it has said nothing yet
    there = ["batch", "0", "1"] if len(logs) == 3 else ["3:batch", "3:0"] if logs else []
    for rank in ("9", "9:0", "", "0 "):
        with pytest.raises(InputError, match=f"--rank {rank}: no log(.|\n)*" + (f"one of {', '.join(there)}" if there else "has begun")):
            invoke("logs", "job", "--rank", rank)
    assert [invoke("logs", "job", "--rank", rank) for rank in there] == [""] * len(there)


def test_runs_are_listed_with_how_far_they_are(tmp_path):
    assert "no run in runs" in invoke("runs")
    run = tmp_path / "runs" / "eyes"
    (run / "vqgan").mkdir(parents=True)
    (run / "run.yaml").write_text("run: runs/eyes\n")
    (run / "vqgan" / "metrics.jsonl").write_text('{"samples": 4800}\n')
    (run / "latents").mkdir()
    (run / "latents" / "dataset.json").touch()
    found = json.loads(invoke("runs", "--json"))["eyes"]
    assert (found["stages"]["vqgan"], found["stages"]["encode"], found["stages"]["diffusion"]) == ("4,800", "done", "")
    assert "vqgan 4,800" in invoke("runs")


def test_what_a_table_says_of_a_job():
    states = [JobState(job_id="7_0", state="RUNNING"), JobState(job_id="7_1-8,10", state="PENDING")]
    assert summary(states) == "9 PENDING, 1 RUNNING" and summary(states[:1]) == "RUNNING"
    assert pace(Progress(done=960, goal=4800, per_s=17.14), True) == "960 of 4,800, 20 %; 17.1/s, 3 min 44 s left"
    assert pace(Progress(done=960, goal=4800, per_s=17.14), False) == "960 of 4,800, 20 %"
    assert pace(Progress(), True) == ""


def test_indices_that_are_submitted_again_keep_the_limit_of_the_array():
    spec = JobSpec(name="j", command=("python",), folder="/", array="1-20%4")
    assert [_limited(array, spec) for array in ("3,7", "3,7%1", None)] == ["3,7%4", "3,7%1", None]
    assert _limited("3", dataclasses.replace(spec, array="1-20")) == "3"


def test_code_that_pythonpath_names_runs_also_without_a_copy(monkeypatch):
    monkeypatch.setattr("launch.provenance.installed", lambda: False)
    words = ("submit", "--no-snapshot", "--dry-run", "--json", "--", "presets")
    assert json.loads(invoke(*words))["job"]["code"] is None, "the interpreter finds it by itself"
    monkeypatch.setenv("PYTHONPATH", f"/nowhere:{ROOT}")
    assert json.loads(invoke(*words))["job"]["code"] == str(ROOT)


def test_a_pipeline_runs_here_by_force_too(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("slurm.states.check_free", lambda folder, *, force: asked.append(force))
    monkeypatch.setattr("slurm.foreground.run_local", lambda spec, folder: 0)
    monkeypatch.setattr("launch.submit.graph.shutil.which", lambda _: "/bin/squeue")
    stage = SimpleNamespace(check=lambda: None, freeze=lambda: None, spec=None, folder=tmp_path)
    assert (run_here({"data": stage}, True, print), run_here({"data": stage}, False, print), asked) == (0, 0, [True, False])


def test_an_option_counts_above_what_a_site_says_and_exports_add_up(tmp_path):
    (tmp_path / "site.yaml").write_text("nodes: 1\nmost_nodes: 4\nexports: [HF_HOME]\n")
    job = json.loads(invoke("submit", "--nodes", "8", "--export", "MY_ROOT", "--dry-run", "--json", "--", "run", "demo"))["job"]
    assert (job["nodes"], job["most_nodes"]) == (8, None) and {"HF_HOME", "MY_ROOT"} <= set(job["exports"])


def test_a_dataset_that_is_not_there_is_refused_before_it_queues(tmp_path):
    with pytest.raises(InputError, match="no packed dataset here|no such"):
        invoke("submit", "--local", "--", "train", "vqgan", "demo", "data.dataset=nowhere")
    assert not (tmp_path / "runs").exists()


def test_an_array_s_indices_are_known_by_their_own_share_of_what_is_made(tmp_path):
    """Whole, a set that many indices make grows also while one of them is stuck."""
    words = ("submit", "--array", "1-9", "--dry-run", "--json", "--")
    job = json.loads(invoke(*words, "sample", "demo", "--task", "{array_task}/9"))["job"]
    assert (job["share"], job["progress"]) == ("{array_task}/9", [f"{tmp_path}/runs/demo/synthetic/*.tar"])
    assert json.loads(invoke(*words, "sample", "demo", "--task={array_task}/9"))["job"]["share"] == "{array_task}/9"
    assert json.loads(invoke("submit", "--dry-run", "--json", "--", "sample", "demo"))["job"]["share"] is None
    fit = ("codebook", "fit", "--latents", "latents", "--out", "codes-{array_task}.safetensors", "--seed", "{array_task}")
    assert json.loads(invoke(*words, *fit))["job"]["progress"][0] == f"{tmp_path}/codes-{{array_task}}.safetensors"
