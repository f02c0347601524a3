"""The processes of a local cluster: its daemons by name, number and start, and whatever else runs with its configuration."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from data_shards.errors import InputError

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
ACCOUNTING = ("slurmdbd", "mariadbd", "mariadb-install-db")
STEP, ONE_EACH = "slurmstepd", ("munged", "slurmctld", "slurmdbd", "mariadbd")
SBIN = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])


@dataclass
class Process:
    """A process by its number and the time it was started, for numbers are given again."""

    pid: int
    started: int
    child: subprocess.Popen | None = None

    def alive(self) -> bool:
        """It runs, and it is the same one."""
        if self.child is not None:
            return self.child.poll() is None
        return started_at(self.pid) == self.started

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it is there."""
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def end(self, patience_s: float = 0.0) -> None:
        """Wait until it has ended; after so many seconds it is killed."""
        until = time.monotonic() + patience_s
        while self.alive():
            if time.monotonic() >= until:
                self.send(signal.SIGKILL)
            time.sleep(0.02)


def started_at(pid: int) -> int | None:
    """When a process was started, in ticks since the system was; None: there is none, or it has ended and nobody has asked after it."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def programs_of(root: Path) -> dict[int, str]:
    """The programs of SLURM that run here and were started with this cluster's configuration, by their numbers."""
    mine = {f"SLURM_CONF={root}/{conf}".encode() for conf in ("slurm.conf", "slurmdbd.conf")}
    names: dict[int, str] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                name = (folder / "comm").read_text(errors="replace").strip()
                if name in (*PROGRAMS, *ACCOUNTING, STEP) and mine & set((folder / "environ").read_bytes().split(b"\0")):
                    names[int(folder.name)] = name
            except OSError:
                continue  # it has ended meanwhile, or is another user's
    return names


def steps_of(root: Path) -> list[int]:
    """Tasks of jobs: slurmstepd outlives its slurmd by design."""
    return [pid for pid, name in programs_of(root).items() if name == STEP]


def daemons_of(root: Path) -> dict[str, Process]:
    """The daemons that run with this cluster's configuration, by name; those of which there are several, by name and number."""
    running = {pid: name for pid, name in programs_of(root).items() if name != STEP}
    return {name if name in ONE_EACH else f"{name}-{pid}": Process(pid, started_at(pid) or 0) for pid, name in running.items()}


def user_name() -> str:
    """This user's name: SLURM's daemons run under one.

    Raises:
        InputError: this user has a number alone.
    """
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError as error:
        raise InputError(
            f"user {os.getuid()} has no name on this machine",
            expected="an entry in /etc/passwd: SLURM's daemons run under a name",
            mend="start it as another user",
        ) from error
