"""A real SLURM of several nodes on this one machine: munged, slurmctld and one slurmd a node, all of them our children.

No systemd, no cgroups, no accounting, no root needed, nothing written outside one temporary folder. Every daemon runs in
the foreground under this process and is told by the kernel to end when this process does.

    python tests/cluster/local_cluster.py --nodes 4 -- bash      # a shell that talks to it; the cluster ends with the shell

Needs: apt-get install --no-install-recommends slurm-wlm munge
"""

from __future__ import annotations

import argparse
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
SBIN = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])

CONF = """\
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=5,sched_min_interval=0,bf_interval=5
MpiDefault=none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=1
KillWait=5
SlurmctldTimeout=10
SlurmdTimeout=10
MinJobAge=3600
PropagateResourceLimits=NONE
"""
# A requeued job waits until its old self is surely gone: twice the credential's life (cred_expire); a test has no 4 minutes.
CONF = CONF.replace("/munge/socket\n", "/munge/socket,cred_expire=5\n")


def missing() -> str | None:
    """Why there can be no cluster here, or None."""
    absent = [name for name in (*DAEMONS, "sbatch", "srun", "scontrol") if shutil.which(name, path=SBIN) is None]
    return f"{', '.join(absent)} not installed: apt-get install --no-install-recommends slurm-wlm munge" if absent else None


class LocalCluster:
    """Args:
    nodes: how many slurmd, named n1, n2, …
    cpus: what each claims to have.
    """

    def __init__(self, nodes: int = 2, cpus: int = 4) -> None:
        self.nodes, self.cpus = nodes, cpus
        self.root = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # short: a socket's path has 107 characters
        self.daemons: dict[str, subprocess.Popen] = {}

    @property
    def environ(self) -> dict[str, str]:
        """What sbatch, srun and the like need to find this cluster."""
        return {"SLURM_CONF": str(self.root / "slurm.conf")}

    def __enter__(self) -> LocalCluster:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start everything and wait until all nodes are idle; RuntimeError with the logs when they do not become so."""
        self.root.chmod(0o755)
        for name, mode in (("munge", 0o755), ("state", 0o700)):
            (self.root / name).mkdir()
            (self.root / name).chmod(mode)
        key = self.root / "munge" / "key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(1024))
        self._write_conf()
        munge = [f"--{name}-file={self.root}/munge/{name}" for name in ("key", "pid", "log", "seed")]
        self._spawn("munged", "--foreground", f"--socket={self.root}/munge/socket", *munge)
        self._wait("munged", lambda: self._succeeds("munge", "-S", f"{self.root}/munge/socket", "--no-input"))
        self._spawn("slurmctld", "-D")
        self._wait("slurmctld", lambda: self._succeeds("scontrol", "ping"))
        for i in range(1, self.nodes + 1):
            (self.root / f"spool-n{i}").mkdir()
            self._spawn("slurmd", "-D", "-N", f"n{i}", name=f"slurmd-n{i}")
        self._wait("slurmd", lambda: self.run("sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N").count("\n") == self.nodes)

    def stop(self) -> None:
        """End the jobs, then the daemons, then whatever of theirs is left; remove the folder."""
        if "slurmctld" in self.daemons and self.daemons["slurmctld"].poll() is None:
            self._succeeds("scancel", f"--user={getpass.getuser()}")
            until = time.monotonic() + 10
            while time.monotonic() < until and self._steps():
                time.sleep(0.1)
        for daemon in reversed(self.daemons.values()):
            daemon.terminate()
        for daemon in reversed(self.daemons.values()):
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for pid in self._steps():
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.root, ignore_errors=True)

    def run(self, *command: str, check: bool = True) -> str:
        """A SLURM command against this cluster; its stdout."""
        done = subprocess.run(command, env={**os.environ, **self.environ}, capture_output=True, text=True, timeout=30, check=False)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def _write_conf(self) -> None:
        ports = _free_ports(self.nodes + 1)
        host = socket.gethostname().split(".")[0]
        lines = [CONF.format(root=self.root, host=host, ctld_port=ports[0], user=getpass.getuser())]
        for i, port in enumerate(ports[1:], start=1):
            (self.root / f"tmp-n{i}").mkdir()
            lines.append(
                f"NodeName=n{i} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={self.cpus} RealMemory=4000 State=UNKNOWN\n"
            )
        all_nodes = f"n[1-{self.nodes}]"
        lines.append(f"PartitionName=main Nodes={all_nodes} Default=YES PriorityTier=10 PreemptMode=OFF State=UP\n")
        lines.append(f"PartitionName=scavenge Nodes={all_nodes} PriorityTier=1 PreemptMode=REQUEUE State=UP\n")
        (self.root / "slurm.conf").write_text("".join(lines))

    def _spawn(self, program: str, *words: str, name: str | None = None) -> None:
        dying_with_us = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
        name = name or program
        with open(self.root / f"{name}.out", "wb") as out:
            command = [*dying_with_us, str(shutil.which(program, path=SBIN)), *words]
            environ = {**os.environ, **self.environ}
            self.daemons[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environ, start_new_session=True
            )

    def _steps(self) -> list[int]:
        """slurmstepd outlives its slurmd by design; ours are those that were started with our configuration."""
        mine = f"SLURM_CONF={self.root}/slurm.conf".encode()
        daemons = {daemon.pid for daemon in self.daemons.values()} | {os.getpid()}
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal() and int(folder.name) not in daemons:
                try:
                    if mine in (folder / "environ").read_bytes().split(b"\0") and b"slurmstepd" in (folder / "comm").read_bytes():
                        found.append(int(folder.name))
                except OSError:
                    continue  # it has ended meanwhile, or is another user's
        return found

    def _succeeds(self, *command: str) -> bool:
        environ = {**os.environ, **self.environ}
        return (
            subprocess.run(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=30, check=False).returncode
            == 0
        )

    def _wait(self, what: str, ready: Callable[[], bool], seconds: float = 30) -> None:
        until = time.monotonic() + seconds
        while not ready():
            dead = [name for name, daemon in self.daemons.items() if daemon.poll() is not None]
            if dead or time.monotonic() > until:
                logs = "\n".join(
                    f"--- {path.name}\n{path.read_text(errors='replace')[-2000:]}" for path in sorted(self.root.glob("*.[lo][ou][gt]"))
                )
                raise RuntimeError(f"{what} did not come up{f', {dead[0]} ended' if dead else ''}\n{logs}")
            time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def main() -> int:
    parser = argparse.ArgumentParser(description="Run a command (default: a shell) with a SLURM cluster of its own on this machine.")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--cpus", type=int, default=4, help="that each node claims to have")
    parser.add_argument("command", nargs="*", default=["bash"])
    options = parser.parse_args()
    if reason := missing():
        parser.error(reason)
    with LocalCluster(options.nodes, options.cpus) as cluster:
        return subprocess.run(options.command, env={**os.environ, **cluster.environ}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
