"""Where the ranks of a run meet: MASTER_ADDR and MASTER_PORT, found where the launcher names none, and checked before torch waits there."""

from __future__ import annotations

import re
import secrets
import shlex
import socket
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data_shards import durable
from data_shards.errors import InputError, TryAgain
from slurm.nodelist import expand
from slurm.preempt import ATTEMPT
from slurm.programs import ask
from slurm.rank import MpiCommunicator, Placement, has_own_mpiexec, slurm_step

# below the ports that systems give to outgoing connections (Linux: from 32768): between choice and use none of those takes it
FIRST_PORT, PORTS = 20000, 10000
LOOKUPS = 16  # at once: a name server that does not answer takes seconds a name


def unresolved(names: Iterable[str]) -> dict[str, str]:
    """Those of these host names that this machine cannot look up, and why."""

    def reason(name: str) -> str | None:
        try:
            socket.getaddrinfo(name, None)
        except OSError as error:
            return error.strerror or str(error)
        except ValueError:  # a label too long or empty, or a NUL
            return "not the form of a host name"
        return None

    asked = list(names)
    with ThreadPoolExecutor(LOOKUPS) as pool:
        return {name: why for name, why in zip(asked, pool.map(reason, asked), strict=True) if why}


def free_port(first: int = FIRST_PORT) -> int:
    """A port that nobody listens on here now, among the `PORTS` from `first` on.

    Raises:
        InputError: none was found.
    """
    for _ in range(100):
        with socket.socket() as probe:
            try:
                probe.bind(("", port := first + secrets.randbelow(PORTS)))
            except OSError:
                continue
            return port
    raise InputError("no free port", where=f"{first} to {first + PORTS - 1}", mend="set MASTER_ADDR and MASTER_PORT")


def meeting_point(place: Placement, environ: Mapping[str, str]) -> dict[str, str]:
    """MASTER_ADDR and MASTER_PORT, for ranks whose launcher names none.

    Tasks of an srun step know it without asking each other, whichever --mpi they were started with (a PMI of SLURM that failed now and
    then on what MPICH wrote into it was seen); processes of mpiexec ask their rank 0.

    Raises:
        InputError: it cannot be known, or the host that was found does not resolve.
    """
    step = slurm_step(environ)
    if step and (step.rank, step.world) == (place.rank, place.world) and not has_own_mpiexec(environ):
        return _of_step(place, environ)
    if place.source == "mpi":
        return told_by_rank_0(place, MpiCommunicator(place))
    raise InputError(
        f"rank {place.rank} of {place.world} without MASTER_ADDR",
        where="the launch environment",
        expected="the host of rank 0, and MASTER_PORT, a free port there",
        mend="start by torchrun, accelerate launch, deepspeed, mpiexec or srun, or export both",
    )


def told_by_rank_0(place: Placement, comm: MpiCommunicator) -> dict[str, str]:
    """Rank 0's host and a port that is free there, told over `comm`."""
    meeting: dict[str, str] | InputError | None = None
    if place.rank == 0:
        host = "127.0.0.1" if place.local_world == place.world else socket.gethostname()
        try:
            if why := unresolved([host]):
                raise InputError(
                    f"this host's own name does not resolve: {host} ({why[host]})", mend="export MASTER_ADDR=IP and MASTER_PORT=PORT"
                )
            meeting = {"MASTER_ADDR": host, "MASTER_PORT": str(free_port())}
        except InputError as error:
            meeting = error  # the others wait for a word
    meeting = comm.broadcast(meeting)
    if isinstance(meeting, InputError):
        raise meeting
    return meeting


def agreed_port(folder: Path, place: Placement, environ: Mapping[str, str], *, patience_s: float = 120.0) -> int:
    """A port that is free on rank 0's host, for all tasks of a step: rank 0 writes it into the job's folder, the others read it there.

    Two jobs on one node would meet each other at a port that is worked out from the job's number.

    Raises:
        TryAgain: nothing was written in time: a folder that not all nodes see, or a rank 0 that did not start.
    """
    job, restart, step = (environ.get(f"SLURM_{name}", "0") for name in ("JOB_ID", "RESTART_COUNT", "STEP_ID"))
    # an attempt's own name tells it from one of the same number, which SLURM gave away again
    port_file = folder / f"port.{environ.get(ATTEMPT) or f'{job}.{restart}'}.{step}"
    if place.rank == 0:
        port = free_port()
        durable.write_bytes(port_file, f"{port}\n".encode())
        return port
    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        try:
            return int(port_file.read_text())
        except FileNotFoundError:
            list(port_file.parent.iterdir())  # makes a network file system look again
            time.sleep(0.1)
    raise TryAgain(
        f"rank 0 named no port within {patience_s:.0f} s",
        where=port_file,
        expected="a job folder that every node of the job sees",
        mend="submit with --jobs on a file system of all nodes",
    )


def _of_step(place: Placement, environ: Mapping[str, str]) -> dict[str, str]:
    host = "127.0.0.1" if place.local_world == place.world else next(iter(expand(environ.get("SLURM_STEP_NODELIST", ""))), "")
    if unresolved([host]):  # a site may name its nodes otherwise than the network does
        try:
            host = re.search(r"\bNodeAddr=(\S+)", ask("scontrol", "--oneliner", "show", "node", host))[1]
        except (TryAgain, TypeError) as error:
            raise InputError(
                f"the first node of the step does not resolve: {host!r}",
                where="SLURM_STEP_NODELIST",
                expected="a name that the nodes can look up, or one whose NodeAddr SLURM tells",
                mend="export MASTER_ADDR=IP and MASTER_PORT=PORT before srun",
            ) from error
    number = int(environ.get("SLURM_JOB_ID", "0")) + int(environ.get("SLURM_STEP_ID", "0"))
    return {"MASTER_ADDR": host, "MASTER_PORT": str(FIRST_PORT + number % PORTS)}


def check_meeting_point(environ: Mapping[str, str]) -> None:
    """Refuse what torch would wait for in vain, for minutes. Says nothing of a process that meets nobody.

    Raises:
        InputError: MASTER_ADDR does not resolve, or MASTER_PORT is no port.
    """
    if "WORLD_SIZE" not in environ:
        return
    address, port = environ.get("MASTER_ADDR"), environ.get("MASTER_PORT")
    if address is not None and (why := unresolved([address])):
        raise InputError(
            f"MASTER_ADDR={address} does not resolve: {why[address]}",
            where="the launch environment",
            expected="the name or IP address of the host of rank 0",
            mend="another --master_addr (deepspeed, torchrun), --main_process_ip (accelerate launch) or MASTER_ADDR; "
            f"getent hosts {shlex.quote(address)} has to answer",
        )
    if port is not None and not (re.fullmatch(r"[0-9]{1,5}", port) and 1 <= int(port) <= 65535):
        raise InputError(
            f"MASTER_PORT={port}",
            where="the launch environment",
            expected="a number from 1 to 65535",
            mend="another --master_port (deepspeed, torchrun), --main_process_port (accelerate launch) or MASTER_PORT",
        )
