"""Leases: one holder, who gives back; a dead one is taken over by the observer's own clock; without hard links too."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_shards import durable
from data_shards.ledger import LEASE, Ledger


def test_one_holds_a_lease_and_gives_it_back(tmp_path: Path) -> None:
    one, other = Ledger(tmp_path), Ledger(tmp_path)
    with one.lease("a") as mine:
        assert mine
        with other.lease("a") as theirs, other.lease("b") as another:
            assert not theirs and another
    with other.lease("a") as mine:
        assert mine
    assert not list(tmp_path.iterdir())


def test_a_lease_is_given_back_by_who_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Ledger(tmp_path).lease("a"):
        _ = 1 / 0
    assert not list(tmp_path.iterdir())


def test_who_counts_is_alive_and_who_is_killed_is_taken_over(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from data_shards.ledger import Ledger\n"
        f"with Ledger(Path({str(tmp_path)!r}), beat_s=0.05).lease('a'): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    observer = Ledger(tmp_path, still_s=1.0)

    def takes(seconds: float) -> bool:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with observer.lease("a") as mine:
                if mine:
                    return True
            time.sleep(0.05)
        return False

    assert not takes(3.0), "the holder counts"
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert takes(20.0)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(LEASE)]


def test_who_was_taken_over_leaves_the_lease_of_the_other(tmp_path: Path) -> None:
    asleep, awake = Ledger(tmp_path, beat_s=60), Ledger(tmp_path, still_s=0.0)
    with asleep.lease("a"):
        with awake.lease("a") as mine:
            assert not mine, "seen for the first time"
        with awake.lease("a") as mine:
            assert mine
            content = (tmp_path / f"{LEASE}a").read_bytes()
            with asleep.lease("a") as again:
                assert not again
            assert (tmp_path / f"{LEASE}a").read_bytes() == content


def test_clocks_do_not_matter(tmp_path: Path) -> None:
    with Ledger(tmp_path).lease("a"):
        os.utime(tmp_path / f"{LEASE}a", (0, 0))
        for _ in range(3):
            with Ledger(tmp_path).lease("a") as mine:
                assert not mine


def test_without_hard_links_it_is_made_by_exclusive_creation_and_that_is_said(tmp_path: Path, monkeypatch, caplog) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("data_shards.ledger.os.link", refused)
    one, other = Ledger(tmp_path), Ledger(tmp_path)
    with one.lease("a") as mine, other.lease("a") as theirs:
        assert mine and not theirs
    assert "no hard links here" in caplog.text and not list(tmp_path.iterdir())


def test_what_is_published_first_stays_also_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("data_shards.durable.os.link", refused)
    for content in (b"first", b"second"):
        durable.write_bytes(tmp_path / "unit", content, keep_first=True)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("unit", b"first")]


def test_what_a_process_killed_as_it_took_a_lease_left_is_cleared_with_the_lease(tmp_path: Path) -> None:
    kept = {".lease-c", ".part-00000000-.lease-c", ".part-00000000-a.tar", "a.tar"}
    for name in {".lease-a", ".part-01234567-.lease-a", ".part-89abcdef-.lease-b", *kept}:
        (tmp_path / name).touch()
    Ledger(tmp_path).clear(["a", "b"])
    assert {path.name for path in tmp_path.iterdir()} == kept
    Ledger(tmp_path / "renamed").clear(["a"])
