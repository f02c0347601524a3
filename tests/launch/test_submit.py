"""`retinaforge submit` and `status`, as far as they go without a cluster."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from data_shards.errors import InputError, RetinaforgeError
from launch.cli import app


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*words: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, words)
        if isinstance(done.exception, RetinaforgeError):
            raise done.exception
        assert done.exit_code == code, done.output
        return done.stdout

    return call


def test_a_dry_run_prints_the_script_and_writes_nothing(invoke, tmp_path):
    text = invoke("submit", "--nodes", "2", "--time-minutes", "60", "--dry-run", "--", "run", "demo", "--dry-run", "data.subjects=3")
    assert text.startswith("#!/bin/bash") and "#SBATCH --nodes=2" in text and text.endswith('exit "$status"\n')
    assert '# ["retinaforge", "run", "demo", "--dry-run", "data.subjects=3"]' in text, "what follows -- belongs to the job"
    assert not list(tmp_path.iterdir())


def test_json_holds_the_job(invoke, tmp_path):
    said = json.loads(invoke("submit", "--name", "a/b", "--dry-run", "--json", "--", "run", "demo"))
    assert said["job"]["command"] == ["retinaforge", "run", "demo"] and said["job"]["folder"] == str(tmp_path)
    assert said["folder"] == str(tmp_path / "runs" / "jobs" / "a_b")


def test_a_verb_that_is_not_there_is_refused_before_it_queues(invoke):
    with pytest.raises(InputError, match="no verb 'sampel'(.|\n)*'sample'"):
        invoke("submit", "--dry-run", "--", "sampel", "demo")


@pytest.mark.parametrize("words", [("--memory", "much"), ("--export", "HF_TOKEN"), ("--time-minutes", "1"), ("--name", "a\nb")])
def test_bad_options_are_refused(invoke, words):
    with pytest.raises(InputError):
        invoke("submit", *words, "--dry-run", "--", "run", "demo")


def test_local_runs_the_verb_here_and_hands_on_its_exit_code(invoke, capfd):
    invoke("submit", "--local", "--name", "here", "--", "presets")
    assert "demo" in capfd.readouterr().out
    invoke("submit", "--local", "--name", "wrong", "--", "run", "no-such-preset", code=2)
    assert Path("runs/jobs/here/job.json").exists()
    with pytest.raises(InputError, match="another job has this name"):
        invoke("submit", "--local", "--name", "here", "--", "run", "demo")


def test_status_of_nothing_says_so(invoke):
    assert "nothing was submitted" in invoke("status")
    assert json.loads(invoke("status", "--json")) == {}
    with pytest.raises(InputError, match="no job 'x'"):
        invoke("status", "x")
