"""Calls that a set in units asks of a file system's server, counted by strace: what a shard costs, a look at one, and a holder's beat.

As a program it is what strace watches: each act some times over, behind a mark.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from bulk import Toys

from data_shards.ledger import Ledger
from data_shards.packing.units import read_unit
from launch.work import work

CHANGES = ("create", "link", "rename", "unlink", "mkdir")
"""Calls that change a folder: no client answers them from its cache."""
ACTS = {"shard": 20, "look": 50, "beat": 0}
"""How often each is done; the beats are counted."""
KINDS = {**dict.fromkeys(("newfstatat", "lstat", "statx"), "stat"), "fdatasync": "fsync", "getdents64": "list", "unlinkat": "unlink"}


def calls(folder: Path) -> dict[str, Counter[str]] | None:
    """Calls that name a file of the set, by what they are for: a shard made, a look at one that another makes, and its holder's beat."""
    if shutil.which("strace") is None:
        return None
    folder.mkdir()
    log, words = folder / "calls", [sys.executable, __file__, str(folder / "set")]
    options = ["-f", "-qq", "-y", "-s", "400", "-e", "trace=%file,fsync,fdatasync,getdents64"]
    if subprocess.run(["strace", *options, "-o", log, *words], capture_output=True, check=False).returncode:
        return None
    counted, now = {act: Counter[str]() for act in ACTS}, None
    for line in log.read_text(errors="replace").splitlines():
        if mark := re.search(r"/act-(\w+)-begins", line):
            now = mark[1]
        elif now in counted and str(folder / "set") in line and (call := re.match(r"\d+ +(\w+)\(", line)):
            counted[now][kind_of(call[1], line)] += 1
    times = {**ACTS, "beat": counted["beat"]["rename"]}
    return {act: Counter({kind: count / times[act] for kind, count in found.items()}) for act, found in counted.items()}


def kind_of(call: str, line: str) -> str:
    """A call by what it asks for."""
    if call in ("open", "openat"):
        return "create" if "O_CREAT" in line else "open"
    return KINDS.get(call, call)


def act(folder: Path) -> None:
    """In a process of its own, watched: each act some times over, behind a mark."""
    folder.mkdir()
    units, ledger = Toys(folder, 10 * (ACTS["shard"] + 2), 10), Ledger(folder)
    units.make(0)  # all is imported
    mark("shard")
    units.names = units.names[: ACTS["shard"] + 1]
    work(units, ledger, poll_s=0.01)
    mark("none")
    with ledger.lease("held"):
        mark("look")
        for _ in range(ACTS["look"]):
            read_unit(folder / "held.tar")
            with ledger.lease("held"):
                pass
    mark("none")
    fast = Ledger(folder, beat_s=0.005)
    with fast.lease("beating"):
        mark("beat")
        time.sleep(0.5)
        mark("none")


def mark(what: str) -> None:
    Path(f"/act-{what}-begins").exists()


def totals(found: Counter[str]) -> tuple[float, float, float]:
    """Names made, changed or removed; flushes; other calls."""
    changes = sum(found[kind] for kind in CHANGES)
    return changes, found["fsync"], sum(found.values()) - changes - found["fsync"]


if __name__ == "__main__":
    act(Path(sys.argv[1]))
