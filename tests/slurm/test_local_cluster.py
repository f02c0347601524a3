"""The cluster that the tests start ends whole: after use, with jobs still running, and when it cannot start."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slurm


@pytest.fixture
def module(local_cluster):
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


def test_a_cluster_that_cannot_start_says_why_and_leaves_nothing(module, monkeypatch):
    monkeypatch.setattr(module, "CONF", module.CONF + "NoSuchOption=1\n")
    cluster = module.LocalCluster(nodes=1)
    with pytest.raises(RuntimeError, match="slurmctld did not come up, slurmctld ended(.|\n)*NoSuchOption"), cluster:
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
