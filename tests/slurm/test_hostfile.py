"""A hostfile is read as it is meant or refused with its line; names that do not resolve are all named."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from data_shards.errors import InputError
from slurm.hostfile import check_names, check_started, planned_environ, read_hostfile
from slurm.rank import Placement

GOOD = """\
# the two big ones
worker-1 slots=4
  10.0.0.7\tslots=02   # the old one

#worker-3 slots=8
worker#4 slots=1
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "hosts"
    path.write_text(text)
    return path


def test_hosts_and_slots_in_their_order(tmp_path):
    hosts = read_hostfile(written(tmp_path, GOOD))
    assert list(hosts.slots.items()) == [("worker-1", 4), ("10.0.0.7", 2), ("worker#4", 1)] and hosts.world == 7


def test_deepspeed_reads_the_same(tmp_path):
    runner = pytest.importorskip("deepspeed.launcher.runner")
    path = written(tmp_path, GOOD)
    assert dict(runner.fetch_hostfile(str(path))) == read_hostfile(path).slots


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("w1 slots=4\nw2\n", 2, "'w2' has no slots"),
        ("w1 slots=0\n", 1, "'w1 slots=0' has no slots"),
        ("w1 slots=\n", 1, "has no slots"),
        ("\nw1 slots=4x\n", 2, "cannot read 'w1 slots=4x'"),
        ("w1 slots=-1\n", 1, "cannot read"),
        ("w1 slots = 4\n", 1, "cannot read"),
        ("w1 slots=4 gpus=4\n", 1, "cannot read"),
        ("w1 slots=٤\n", 1, "cannot read"),
        ("w1 4\n", 1, "cannot read"),
        ("w1:4\n", 1, "has no slots"),
        ("w1 slots=4\n# again\nw1 slots=2\n", 3, "'w1' a second time, after line 1"),
    ],
)
def test_a_bad_line_is_named(tmp_path, text, line, words):
    path = written(tmp_path, text)
    with pytest.raises(InputError, match=words) as caught:
        read_hostfile(path)
    assert caught.value.where == f"{path}:{line}" and caught.value.expected and caught.value.mend


def test_what_is_no_hostfile_is_refused(tmp_path):
    for path, words in ((tmp_path, "a folder"), (tmp_path / "none", "no such file"), (written(tmp_path, "# nobody\n\n"), "no host")):
        with pytest.raises(InputError, match=words) as caught:
            read_hostfile(path)
        assert caught.value.where == path
    (tmp_path / "hosts").write_bytes(b"\x80\x02\xff")
    with pytest.raises(InputError, match="not a text"):
        read_hostfile(tmp_path / "hosts")


def test_all_names_that_do_not_resolve_are_named(tmp_path, monkeypatch):
    def lookup(name, _):
        if name.startswith("lost"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    with pytest.raises(InputError, match=r"2 of 3 host\(s\) do not resolve: lost-1 \(Name or service not known\), lost-2 ") as caught:
        check_names(read_hostfile(written(tmp_path, "lost-1 slots=1\nhere slots=1\nlost-2 slots=1\n")))
    assert "here" not in caught.value.what
    check_names(read_hostfile(written(tmp_path, "here slots=1\n")))


def test_a_name_that_is_no_name_does_not_resolve(tmp_path):
    with pytest.raises(InputError, match=r"a\.\.b \(not the form of a host name\)"):
        check_names(read_hostfile(written(tmp_path, "a..b slots=1\n127.0.0.1 slots=1\nlocalhost slots=1\n")))


def test_the_world_is_that_of_the_launcher(tmp_path):
    hosts = read_hostfile(written(tmp_path, "a slots=1\nb slots=3\n"))
    check_started(hosts, Placement(rank=1, world=4, source="torchrun"))
    with pytest.raises(InputError, match=r"mpi started 2 process\(es\), but the hostfile has 4 slot"):
        check_started(hosts, Placement(rank=1, world=2, source="mpi"))
    with pytest.raises(InputError, match="no launcher, but the hostfile has 4 slot"):
        check_started(hosts, Placement())


def test_a_plan_takes_the_slots_and_refuses_another_world(tmp_path):
    hosts = read_hostfile(written(tmp_path, "a slots=1\nb slots=3\n"))
    assert (
        planned_environ(hosts, {"HOME": "/"})
        == {"HOME": "/", "WORLD_SIZE": "4"}
        == planned_environ(hosts, {"HOME": "/", "WORLD_SIZE": "4"})
    )
    for other in ("3", "four"):
        with pytest.raises(InputError, match=f"WORLD_SIZE={other}, but the hostfile has 4"):
            planned_environ(hosts, {"WORLD_SIZE": other})
