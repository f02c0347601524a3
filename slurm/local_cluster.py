"""A real SLURM of several nodes on this one machine: munged, slurmctld and one slurmd a node; with accounting, slurmdbd and MariaDB too.

No systemd, no cgroups, no root needed, nothing written outside one folder, and nothing listens but on loopback. Tests hold it in a
`with` block: its daemons are then told by the kernel to end when their process does. `retinaforge slurm-local` leaves them running.

Needs: apt-get install --no-install-recommends slurm-wlm munge    with accounting also: slurmdbd mariadb-server
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from data_shards import durable
from data_shards.errors import CorruptData, InputError, TryAgain
from slurm.local_conf import INIT_SQL, mariadbd_words, slurm_conf, slurmdbd_conf
from slurm.local_daemons import ACCOUNTING, PROGRAMS, SBIN, Process, daemons_of, started_at, steps_of, user_name
from slurm.local_folder import check_own, elsewhere, make_root, slurm_local
from slurm.meeting import free_port

STATE = "daemons.json"
FIRST_PORT = 10000  # below those where ranks meet, and those of outgoing connections, which could take that of a daemon that is away


def missing(*, accounting: bool = False) -> str | None:
    """Why there can be no cluster here, or None."""
    absent = [name for name in (*PROGRAMS, *(ACCOUNTING if accounting else ())) if shutil.which(name, path=SBIN) is None]
    packages = "slurm-wlm munge" + (" slurmdbd mariadb-server" if accounting else "")
    return f"{', '.join(absent)} not installed: apt-get install --no-install-recommends {packages}" if absent else None


class LocalCluster:
    """
    Args:
        nodes: how many slurmd, named n1, n2, …
        cpus: what each claims to have.
        accounting: keep the books in MariaDB by slurmdbd, so that sacct answers.
        settings: further lines of slurm.conf, which go before those here: {"MaxArraySize": "10"}.
        root: its folder; a temporary one where none is given, removed with the cluster.
        detached: the daemons go on when this process ends; `LocalCluster.at(root)` finds them again.
    """

    def __init__(
        self,
        nodes: int = 2,
        cpus: int = 4,
        *,
        accounting: bool = False,
        settings: Mapping[str, str] | None = None,
        root: Path | None = None,
        detached: bool = False,
    ) -> None:
        self.nodes, self.cpus, self.accounting, self.detached = nodes, cpus, accounting, detached
        self.settings = dict(settings or {})
        self.root = root or Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self.daemons: dict[str, Process] = {}
        self.begun = False
        """What lies in the folder is ours, and goes with the cluster."""

    @classmethod
    def at(cls, root: Path) -> LocalCluster | None:
        """The detached cluster whose folder this is; None: there is none.

        Raises:
            InputError: the folder is another user's. CorruptData: the list of its daemons cannot be read; `left_at` finds them.
        """
        path = root / STATE
        if not os.path.lexists(root):
            return None
        check_own(root)
        if not path.exists():
            return None
        try:
            state = json.loads(path.read_bytes())
            cluster = cls(state["nodes"], state["cpus"], accounting=state["accounting"], root=root, detached=True)
            cluster.daemons = {name: Process(int(pid), int(started)) for name, (pid, started) in state["daemons"].items()}
        except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
            raise CorruptData(
                f"the list of the cluster's daemons is damaged: {error!r}",
                where=path,
                expected="what `slurm-local start` wrote",
                mend=f"{slurm_local('stop', root)} ends what runs of it, and removes its folder",
            ) from error
        cluster.begun = True
        return cluster

    @classmethod
    def left_at(cls, root: Path) -> LocalCluster:
        """The cluster of a folder whose list of daemons is damaged: they are known by the configuration that they were started with.

        Raises:
            InputError: there is no cluster's configuration.
        """
        if not (root / "slurm.conf").is_file():
            raise InputError(
                "no cluster's folder", where=root, expected="slurm.conf in it", mend=f"it stays as it is; a cluster: {elsewhere()}"
            )
        cluster = cls(root=root, detached=True)
        cluster.begun, cluster.daemons = True, daemons_of(root)
        return cluster

    @property
    def environ(self) -> dict[str, str]:
        """What sbatch, srun and the like need to find this cluster."""
        return {"SLURM_CONF": str(self.root / "slurm.conf")}

    @property
    def dead(self) -> list[str]:
        """Daemons that were started and are gone."""
        return [name for name, daemon in self.daemons.items() if not daemon.alive()]

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
        """Start everything and wait until all nodes are idle.

        Raises:
            InputError: the folder holds a cluster already. TryAgain: a daemon does not come up; its logs are told.
        """
        user, host = user_name(), socket.gethostname().split(".")[0]
        make_root(self.root, self.nodes)
        self.begun = True
        self.root.chmod(0o755)
        ctld_port, dbd_port, db_port, *node_ports = _free_ports(self.nodes + 3)
        conf = slurm_conf(
            self.root,
            host=host,
            user=user,
            ctld_port=ctld_port,
            dbd_port=dbd_port if self.accounting else None,
            node_ports=node_ports,
            cpus=self.cpus,
            settings=self.settings,
        )
        (self.root / "slurm.conf").write_text(conf)
        self._start_munge()
        if self.accounting:
            self._start_accounting(host, user, dbd_port, db_port)
        (self.root / "state").mkdir(0o700)
        self._start_controller()
        for node in (f"n{i}" for i in range(1, self.nodes + 1)):
            for purpose in ("tmp", "spool"):
                (self.root / f"{purpose}-{node}").mkdir()
            self._spawn_slurmd(node)
        self._wait("slurmd", lambda: self.run("sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N").count("\n") == self.nodes)

    def _start_munge(self) -> None:
        folder = self.root / "munge"
        folder.mkdir()
        folder.chmod(0o755)
        key = folder / "key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(1024))
        files = [f"--{name}-file={folder}/{name}" for name in ("key", "pid", "log", "seed")]
        self._spawn("munged", "--foreground", f"--socket={folder}/socket", *files)
        self._wait("munged", lambda: self._succeeds("munge", "-S", f"{folder}/socket", "--no-input"))

    def _start_accounting(self, host: str, user: str, dbd_port: int, db_port: int) -> None:
        """MariaDB in the cluster's folder, and slurmdbd before it."""
        password = secrets.token_hex(16)
        words = ("--no-defaults", f"--user={user}", f"--datadir={self.root}/mysql", "--skip-test-db")
        if code := self._exit_code("mariadb-install-db", *words):
            raise TryAgain(f"the database was not made: exit code {code}", where=self.root, mend="see mariadb-install-db.out there")
        durable.write_bytes(self.root / "init.sql", INIT_SQL.format(password=password).encode())
        (self.root / "init.sql").chmod(0o600)
        conf = self.root / "slurmdbd.conf"
        conf.touch(0o600)  # slurmdbd refuses one that others may read
        conf.write_text(slurmdbd_conf(self.root, host=host, user=user, dbd_port=dbd_port, db_port=db_port, password=password))
        self._spawn("mariadbd", *mariadbd_words(self.root, user=user, port=db_port))
        self._wait("mariadbd", lambda: _listens(db_port))
        self._spawn("slurmdbd", "-D")
        self._wait("slurmdbd", lambda: _listens(dbd_port))

    def _start_controller(self) -> None:
        self._spawn("slurmctld", "-D")
        self._wait("slurmctld", lambda: self._succeeds("scontrol", "ping"))

    def _spawn_slurmd(self, node: str) -> None:
        self._spawn("slurmd", "-D", "-N", node, name=f"slurmd-{node}")

    def stop(self) -> None:
        """End the jobs, then the daemons, then whatever of theirs is left; remove the folder, unless `start` refused it."""
        if "slurmctld" in self.daemons and self.daemons["slurmctld"].alive():
            self._succeeds("scancel", f"--user={user_name()}")
            until = time.monotonic() + 10
            while time.monotonic() < until and steps_of(self.root):
                time.sleep(0.1)
        for daemon in reversed(self.daemons.values()):
            daemon.send(signal.SIGTERM)
        for daemon in reversed(self.daemons.values()):
            daemon.end(patience_s=10)
        for pid in steps_of(self.root):
            os.kill(pid, signal.SIGKILL)
        if self.begun:
            shutil.rmtree(self.root, ignore_errors=True)

    def kill(self, daemon: str) -> None:
        """SIGKILL for one daemon: 'slurmctld', or 'slurmd-n2', whose tasks go on."""
        self.daemons[daemon].end()

    def revive(self, daemon: str) -> None:
        """Start a daemon of jobs that was killed once more, and wait until it answers."""
        if daemon == "slurmctld":
            self._start_controller()
            return
        node = daemon.removeprefix("slurmd-")
        self._spawn_slurmd(node)

        def up() -> bool:
            self._succeeds("scontrol", "update", f"NodeName={node}", "State=RESUME")  # refused where it is not down
            state = self.run("sinfo", "-h", "-n", node, "-p", "main", "-o", "%T").strip()
            return state.isalpha() and state != "down"

        self._wait(daemon, up)

    def run(self, *command: str, check: bool = True) -> str:
        """A SLURM command against this cluster; its stdout."""
        done = subprocess.run(command, env={**os.environ, **self.environ}, capture_output=True, text=True, timeout=30, check=False)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def _spawn(self, program: str, *words: str, name: str | None = None) -> None:
        dying_with_us = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") and not self.detached else []
        name = name or program
        with open(self.root / f"{name}.out", "wb") as out:
            command = [*dying_with_us, str(shutil.which(program, path=SBIN)), *words]
            environ = {**os.environ, **self.environ, **({"SLURM_CONF": str(self.root / "slurmdbd.conf")} if program == "slurmdbd" else {})}
            streams = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": out}
            child = subprocess.Popen(command, env=environ, start_new_session=True, **streams)
        self.daemons[name] = Process(child.pid, started_at(child.pid) or 0, child)
        if self.detached:
            known = {name: [daemon.pid, daemon.started] for name, daemon in self.daemons.items()}
            kept = {"nodes": self.nodes, "cpus": self.cpus, "accounting": self.accounting, "daemons": known}
            durable.write_json(self.root / STATE, kept)

    def _exit_code(self, program: str, *words: str) -> int:
        """That of a program that ends by itself; what it says goes into the folder."""
        with open(self.root / f"{program}.out", "wb") as out:
            command = [str(shutil.which(program, path=SBIN)), *words]
            return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=120, check=False).returncode

    def _succeeds(self, *words: str) -> bool:
        environ = {**os.environ, **self.environ}
        try:
            return not subprocess.run(words, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=30).returncode
        except subprocess.TimeoutExpired:  # scancel of a cluster whose munged is gone
            return False

    def _wait(self, what: str, ready: Callable[[], bool], seconds: float = 30) -> None:
        until = time.monotonic() + seconds
        gone = {name for name in self.dead if not name.startswith(what)}  # others may be away on purpose
        while not ready():
            if (dead := [name for name in self.dead if name not in gone]) or time.monotonic() > until:
                logs = "\n".join(
                    f"--- {path.name}\n{path.read_text(errors='replace')[-2000:]}" for path in sorted(self.root.glob("*.[lo][ou][gt]"))
                )
                raise TryAgain(f"{what} did not come up{f', {dead[0]} ended' if dead else ''}\n{logs}", where=self.root)
            time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    """So many, no two alike."""
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port(FIRST_PORT))
    return list(ports)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
