"""Where ranks meet: found without a launcher's word, and refused when nobody could meet there."""

from __future__ import annotations

import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from data_shards.errors import InputError, TryAgain
from ldm.comm import Alone
from slurm.meeting import FIRST_PORT, PORTS, agreed_port, check_meeting_point, free_port, meeting_point, told_by_rank_0
from slurm.rank import Placement

STEP = {"SLURM_JOB_ID": "12345", "SLURM_STEP_ID": "2", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NODEID": "1"}
STEP |= {"SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_STEP_NODELIST": "localhost,n[3-4]"}
TWO = Placement(rank=1, world=2, source="slurm")


def test_a_step_knows_its_meeting_point_without_a_word():
    assert meeting_point(TWO, STEP) == {"MASTER_ADDR": "localhost", "MASTER_PORT": str(FIRST_PORT + 2347)}
    by_pmi = STEP | {"PMI_RANK": "1", "PMI_SIZE": "2"}
    assert meeting_point(Placement(rank=1, world=2, source="mpi"), by_pmi) == meeting_point(TWO, STEP)
    one_node = Placement(rank=1, world=2, local_rank=1, local_world=2, source="slurm")
    assert meeting_point(one_node, STEP | {"SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "0"})["MASTER_ADDR"] == "127.0.0.1"


def test_a_node_that_does_not_resolve_is_asked_for_its_address(monkeypatch):
    environ = STEP | {"SLURM_STEP_NODELIST": "no-such-node.invalid"}

    def scontrol(words, **_):
        return subprocess.CompletedProcess(words, 0, stdout=f"NodeName={words[-1]} NodeAddr=10.0.0.9 NodeHostName=x\n")

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", scontrol)
        assert meeting_point(TWO, environ)["MASTER_ADDR"] == "10.0.0.9"
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(InputError, match=r"does not resolve: 'no-such-node\.invalid'"):
        meeting_point(TWO, environ)


def test_ranks_of_nobody_are_told_to_name_one():
    with pytest.raises(InputError, match="rank 1 of 2 without MASTER_ADDR"):
        meeting_point(Placement(rank=1, world=2, source="torchrun"), {"RANK": "1", "WORLD_SIZE": "2"})


def test_rank_0_tells_its_host_and_a_free_port(monkeypatch):
    found = told_by_rank_0(Placement(world=2, local_world=2, source="mpi"), Alone())
    assert found["MASTER_ADDR"] == "127.0.0.1" and FIRST_PORT <= int(found["MASTER_PORT"]) < FIRST_PORT + PORTS
    monkeypatch.setattr(socket, "gethostname", lambda: "no-such-host.invalid")
    with pytest.raises(InputError, match="this host's own name does not resolve: no-such-host.invalid"):
        told_by_rank_0(Placement(world=2, source="mpi"), Alone())


def test_a_port_in_use_is_not_free(monkeypatch):
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        offers = iter([port, free_port()])
        monkeypatch.setattr("secrets.randbelow", lambda _: next(offers) - FIRST_PORT)
        assert free_port() != port


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"MASTER_ADDR": "no-such-host.invalid", "MASTER_PORT": "29500"}, r"MASTER_ADDR=no-such-host\.invalid does not resolve"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR= does not resolve"),
        *(({"MASTER_ADDR": "localhost", "MASTER_PORT": port}, f"MASTER_PORT={port}") for port in ("0", "65536", "http", "", "-1", "1e3")),
    ],
)
def test_a_place_where_nobody_can_be_met_is_refused(environ, words):
    with pytest.raises(InputError, match=words) as caught:
        check_meeting_point({"RANK": "0", "WORLD_SIZE": "2", **environ})
    assert caught.value.expected and caught.value.mend
    check_meeting_point(environ)  # alone: nobody to meet


def test_good_places_pass():
    for environ in ({"MASTER_ADDR": "localhost", "MASTER_PORT": "65535"}, {"MASTER_ADDR": "::1", "MASTER_PORT": "1"}, {}):
        check_meeting_point({"WORLD_SIZE": "2", **environ})


def test_tasks_of_a_step_agree_on_a_port_and_no_other_step_reads_it(tmp_path):
    zero, one = (Placement(rank=rank, world=2, source="slurm") for rank in (0, 1))
    environ = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(agreed_port, tmp_path, one, environ)
        port = agreed_port(tmp_path, zero, environ)
        assert waiting.result(timeout=10) == port and FIRST_PORT <= port < FIRST_PORT + PORTS
    again = environ | {"SLURM_RESTART_COUNT": "1"}
    with pytest.raises(TryAgain, match="named no port"):
        agreed_port(tmp_path, one, again, patience_s=0.3)
