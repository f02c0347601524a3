"""What is noted of each start of a job, and when another is asked for. The real thing: test_faults.py."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_shards.errors import InputError, TryAgain
from launch.jobs import Target, progress_patterns
from slurm.attempts import Attempt, attempts_path, begin, end, holder_path, main, progress_of, read_attempts, requeue
from slurm.causes import AWAY, RANK_MARK, cause, failure, first_code
from slurm.jobs import JobSpec, freeze
from slurm.preempt import ATTEMPT, HOLDER, stop_on_signals, superseded

FAILED_0 = "rank 0: exited with exit code 3"
RANK_1_FAILED = "srun: error: n2: task 1: Exited with exit code 75\nsrun: error: n1: task 0: Terminated\n"


class Script:
    """A job's script, run by hand: the words of its logs, its head and its foot."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **fields) -> None:
        self.folder, self.asked = folder / "job", []
        spec = {"name": "job", "command": ("python", "-V"), "folder": str(folder), "progress": ("made/*",), "max_stalls": 3, **fields}
        self.path = freeze(JobSpec(**spec), self.folder)
        self.restart = 0
        monkeypatch.setattr("slurm.attempts.requeue", self.asked.append)

    @property
    def environ(self) -> dict[str, str]:
        return {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(self.restart), "SLURM_JOB_NODELIST": "n[1-2]"}

    def begins(self, capsys) -> None:
        begin(self.path, self.environ)
        with (self.folder / "7_batch.out").open("a") as log:
            log.write(capsys.readouterr().out)

    def ends(self, status: int, *, errors: str = "", log: str = "", told: bool = False) -> int:
        (self.folder / f"7_{self.restart}_srun.err").write_text(errors)
        with (self.folder / "7_batch.out").open("a") as file:
            file.write(log)
        code = end(self.path, status, told, self.environ)
        self.restart += 1
        return code

    @property
    def last(self) -> Attempt:
        return read_attempts(attempts_path(self.folder))[-1]


@pytest.fixture
def script(tmp_path, monkeypatch) -> Script:
    return Script(tmp_path, monkeypatch)


def slurm_says(why: str) -> str:
    return f"slurmstepd-n1: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-26T17:17:26{why} ***\n"


@pytest.mark.parametrize(
    ("status", "errors", "log", "told", "code", "why", "again"),
    [
        (0, "", "", False, 0, "done", False),
        (4, "srun: error: n2: task 1: Exited with exit code 4\n", "", False, 4, "rank 1: exited with exit code 4", False),
        (143, RANK_1_FAILED, "", False, 75, "rank 1: exited with exit code 75", True),
        (137, "srun: error: n1: task 0: Killed\n", "", False, 137, "rank 0: killed", False),
        (137, "srun: error: n1: task 0: Out Of Memory\n", "", False, 137, "rank 0: out of memory", False),
        (75, RANK_1_FAILED, slurm_says(" DUE TO PREEMPTION"), True, 75, "preempted", False),
        (75, RANK_1_FAILED, slurm_says(" DUE TO JOB REQUEUE"), True, 75, "scontrol requeue", False),
        (75, RANK_1_FAILED, slurm_says(" DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS"), True, 75, "node failure", False),
        (143, "", slurm_says(" DUE TO TIME LIMIT"), True, 143, "time limit", True),
        (143, "", slurm_says(""), True, 143, "cancelled", False),
        (0, "srun: error: Node failure on n3\n", "", False, 75, "node failure", True),
        (3, "srun: error: Socket timed out\nsrun: error: n1: task 0: Exited with exit code 3\n", "", False, 3, FAILED_0, False),
        (0, "srun: error: Slurm controller not responding, sleeping and retrying.\n", "", False, 0, "done", False),
        (2, "srun: error: n1: tasks 0-1: Exited with exit code 2\n", "", False, 2, "rank 0: exited with exit code 2", False),
        (1, "srun: error: Unable to confirm allocation for job 7: Socket timed out\n", "", False, 75, "Unable to confirm allocation", True),
    ],
)
def test_how_it_ended_is_noted_and_another_asked_for_where_that_helps(script, capsys, status, errors, log, told, code, why, again):
    script.begins(capsys)
    assert script.ends(status, errors=errors, log=log, told=told) == code
    assert (script.last.code, script.last.why) == (code, why)
    assert script.asked == (["7"] if again else [])
    assert not list(script.folder.glob("*_srun.err")), "it stands in the script's log"


def test_the_error_of_the_rank_that_failed_first_is_the_reason(script, capsys):
    script.begins(capsys)
    (script.folder / "7_1_log.out").write_text(
        "…\nTryAgain: stopped by SIGUSR1 after 24 of 48 samples; the state is committed\n  where: x\n"
    )
    script.ends(75, errors=RANK_1_FAILED)
    assert script.last.why == "stopped by SIGUSR1 after 24 of 48 samples; the state is committed"


def test_the_words_of_an_attempt_before_are_not_the_reason(script, capsys):
    script.restart = 1
    script.begins(capsys)
    (script.folder / "7_1_log.out").write_text("TryAgain: stopped by SIGUSR1\n" + RANK_MARK.format(restart=1) + "\nTraceback …\n")
    script.ends(1, errors="srun: error: n2: task 1: Exited with exit code 1\n")
    assert script.last.why == "rank 1: exited with exit code 1"


def test_a_file_system_that_is_away_as_an_attempt_begins_puts_it_off(script, monkeypatch, capsys):
    monkeypatch.setattr("slurm.attempts.progress_of", lambda spec: (_ for _ in ()).throw(OSError(116, "Stale file handle")))
    for name, value in script.environ.items():
        monkeypatch.setenv(name, value)
    assert main(["begin", str(script.path)]) == 75 and script.asked == ["7"]
    assert "Stale file handle" in capsys.readouterr().err


def test_a_run_s_folder_may_hold_what_patterns_are_made_of(tmp_path):
    target = Target(run=str(tmp_path / "a[1] **"), stage="vqgan")
    spec = JobSpec(name="j", command=("python",), folder=str(tmp_path), progress=progress_patterns(target))
    before = progress_of(spec)
    commit = tmp_path / "a[1] **" / "vqgan" / "checkpoints" / "samples-000000000008" / "COMMIT.json"
    commit.parent.mkdir(parents=True)
    commit.touch()
    assert progress_of(spec) != before


def test_an_attempt_that_could_say_nothing_is_explained_by_the_next(script, capsys):
    script.begins(capsys)
    with (script.folder / "7_batch.out").open("a") as log:
        log.write(slurm_says(" DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS"))
    script.restart = 1
    script.begins(capsys)
    script.restart = 2
    script.begins(capsys)
    first, second, third = read_attempts(attempts_path(script.folder))
    assert (first.why, second.why) == ("node failure", "ended without a word: its node was lost, or it was killed")
    assert third.ended_unix_s is None and first.ended_unix_s and second.ended_unix_s


def test_restarts_without_progress_have_a_limit_whoever_asks_for_them(script, capsys, tmp_path):
    """Two of our own requests, then restarts by SLURM itself: the third attempt that gets nowhere is the last."""
    for _ in range(2):
        script.begins(capsys)
        script.ends(75, errors=RANK_1_FAILED)
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "checkpoint").touch()  # it got on
    for restart in range(3):
        script.begins(capsys)
        script.ends(75, errors=RANK_1_FAILED)
        assert len(script.asked) == 2 + min(restart + 1, 2), "after the third no other is asked for"
    assert "3 attempts in a row got nowhere" in script.last.why
    with pytest.raises(InputError, match="3 attempts in a row got nowhere(.|\n)*retinaforge resume 'job'"):
        script.begins(capsys)  # SLURM may start it all the same
    assert script.last.code == 2
    other = {**script.environ, "SLURM_JOB_ID": "8", "SLURM_RESTART_COUNT": "0"}
    begin(script.path, other)
    assert script.last.job_id == "8", "submitted again, it has all its attempts"


def test_what_has_no_way_to_go_on_comes_back_only_as_often_as_it_may(tmp_path, monkeypatch, capsys):
    script = Script(tmp_path, monkeypatch, progress=(), max_restarts=2)
    for _ in range(3):
        script.begins(capsys)
        script.ends(75, errors=RANK_1_FAILED)
    assert len(script.asked) == 2 and "restarted 2 times, the most it may" in script.last.why
    script.ends(143, log=slurm_says(" DUE TO TIME LIMIT"), told=True)
    assert len(script.asked) == 2, "it would meet its limit again"


def test_a_copy_that_was_taken_over_asks_for_nothing(script, capsys):
    script.begins(capsys)
    holder_path(script.folder).write_text("7.1\n")
    script.ends(75, errors=RANK_1_FAILED)
    assert not script.asked and "another attempt had taken over" in script.last.why


def test_a_torn_line_costs_one_record(script, capsys):
    script.begins(capsys)
    record = attempts_path(script.folder)
    with record.open("a") as file:
        file.write('{"job_id": "7", "resta')
    script.ends(0)
    assert script.last.why == "done" and len(read_attempts(record)) == 1


@pytest.mark.parametrize(("said", "calls"), [("Unable to contact slurm controller (connect failure)", 3), ("Job is pending execution", 1)])
def test_a_controller_that_is_away_is_asked_again(tmp_path, monkeypatch, said, calls):
    fake = tmp_path / "scontrol"
    fake.write_text(f'#!/bin/sh\necho x >> {tmp_path}/calls\necho "{said}" >&2\n[ $(wc -l < {tmp_path}/calls) -ge 3 ]\n')
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    requeue("7", pauses_s=(0, 0, 0))
    assert len((tmp_path / "calls").read_text().split()) == calls


def test_a_refusal_is_said(tmp_path, monkeypatch):
    fake = tmp_path / "scontrol"
    fake.write_text("#!/bin/sh\necho 'Requested operation is presently disabled' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(TryAgain, match="presently disabled(.|\n)*resume"):
        requeue("7", pauses_s=(0, 60))


def test_codes_and_causes_are_read_from_slurm_s_words():
    assert first_code("", 9) == 9
    assert first_code("srun: error: n1: tasks 0-1: Exited with exit code 3\n", 143) == 3
    assert cause(slurm_says(" DUE TO PREEMPTION") + slurm_says(" DUE TO TIME LIMIT")) == "time limit", "the last counts"
    assert cause("nothing of the kind") is None
    assert AWAY.search("srun: error: Node failure on n3")
    assert failure("srun: error: n1: task 0: Segmentation fault (core dumped)\n", Path("/nowhere"), {"SLURM_JOB_ID": "1"}) == (
        "rank 0: segmentation fault"
    )


def test_a_process_sees_that_a_younger_copy_holds_its_job(tmp_path):
    assert superseded({}) is None, "no job of ours"
    asked = superseded({HOLDER: str(tmp_path / "holder"), ATTEMPT: "7.0"})
    assert not asked(), "a file system that is away says nothing"
    (tmp_path / "holder").write_text("7.0\n")
    assert not asked()
    (tmp_path / "holder").write_text("7.1\n")
    assert asked()


def test_a_process_that_was_taken_over_ends_at_once(tmp_path):
    code = (
        "import sys, time, slurm.preempt as p; from pathlib import Path; p.LOOK_EVERY_S = 0.1\n"
        "with p.stop_on_signals(lambda: Path(sys.argv[1]).exists()) as stop:\n"
        "    print('listens', flush=True); time.sleep(60); print('went on')"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "mark")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "listens\n"
    time.sleep(0.3)
    assert child.poll() is None
    (tmp_path / "mark").touch()
    out, err = child.communicate(timeout=20)
    assert (child.returncode, out) == (75, "") and "a younger attempt" in err


def test_signals_are_heard_beside_that():
    with stop_on_signals(lambda: False) as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        until = time.monotonic() + 10
        while not stop() and time.monotonic() < until:
            time.sleep(0.01)
        assert stop.signal == "SIGUSR1"
