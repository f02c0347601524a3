"""How often SLURM is asked, and what of its answers is believed. squeue and sacct are scripts here: no real one lies on demand."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from data_shards.durable import claimed
from data_shards.errors import CorruptData, InputError, TryAgain
from launch.cli.resume import _failed
from launch.cli.status import summary
from launch.cli.submit import _ended
from launch.submit.graph import _left_alone, submit_all
from slurm.executor import _Job, submit
from slurm.history import Attempt, attempts_path, read_attempts
from slurm.jobs import JobSpec
from slurm.preempt import ATTEMPT, HOLDER, superseded
from slurm.programs import of_another_job
from slurm.queue import BETWEEN, FORMAT, TOKEN_MARK, UNKNOWN, JobState, Queue
from slurm.records import RECORD_NAME, Submitted, job_folder, read_record, read_records, record_tree
from slurm.states import CANCELLED, _pieces, cancelled, check_free, current, is_live, is_unknown
from tests.commands import invoke

AT = 1_790_000_000.0
TOKEN, ANOTHER = "1f" * 16, "2e" * 16


def row(
    number: int, state: str, *, name: str = "job", index: str = "N/A", restarts: int = 0, comment: str | None = None, why: str = "n1"
) -> str:
    """A line of squeue's; the comment holds our token unless it is given."""
    fields = (str(number), state, "1:02", str(restarts), TOKEN_MARK + TOKEN if comment is None else comment, why, name, index)
    return "".join(field.ljust(width) for field, (_, width) in zip(fields, FORMAT, strict=True))


def books(job_id: str, state: str, code: str = "0:0", *, comment: str = "", folder: str = "", name: str = "job") -> str:
    """A line of sacct's; most sites keep no comments there."""
    return BETWEEN.join((job_id, state, "00:01", code, comment, folder, name))


class Site:
    """squeue and sacct that say what they are told to, and count how often they are asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for program in ("squeue", "sacct", "scontrol"):
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

    def has_scancel(self) -> None:
        (self.folder / "scancel").write_text(f"#!/bin/sh\necho $* > {self.folder}/cancelled\n")
        (self.folder / "scancel").chmod(0o755)

    def calls(self, program: str) -> int:
        path = self.folder / f"{program}.calls"
        return len(path.read_text().split()) if path.exists() else 0


@pytest.fixture
def site(tmp_path, monkeypatch) -> Site:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Site(tmp_path / "bin")


def submitted(number: int, name: str = "job", **fields) -> Submitted:
    return Submitted(**{"job_ids": (str(number),), "name": name, "submitted_unix_s": AT, "token": TOKEN, "folder": "/jobs/job", **fields})


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
    code = "from slurm.queue import Queue; print(Queue().states(['7'])['7'][0].state)"
    children = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(6)]
    assert [child.communicate(timeout=60)[0] for child in children] == ["RUNNING\n"] * 6
    assert site.calls("squeue") == 1


def test_a_controller_that_fails_is_asked_less_and_less_often(site, monkeypatch):
    clock = [AT]
    monkeypatch.setattr("slurm.queue.time.time", lambda: clock[0])
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
    site.says("sacct", books("7", word, comment=TOKEN_MARK + TOKEN))
    assert current([submitted(7)], Queue(0.0))["job"][0].state == "RUNNING"
    assert site.calls("sacct") == 0


@pytest.mark.parametrize(
    ("line", "state"),
    [
        (books("7", "COMPLETED", comment=f"site's {TOKEN_MARK}{TOKEN}"), "COMPLETED"),
        (books("7", "CANCELLED by 0", folder="/jobs/job"), "CANCELLED"),  # books without comments: the folder tells it
        (books("7", "FAILED", "4:0", folder="/jobs/job"), "FAILED"),
        (books("7", "RUNNING", folder="/jobs/job"), UNKNOWN),  # books that lag behind
        (books("7", "NODE_FAIL", folder="/jobs/job"), UNKNOWN),  # it may come back
        (books("7", "COMPLETED", folder="/jobs/job", name="another"), UNKNOWN),
        (books("7", "COMPLETED", folder="/jobs/another"), UNKNOWN),
        (books("7", "COMPLETED"), UNKNOWN),  # nothing but its number and name
        (books("7", "COMPLETED", comment=TOKEN_MARK + ANOTHER, folder="/jobs/job"), UNKNOWN),  # that number's job before
        ("nonsense", UNKNOWN),
    ],
)
def test_of_the_books_only_an_end_of_the_very_job_is_believed(site, line, state):
    site.says("sacct", line)
    [found] = current([submitted(7)], Queue(0.0))["job"]
    assert found.state == state and site.calls("sacct") == 1
    assert not is_live([found]) and is_unknown([found]) == (state == UNKNOWN)


def test_without_books_a_forgotten_job_is_unknown_and_its_cluster_is_told(site):
    site.breaks("sacct")
    assert current([submitted(7)], Queue(0.0))["job"] == [JobState(job_id="7", name="job")]
    assert "on cluster west" in current([submitted(7, cluster="west")], Queue(0.0))["job"][0].why
    (site.folder / "sacct").unlink()
    assert Queue().books(["7"]) == {}


def test_what_a_job_noted_of_its_end_is_believed_where_slurm_has_forgotten_it(site, tmp_path):
    """Of this submission alone, and only where nothing restarts it."""
    began = Attempt(token=TOKEN, job_id="7", restart=0, nodes="n1", began_unix_s=AT, before="")
    ended = replace(began, ended_unix_s=AT, code=0, why="done", last=True)
    ends = [
        (ended, "COMPLETED"),
        (replace(ended, code=4, why="rank 0"), "FAILED"),
        (replace(ended, code=143, why="time limit"), "TIMEOUT"),
        (replace(ended, last=False), UNKNOWN),
        (replace(ended, token=ANOTHER), UNKNOWN),
    ]
    for number, (attempt, state) in enumerate(ends):
        folder = tmp_path / str(number)
        folder.mkdir()
        attempts_path(folder).write_text(json.dumps(asdict(attempt)) + "\n")
        assert current([submitted(7, folder=str(folder))], Queue(0.0))["job"][0].state == state, attempt


def test_the_books_are_not_asked_more_often_either(site):
    queue = Queue()
    for _ in range(50):
        current([submitted(7)], queue)
    assert site.calls("sacct") == 1
    current([submitted(7), submitted(8, "other")], queue)
    assert site.calls("sacct") == 2, "a number that is new to them"


def test_indices_of_an_array_are_forgotten_one_by_one(site):
    """Three of five: one runs, one is in the books, one SLURM would list if it lived; none falls out of the count."""
    record = submitted(7, array="1-5")
    site.says("squeue", row(7, "RUNNING", index="4"), row(7, "PENDING", index="2,5%2"))
    site.says("sacct", books("7_3", "FAILED", "4:0", folder="/jobs/job"), books("7_4", "COMPLETED", folder="/jobs/job"))
    found = {state.job_id: state.state for state in current([record], Queue(0.0))["job"]}
    assert found == {"7_1": "CANCELLED", "7_2": "PENDING", "7_3": "FAILED", "7_4": "RUNNING", "7_5": "PENDING"}
    assert summary(current([record], Queue(0.0))["job"]) == "2 PENDING, 1 CANCELLED, 1 FAILED, 1 RUNNING"


def test_an_index_that_was_cancelled_as_it_waited_does_not_hold_its_name(site, tmp_path):
    """SLURM keeps nothing of it, but lists the others. Where it lists none, or lists that cannot be read, nothing is concluded."""
    record = submitted(7, array="0-3", cluster="west", folder=str(tmp_path))
    (tmp_path / RECORD_NAME).write_text(json.dumps(record_tree(record)))
    site.says("scontrol", "ClusterName             = west")
    site.says("squeue", *(row(7, "COMPLETED", index=str(index)) for index in (0, 1)), row(7, "PENDING", index="3"))
    found = {state.job_id: state.state for state in current([record], Queue(0.0))["job"]}
    assert found == {"7_0": "COMPLETED", "7_1": "COMPLETED", "7_2": "CANCELLED", "7_3": "PENDING"}
    site.says("squeue", *(row(7, "COMPLETED", index=str(index)) for index in (0, 1, 3)))
    assert check_free(tmp_path) == TOKEN and _failed(tmp_path, JobSpec(name="job", command=("x",), folder="/", array="0-3")) == "2"
    unread = [("1-2,…", TOKEN), ("N/A", TOKEN), ("1,3", ANOTHER)]
    for index, token in unread:
        site.says("squeue", row(7, "PENDING", index="0"), row(7, "PENDING", index=index, comment=TOKEN_MARK + token))
        states = {state.job_id: state.state for state in current([record], Queue(0.0))["job"]}
        assert states["7_2"] == ("CANCELLED" if token == ANOTHER else UNKNOWN), index
    site.says("squeue")
    with pytest.raises(InputError, match="job 7_0-3 is not known to SLURM here"):
        check_free(tmp_path)
    noted = Attempt(token=TOKEN, job_id="7", restart=0, nodes="n1", began_unix_s=AT, before="", code=0, why="done", last=True)
    for index in ("0", "1", "3"):
        attempts_path(tmp_path, index).write_text(json.dumps(asdict(noted)) + "\n")
    with pytest.raises(InputError, match="job 7_2 is not known to SLURM here"):
        check_free(tmp_path)


def test_an_array_with_holes_is_told_index_by_index(site):
    """A list of indices that is longer than SLURM's own cut and than any column, and books that tell of more than is missing."""
    odd = ",".join(map(str, range(1, 2000, 2)))
    record = submitted(7, array="0-1999")
    site.says("squeue", row(7, "PENDING", index=f"{odd}%3"), *(row(7, "RUNNING", index=str(index)) for index in (0, 2)))
    site.says("sacct", books("7_[0-1999]", "CANCELLED by 0", folder="/jobs/job"))
    assert Counter(state.state for state in current([record], Queue(0.0))["job"]) == {"PENDING": 1000, "CANCELLED": 998, "RUNNING": 2}
    script = site.folder / "squeue"
    script.write_text(script.read_text() + f'echo "$SLURM_BITSTR_LEN $TZ" > {site.folder}/told\n')
    Queue(0.0).answer(time.time())
    assert (site.folder / "told").read_text() == "0 UTC\n", "SLURM cuts lists unless it is told not to"
    site.says("squeue", row(8, "RUNNING", index="5"), row(8, "PENDING", index="1,9"))
    found = current([submitted(8, array="1,5,9")], Queue(0.0))["job"]
    assert {state.job_id: state.state for state in found} == {"8_1": "PENDING", "8_5": "RUNNING", "8_9": "PENDING"}


def test_indices_that_were_submitted_again_leave_the_others_as_they_were(site):
    former, ends = submitted(7, array="1-4", token=ANOTHER), ("COMPLETED", "FAILED", "FAILED", "TIMEOUT")
    record = submitted(9, array="2,3", whole="1-4", former=(former,))
    site.says(
        "squeue",
        *(row(7, state, index=str(i), comment=TOKEN_MARK + ANOTHER) for i, state in enumerate(ends, 1)),
        *(row(9, "RUNNING", index=str(i)) for i in (2, 3)),
    )
    found = {state.job_id: state.state for state in current([record], Queue(0.0))["job"]}
    assert found == {"9_2": "RUNNING", "9_3": "RUNNING", "7_1": "COMPLETED", "7_4": "TIMEOUT"}


@pytest.mark.parametrize("apart_s", [-86400, -360, 360, 3700, 86400])
def test_a_live_job_is_live_whatever_the_clocks_say(site, monkeypatch, apart_s):
    """Six minutes apart, an hour as summer time ends, another time zone: no clock is asked, and SLURM is not asked more often."""
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    site.says("squeue", row(7, "RUNNING"))
    record = submitted(7, submitted_unix_s=time.time() + apart_s)
    for _ in range(5):
        assert current([record], Queue())["job"][0].state == "RUNNING"
    assert site.calls("squeue") == 1
    assert is_live(current([record], Queue(), fresh=True)["job"])


def test_a_name_that_is_no_text_hides_no_other_job(site):
    (site.folder / "squeue.said").write_bytes(row(6, "RUNNING", name="x").encode()[:-1] + b"\xe6\xff\n" + row(7, "RUNNING").encode())
    assert current([submitted(7)], Queue(0.0))["job"][0].state == "RUNNING"


def test_only_what_is_live_is_cancelled(site):
    """A part of an array that SLURM has forgotten, or whose number it gave away, is left alone."""
    site.says("squeue", row(7, "RUNNING", index="0"), row(8, "RUNNING", index="0", comment=TOKEN_MARK + ANOTHER))
    site.has_scancel()
    record = submitted(7, job_ids=("7", "8", "9"), array="0-2", part=1)
    assert cancelled([record], Queue(0.0)) == {"job": CANCELLED}
    assert (site.folder / "cancelled").read_text() == "7\n"


@pytest.mark.parametrize("comment", ["", "(null)", "the site's own words"])
@pytest.mark.parametrize("token", [TOKEN, ""])
def test_without_a_token_in_the_comment_the_folder_tells_whose_a_job_is(site, comment, token):
    """Where a site writes over comments, and for records of an older version: never denied, and another's is never cancelled."""
    site.says("squeue", row(7, "RUNNING", comment=comment))
    site.has_scancel()
    site.says("scontrol", "JobId=7 JobName=job", "   WorkDir=/jobs/another one", "   Comment=x")
    assert cancelled([submitted(7, token=token)], Queue(0.0)) == {"job": UNKNOWN} and not (site.folder / "cancelled").exists()
    site.breaks("scontrol")
    assert cancelled([submitted(7, token=token)], Queue(0.0)) == {"job": UNKNOWN} and not (site.folder / "cancelled").exists()
    site.breaks("scontrol", False)
    site.says("scontrol", "JobId=7 JobName=job", "   WorkDir=/jobs/job", "   Comment=x")
    assert cancelled([submitted(7, token=token)], Queue(0.0)) == {"job": CANCELLED}
    assert (site.folder / "cancelled").read_text() == "7\n"


def test_a_number_that_was_given_again_is_not_ours(site):
    site.says("squeue", row(7, "RUNNING", comment=TOKEN_MARK + ANOTHER))
    for record in (submitted(7), submitted(7, token="")):
        assert current([record], Queue(0.0))["job"][0].state == UNKNOWN
    assert cancelled([submitted(7)], Queue(0.0)) == {"job": UNKNOWN}


def test_what_is_unknown_is_not_submitted_a_second_time_but_by_force(site, tmp_path):
    record = submitted(7, cluster="west", folder=str(tmp_path))
    (tmp_path / RECORD_NAME).write_text(json.dumps(record_tree(record)))
    site.says("scontrol", "ClusterName             = west", "MaxArraySize            = 1001")
    with pytest.raises(InputError, match="job 7 is not known to SLURM here(.|\n)*squeue --me --all(.|\n)*--force"):
        check_free(tmp_path)
    site.says("scontrol", "ClusterName             = east")
    with pytest.raises(InputError, match="job 7 was submitted on cluster west(.|\n)*on a machine of cluster west(.|\n)*--force"):
        check_free(tmp_path)
    assert check_free(tmp_path, force=True) == TOKEN
    site.says("squeue", row(7, "PENDING"))
    with pytest.raises(InputError, match="this name is in use"):
        check_free(tmp_path, force=True)
    site.says("squeue", row(7, "FAILED"))
    assert check_free(tmp_path) == TOKEN


def test_a_submission_that_is_refused_writes_over_nothing_of_the_live_job(site, tmp_path):
    """Two who submit at once both saw that the name is free; the later one finds it taken."""
    for program in ("sbatch", "srun"):
        (site.folder / program).write_text("#!/bin/sh\nexit 1\n")
        (site.folder / program).chmod(0o755)
    site.says("scontrol", "ClusterName             = west", "MaxArraySize            = 1001")
    (tmp_path / RECORD_NAME).write_text(json.dumps(record_tree(submitted(7, cluster="west", folder=str(tmp_path)))))
    site.says("squeue", row(7, "RUNNING"))
    written = []
    with pytest.raises(InputError, match="this name is in use"):
        submit(
            JobSpec(name="job", command=("python",), folder=str(tmp_path)),
            tmp_path,
            over="",
            frozen_with_it=lambda: written.append("config"),
        )
    assert not written and not (tmp_path / "job.json").exists()


def test_who_waits_for_a_job_does_so_until_nothing_of_it_is_live(site, tmp_path, monkeypatch):
    """Not while indices run that others were forgotten beside, not for ever upon NODE_FAIL, and not less where SLURM is away."""
    (tmp_path / RECORD_NAME).write_text(json.dumps(record_tree(submitted(7, array="1-2", folder=str(tmp_path)))))
    for index, token, code in (("1", TOKEN, 3), ("2", ANOTHER, 4)):
        ended = Attempt(job_id="7", restart=0, nodes="n1", began_unix_s=AT, before="", code=code, token=token)
        attempts_path(tmp_path, index).write_text(json.dumps(asdict(ended)) + "\n")
    monkeypatch.setattr("launch.submit.site.queue", lambda: Queue(0.0))
    site.breaks("squeue")
    slept = []

    def then(_: float) -> None:
        slept.append(1)
        if len(slept) == 1:
            site.breaks("squeue", broken=False)
        site.says("squeue", row(7, "RUNNING" if len(slept) < 3 else "NODE_FAIL", index="2"))
        assert len(slept) < 4

    monkeypatch.setattr("launch.cli.submit.sleep", then)
    assert _ended(tmp_path) == 3 and len(slept) == 3, "the code of an attempt of this submission"


def test_the_indices_of_a_long_array_are_told_in_time():
    many = 100_000
    record = submitted(0, job_ids=tuple(map(str, range(100))), array=f"1-{many}", part=1000)
    began = time.monotonic()
    pieces = _pieces(record)
    assert time.monotonic() - began < 20 and sum(len(piece.indices) for piece in pieces) == many
    assert (pieces[0].indices["0"], pieces[99].indices["999"]) == ("1", str(many))
    assert all(record.true_id(f"{n}_7") == f"{n}_{pieces[n].indices['7']}" for n in (0, 42, 99))


def test_a_stage_of_a_pipeline_that_nobody_knows_of_is_not_doubled(site, tmp_path):
    wanted = {stage: SimpleNamespace(folder=tmp_path / stage, config=None) for stage in ("vqgan", "encode")}
    for stage, number in (("vqgan", 7), ("encode", 8)):
        wanted[stage].folder.mkdir()
        record = submitted(number, stage, token=f"{number}f" * 16, folder=str(wanted[stage].folder))
        (wanted[stage].folder / RECORD_NAME).write_text(json.dumps(record_tree(record)))
    site.says("squeue", row(7, "FAILED", name="vqgan", comment=f"{TOKEN_MARK}{'7f' * 16}"))
    with pytest.raises(InputError, match="job 8 is not known to SLURM here"):
        _left_alone(wanted, force=False)
    assert _left_alone(wanted, force=True) == ({}, {"vqgan": "7f" * 16, "encode": "8f" * 16})


def test_of_two_who_submit_a_pipeline_at_once_the_second_writes_and_sends_nothing(site, tmp_path, monkeypatch):
    for program in ("sbatch", "srun"):
        (site.folder / program).write_text("#!/bin/sh\nexit 1\n")
        (site.folder / program).chmod(0o755)
    monkeypatch.setattr("slurm.offers.offers", lambda: None)
    job = SimpleNamespace(folder=tmp_path / "eyes" / "vqgan", check=lambda: None, check_on=lambda _: None, config=None)
    kept: list[int] = []
    with claimed(tmp_path / "eyes" / ".submit", "submitting"), pytest.raises(TryAgain, match="submitting this pipeline"):
        submit_all({"vqgan": job}, lambda: kept.append(1), False, tmp_path / "eyes")
    assert not kept and not job.folder.exists()


def test_the_token_by_which_a_site_knows_its_user_stays():
    environ = {"SLURM_JWT": "x", "SLURM_CONF": "/etc/slurm.conf", "SLURM_JOB_ID": "7", "SBATCH_ACCOUNT": "a"}
    assert of_another_job(environ) == {"SLURM_JOB_ID", "SBATCH_ACCOUNT"}


def test_a_job_that_sbatch_s_lost_answer_was_about_is_taken_up(site, tmp_path, monkeypatch):
    """The controller took it and did not say so in time: submitted again it would run twice."""
    monkeypatch.setattr("slurm.executor.secrets.token_hex", lambda _: TOKEN)
    for program, text in (("sbatch", "echo 'sbatch: error: Socket timed out on send/recv operation' >&2; exit 1"), ("srun", "")):
        (site.folder / program).write_text(f"#!/bin/sh\n{text}\n")
        (site.folder / program).chmod(0o755)
    site.says("scontrol", "ClusterName             = west", "MaxArraySize            = 1001")
    spec = JobSpec(name="job", command=("python", "-V"), folder=str(tmp_path))
    site.says("squeue", row(3, "RUNNING", comment=TOKEN_MARK + ANOTHER))
    with pytest.raises(TryAgain, match="Socket timed out(.|\n)*squeue --me --name=job"):
        submit(spec, tmp_path / "job")
    site.says("squeue", row(3, "RUNNING", comment=TOKEN_MARK + ANOTHER), row(7, "PENDING"))
    record = submit(spec, tmp_path / "job")
    assert (record.job_ids, record.cluster) == (("7",), "west") and read_record(tmp_path / "job" / RECORD_NAME) == record


def test_a_cancelled_job_is_over_also_when_slurm_has_forgotten_it(site, tmp_path):
    site.says("squeue", row(7, "PENDING"))
    site.has_scancel()
    record = submitted(7, folder=str(tmp_path))
    assert cancelled([record], Queue(0.0)) == {"job": CANCELLED}
    site.says("squeue")
    assert current([record], Queue(0.0))["job"][0].state == "CANCELLED"
    again = replace(record, token=ANOTHER, job_ids=("8",))
    assert current([again], Queue(0.0))["job"][0].state == UNKNOWN, "another submission of the name"
    site.says("squeue", row(8, "PENDING", comment=TOKEN_MARK + ANOTHER))
    assert cancelled([again], Queue(0.0)) == {"job": CANCELLED}
    site.says("squeue")
    assert [current([one], Queue(0.0))["job"][0].state for one in (record, again)] == ["CANCELLED", "CANCELLED"]


def test_records_of_yesterday_are_read(tmp_path):
    old = {"job_ids": ["7"], "name": "job", "submitted_unix_s": AT, "array": None, "part": 0, "took_s": 0.3}
    (tmp_path / RECORD_NAME).write_text(json.dumps({**old, "former": [{**old, "job_ids": ["3"], "former": []}]}))
    record = read_record(tmp_path / RECORD_NAME)
    assert (record.job_ids, record.token, record.folder, record.former[0].job_ids) == (("7",), "", str(tmp_path), ("3",))
    (tmp_path / RECORD_NAME).write_text(json.dumps(record_tree(record)))
    assert read_record(tmp_path / RECORD_NAME) == record


@pytest.mark.parametrize("state", ["NODE_FAIL", "PREEMPTED"])
def test_what_squeue_does_not_start_again_may_be_submitted_again(site, state):
    site.says("squeue", row(7, state))
    assert not is_live(current([submitted(7)], Queue(0.0))["job"])


WHOLE = {"job_ids": ["1"], "name": "kid", "submitted_unix_s": 1.0, "token": TOKEN}
WRONG = [{"array": "zz"}, {"array": "5-1"}, {"whole": "x"}, {"submitted_unix_s": "a"}, {"job_ids": []}, {"job_ids": ["-1"]}]
WRONG += [{"job_ids": "7"}, {"former": [{}]}, {"name": None}, {"part": "two"}]
DAMAGED = [b"{", b"", b"[]", b"7", b"\xff\xfe", *(json.dumps(WHOLE | wrong).encode() for wrong in WRONG)]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_record_is_known_as_one(tmp_path, content):
    (tmp_path / RECORD_NAME).write_bytes(content)
    with pytest.raises(CorruptData, match="record of a submitted job is damaged"):
        read_record(tmp_path / RECORD_NAME)


def test_a_damaged_record_hides_no_other_and_says_how_to_go_on(site, tmp_path, monkeypatch):
    content = b"{"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("launch.submit.site.queue", lambda: Queue(0.0))
    site.has_scancel()
    site.says("squeue", row(1, "RUNNING", name="eyes/whole"))
    site.says("scontrol", "ClusterName             = west", "MaxArraySize            = 1001")
    for name, text in (("eyes/whole", json.dumps({**WHOLE, "name": "eyes/whole"}).encode()), ("eyes/kid", content)):
        folder = job_folder(Path("runs/jobs"), name)
        folder.mkdir(parents=True)
        (folder / RECORD_NAME).write_bytes(text)
    told = json.loads(invoke("status", "--json"))["jobs"]
    assert (told["eyes/whole"]["state"], told["eyes/kid"]["state"]) == ("RUNNING", "record damaged")
    said = invoke("status", "eyes/kid")
    assert "record damaged" in said and "squeue --me --all" in said and "retinaforge resume kid --jobs" in said
    assert "eyes" not in invoke("runs")
    for words in (("logs", "eyes/kid"), ("cancel", "eyes/kid")):
        with pytest.raises(CorruptData, match="record of a submitted job is damaged"):
            invoke(*words)
    with pytest.raises(CorruptData, match="record of a submitted job is damaged"):
        invoke("cancel", "eyes")
    assert (site.folder / "cancelled").read_text() == "1\n", "what could be cancelled is"
    with pytest.raises(CorruptData, match="(.|\n)*squeue --me --all(.|\n)*--force"):
        check_free(folder)
    for program in ("sbatch", "srun"):
        (site.folder / program).write_text("#!/bin/sh\necho Submitted batch job 9\n")
        (site.folder / program).chmod(0o755)
    spec = JobSpec(name="eyes/kid", command=("python", "-V"), folder=str(tmp_path))
    with pytest.raises(CorruptData, match="damaged"):
        submit(spec, folder)
    assert (folder / RECORD_NAME).read_bytes() == content and not (folder / "job.json").exists()
    submit(spec, folder, force=True)
    assert read_record(folder / RECORD_NAME).job_ids == ("9",)
    (folder / RECORD_NAME).write_bytes(content)
    monkeypatch.setattr("launch.submit.described.Described.check_on", lambda *_: None)
    monkeypatch.setattr("slurm.offers.offers", list)
    with pytest.raises(CorruptData, match="damaged"):
        invoke("resume", "eyes/kid")
    invoke("resume", "kid", "--jobs", folder.parent, "--force")
    assert read_record(folder / RECORD_NAME).job_ids == ("9",), "as it was advised"


@pytest.mark.parametrize("content", [b"\xff{}\n", b"[]\n", b'{"job_id": "7"}\n', b"\x00\n"])
def test_a_damaged_note_of_an_attempt_hides_no_other(site, tmp_path, content):
    """Nor does it keep the job from its restart."""
    ended = Attempt(token=TOKEN, job_id="7", restart=0, nodes="n1", began_unix_s=AT, before="", code=4, why="rank 0", last=True)
    wrong = json.dumps({**asdict(ended), "began_unix_s": "a"}).encode() + b"\n"
    attempts_path(tmp_path).write_bytes(content + wrong + json.dumps(asdict(ended)).encode() + b"\n" + content)
    assert read_attempts(attempts_path(tmp_path)) == [ended]
    (tmp_path / "cancelled").write_bytes(content)
    (tmp_path / "holder").write_bytes(content)
    assert current([submitted(7, folder=str(tmp_path))], Queue(0.0))["job"][0].state == "FAILED"
    assert not superseded({HOLDER: str(tmp_path / "holder"), ATTEMPT: "7.0"})(), "which says nothing of who holds the job"


def test_a_damaged_target_hides_the_progress_of_its_job_alone(site, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    site.says("squeue", row(1, "RUNNING", name="kid"))
    folder = job_folder(Path("runs/jobs"), "kid")
    folder.mkdir(parents=True)
    (folder / RECORD_NAME).write_text(json.dumps(WHOLE))
    for content in ("{", "[]", '{"run": "r", "stage": "sample", "goal": "many"}', '{"run": "r", "stage": "sample", "goal": 4}'):
        (folder / "target.json").write_text(content)
        assert json.loads(invoke("status", "--json"))["jobs"]["kid"]["state"] == "RUNNING"


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
    assert [record.name for record in read_records(tmp_path, ["eyes"])[0]] == ["eyes/encode", "eyes/vqgan"]
    assert [record.name for record in read_records(tmp_path, ["plain", "eyes/vqgan"])[0]] == ["eyes/vqgan", "plain"]


@pytest.mark.parametrize("name", ["../../etc/x", "/etc/x", "a//b", "a/./b", "..", " ", "a/..", "-rf", "$(id)", "a b/c'd"])
def test_a_name_stays_in_its_folder(tmp_path, name):
    assert job_folder(tmp_path, name).is_relative_to(tmp_path) and job_folder(tmp_path, name) != tmp_path
    assert ".." not in job_folder(tmp_path, name).parts
