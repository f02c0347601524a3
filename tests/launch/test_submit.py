"""`retinaforge submit` and `status`, as far as they go without a cluster."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from data_shards.errors import InputError, RetinaforgeError
from launch.cli import app


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "no-config"))

    def call(*words: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, words)
        if isinstance(done.exception, RetinaforgeError):
            raise done.exception
        assert done.exit_code == code, done.output
        return done.stdout

    return call


def test_a_dry_run_prints_the_script_and_writes_nothing(invoke, tmp_path):
    text = invoke("submit", "--nodes", "2", "--time-minutes", "60", "--dry-run", "--", "run", "demo", "--dry-run", "data.subjects=3")
    assert text.startswith("#!/bin/bash") and "#SBATCH --nodes=2" in text
    config = tmp_path / "runs" / "jobs" / "demo" / "run" / "config.yaml"
    assert f'# ["retinaforge", "run", "{config}", "--dry-run"]' in text, "what follows -- belongs to the job"
    assert f"# {config}:\n#   run: runs/demo\n" in text and "#     subjects: 3\n" in text, "the configuration is frozen with it"
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
    assert not list(tmp_path.iterdir())


def test_json_holds_the_job(invoke, tmp_path):
    said = json.loads(invoke("submit", "--name", "a/b", "--dry-run", "--json", "--", "run", "demo"))
    folder = tmp_path / "runs" / "jobs" / "a" / "b"
    assert said["folder"] == str(folder) and said["job"]["folder"] == str(tmp_path)
    assert said["job"]["command"] == ["retinaforge", "run", str(folder / "config.yaml")] and said["config"]["run"] == "runs/demo"


def test_what_a_site_says_holds_unless_an_option_says_otherwise(invoke, tmp_path, monkeypatch):
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partitoin: gpu", "unknown key 'partitoin'(.|\n)*did you mean 'partition'"),
        ("name: all-the-same", "unknown key 'name'"),
        ("verbs: {run: {gpus: 1}}", "verbs: run(.|\n)*did you mean|unknown key 'gpus'"),
        ("verbs: {smaple: {}}", "unknown verb 'smaple'(.|\n)*'sample'"),
        ("- partition", "in place of keys and values"),
        ("nodes: two", "nodes: "),
        ("partition: [", "not YAML"),
    ],
)
def test_a_site_file_with_a_mistake_is_named(invoke, tmp_path, monkeypatch, text, message):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    (tmp_path / "site.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        invoke("submit", "--dry-run", "--", "run", "demo")


def test_a_verb_that_is_not_there_is_refused_before_it_queues(invoke):
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
def test_bad_options_are_refused(invoke, words):
    with pytest.raises(InputError):
        invoke("submit", *words, "--dry-run", "--", "run", "demo")


def test_local_runs_the_verb_here_and_hands_on_its_exit_code(invoke, capfd):
    invoke("submit", "--local", "--name", "here", "--", "presets")
    assert "demo" in capfd.readouterr().out
    invoke("submit", "--local", "--name", "wrong", "--", "data", "ls", "nowhere", code=2)
    with pytest.raises(InputError, match="unknown preset"):
        invoke("submit", "--local", "--name", "worse", "--", "run", "no-such-preset")
    assert not Path("runs/jobs/worse").exists(), "refused before anything is written"
    assert Path("runs/jobs/here/job.json").exists()
    with pytest.raises(InputError, match="name is in use"):
        invoke("submit", "--local", "--name", "here", "--", "run", "demo")


def test_status_of_nothing_says_so(invoke):
    assert "nothing was submitted" in invoke("status")
    assert json.loads(invoke("status", "--json")) == {"as_of_unix_s": None, "jobs": {}}
    with pytest.raises(InputError, match="no job 'x'"):
        invoke("status", "x")
