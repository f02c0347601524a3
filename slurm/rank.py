"""Who am I among the processes of this run? Read from what the launcher left in the environment.

Launchers nest: `srun torchrun …` starts one agent a node by SLURM, and each agent starts its workers; `mpiexec` inside a
job starts its proxies by `srun`. The innermost launcher says who this process is; the outer ones have to fit to it, else
several copies of one run would train beside each other and each would believe that it is alone.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data_shards.errors import InputError

NOT_A_TASK = 0xFFFFFFF0  # slurm.h: step ids from here on are no srun steps (batch script 0xfffffffb, interactive 0xfffffffa, …)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """One process among those of a run.

    Attributes:
        rank: 0 … world - 1.
        world: how many processes there are.
        local_rank: 0 … local_world - 1, among those of this node; chooses the GPU.
        local_world: how many of them are on this node.
        source: who said so: 'torchrun', 'mpi', 'slurm' or 'single'.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    source: str = "single"

    def __post_init__(self) -> None:
        if not (0 <= self.rank < self.world and 0 <= self.local_rank < self.local_world <= self.world):
            raise InputError(
                f"rank {self.rank} of {self.world}, local rank {self.local_rank} of {self.local_world}",
                where=f"the environment, as set by {self.source}",
                expected="0 <= rank < world and 0 <= local rank < local world <= world",
                mend="unset what an earlier launcher exported (RANK, WORLD_SIZE, LOCAL_RANK, PMI_*, OMPI_COMM_WORLD_*)",
            )


def placement(environ: Mapping[str, str] | None = None) -> Placement:
    """Read rank and world from the launch environment; alone when there is no launcher.

    A SLURM batch script and an interactive `salloc` shell hold an allocation, but are no task of a step: alone.

    Raises:
        InputError: half a set of variables, values that are not numbers, or launchers that contradict each other.
    """
    env = os.environ if environ is None else environ
    launchers = [place for place in (_torchrun(env), _mpi(env), slurm_step(env)) if place is not None]  # innermost first
    for outer in launchers[1:]:
        _check_fit(launchers[0], outer, env)
    return launchers[0] if launchers else Placement()


def torch_environ(place: Placement) -> dict[str, str]:
    """The variables by which torch.distributed and Accelerate know the same placement."""
    values = {"RANK": place.rank, "WORLD_SIZE": place.world, "LOCAL_RANK": place.local_rank, "LOCAL_WORLD_SIZE": place.local_world}
    return {name: str(value) for name, value in values.items()}


def _check_fit(inner: Placement, outer: Placement, env: Mapping[str, str]) -> None:
    if outer.world == 1 or (inner.rank, inner.world) == (outer.rank, outer.world):
        return  # anything may have been started inside a single outer task
    agents = inner.world
    if inner.source == "torchrun" and "TORCHELASTIC_RUN_ID" in env:  # the outer launcher started torchrun's agents, not the workers
        agents = _number(env, "GROUP_WORLD_SIZE", default=1)
        if agents == outer.world:
            return
    if inner.source == "mpi" and outer.source == "slurm" and has_own_mpiexec(env) and outer.world <= inner.world:
        return  # mpiexec started its proxies, one a node, by srun
    raise InputError(
        f"{inner.source} says rank {inner.rank} of {inner.world}, {outer.source} says rank {outer.rank} of {outer.world}",
        where="the launch environment",
        expected=f"launchers that agree; otherwise {outer.world} copies of {agents} process(es) each would run beside each other",
        mend="start with one launcher only, or unset what an earlier one exported (RANK, WORLD_SIZE, …)",
    )


def _torchrun(env: Mapping[str, str]) -> Placement | None:
    """torchrun, `accelerate launch`, deepspeed: RANK and WORLD_SIZE."""
    if not _pair(env, "RANK", "WORLD_SIZE"):
        return None
    rank, world = _number(env, "RANK"), _number(env, "WORLD_SIZE")
    local_world = _number(env, "LOCAL_WORLD_SIZE", default=world if "LOCAL_RANK" in env else 1)  # deepspeed leaves it out
    return Placement(rank=rank, world=world, local_rank=_number(env, "LOCAL_RANK", default=0), local_world=local_world, source="torchrun")


def _mpi(env: Mapping[str, str]) -> Placement | None:
    """Open MPI's mpiexec, MPICH's mpiexec (hydra), and `srun --mpi=pmi2`, which sets PMI_* without the local ones."""
    if _pair(env, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"):
        names = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE")
    elif _pair(env, "PMI_RANK", "PMI_SIZE"):
        names = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
        if (
            not has_own_mpiexec(env)
            and (step := slurm_step(env))
            and (step.rank, step.world) == (_number(env, names[0]), _number(env, names[1]))
        ):
            return Placement(rank=step.rank, world=step.world, local_rank=step.local_rank, local_world=step.local_world, source="mpi")
    else:
        return None
    rank, world, local_rank, local_world = (
        _number(env, name, default=default) for name, default in zip(names, (None, None, 0, 1), strict=True)
    )
    return Placement(rank=rank, world=world, local_rank=local_rank, local_world=local_world, source="mpi")


def slurm_step(env: Mapping[str, str]) -> Placement | None:
    """A task of an srun step; not the batch script and not a shell inside an allocation, which see SLURM_NTASKS too."""
    if "SLURM_PROCID" not in env or _number(env, "SLURM_STEP_ID", default=NOT_A_TASK) >= NOT_A_TASK:
        return None
    world = _number(env, "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS")
    local_world = tasks_on_node(env.get("SLURM_STEP_TASKS_PER_NODE", "1"), _number(env, "SLURM_NODEID", default=0))
    return Placement(
        rank=_number(env, "SLURM_PROCID"),
        world=world,
        local_rank=_number(env, "SLURM_LOCALID", default=0),
        local_world=local_world,
        source="slurm",
    )


def tasks_on_node(text: str, node: int) -> int:
    """Tasks on the node of that number, from SLURM's run lengths: '2(x3),1' is 2, 2, 2, 1.

    Raises:
        InputError: another format, or fewer nodes than that.
    """
    counts: list[int] = []
    for part in text.split(","):
        if not (match := re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)):
            raise InputError(f"SLURM_STEP_TASKS_PER_NODE={text!r}", expected="run lengths such as 2(x3),1")
        counts += [int(match[1])] * int(match[2] or 1)
    if node >= len(counts):
        raise InputError(f"node {node} of a step on {len(counts)} nodes", where=f"SLURM_NODEID and SLURM_STEP_TASKS_PER_NODE={text}")
    return counts[node]


def has_own_mpiexec(env: Mapping[str, str]) -> bool:
    """Started by an mpiexec, not by srun in an MPI's words."""
    return "OMPI_COMM_WORLD_RANK" in env or "MPI_LOCALNRANKS" in env


def _pair(env: Mapping[str, str], first: str, second: str) -> bool:
    if (first in env) != (second in env):
        given, absent = (first, second) if first in env else (second, first)
        raise InputError(
            f"{given}={env[given]} without {absent}", where="the launch environment", expected="both or neither", mend=f"unset {given}"
        )
    return first in env


def _number(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = env.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isdecimal():
        raise InputError(
            f"{name}={text}", where="the launch environment", expected="a whole number", mend=f"unset {name}, or start by one launcher"
        )
    return int(text)


class MpiCommunicator:
    """The Communicator of `ldm.comm` over MPI, for CPU work such as the distributed k-means.

    Args:
        place: what the environment says; MPI has to agree.

    Raises:
        InputError: mpi4py or an MPI library is missing, or MPI sees another world. The latter happens where the
            library does not speak the launcher's language (Open MPI under `srun --mpi=pmi2`): N worlds of one process.
    """

    def __init__(self, place: Placement | None = None) -> None:
        place = placement() if place is None else place
        try:
            from mpi4py import MPI  # here: the import initialises MPI, which must not happen to who does not use it
        except (ImportError, RuntimeError) as error:
            raise InputError(
                f"mpi4py cannot be loaded: {error}", expected="mpi4py with an MPI library", mend="pip install 'retinaforge[mpi]'"
            ) from error
        self._mpi, self._comm = MPI, MPI.COMM_WORLD
        self.rank, self.world = self._comm.Get_rank(), self._comm.Get_size()
        if (self.rank, self.world) != (place.rank, place.world):
            raise InputError(
                f"MPI says rank {self.rank} of {self.world}, {place.source} says rank {place.rank} of {place.world}",
                expected="one world, of the size that was asked for",
                mend="start by the mpiexec of the same MPI library (pip's mpich has its own), or by srun --mpi=pmi2 with MPICH",
            )

    def all_reduce_sum_(self, array: Any) -> Any:
        """Sum `array` over all ranks, in place: numpy's or a tensor of a processor, contiguous, of the same shape and dtype everywhere."""
        import numpy as np  # here: every task of every job would load it, with its threads

        self._comm.Allreduce(self._mpi.IN_PLACE, np.asarray(array), op=self._mpi.SUM)
        return array

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, everywhere."""
        return self._comm.bcast(value, root=0)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, everywhere, by rank."""
        return self._comm.allgather(value)

    def barrier(self) -> None:
        """Wait until all are here."""
        self._comm.Barrier()


def end_mpi(code: int) -> None:
    """After an error, end all of MPI's processes with `code`: the others would wait for this one for ever.

    They get two seconds, in case they met the same error and are about to say so.
    """
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi and mpi.Is_initialized() and not mpi.Is_finalized() and mpi.COMM_WORLD.Get_size() > 1:
        time.sleep(2)
        mpi.COMM_WORLD.Abort(code)
