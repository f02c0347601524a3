"""DeepSpeed's hostfile, read strictly: `host slots=N` a line, `#` before a comment.

DeepSpeed's own reader takes `slots=4x` for 4, leaves a host of no slots out in silence, goes on alone without the file, and finds that
a name does not resolve when ssh fails or the ranks wait for each other.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data_shards.errors import InputError
from slurm.meeting import unresolved
from slurm.rank import Placement

FORM = "a line a host, such as: worker-1 slots=4"


@dataclass(frozen=True)
class Hostfile:
    """Processes of each host, in the order of ranks."""

    path: Path
    slots: dict[str, int]

    @property
    def world(self) -> int:
        return sum(self.slots.values())


def read_hostfile(path: Path) -> Hostfile:
    """The hosts of a file.

    Raises:
        InputError: no file, no host in it, or a line that is no host with its slots; file and line are named.
    """
    try:
        if not path.is_file():
            raise InputError(
                "a folder or a device" if path.exists() else "no such file", where=path, expected="a hostfile", mend="--hostfile FILE"
            )
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"cannot read the hostfile: {error.strerror}", where=path, expected="a file that may be read") from error
    except UnicodeDecodeError as error:
        raise InputError("not a text in UTF-8", where=path, expected=FORM, mend="--hostfile FILE") from error
    slots: dict[str, int] = {}
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if words := re.sub(r"(^|\s)#.*", "", line).split():
            host, count = _entry(words, f"{path}:{number}")
            if host in seen:
                raise InputError(
                    f"{host!r} a second time, after line {seen[host]}",
                    where=f"{path}:{number}",
                    expected="one line a host",
                    mend=f"one line with the sum: {host} slots={slots[host] + count}",
                )
            slots[host], seen[host] = count, number
    if not slots:
        raise InputError("no host", where=path, expected=FORM, mend=f"echo 'worker-1 slots=4' >> {shlex.quote(str(path))}")
    return Hostfile(path, slots)


def _entry(words: list[str], where: str) -> tuple[str, int]:
    host, *rest = words
    if not rest or (len(rest) == 1 and re.fullmatch(r"slots=0*", rest[0])):
        raise InputError(
            f"{' '.join(words)!r} has no slots",
            where=where,
            expected="slots=N, the processes on this host, at least 1",
            mend=f"{host} slots=1, or remove the line",
        )
    if len(rest) > 1 or not (match := re.fullmatch(r"slots=([0-9]{1,6})", rest[0])):
        raise InputError(
            f"cannot read {' '.join(words)!r}", where=where, expected=FORM, mend="no blanks around =, nothing after the number"
        )
    return host, int(match[1])


def check_names(hosts: Hostfile) -> None:
    """Refuse names that cannot be looked up here, all of them at once.

    Raises:
        InputError: as said.
    """
    if why := unresolved(hosts.slots):
        raise InputError(
            f"{len(why)} of {len(hosts.slots)} host(s) do not resolve: {', '.join(f'{name} ({reason})' for name, reason in why.items())}",
            where=hosts.path,
            expected="names that this machine can look up, or IP addresses",
            mend="correct the names, or add them to DNS or /etc/hosts; getent hosts NAME has to answer",
        )


def check_started(hosts: Hostfile, place: Placement) -> None:
    """Refuse another number of processes than the hostfile asks for.

    Raises:
        InputError: as said.
    """
    if place.world != hosts.world:
        started = "no launcher" if place.source == "single" else f"{place.source} started {place.world} process(es)"
        raise InputError(
            f"{started}, but the hostfile has {hosts.world} slot(s)",
            where=hosts.path,
            expected="one process a slot",
            mend=f"deepspeed --hostfile {hosts.path} --module launch train …; "
            "or leave --hostfile out of our options where only some of the hosts are used",
        )


def planned_environ(hosts: Hostfile, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment with WORLD_SIZE as the hostfile says, for a plan.

    Raises:
        InputError: WORLD_SIZE is set, and is another one.
    """
    given = environ.get("WORLD_SIZE", str(hosts.world))
    if given != str(hosts.world):
        raise InputError(
            f"WORLD_SIZE={given}, but the hostfile has {hosts.world} slot(s)",
            where=hosts.path,
            expected="the same of both",
            mend="unset WORLD_SIZE, or another --hostfile",
        )
    return {**environ, "WORLD_SIZE": given}
