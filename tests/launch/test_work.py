"""Units of work over any number of processes: each made, published once, whatever is killed and whoever is started twice."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_shards import durable
from data_shards.errors import CorruptData, TryAgain
from data_shards.ledger import LEASE, Ledger, Units
from launch.cli.display import Hidden
from launch.work import make_phases, work

COUNT = 40
WORKER = """
import hashlib, sys, time
from pathlib import Path
from tests.launch.test_work import Files, COUNT
from data_shards.ledger import Ledger
from launch.work import work
folder, place = Path(sys.argv[1]), (int(sys.argv[2]), int(sys.argv[3]))
work(Files(folder, seconds=0.05), Ledger(folder, still_s=1.0, beat_s=0.1), place=place, poll_s=0.1)
"""


class Files(Units):
    """A unit is a file whose bytes follow from its number."""

    def __init__(self, folder: Path, *, seconds: float = 0.0, bad: tuple[int, ...] = ()) -> None:
        self.out, self.seconds, self.bad, self.made = folder, seconds, bad, []
        self.names = [f"unit-{number:03d}" for number in range(COUNT)]

    def published(self, number: int) -> bool:
        return (self.out / self.names[number]).exists()

    def make(self, number: int) -> None:
        time.sleep(self.seconds)
        if number in self.bad:
            raise CorruptData("a damaged shard", where=self.names[number])
        self.made.append(number)
        durable.write_bytes(self.out / self.names[number], hashlib.sha256(str(number).encode()).digest(), keep_first=True)


def digest(folder: Path) -> str:
    return hashlib.sha256(json.dumps({p.name: p.read_bytes().hex() for p in sorted(folder.iterdir())}).encode()).hexdigest()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("alone")
    work(Files(folder), Ledger(folder))
    return digest(folder)


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_any_number_of_processes_killed_at_any_time_and_started_twice_make_the_same(tmp_path: Path, alone: str, processes: int) -> None:
    def started(k: int) -> subprocess.Popen:
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        return subprocess.Popen([sys.executable, "-c", WORKER, tmp_path, str(k), str(processes)], env=env)

    chance, running = random.Random(processes), [started(k) for k in range(processes)]
    running.append(started(0))  # one of them twice
    for _ in range(processes):
        time.sleep(chance.uniform(0.2, 1.0))
        victim = chance.randrange(len(running))
        running[victim].send_signal(signal.SIGKILL)
        running[victim].wait()
        running[victim] = started(victim)
    assert {process.wait(timeout=120) for process in running} == {0}
    for left in tmp_path.glob(f"{durable.PART}*"):  # of the killed
        left.unlink()
    assert not list(tmp_path.glob(f"{LEASE}*"))
    assert digest(tmp_path) == alone


def test_what_is_there_is_not_made_again(tmp_path: Path) -> None:
    work(Files(tmp_path), Ledger(tmp_path))
    again = Files(tmp_path)
    work(again, Ledger(tmp_path))
    assert again.made == []


def test_the_lease_of_one_who_was_killed_behind_publishing_does_not_stay(tmp_path: Path) -> None:
    units = Files(tmp_path)
    units.make(3)
    (tmp_path / f"{LEASE}{units.names[3]}").write_text("dead 7\n")
    work(units, Ledger(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == units.names


def test_who_waits_for_a_dead_process_says_once_for_whom(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch) -> None:
    units = Files(tmp_path)
    for number, name in enumerate(units.names):
        if number in (3, 5):
            (tmp_path / f"{LEASE}{name}").write_text("dead 7 host:12\n")
        else:
            units.make(number)
    monkeypatch.setattr("launch.work.SILENT_S", 0.1)
    ledger = Ledger(tmp_path)
    ledger.seen = {f"{LEASE}{units.names[number]}": (b"dead 7 host:12\n", time.monotonic() - ledger.still_s + 0.5) for number in (3, 5)}
    work(units, ledger, poll_s=0.02)
    said = [line for line in caplog.messages if line.startswith("waiting")]
    assert said == ["waiting for unit-003, which host:12 is about, and for 1 more; a lease that stands still for 60 s is taken over"]


def test_a_process_begins_at_its_place_on_the_ring(tmp_path: Path) -> None:
    units = Files(tmp_path)
    work(units, Ledger(tmp_path), place=(2, 3))
    assert units.made == [*range(2, COUNT, 3), *range(0, COUNT, 3), *range(1, COUNT, 3)]


def test_a_unit_that_fails_is_named_with_its_cause_and_the_others_are_made(tmp_path: Path) -> None:
    with pytest.raises(CorruptData, match="unit unit-003 failed, and 1 more units: a damaged shard") as caught:
        work(Files(tmp_path, bad=(3, 17)), Ledger(tmp_path))
    assert caught.value.exit_code == 4 and len(list(tmp_path.iterdir())) == COUNT - 2


def test_who_is_warned_of_a_time_limit_leaves_between_two_units_and_nothing_lies_about(tmp_path: Path) -> None:
    units = Files(tmp_path)
    made = units.make

    def make(number: int) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        made(number)

    units.make = make
    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(TryAgain, match="stopped between two units"):
        make_phases([("files", lambda: units)], Hidden(), (0, 1))
    assert units.made == [0] and [path.name for path in tmp_path.iterdir()] == [units.names[0]]
    assert signal.getsignal(signal.SIGUSR1) == before


def test_a_full_disk_ends_the_work_at_once(tmp_path: Path) -> None:
    class Full(Files):
        def make(self, number: int) -> None:
            raise TryAgain("the disk is full", where=self.out)

    with pytest.raises(TryAgain, match="the disk is full"):
        work(Full(tmp_path), Ledger(tmp_path))
    assert not list(tmp_path.iterdir())
