"""A signal in the middle of a verb that is not training: the verb leaves, its exit code says why, nothing half written stays.

What a stopped packing finished is kept for the same command: tests/data_shards/packing/test_pack.py.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

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
