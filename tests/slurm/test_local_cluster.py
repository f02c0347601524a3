"""The cluster that the tests start ends whole: after use, with jobs still running, and when it cannot start."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from data_shards.errors import CorruptData, InputError, TryAgain
from slurm import local_cluster
from tests.commands import invoke

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).parents[2]


@pytest.fixture
def module():
    if reason := local_cluster.missing():
        pytest.skip(reason)
    return local_cluster


def processes_of(root: Path) -> list[str]:
    """Command lines of the processes that were started with this cluster's folder in their words or environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes()
            if words and os.fsencode(root) in words + (folder / "environ").read_bytes():
                found.append(words.replace(b"\0", b" ").decode())
    return found


def test_it_listens_on_loopback_only_and_ends_with_its_jobs(module):
    with module.LocalCluster(nodes=1) as cluster:
        environ = {**os.environ, **cluster.environ}
        script = cluster.root / "job.sh"
        script.write_text("#!/bin/bash\nsrun sleep 300\n")
        subprocess.run(["sbatch", "--output=/dev/null", script], env=environ, check=True, capture_output=True)
        while cluster.run("squeue", "-h", "-o", "%T") != "RUNNING\n":
            time.sleep(0.1)
        own = {daemon.pid for daemon in cluster.daemons.values()}
        assert len(own) == 3 and len(processes_of(cluster.root)) > 3
        assert listening(own) and all(address == "0100007F" for address in listening(own)), "127.0.0.1 in /proc/net/tcp's own order"
        root = cluster.root
    assert not root.exists()
    until = time.monotonic() + 5  # what was killed last may take a moment to vanish
    while processes_of(root) and time.monotonic() < until:
        time.sleep(0.1)
    assert processes_of(root) == []


def test_a_cluster_that_cannot_start_says_why_and_leaves_nothing(module):
    cluster = module.LocalCluster(nodes=1, settings={"NoSuchOption": "1"})
    with pytest.raises(TryAgain, match="slurmctld did not come up, slurmctld ended(.|\n)*NoSuchOption"), cluster:
        pass
    assert not cluster.root.exists() and processes_of(cluster.root) == []


def listening(pids: set[int]) -> set[str]:
    """Local addresses of the TCP sockets on which these processes listen, IPv6 too."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                inodes.add(os.readlink(link).removeprefix("socket:[").removesuffix("]"))
    rows = [line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes}


def words(*said: object, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "launch", "slurm-local", *map(str, said)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_verb_leaves_it_running_and_ends_it(module):
    """What is left after a crash of a daemon is told, and the next start clears it."""
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as place:
        os.chmod(place, 0o755)  # munged wants to be reached by all
        root = Path(place) / "c"
        assert "no cluster was started here" in words("status", "--root", root, code=2)
        words("start", "--nodes", 3, "--root", root)
        try:
            state = json.loads(words("status", "--root", root, "--json"))
            assert state["nodes"] == {"n1": "idle", "n2": "idle", "n3": "idle"} and all(d["alive"] for d in state["daemons"].values())
            exported = words("env", "--root", root)
            script = f"{exported}\nsrun -N3 hostname | wc -l"
            assert subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=True).stdout == "3\n"
            advice = words("start", "--root", root, code=2)
            assert (
                "it runs already" in advice and f"slurm-local status --root {root}, or retinaforge slurm-local stop --root {root}" in advice
            )
            os.kill(state["daemons"]["slurmd-n2"]["pid"], signal.SIGKILL)
            advice = words("status", "--root", root, code=75)
            assert (
                "gone: slurmd-n2" in advice
                and f"slurm-local stop --root {root}, then retinaforge slurm-local start --root {root}" in advice
            )
            words("start", "--nodes", 1, "--root", root)
            assert json.loads(words("status", "--root", root, "--json"))["nodes"] == {"n1": "idle"}
        finally:
            words("stop", "--root", root)
        assert not root.exists() and processes_of(root) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
@pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="no Python that all users may run")
def test_a_user_without_rights_starts_one_of_his_own(module):
    """With the system's Python and copies of the packages: ours may lie where nobody else may read."""
    nobody = pwd.getpwnam("nobody")
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as place:
        os.chmod(place, 0o755)  # munged wants to be reached by all
        for package in ("slurm", "data_shards"):
            shutil.copytree(ROOT / package, Path(place) / package)
        subprocess.run(["chown", "-R", f"{nobody.pw_uid}:{nobody.pw_gid}", place], check=True)
        code = f"""
from pathlib import Path
from slurm.local_cluster import LocalCluster
with LocalCluster(nodes=2, root=Path({place!r}) / "c") as cluster:
    print(cluster.run("srun", "-N2", "id", "-un"))
"""
        environ = {"PATH": "/usr/sbin:/usr/bin:/bin", "PYTHONPATH": place, "HOME": place}
        them = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        command = ["/usr/bin/python3", "-c", code]
        done = subprocess.run(command, **them, env=environ, cwd=place, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["nobody", "nobody"]


@pytest.mark.slow
def test_with_accounting_sacct_tells_how_a_job_ended(module):
    if reason := module.missing(accounting=True):
        pytest.skip(reason)
    with module.LocalCluster(nodes=1, accounting=True) as cluster:
        script = cluster.root / "job.sh"
        script.write_text("#!/bin/bash\nexit 3\n")
        number = cluster.run("sbatch", "--parsable", "--output=/dev/null", str(script)).strip()
        until = time.monotonic() + 30
        while "FAILED" not in (told := cluster.run("sacct", "-n", "-X", "-j", number, "-o", "State,ExitCode")) and time.monotonic() < until:
            time.sleep(0.5)
        assert told.split() == ["FAILED", "3:0"]


def test_a_folder_that_is_refused_is_left_as_it_is(tmp_path):
    """A link, as anybody may lay one in /tmp, a file, and a folder with something in it."""
    full, link, file = tmp_path / "full", tmp_path / "link", tmp_path / "file"
    full.mkdir()
    (full / "thesis.txt").write_text("mine")
    (full / "daemons.json").write_text('{"nodes": 1, "cpus": 1, "accounting": false, "daemons": {}}')
    link.symlink_to(full)
    file.touch()
    for root, message in ((link, "is a link"), (file, "no folder")):
        for verb in ("start", "stop", "env", "status"):
            with pytest.raises(InputError, match=message):
                invoke("slurm-local", verb, "--root", root)
    (full / "daemons.json").unlink()
    with pytest.raises(InputError, match="not empty"):
        invoke("slurm-local", "start", "--root", full)
    assert (full / "thesis.txt").read_text() == "mine" and link.is_symlink() and file.exists()
    link.unlink()
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is a link"):
        invoke("slurm-local", "start", "--root", link)
    assert not (tmp_path / "nowhere").exists()


def advised(message: object) -> list[str]:
    """The last command in an error's advice, as a shell reads it, without the program's name."""
    return shlex.split(str(message).rpartition("retinaforge ")[2])


def test_advice_on_a_folder_that_is_no_cluster_is_a_folder_that_is_free(tmp_path):
    (tmp_path / "thesis.txt").touch()
    for verb in ("start", "status", "stop"):
        with pytest.raises(InputError, match="not empty|no cluster was started") as caught:
            invoke("slurm-local", verb, "--root", tmp_path)
        assert advised(caught.value)[:3] == ["slurm-local", "start", "--root"] and not Path(advised(caught.value)[3]).exists()
    with pytest.raises(InputError, match="no cluster was started") as caught:
        invoke("slurm-local", "status", "--root", tmp_path / "not there")
    assert advised(caught.value) == ["slurm-local", "start", "--root", str(tmp_path / "not there")]


@pytest.mark.parametrize("torn", ["", '{"nodes": 2', "[]", '{"nodes": 1, "cpus": 1, "accounting": false, "daemons": {"slurmd-n1": ["x"]}}'])
def test_a_damaged_list_of_daemons_says_how_to_clear_it(tmp_path, torn):
    (tmp_path / "daemons.json").write_text(torn)
    for verb in ("start", "status", "env"):
        with pytest.raises(CorruptData, match="list of the cluster's daemons is damaged") as caught:
            invoke("slurm-local", verb, "--root", tmp_path)
        assert f"retinaforge slurm-local stop --root {tmp_path} ends what runs" in str(caught.value)
    with pytest.raises(InputError, match="no cluster's folder"):
        invoke("slurm-local", "stop", "--root", tmp_path)
    (tmp_path / "slurm.conf").touch()
    invoke("slurm-local", "stop", "--root", tmp_path)
    assert not tmp_path.exists()


def test_advice_on_a_cluster_with_a_damaged_list_and_without_munged_clears_it(module):
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as place:
        os.chmod(place, 0o755)  # munged wants to be reached by all
        root = Path(place) / "c"
        words("start", "--nodes", 1, "--root", root)
        state = json.loads((root / "daemons.json").read_text())
        os.kill(state["daemons"]["munged"][0], signal.SIGKILL)
        assert len(processes_of(root)) >= 2
        (root / "daemons.json").write_text("{")
        assert f"stop --root {root} ends what runs" in words("status", "--root", root, code=4)
        words("stop", "--root", root)
        assert not root.exists() and processes_of(root) == []


@pytest.mark.parametrize(("mode", "mended"), [(0o700, "711"), (0o750, "751"), (0o777, "755"), (0o775, "755")])
def test_a_folder_that_munged_would_not_take_is_named_with_what_mends_it(tmp_path, monkeypatch, mode, mended):
    monkeypatch.setattr("slurm.local_cluster.missing", lambda **_: None)
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as place:
        os.chmod(place, 0o755)
        closed = Path(place) / "closed"
        closed.mkdir()
        closed.chmod(mode)
        with pytest.raises(InputError, match=f"folder {closed} (.|\n)*chmod {mended} {closed}, or another one: retinaforge slurm-local"):
            invoke("slurm-local", "start", "--root", closed / "c")
        assert not (closed / "c").exists()
        for name, message in (("x" * 80, "at most"), ("a b", "letters, digits"), ("100%", "letters, digits")):
            with pytest.raises(InputError, match=message):
                invoke("slurm-local", "start", "--root", Path(place) / name)
            assert not (Path(place) / name).exists()
