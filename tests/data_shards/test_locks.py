"""One writer at a time: with flock, without it, and where other nodes do not see it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from data_shards import durable, locks
from data_shards.errors import Overtaken, TryAgain


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """In proportion, but for the pause that a busy machine needs too."""
    for name, seconds in {"BEAT_S": 0.25, "STILL_S": 1.5, "SETTLE_S": 0.5}.items():
        monkeypatch.setattr(locks, name, seconds)


def without_flock(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.fcntl, "flock", refused)


def node_local(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each taker is a machine of its own, whose flock the others do not see."""
    names = iter("abcdefgh")
    monkeypatch.setattr(locks.fcntl, "flock", lambda *_: None)
    mine = threading.local()
    monkeypatch.setattr(locks, "machine", lambda: mine.__dict__.setdefault("name", next(names)))


KINDS = {
    "flock": lambda m: None,
    "ENOSYS": lambda m: without_flock(m, errno.ENOSYS),
    "ENOLCK": lambda m: without_flock(m, errno.ENOLCK),
    "node-local": node_local,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_live_writer_keeps_others_out_and_its_end_lets_them_in(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    KINDS[kind](monkeypatch)
    said: list[object] = []

    def second() -> None:
        try:
            with durable.writing_folder(tmp_path / "set"):
                said.append("wrote")
        except TryAgain as error:
            said.append(error.what)

    with durable.writing_folder(tmp_path / "set") as part:
        other = threading.Thread(target=second)
        other.start()
        other.join()
        assert said == ["another process is writing this place"] and part.is_dir()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set"]
    with durable.claimed(tmp_path / "lock", "testing"):
        pass
    with durable.claimed(tmp_path / "lock", "testing"):
        pass


@pytest.mark.parametrize("kind", KINDS)
def test_of_many_at_once_one_holds_the_lock(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    KINDS[kind](monkeypatch)
    gate, taken = threading.Barrier(6), []

    def race() -> None:
        gate.wait()
        taken.append(locks.take(tmp_path / "lock"))

    racing = [threading.Thread(target=race) for _ in range(6)]
    for one in racing:
        one.start()
    for one in racing:
        one.join()
    held = [lock for lock in taken if lock]
    assert len(held) == 1
    held[0].release()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["ENOSYS", "node-local"])
def test_the_lock_of_a_dead_writer_is_taken_over_when_its_count_stands_still(tmp_path: Path, kind: str, monkeypatch) -> None:
    KINDS[kind](monkeypatch)
    (tmp_path / "lock").write_bytes(f"{'a dead machine':64} 0123456789abcdef 000000000007\n".encode())
    begun, taken = time.monotonic(), []

    def watch() -> None:
        taken.append(locks.take(tmp_path / "lock"))

    watching = [threading.Thread(target=watch) for _ in range(3)]
    for one in watching:
        one.start()
    for one in watching:
        one.join()
    held = [lock for lock in taken if lock]
    assert len(held) == 1 and time.monotonic() - begun >= locks.STILL_S
    held[0].release()


def test_a_killed_writer_of_this_machine_is_not_waited_for(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from data_shards import locks\n"
        "assert locks.take(Path(sys.argv[1])); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", script, tmp_path / "lock"], timeout=60)
    assert killed.returncode == -signal.SIGKILL and (tmp_path / "lock").exists()
    begun = time.monotonic()
    lock = locks.take(tmp_path / "lock")
    assert lock and time.monotonic() - begun < locks.STILL_S / 2
    lock.release()


def test_a_lock_that_cannot_be_written_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(locks.os, "pwrite", full)
    with pytest.raises(TryAgain, match="No space left"), durable.writing_folder(tmp_path / "set"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("keep_first", [False, True])
def test_what_another_process_cleared_up_because_the_name_is_published_is_no_fault_of_the_place(tmp_path: Path, keep_first: bool) -> None:
    (tmp_path / "set.json").write_text("{}")
    with pytest.raises(Overtaken), durable.writing(tmp_path / "set.json", keep_first=keep_first) as file:
        file.write(b"{}")
        durable.sweep_published(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["set.json"]
