"""A signal in the middle of a verb that is not training: the verb leaves, its exit code says why, nothing half written stays.

What a stopped packing finished is kept for the same command: tests/data_shards/packing/test_pack.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from launch.cli.options import looking_on

SLOW = """
import sys, time
from data_shards import folder
whole = folder.read_cube
def slow(*words):
    print("reading", flush=True)
    time.sleep(0.5)
    return whole(*words)
folder.read_cube = slow
sys.argv = ["retinaforge", "data", "pack", *sys.argv[1:]]
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a script begins with it ignored
from launch.cli import main
main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_packing_that_is_stopped_before_its_first_shard_leaves_nothing_and_says_what_goes_on(
    cube_folder: Path, tmp_path: Path, number: signal.Signals
) -> None:
    words = [sys.executable, "-c", SLOW, str(cube_folder), str(tmp_path / "set")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(2):  # one cube is looked at before anything is begun
        assert process.stdout.readline() == "reading\n"
    assert [p.name for p in tmp_path.iterdir()], "nothing was begun: the test would show nothing"
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75 and "Traceback" not in err, err
    assert f"stopped by {number.name}; the same command again goes on" in err
    assert not list(tmp_path.iterdir())


UNFINISHED = """
import signal, sys, time
from pathlib import Path
from data_shards import durable
from launch import cli
def work():
    with durable.writing_folder(Path(sys.argv[1]), request="r") as part:
        durable.write_bytes(part / "train-000000.tar", b"whole")
        print("ready", flush=True)
        time.sleep(60)
cli.app = work
signal.signal(signal.SIGINT, signal.default_int_handler)
cli.main()
"""


def test_ctrl_c_that_ends_the_reader_of_what_is_said_too_keeps_what_is_finished(tmp_path: Path) -> None:
    """`… 2>&1 | tee log`: the word on stopping finds nobody."""
    process = subprocess.Popen([sys.executable, "-c", UNFINISHED, str(tmp_path / "set")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout.readline() == b"ready\n"
    process.stdout.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 75
    assert [path.name for path in tmp_path.glob(".part-*/*.tar")] == ["train-000000.tar"]


def test_ctrl_c_reaches_helpers_too_and_they_say_nothing(tmp_path: Path) -> None:
    words = ["data", "phantom", str(tmp_path / "cubes"), "--subjects", "40", "--size", "192", "--workers", "2"]
    as_in_a_shell = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from launch.cli import main; main()"
    process = subprocess.Popen([sys.executable, "-c", as_in_a_shell, *words], stderr=subprocess.PIPE, text=True, start_new_session=True)
    for _ in range(600):
        if list((tmp_path / "cubes").glob("*")) and process.poll() is None:
            break
        time.sleep(0.1)
    time.sleep(3)  # for the helper to begin
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75 and "stopped by SIGINT" in err and "Traceback" not in err, err


def test_who_only_looks_on_is_told_that_it_goes_on_without_him(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that are started in the background begin with it ignored
    try:
        with pytest.raises(typer.Exit) as left, looking_on("the job goes on"):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert left.value.exit_code == 130 and "the job goes on" in capsys.readouterr().err
