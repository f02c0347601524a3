"""Who am I? From every launcher, and a refusal where two of them disagree."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data_shards.errors import InputError
from slurm.rank import MpiCommunicator, Placement, placement, tasks_on_node, torch_environ

TASK = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_NTASKS": "6", "SLURM_LOCALID": "1", "SLURM_NODEID": "2"}
TASK |= {"SLURM_STEP_NUM_TASKS": "6", "SLURM_STEP_TASKS_PER_NODE": "2(x3)"}
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, Placement()),
        (TORCHRUN, Placement(rank=3, world=4, local_rank=1, local_world=2, source="torchrun")),
        (TASK, Placement(rank=5, world=6, local_rank=1, local_world=2, source="slurm")),
        (
            {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"},
            Placement(rank=1, world=2, local_rank=1, local_world=2, source="mpi"),
        ),
        (
            {
                "OMPI_COMM_WORLD_RANK": "3",
                "OMPI_COMM_WORLD_SIZE": "4",
                "OMPI_COMM_WORLD_LOCAL_RANK": "0",
                "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
            },
            Placement(rank=3, world=4, source="mpi"),
        ),
        (
            TASK | {"PMI_RANK": "5", "PMI_SIZE": "6"},
            Placement(rank=5, world=6, local_rank=1, local_world=2, source="mpi"),
        ),  # srun --mpi=pmi2
    ],
)
def test_each_launcher_is_understood(environ, expected):
    assert placement(environ) == expected


@pytest.mark.parametrize("step", [None, str(0xFFFFFFFB), str(0xFFFFFFFA)])
def test_an_allocation_without_a_task_is_one_process(step):
    """A batch script, and the shell of `salloc`, see SLURM_NTASKS=6 and are no rank of anything."""
    environ = {key: value for key, value in TASK.items() if not key.startswith("SLURM_STEP")} | {"SLURM_PROCID": "0"}
    assert placement(environ | ({"SLURM_STEP_ID": step} if step else {})) == Placement()


def test_one_agent_a_node_started_by_srun_is_fine_and_lonely_agents_are_not():
    workers = {
        "RANK": "11",
        "WORLD_SIZE": "12",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "TORCHELASTIC_RUN_ID": "x",
        "GROUP_WORLD_SIZE": "6",
    }
    assert placement(TASK | workers).world == 12
    lonely = workers | {"RANK": "1", "WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1"}
    with pytest.raises(InputError, match=r"torchrun says rank 1 of 2, slurm says rank 5 of 6(.|\n)*6 copies of 1 process\(es\)"):
        placement(TASK | lonely)


def test_mpiexec_inside_a_job_starts_its_proxies_by_srun():
    node = {"SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_NODEID": "1", "SLURM_LOCALID": "0"}
    proxies = TASK | node | {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}
    assert placement(proxies | {"PMI_RANK": "6", "PMI_SIZE": "8", "MPI_LOCALRANKID": "2", "MPI_LOCALNRANKS": "4"}).rank == 6


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        (TASK | {"RANK": "0", "WORLD_SIZE": "1"}, "torchrun says rank 0 of 1, slurm says rank 5 of 6"),
        (TORCHRUN | {"PMI_RANK": "0", "PMI_SIZE": "4"}, "torchrun says rank 3 of 4, mpi says rank 0 of 4"),
        ({"RANK": "0"}, "RANK=0 without WORLD_SIZE"),
        ({"RANK": "two", "WORLD_SIZE": "4"}, "RANK=two"),
        ({"RANK": "4", "WORLD_SIZE": "4"}, "rank 4 of 4"),
    ],
)
def test_contradictions_are_refused_and_both_sides_named(environ, words):
    with pytest.raises(InputError, match=words) as caught:
        placement(environ)
    assert caught.value.mend


def test_torch_hears_the_same_as_we_do():
    assert placement(torch_environ(placement(TASK))) == Placement(rank=5, world=6, local_rank=1, local_world=2, source="torchrun")


def test_run_lengths():
    assert [tasks_on_node("2(x3),1", n) for n in range(4)] == [2, 2, 2, 1]
    with pytest.raises(InputError, match="node 4 of a step on 4"):
        tasks_on_node("2(x3),1", 4)
    with pytest.raises(InputError, match="run lengths"):
        tasks_on_node("2(x3", 0)


MPIEXEC = shutil.which("mpiexec", path=str(Path(sys.executable).parent))  # the one of the same MPI as mpi4py's, not any on PATH


@pytest.mark.skipif(MPIEXEC is None, reason="no mpiexec beside this Python: pip install 'retinaforge[mpi]'")
def test_two_mpi_processes_sum_broadcast_and_know_that_they_are_two(tmp_path):
    code = """
import json, sys, numpy as np
from slurm.rank import MpiCommunicator, placement
comm = MpiCommunicator()
sums = np.full((2, 3), 10.0 ** comm.rank)
comm.all_reduce_sum_(sums)
told = comm.broadcast({"path": "newest"} if comm.rank == 0 else None)
comm.barrier()
with open(f"{sys.argv[1]}/{comm.rank}.json", "w") as file:  # mpiexec may run the lines of two ranks into one
    json.dump([comm.rank, comm.world, placement().local_world, sums.sum(), told["path"]], file)
"""
    done = subprocess.run(
        [MPIEXEC, "-n", "2", sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [json.loads(path.read_text()) for path in sorted(tmp_path.iterdir())] == [[0, 2, 2, 66.0, "newest"], [1, 2, 2, 66.0, "newest"]]


@pytest.mark.skipif(MPIEXEC is None, reason="no mpiexec beside this Python: pip install 'retinaforge[mpi]'")
def test_an_mpi_that_does_not_hear_its_launcher_is_refused():
    """Open MPI under `srun --mpi=pmi2` runs N worlds of one; here a launcher that MPI knows nothing of."""
    code = "from slurm.rank import *; MpiCommunicator(Placement(rank=1, world=4))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0 and "MPI says rank 0 of 1" in done.stderr and "rank 1 of 4" in done.stderr
    assert MpiCommunicator.__name__  # imported here without initialising MPI in the test process
