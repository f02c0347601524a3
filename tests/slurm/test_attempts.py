"""What is noted of each start of a job, and when another is asked for. The real thing: test_faults.py."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_shards.errors import InputError, TryAgain
from launch.submit.frozen import Target, progress_patterns
from slurm.attempts import ERRORS, begin, end, main, progress_digest
from slurm.causes import AWAY, RANK_MARK, cause, failure, first_code
from slurm.history import Attempt, attempts_path, holder_path, read_attempts
from slurm.jobs import JobSpec, freeze
from slurm.preempt import ATTEMPT, HOLDER, stop_on_signals, superseded
from slurm.restart import requeue
from slurm.task import main as become

TOKEN = "5e" * 16
FAILED_0 = "rank 0: exited with exit code 3"
KILLED_AND_TOLD = "srun: error: n2: task 1: Killed\nsrun: error: n1: task 0: Exited with exit code 75\n"
RANK_1_FAILED = "srun: error: n2: task 1: Exited with exit code 75\nsrun: error: n1: task 0: Terminated\n"


class Script:
    """A job's script, run by hand: the words of its logs, its head and its foot."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **fields) -> None:
        self.folder, self.asked = folder / "job", []
        spec = {"name": "job", "command": ("python", "-V"), "folder": str(folder), "progress": ("made/*",), "max_stalls": 3, **fields}
        self.path = freeze(JobSpec(**spec), self.folder)
        self.restart, self.token, self.further = 0, TOKEN, {}
        monkeypatch.setattr("slurm.attempts.requeue", self.asked.append)

    @property
    def environ(self) -> dict[str, str]:
        known = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(self.restart), "SLURM_JOB_NODELIST": "n[1-2]"}
        return {**known, ATTEMPT: f"{self.token}.7.{self.restart}", **self.further}

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
        (137, "srun: error: n2: task 1: Killed\nsrun: error: n1: task 0: Killed\n", "", False, 75, "rank 1: killed", True),
        (137, "srun: error: n1: tasks 0-1: Killed\n", "", False, 75, "rank 0: killed", True),
        (75, KILLED_AND_TOLD, "", False, 75, "rank 1: killed", True),
        (137, "srun: error: n1: tasks 0-1: Out Of Memory\n", "", False, 137, "rank 0: out of memory", False),
        (137, "srun: error: n1: task 0: Out Of Memory\n", "", False, 137, "rank 0: out of memory", False),
        (75, RANK_1_FAILED, slurm_says(" DUE TO PREEMPTION"), True, 75, "preempted", True),  # SLURM may cancel what it preempts
        (143, "", slurm_says(" DUE TO PREEMPTION"), True, 143, "preempted", True),
        (0, "", slurm_says(" DUE TO PREEMPTION"), True, 0, "preempted", False),
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


@pytest.mark.parametrize(("said", "again"), [("PreemptTime=2026-11-28T06:50:28", True), ("PreemptTime=None", False)])
def test_a_command_that_is_ended_in_its_time_of_grace_comes_back(script, capsys, tmp_path, monkeypatch, said, again):
    """SLURM tells the tasks alone, and gives no reason; one that does not listen (yet) ends with the signal."""
    fake = tmp_path / "scontrol"
    fake.write_text(f"#!/bin/sh\necho '   EndTime=Unknown Deadline=N/A {said} PreemptEligibleTime=2026-11-28T06:50:28'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    script.begins(capsys)
    assert script.ends(143, errors="srun: error: n1: task 0: Terminated\n") == 143
    assert script.asked == ["7"] * again and script.last.why == ("preempted" if again else "rank 0: terminated")


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
    monkeypatch.setattr("slurm.attempts.progress_digest", lambda *_: (_ for _ in ()).throw(OSError(116, "Stale file handle")))
    for name, value in script.environ.items():
        monkeypatch.setenv(name, value)
    assert main(["begin", str(script.path)]) == 75 and script.asked == ["7"]
    assert "Stale file handle" in capsys.readouterr().err


def test_a_run_s_folder_may_hold_what_patterns_are_made_of(tmp_path):
    target = Target(run=str(tmp_path / "a[1] **"), stage="vqgan")
    spec = JobSpec(name="j", command=("python",), folder=str(tmp_path), progress=progress_patterns(target))
    before = progress_digest(spec)
    commit = tmp_path / "a[1] **" / "vqgan" / "checkpoints" / "samples-000000000008" / "COMMIT.json"
    commit.parent.mkdir(parents=True)
    commit.touch()
    assert progress_digest(spec) != before


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
    with pytest.raises(InputError, match="3 attempts in a row got nowhere(.|\n)*retinaforge resume job --jobs "):
        script.begins(capsys)  # SLURM may start it all the same
    assert script.last.code == 2
    script.token, script.restart = "6f" * 16, 0
    begin(script.path, script.environ)
    assert script.last.token == "6f" * 16, "submitted again, it has all its attempts, also under the same number"


def test_what_has_no_way_to_go_on_comes_back_only_as_often_as_it_may(tmp_path, monkeypatch, capsys):
    script = Script(tmp_path, monkeypatch, progress=(), max_restarts=2)
    for _ in range(3):
        script.begins(capsys)
        script.ends(75, errors=RANK_1_FAILED)
    assert len(script.asked) == 2 and "restarted 2 times, the most it may" in script.last.why
    script.ends(143, log=slurm_says(" DUE TO TIME LIMIT"), told=True)
    assert len(script.asked) == 2, "it would meet its limit again"


def test_a_job_without_files_of_its_progress_is_ended_when_it_only_says_try_again(tmp_path, monkeypatch, capsys):
    """What SLURM did to it meanwhile is not counted."""
    script, again = Script(tmp_path, monkeypatch, progress=()), []
    preempted, requeued, lost_node = (slurm_says(f" DUE TO {why}") for why in ("PREEMPTION", "JOB REQUEUE", "NODE FAILURE"))
    for log in ("", preempted, "", requeued, lost_node, "lost", ""):
        script.begins(capsys)
        if log == "lost":
            script.restart += 1
        else:
            script.ends(75, errors=RANK_1_FAILED, log=log, told=bool(log))
            again.append(len(script.asked))
    assert again == [1, 2, 3, 3, 3, 3], "SLURM itself restarts a requeue and a lost node; the third of its own is the last"
    assert script.last.why == "3 attempts in a row got nowhere, the last one: rank 1: exited with exit code 75" and script.last.last
    with pytest.raises(InputError, match="3 attempts in a row(.|\n)*another end than try again(.|\n)*retinaforge resume job"):
        script.begins(capsys)
    script.token, script.restart = "6f" * 16, 0
    script.begins(capsys)
    script.ends(75, errors=RANK_1_FAILED)
    assert len(script.asked) == 4, "submitted again, it has all its attempts"


def test_damaged_notes_lose_no_restart(script, capsys):
    """Bytes that are no text, in what was noted and in the file that names who holds the job."""
    for _ in range(2):
        for path in (attempts_path(script.folder), holder_path(script.folder)):
            path.write_bytes(b"\xff\xfe{\n")
        script.begins(capsys)
        holder_path(script.folder).write_bytes(b"\xff\xfe{\n")
        script.ends(75, errors=RANK_1_FAILED)
    assert script.asked == ["7", "7"] and script.last.code == 75


def test_a_copy_that_was_taken_over_asks_for_nothing(script, capsys):
    script.begins(capsys)
    holder_path(script.folder).write_text(f"{TOKEN}.7.1\n")
    script.ends(75, errors=RANK_1_FAILED)
    assert not script.asked and "another attempt had taken over" in script.last.why


@pytest.mark.parametrize("job_id", ["7", "9"])
def test_of_an_array_only_the_index_that_asks_is_restarted(script, capsys, job_id):
    """The last index of an array has the number of the whole array: a request by that number restarts all of them."""
    script.further = {"SLURM_JOB_ID": job_id, "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
    script.begins(capsys)
    script.ends(75, errors=RANK_1_FAILED)
    assert script.asked == ["7_3"]


def test_of_an_array_only_the_index_that_cannot_begin_is_restarted(script, monkeypatch):
    script.further = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
    monkeypatch.setattr("slurm.attempts.progress_digest", lambda *_: (_ for _ in ()).throw(OSError(errno.ESTALE, "Stale file handle")))
    for name, value in script.environ.items():
        monkeypatch.setenv(name, value)
    assert main(["begin", str(script.path)]) == 75 and script.asked == ["7_3"]


FAULTS = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE]


@pytest.mark.parametrize("number", FAULTS)
@pytest.mark.parametrize("what", ["append", "progress_digest", "read_attempts", "holder_path"])
def test_what_cannot_be_noted_at_an_end_keeps_no_job_from_its_next_attempt(script, capsys, monkeypatch, what, number):
    script.begins(capsys)

    def fails(*_, **__):
        raise OSError(number, os.strerror(number))

    class Fails:
        read_text = staticmethod(fails)

    with monkeypatch.context() as patch:
        patch.setattr(f"slurm.attempts.{what}", (lambda *_: Fails) if what == "holder_path" else fails)
        assert script.ends(75, errors=RANK_1_FAILED) == 75
    assert script.asked == ["7"]


@pytest.mark.parametrize("number", FAULTS)
@pytest.mark.parametrize("what", ["durable.write_bytes", "append", "Path.read_bytes"])
def test_what_cannot_be_noted_at_a_beginning_puts_the_attempt_off(script, monkeypatch, capsys, what, number):
    def fails(*_, **__):
        raise OSError(number, os.strerror(number))

    for name, value in script.environ.items():
        monkeypatch.setenv(name, value)
    with monkeypatch.context() as patch:
        patch.setattr(f"slurm.attempts.{what}", fails)
        assert main(["begin", str(script.path)]) == 75
    assert script.asked == ["7"] and os.strerror(number) in capsys.readouterr().err


@pytest.mark.parametrize("number", FAULTS)
@pytest.mark.parametrize("what", ["Path.read_bytes", "task.os.execvpe", "task.os.chdir"])
def test_a_task_that_cannot_start_for_its_file_system_says_try_again(script, monkeypatch, what, number):
    def fails(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(f"slurm.{what}" if what.startswith("task.") else f"slurm.attempts.{what}", fails)
    monkeypatch.setattr("slurm.task.signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as caught:
        become(str(script.path))
    assert caught.value.code == 75


def test_a_job_whose_folder_is_gone_does_not_begin_again_and_again(script, monkeypatch):
    for name, value in script.environ.items():
        monkeypatch.setenv(name, value)
    script.path.unlink()
    assert main(["begin", str(script.path)]) == 2 and not script.asked


def test_a_full_disk_loses_no_restart(tiny_disk, monkeypatch, capsys):
    """A real one: what is noted is torn or left out, the request is made, and the next attempt reads what stands there."""
    script = Script(tiny_disk, monkeypatch)
    script.begins(capsys)
    errors = tiny_disk.parent / "errors"
    errors.write_text(RANK_1_FAILED)
    script.further = {ERRORS: str(errors)}
    with contextlib.suppress(OSError), (tiny_disk / "filler").open("wb", buffering=0) as filler:
        while filler.write(bytes(4096)):
            pass
    assert end(script.path, 143, False, script.environ) == 75
    assert script.asked == ["7"] and not errors.exists()
    script.restart = 1
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    for name, value in script.environ.items():
        monkeypatch.setenv(name, value)
    assert main(["begin", str(script.path)]) == 75 and script.asked == ["7", "7"], "it is put off while the disk is full"
    (tiny_disk / "filler").unlink()
    script.begins(capsys)
    assert [attempt.restart for attempt in read_attempts(attempts_path(script.folder))] == [0, 1]


def test_a_number_that_slurm_gave_again_is_another_attempt(script, capsys):
    script.begins(capsys)
    script.ends(0)
    script.token, script.restart = "6f" * 16, 0
    script.begins(capsys)
    script.ends(4)
    assert [(attempt.token, attempt.code) for attempt in read_attempts(attempts_path(script.folder))] == [(TOKEN, 0), ("6f" * 16, 4)]
    assert all(attempt.last for attempt in read_attempts(attempts_path(script.folder)))


def test_only_what_nobody_starts_again_is_noted_as_the_last(script, capsys):
    ends = [(75, "", False), (75, slurm_says(" DUE TO PREEMPTION"), False), (75, slurm_says(" DUE TO NODE FAILURE"), False)]
    ends += [(75, slurm_says(" DUE TO JOB REQUEUE"), False), (143, slurm_says(""), True), (143, "", False), (0, "", True), (2, "", True)]
    for status, log, last in ends:
        script.begins(capsys)
        script.ends(status, log=log, told=bool(log) or status == 143)
        assert script.last.last == last, (status, log)
        script.token = f"{script.restart:032x}"


def test_a_job_that_an_older_version_submitted_is_known_by_its_number(script, capsys):
    """Its script names the attempt after its beginning, and without a token."""
    script.further = {ATTEMPT: ""}
    script.begins(capsys)
    script.further = {ATTEMPT: "7.0"}
    assert holder_path(script.folder).read_text() == "7.0\n"
    script.ends(75, errors=RANK_1_FAILED)
    assert script.asked == ["7"] and (script.last.token, script.last.job_id) == ("", "7")
    record = attempts_path(script.folder)
    record.write_text(re.sub(r', "token": "", "last": false', "", record.read_text()))
    assert "token" not in record.read_text() and script.last.code == 75


def test_an_index_that_is_stuck_is_ended_though_the_others_get_on(tmp_path, monkeypatch, capsys):
    """Index 2 of 3 shares the set with the others: files 1, 4, 7, … are its own, and those alone count."""
    script = Script(tmp_path, monkeypatch, array="1-3", share="{array_task}/3", progress=("made/*.tar",))
    script.further = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}
    (tmp_path / "made").mkdir()
    for attempt in range(6):
        if len(script.asked) < attempt:
            break
        script.begins(capsys)
        for shard in (0, 2, 3, 5):  # of others
            (tmp_path / "made" / f"synthetic-{3 * attempt * 2 + shard:06d}.tar").touch()
        if attempt == 1:
            (tmp_path / "made" / "synthetic-000004.tar").touch()
        script.ends(75, errors=RANK_1_FAILED)
    assert len(script.asked) == 4, "one that got on, and three that did not"
    assert "3 attempts in a row got nowhere" in read_attempts(attempts_path(script.folder, "2"))[-1].why


def test_the_end_of_a_smaller_set_is_of_its_number_s_share(tmp_path):
    spec = JobSpec(name="j", command=("python",), folder=str(tmp_path), array="1-3", share="{array_task}/3", progress=("*.tar",))
    before = [progress_digest(spec, index) for index in "123"]
    (tmp_path / "synthetic-000004.first12.tar").touch()
    assert [progress_digest(spec, index) == one for index, one in zip("123", before, strict=True)] == [True, False, True]


def test_an_index_may_have_files_of_its_own(tmp_path):
    spec = JobSpec(name="j", command=("python",), folder=str(tmp_path), array="1-2", progress=("codes-{array_task}.safetensors",))
    before = [progress_digest(spec, index) for index in ("1", "2")]
    (tmp_path / "codes-1.safetensors").touch()
    assert [progress_digest(spec, index) == one for index, one in zip(("1", "2"), before, strict=True)] == [False, True]


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
