"""The working time of a run is that of all processes that worked on it, whatever ended them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_shards.errors import InputError, TryAgain
from launch.run import Run
from launch.stages import STAGES
from launch.stages.sample import Sample
from launch.tree import load
from launch.worked import FOLDER, counted, working_seconds
from tests.commands import invoke
from tests.threads import Threads

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run.yaml").touch()
    return tmp_path


def test_each_process_adds_its_time_whether_it_ends_well_or_is_stopped(run: Path) -> None:
    with counted(run, "encode"):
        time.sleep(0.3)
    with pytest.raises(TryAgain), counted(run, "train vqgan"):
        time.sleep(0.3)
        raise TryAgain("stopped by SIGTERM")
    with pytest.raises(KeyboardInterrupt), counted(run, "sample"):
        raise KeyboardInterrupt
    assert 0.6 <= working_seconds(run) < 3 and len(list((run / FOLDER).iterdir())) == 3


def test_several_at_once_all_count(run: Path) -> None:
    def work(rank) -> None:
        with counted(run, "sample"):
            time.sleep(0.3)

    Threads(4).run(work)
    assert working_seconds(run) >= 1.2


def test_of_several_ranks_one_counts_and_a_refusal_and_idleness_do_not(run: Path) -> None:
    with counted(run, "train vqgan", counts=False):
        time.sleep(0.1)
    with pytest.raises(InputError), counted(run, "run"):
        raise InputError("another configuration")
    with counted(run, "run") as worked:
        worked.note()
        worked.forget()
    assert working_seconds(run) == 0


@pytest.mark.parametrize(
    ("words", "made_by"),
    [
        (("data", "prepare"), "launch.stages.data.Data.make"),
        (("encode",), "launch.stages.encode.Encode.make"),
        (("sample",), "launch.stages.sample.Sample.make"),
        (("evaluate",), "launch.stages.evaluate.Evaluate.make"),
        (("audit",), "launch.stages.audit.Audit.make"),
    ],
)
def test_each_verb_that_makes_something_of_a_run_counts(run: Path, monkeypatch: pytest.MonkeyPatch, words: tuple, made_by: str) -> None:
    """They are the jobs of a pipeline. What a stage does, it does elsewhere: here it takes a moment."""
    monkeypatch.setattr(made_by, lambda *_: time.sleep(0.3) or [])
    for stage in STAGES.values():
        monkeypatch.setattr(stage, "check", lambda *_: None)
    monkeypatch.setattr(Sample, "where", lambda *_: "")
    (run / "run.yaml").unlink()
    Run(load("demo", [f"run={run}"])).freeze()
    invoke(*words, "demo", f"run={run}")
    assert working_seconds(run) >= 0.3
    assert [json.loads(path.read_text())["verb"] for path in (run / "worked").iterdir()] == [" ".join(words)]


def test_hours_of_work_that_end_in_a_refusal_are_counted(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.worked.EVERY_S", 0.1)
    with pytest.raises(InputError), counted(run, "run"):
        time.sleep(0.3)
        raise InputError("the loss was not finite in 10 steps in a row")
    assert working_seconds(run) >= 0.3


def test_a_start_that_is_refused_makes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError), counted(tmp_path / "run", "run"):
        raise InputError("no such dataset")
    assert not (tmp_path / "run").exists()


def test_what_an_earlier_version_counted_is_kept(run: Path) -> None:
    (run / "metrics.json").write_text(json.dumps({"seconds": 500.0}))
    with counted(run, "encode"):
        time.sleep(0.1)
    with counted(run, "encode"):
        time.sleep(0.1)
    assert 500.2 <= working_seconds(run) < 503


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_one_that_is_killed_counts_up_to_its_last_note(run: Path, how: signal.Signals) -> None:
    program = (
        "import sys, time; from pathlib import Path; from launch import worked\n"
        "worked.EVERY_S = 0.2\n"
        "with worked.counted(Path(sys.argv[1]), 'run'):\n    print('begun', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, run], cwd=ROOT, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    process.stdout.readline()
    time.sleep(1.5)
    process.send_signal(how)
    assert process.wait(30) == -how
    assert 0.5 < working_seconds(run) < 10


def test_a_note_that_cannot_be_written_ends_no_work(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    (run / FOLDER).write_text("in the way")
    with counted(run, "encode"):
        pass
    assert "could not be noted" in caplog.text
