"""How often SLURM is asked, and what of its answers is believed. squeue and sacct are scripts here: no real one lies on demand."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_shards.errors import TryAgain
from launch.cli.jobs import summary
from slurm.executor import _Job
from slurm.records import RECORD_NAME, Submitted, cancelled, current, is_live, job_folder, read_records
from slurm.status import FORMAT, UNKNOWN, JobState, Queue, is_same

NOW = "2026-11-26T12:00:00"
AT = time.mktime(time.strptime(NOW, "%Y-%m-%dT%H:%M:%S"))


def row(number: int, state: str, *, name: str = "job", index: str = "N/A", restarts: int = 0, submitted: str = NOW, why: str = "n1") -> str:
    fields = (str(number), index, state, "1:02", str(restarts), submitted, why, name)
    return "".join(field.ljust(width) for field, (_, width) in zip(fields, FORMAT, strict=True))


class Site:
    """squeue and sacct that say what they are told to, and count how often they are asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for program in ("squeue", "sacct"):
            (folder / program).write_text(
                f"#!/bin/sh\necho x >> {folder}/{program}.calls\n"
                f"[ -e {folder}/{program}.broken ] && {{ echo 'Unable to contact slurm controller' >&2; exit 1; }}\n"
                f"cat {folder}/{program}.said\n"
            )
            (folder / program).chmod(0o755)
            self.says(program)

    def says(self, program: str, *lines: str) -> None:
        (self.folder / f"{program}.said").write_text("".join(f"{line}\n" for line in lines))

    def breaks(self, program: str, broken: bool = True) -> None:
        mark = self.folder / f"{program}.broken"
        mark.touch() if broken else mark.unlink()

    def calls(self, program: str) -> int:
        path = self.folder / f"{program}.calls"
        return len(path.read_text().split()) if path.exists() else 0


@pytest.fixture
def site(tmp_path, monkeypatch) -> Site:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Site(tmp_path / "bin")


def submitted(number: int, name: str = "job", at: float = AT) -> Submitted:
    return Submitted(job_ids=(str(number),), name=name, submitted_unix_s=at)


def test_one_answer_serves_all_for_half_a_minute(site):
    site.says("squeue", row(7, "RUNNING"))
    for _ in range(200):
        assert Queue().states(["7"])["7"][0].state == "RUNNING"
    assert site.calls("squeue") == 1
    assert Queue(ask_every_s=0.0).states(["7"]) and site.calls("squeue") == 2
    Queue().states(["7"], newer_than_unix_s=time.time())
    assert site.calls("squeue") == 3, "what was submitted since is asked for"


def test_many_programs_at_once_ask_once(site):
    site.says("squeue", row(7, "RUNNING"))
    code = "from slurm.status import Queue; print(Queue().states(['7'])['7'][0].state)"
    children = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(6)]
    assert [child.communicate(timeout=60)[0] for child in children] == ["RUNNING\n"] * 6
    assert site.calls("squeue") == 1


def test_a_controller_that_fails_is_asked_less_and_less_often(site, monkeypatch):
    clock = [AT]
    monkeypatch.setattr("slurm.status.time.time", lambda: clock[0])
    site.says("squeue", row(7, "RUNNING"))
    queue = Queue(30.0)
    assert queue.states(["7"])["7"][0].state == "RUNNING"
    site.breaks("squeue")
    asked = []
    for _ in range(3600):
        clock[0] += 1.0
        before = site.calls("squeue")
        answer = queue.answer()
        asked += [clock[0] - AT] * (site.calls("squeue") - before)
        assert answer.asked_unix_s == AT, "the last answer stands, with its time"
    pauses = [late - early for early, late in itertools.pairwise([0.0, *asked])]
    assert pauses == [30, 60, 120, 240, 480, 600, 600, 600, 600]
    site.breaks("squeue", False)
    clock[0] += 600
    assert queue.answer().failures == 0 and queue.answer().asked_unix_s == clock[0]


def test_without_any_answer_the_failure_is_said(site):
    site.breaks("squeue")
    for _ in range(3):
        with pytest.raises(TryAgain, match="Unable to contact(.|\n)*asked again in"):
            Queue().states(["7"])
    assert site.calls("squeue") == 1


def test_an_answer_that_was_torn_is_asked_for_anew(site):
    queue = Queue()
    queue.answer()
    queue.cache.write_text(queue.cache.read_text()[:-9])
    queue.answer()
    assert site.calls("squeue") == 2
    assert queue.cache.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("word", ["RUNNING", "COMPLETED", "FAILED", "NODE_FAIL"])
def test_what_squeue_has_is_not_asked_of_books_that_lie(site, word):
    site.says("squeue", row(7, "RUNNING"))
    site.says("sacct", f"7|{word}|00:01|{NOW}|0:0|job")
    assert current([submitted(7)], Queue(0.0))["job"][0].state == "RUNNING"
    assert site.calls("sacct") == 0


@pytest.mark.parametrize(
    ("line", "state"),
    [
        (f"7|COMPLETED|00:01|{NOW}|0:0|job", "COMPLETED"),
        (f"7|CANCELLED by 0|00:01|{NOW}|0:0|job", "CANCELLED"),
        (f"7|FAILED|00:01|{NOW}|4:0|job", "FAILED"),
        (f"7|RUNNING|00:01|{NOW}|0:0|job", UNKNOWN),  # books that lag behind
        (f"7|NODE_FAIL|00:01|{NOW}|0:0|job", UNKNOWN),  # it may come back
        (f"7|COMPLETED|00:01|{NOW}|0:0|another", UNKNOWN),
        ("7|COMPLETED|00:01|2026-11-20T12:00:00|0:0|job", UNKNOWN),  # an older job of that number
        ("nonsense", UNKNOWN),
    ],
)
def test_of_the_books_only_an_end_of_the_very_job_is_believed(site, line, state):
    site.says("sacct", line)
    [found] = current([submitted(7)], Queue(0.0))["job"]
    assert found.state == state and site.calls("sacct") == 1
    assert not is_live([found])


def test_without_books_a_forgotten_job_is_unknown(site):
    site.breaks("sacct")
    assert current([submitted(7)], Queue(0.0))["job"] == [JobState(job_id="7", name="job")]
    (site.folder / "sacct").unlink()
    assert Queue().books({"7": "job"}) == {}


def test_the_books_are_not_asked_more_often_either(site):
    queue = Queue()
    for _ in range(50):
        current([submitted(7)], queue)
    assert site.calls("sacct") == 1
    current([submitted(7), submitted(8, "other")], queue)
    assert site.calls("sacct") == 2, "a number that is new to them"


def test_indices_of_an_array_are_forgotten_one_by_one(site):
    """Three of five: one runs, one is in the books, of one nobody knows; none falls out of the count."""
    record = Submitted(job_ids=("7",), name="job", submitted_unix_s=AT, array="1-5")
    site.says("squeue", row(7, "RUNNING", index="4"), row(7, "PENDING", index="2,5%2"))
    site.says("sacct", f"7_3|FAILED|00:01|{NOW}|4:0|job", f"7_4|COMPLETED|00:01|{NOW}|0:0|job")
    found = {state.job_id: state.state for state in current([record], Queue(0.0))["job"]}
    assert found == {"7_4": "RUNNING", "7_2,5": "PENDING", "7_3": "FAILED", "7_1": UNKNOWN}
    assert summary(current([record], Queue(0.0))["job"]) == "2 PENDING, 1 RUNNING, 1 FAILED, 1 UNKNOWN"


def test_a_name_that_is_no_text_hides_no_other_job(site):
    (site.folder / "squeue.said").write_bytes(row(6, "RUNNING", name="x").encode()[:-1] + b"\xe6\xff\n" + row(7, "RUNNING").encode())
    assert current([submitted(7)], Queue(0.0))["job"][0].state == "RUNNING"


def test_only_what_is_live_is_cancelled(site):
    """A part of an array that SLURM has forgotten, or whose number it gave away, is left alone."""
    site.says("squeue", row(7, "RUNNING", index="0"), row(8, "RUNNING", name="another"))
    (site.folder / "scancel").write_text(f"#!/bin/sh\necho $* > {site.folder}/cancelled\n")
    (site.folder / "scancel").chmod(0o755)
    record = Submitted(job_ids=("7", "8", "9"), name="job", submitted_unix_s=AT, array="0-2", part=1)
    assert cancelled([record], Queue(0.0)) == {"job"}
    assert (site.folder / "cancelled").read_text() == "7\n"


@pytest.mark.parametrize("state", ["NODE_FAIL", "PREEMPTED"])
def test_what_squeue_does_not_start_again_may_be_submitted_again(site, state):
    site.says("squeue", row(7, state))
    assert not is_live(current([submitted(7)], Queue(0.0))["job"])


def test_a_damaged_record_hides_no_other(tmp_path, caplog):
    for name, text in (("a", json.dumps({"job_ids": ["1"], "name": "a", "submitted_unix_s": 1.0})), ("b", "{")):
        (tmp_path / name).mkdir()
        (tmp_path / name / RECORD_NAME).write_text(text)
    assert [record.name for record in read_records(tmp_path, [])] == ["a"] and "left out" in caplog.text


@pytest.mark.parametrize(
    ("fields", "same"),
    [
        ({}, True),
        ({"name": "another"}, False),
        ({"submitted_unix_s": AT + 86400}, False),  # the number was given again
        ({"submitted_unix_s": AT + 86400, "restarts": 1}, True),  # a restart counts as a submission
        ({"submitted_unix_s": AT - 86400, "restarts": 1}, False),
        ({"submitted_unix_s": 0.0}, True),
    ],
)
def test_a_number_is_ours_by_its_name_and_time(fields, same):
    state = JobState(**{"job_id": "7", "name": "job", "state": "RUNNING", "submitted_unix_s": AT, **fields})
    assert is_same(state, "job", AT) == same


def test_submitit_s_handle_takes_node_fail_for_no_end(site, tmp_path, monkeypatch):
    """submitit's own watcher ends there, while SLURM restarts the job."""
    handle = _Job(tmp_path, "7", tasks=[0])
    for state, done in (("NODE_FAIL", False), ("PENDING", False), ("COMPLETED", True)):
        site.says("squeue", row(7, state, restarts=1))
        Queue(0.0).answer()
        handle.watcher.clear()
        assert (handle.watcher.get_state("7", mode="force"), handle.watcher.is_done("7", mode="force")) == (state, done)


def test_records_are_found_by_job_and_by_run(tmp_path):
    for name in ("eyes/vqgan", "eyes/encode", "eyesight/vqgan", "plain"):
        folder = job_folder(tmp_path, name)
        folder.mkdir(parents=True)
        (folder / RECORD_NAME).write_text(json.dumps({"job_ids": ["1"], "name": name, "submitted_unix_s": 1.0}))
    assert [record.name for record in read_records(tmp_path, ["eyes"])] == ["eyes/encode", "eyes/vqgan"]
    assert [record.name for record in read_records(tmp_path, ["plain", "eyes/vqgan"])] == ["eyes/vqgan", "plain"]


@pytest.mark.parametrize("name", ["../../etc/x", "/etc/x", "a//b", "a/./b", "..", " ", "a/..", "-rf", "$(id)", "a b/c'd"])
def test_a_name_stays_in_its_folder(tmp_path, name):
    assert job_folder(tmp_path, name).is_relative_to(tmp_path) and job_folder(tmp_path, name) != tmp_path
    assert ".." not in job_folder(tmp_path, name).parts
