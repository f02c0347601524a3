"""A real SLURM of several nodes on this one machine: munged, slurmctld and one slurmd a node; with accounting, slurmdbd and MariaDB too.

No systemd, no cgroups, no root needed, nothing written outside one folder, and nothing listens but on loopback. Tests hold it in a
`with` block: its daemons are then told by the kernel to end when their process does. `retinaforge slurm-local` leaves them running.

Needs: apt-get install --no-install-recommends slurm-wlm munge    with accounting also: slurmdbd mariadb-server
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from data_shards import durable
from data_shards.errors import CorruptData, InputError, TryAgain, command
from slurm.local_conf import DBD_CONF, slurm_conf
from slurm.meeting import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
ACCOUNTING = ("slurmdbd", "mariadbd", "mariadb-install-db")
STEP, ONE_EACH = "slurmstepd", ("munged", "slurmctld", "slurmdbd", "mariadbd")
STATE = "daemons.json"
LONGEST_SOCKET = 107  # characters of a socket's path
FIRST_PORT = 10000  # its daemons keep clear of where ranks meet, and of outgoing connections: one would take the port of one that is away
SBIN = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])


def missing(*, accounting: bool = False) -> str | None:
    """Why there can be no cluster here, or None."""
    absent = [name for name in (*PROGRAMS, *(ACCOUNTING if accounting else ())) if shutil.which(name, path=SBIN) is None]
    packages = "slurm-wlm munge" + (" slurmdbd mariadb-server" if accounting else "")
    return f"{', '.join(absent)} not installed: apt-get install --no-install-recommends {packages}" if absent else None


def default_root() -> Path:
    """One cluster a user: a short path, for a socket's has 107 characters at most."""
    return Path(tempfile.gettempdir()) / f"retinaforge-slurm-{os.getuid()}"


def slurm_local(verb: str, root: Path) -> str:
    """`retinaforge slurm-local VERB` on the cluster of this folder, as a shell reads it."""
    return command("retinaforge", "slurm-local", verb, *([] if root == default_root() else ["--root", root]))


def elsewhere() -> str:
    """The command that starts a cluster in a folder that is free."""
    return slurm_local("start", next(free for n in count(2) if not os.path.lexists(free := Path(f"/tmp/{default_root().name}-{n}"))))


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
        _check_own(root)
        if not path.exists():
            return None
        try:
            state = json.loads(path.read_bytes())
            found = cls(state["nodes"], state["cpus"], accounting=state["accounting"], root=root, detached=True)
            found.daemons = {name: Process(int(pid), int(started)) for name, (pid, started) in state["daemons"].items()}
        except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
            raise CorruptData(
                f"the list of the cluster's daemons is damaged: {error!r}",
                where=path,
                expected="what `slurm-local start` wrote",
                mend=f"{slurm_local('stop', root)} ends what runs of it, and removes its folder",
            ) from error
        found.begun = True
        return found

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
        found = cls(root=root, detached=True)
        found.begun = True
        found.daemons = {
            name if name in ONE_EACH else f"{name}-{pid}": Process(pid, started_at(pid) or 0)
            for pid, name in found._processes().items()
            if name != STEP
        }
        return found

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
        _user()
        if os.path.lexists(self.root):
            _check_own(self.root)
            if any(self.root.iterdir()):
                raise InputError(
                    "the folder of a cluster is not empty",
                    where=self.root,
                    expected="none, or an empty one",
                    mend=f"another one: {elsewhere()}",
                )
        _check_reach(self.root, self.nodes)
        with durable.explained(self.root):
            for folder in reversed([self.root, *self.root.parents]):
                if not folder.exists():
                    folder.mkdir()
                    folder.chmod(0o755)  # whatever the umask is
        self.begun = True
        self.root.chmod(0o755)
        for name, mode in (("munge", 0o755), ("state", 0o700)):
            (self.root / name).mkdir()
            (self.root / name).chmod(mode)
        key = self.root / "munge" / "key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(1024))
        ctld_port, dbd_port, db_port, *node_ports = _ports(self.nodes + 3)
        for i in range(1, self.nodes + 1):
            (self.root / f"tmp-n{i}").mkdir()
        conf = slurm_conf(
            self.root,
            host=_host(),
            user=_user(),
            ctld_port=ctld_port,
            dbd_port=dbd_port if self.accounting else None,
            node_ports=node_ports,
            cpus=self.cpus,
            settings=self.settings,
        )
        (self.root / "slurm.conf").write_text(conf)
        munge = [f"--{name}-file={self.root}/munge/{name}" for name in ("key", "pid", "log", "seed")]
        self._spawn("munged", "--foreground", f"--socket={self.root}/munge/socket", *munge)
        self._wait("munged", lambda: self._succeeds("munge", "-S", f"{self.root}/munge/socket", "--no-input"))
        if self.accounting:
            self._start_accounting(dbd_port, db_port)
        self._spawn("slurmctld", "-D")
        self._wait("slurmctld", lambda: self._succeeds("scontrol", "ping"))
        for i in range(1, self.nodes + 1):
            (self.root / f"spool-n{i}").mkdir()
            self._spawn_slurmd(f"n{i}")
        self._wait("slurmd", lambda: self.run("sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N").count("\n") == self.nodes)

    def _start_accounting(self, dbd_port: int, db_port: int) -> None:
        """MariaDB in the cluster's folder, and slurmdbd before it."""
        password, user = secrets.token_hex(16), _user()
        made = self._made_by("mariadb-install-db", "--no-defaults", f"--user={user}", f"--datadir={self.root}/mysql", "--skip-test-db")
        if made:
            raise TryAgain(f"the database was not made: {made}", where=self.root, mend="see mariadb-install-db.out there")
        durable.write_bytes(
            self.root / "init.sql",
            f"CREATE DATABASE IF NOT EXISTS slurm_acct;\nCREATE USER IF NOT EXISTS slurm@'127.0.0.1' IDENTIFIED BY '{password}';\n"
            "GRANT ALL ON slurm_acct.* TO slurm@'127.0.0.1';\n".encode(),
        )
        (self.root / "init.sql").chmod(0o600)
        conf = self.root / "slurmdbd.conf"
        conf.touch(0o600)  # slurmdbd refuses one that others may read
        conf.write_text(DBD_CONF.format(root=self.root, host=_host(), user=user, dbd_port=dbd_port, db_port=db_port, password=password))
        words = [
            f"--user={user}",
            f"--datadir={self.root}/mysql",
            f"--socket={self.root}/mysql.sock",
            f"--pid-file={self.root}/mariadbd.pid",
        ]
        words += ["--bind-address=127.0.0.1", f"--port={db_port}", "--skip-name-resolve", f"--init-file={self.root}/init.sql"]
        words += [
            "--innodb-buffer-pool-size=64M",
            "--innodb-log-file-size=16M",
            "--innodb-lock-wait-timeout=900",
            "--performance-schema=OFF",
        ]
        self._spawn("mariadbd", "--no-defaults", *words)
        self._wait("mariadbd", lambda: _listens(db_port))
        self._spawn("slurmdbd", "-D")
        self._wait("slurmdbd", lambda: _listens(dbd_port))

    def stop(self) -> None:
        """End the jobs, then the daemons, then whatever of theirs is left; remove the folder, unless `start` refused it."""
        if "slurmctld" in self.daemons and self.daemons["slurmctld"].alive():
            self._succeeds("scancel", f"--user={_user()}")
            until = time.monotonic() + 10
            while time.monotonic() < until and self._steps():
                time.sleep(0.1)
        for daemon in reversed(self.daemons.values()):
            daemon.end(signal.SIGTERM)
        for daemon in reversed(self.daemons.values()):
            until = time.monotonic() + 10
            while daemon.alive():
                if time.monotonic() > until:
                    daemon.end(signal.SIGKILL)
                time.sleep(0.02)
        for pid in self._steps():
            os.kill(pid, signal.SIGKILL)
        if self.begun:
            shutil.rmtree(self.root, ignore_errors=True)

    def kill(self, daemon: str) -> None:
        """SIGKILL for one daemon: 'slurmctld', or 'slurmd-n2', whose tasks go on."""
        self.daemons[daemon].end(signal.SIGKILL)
        while self.daemons[daemon].alive():
            time.sleep(0.02)

    def revive(self, daemon: str) -> None:
        """Start a daemon of jobs that was killed once more, and wait until it answers."""
        if daemon == "slurmctld":
            self._spawn("slurmctld", "-D")
            self._wait("slurmctld", lambda: self._succeeds("scontrol", "ping"))
            return
        node = daemon.removeprefix("slurmd-")
        self._spawn_slurmd(node)

        def up() -> bool:
            self._succeeds("scontrol", "update", f"NodeName={node}", "State=RESUME")  # refused where it is not down
            state = self.run("sinfo", "-h", "-n", node, "-p", "main", "-o", "%T").strip()
            return state.isalpha() and state != "down"

        self._wait(daemon, up)

    def _spawn_slurmd(self, node: str) -> None:
        self._spawn("slurmd", "-D", "-N", node, name=f"slurmd-{node}")

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

    def _made_by(self, program: str, *words: str) -> int:
        """Exit code of a program that ends by itself; what it says goes into the folder."""
        with open(self.root / f"{program}.out", "wb") as out:
            command = [str(shutil.which(program, path=SBIN)), *words]
            return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=120, check=False).returncode

    def _steps(self) -> list[int]:
        """slurmstepd outlives its slurmd by design."""
        return [pid for pid, name in self._processes().items() if name == STEP]

    def _processes(self) -> dict[int, str]:
        """The programs of SLURM that run here and were started with our configuration, by their numbers."""
        mine = {f"SLURM_CONF={self.root}/{conf}".encode() for conf in ("slurm.conf", "slurmdbd.conf")}
        found = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal():
                try:
                    name = (folder / "comm").read_text(errors="replace").strip()
                    if name in (*PROGRAMS, *ACCOUNTING, STEP) and mine & set((folder / "environ").read_bytes().split(b"\0")):
                        found[int(folder.name)] = name
                except OSError:
                    continue  # it has ended meanwhile, or is another user's
        return found

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


def _user() -> str:
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


def _check_own(root: Path) -> None:
    """Refuse a folder into which another user could put, or has put, a key, a configuration, or numbers of processes to be ended.

    Raises:
        InputError: a link, no folder, or another user's.
    """
    about = root.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
        kind = "a link" if stat.S_ISLNK(about.st_mode) else "no folder" if not stat.S_ISDIR(about.st_mode) else "another user's"
        raise InputError(
            f"the folder of the cluster is {kind}", where=root, expected="a folder of your own", mend=f"another one: {elsewhere()}"
        )


def _check_reach(root: Path, nodes: int) -> None:
    """Refuse a folder where SLURM would not start: one that not everybody reaches, that another could swap, or whose path it cannot have.

    Raises:
        InputError: as said.
    """
    for folder in filter(Path.exists, root.absolute().parents):
        about = folder.stat().st_mode
        if about & 0o111 != 0o111:
            raise InputError(
                f"not every user may pass the folder {folder} (mode {stat.S_IMODE(about):o}), as munged wants it",
                where=root,
                expected="folders that everybody may pass, if not read",
                mend=f"{command('chmod', f'{stat.S_IMODE(about) | 0o111:o}', folder)}, or another one: {elsewhere()}",
            )
        if about & 0o022 and not about & stat.S_ISVTX:
            raise InputError(
                f"others may write to the folder {folder} (mode {stat.S_IMODE(about):o}), where munged then makes no socket",
                where=root,
                expected="folders that only their owners may write to",
                mend=f"{command('chmod', f'{stat.S_IMODE(about) & ~0o022:o}', folder)}, or another one: {elsewhere()}",
            )
    if not re.fullmatch(r"[A-Za-z0-9_./+-]+", str(root)):
        raise InputError(
            f"the path of the folder is {str(root)!r}",
            where=root,
            expected="letters, digits and _ . / + - : it stands in slurm.conf, which has no quotes",
            mend=f"another one: {elsewhere()}",
        )
    longest = LONGEST_SOCKET - len(f"/spool-n{nodes}/n{nodes}_100000.4294967291")
    if len(os.fsencode(root)) > longest:
        raise InputError(
            f"the path of the folder has {len(os.fsencode(root))} characters",
            where=root,
            expected=f"at most {longest}: sockets lie there",
            mend=f"another one: {elsewhere()}",
        )


def _ports(count: int) -> list[int]:
    """So many free ports, no two alike."""
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port(FIRST_PORT))
    return list(ports)


def _host() -> str:
    return socket.gethostname().split(".")[0]


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


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

    def end(self, number: signal.Signals) -> None:
        """Send it a signal, if it is there."""
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def started_at(pid: int) -> int | None:
    """When a process was started, in ticks since the system was; None: there is none, or it has ended and nobody has asked after it."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
