"""What the partitions of this cluster offer, and whether a job fits into one of those it names: said before it is submitted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from data_shards.errors import InputError, nearest
from slurm.fields import seconds_of
from slurm.jobs import JobSpec
from slurm.programs import ask

# with --exact, nodes that are alike in this come in one line; '|' occurs in none of these
FIELDS = "%P|%a|%D|%c|%m|%l|%G"
UNLIMITED = 10**9


@dataclass(frozen=True, kw_only=True)
class Offer:
    """Nodes of one partition that are alike.

    Attributes:
        partition: its name.
        default: jobs that name no partition go there.
        up: it starts jobs.
        queues: jobs may wait there, also where it starts none now.
        nodes: how many of these there are.
        cpus, memory_mib, gpus: of each.
        minutes: the longest time limit.
    """

    partition: str
    default: bool
    up: bool
    nodes: int
    cpus: int
    memory_mib: int
    gpus: int
    minutes: int
    queues: bool = True

    def __str__(self) -> str:
        gpus = f", {self.gpus} GPUs" if self.gpus else ", no GPU"
        limit = "no time limit" if self.minutes >= UNLIMITED else f"{self.minutes} minutes"
        down = "" if self.up else ", starts no jobs now" if self.queues else ", takes no jobs now"
        return f"{self.partition}: {self.nodes} node(s) of {self.cpus} cores, {self.memory_mib / 1024:.0f} GiB{gpus}; {limit}{down}"


def offers() -> list[Offer]:
    """What sinfo shows to this user, by one call.

    Raises:
        TryAgain: the controller does not answer.
    """
    return read_offers(ask("sinfo", "--noheader", "--all", "--exact", f"--format={FIELDS}"))


def read_offers(text: str) -> list[Offer]:
    """sinfo's lines of FIELDS."""
    offered = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split("|", 6)]
        if len(fields) == 7:
            name, up, nodes, cpus, memory, limit, gres = fields
            offered.append(
                Offer(
                    partition=name.rstrip("*"),
                    default=name.endswith("*"),
                    up=up == "up",
                    queues=up in ("up", "down"),
                    nodes=_number(nodes),
                    cpus=_number(cpus),
                    memory_mib=_number(memory),
                    gpus=gpus_of(gres),
                    minutes=limit_minutes(limit),
                )
            )
    return offered


def gpus_of(gres: str) -> int:
    """'gpu:a100:4(S:0-1),nvme:1' has 4."""
    return sum(int(match[1] or 1) for match in re.finditer(r"(?:^|,)gpu(?::[^:,()]+)??(?::(\d+))?(?=\(|,|$)", gres))


def limit_minutes(text: str) -> int:
    """A partition's time limit in whole minutes; 'infinite' is UNLIMITED."""
    seconds = seconds_of(text)
    return UNLIMITED if seconds is None else seconds // 60


def memory_mib(text: str) -> int:
    """'16G' in MiB."""
    number, unit = (text[:-1], text[-1]) if text[-1].isalpha() else (text, "M")
    return int(int(number) * {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024**2}[unit.upper()])


def check_fit(spec: JobSpec, offered: list[Offer]) -> None:
    """Refuse what no partition that the job names could ever start; of a job that names none, what no partition of the site could.

    Raises:
        InputError: no such partition, or none has the nodes, cores, memory, GPUs or time asked for; what there is, is listed.
    """
    if not offered:
        return  # a site that shows nothing: sbatch decides
    known = {offer.partition for offer in offered}
    wanted = spec.partition.split(",") if spec.partition else sorted(known)  # where none is named, the site may choose any
    for name in wanted:
        if name not in known:
            raise InputError(f"no partition {name!r} here", expected=nearest(name, known), mend=listed(offered))
    reasons = [reason for name in wanted for reason in misfits(spec, [offer for offer in offered if offer.partition == name])]
    if len(reasons) >= len(wanted):  # each of them has one
        raise InputError("no partition could ever start this job: " + "; ".join(reasons), where=spec.name, mend=listed(offered))


def waits_for(spec: JobSpec, offered: list[Offer]) -> str | None:
    """What to say where the job will wait for the administrator: all partitions that it may go to are DOWN."""
    names = spec.partition.split(",") if spec.partition else [offer.partition for offer in offered if offer.default]
    offers = [offer for offer in offered if offer.partition in names]
    if not offers or any(offer.up for offer in offers):
        return None
    down = ", ".join(dict.fromkeys(offer.partition for offer in offers))
    return f"warning: {down} starts no jobs now (it is DOWN); the job waits until it does"


def misfits(spec: JobSpec, offers: list[Offer]) -> Iterator[str]:
    """The first reason why a partition of these nodes cannot start the job, if there is one."""
    name = offers[0].partition
    if not any(offer.queues for offer in offers):
        yield f"{name} takes no jobs now"
        return
    if spec.time_minutes and spec.time_minutes > offers[0].minutes:
        yield f"{name} ends jobs after {offers[0].minutes} minutes, the job asks for {spec.time_minutes}"
        return
    asked = {
        "GPUs": (spec.node_gpus, "gpus"),
        "cores": (spec.cpus_per_task * spec.tasks_per_node, "cpus"),
        "MiB of memory": (memory_mib(spec.memory) if spec.memory else 0, "memory_mib"),
    }
    for what, (needed, field) in asked.items():
        most = max(getattr(offer, field) for offer in offers)
        if needed > most:
            yield f"a node of {name} has {most} {what}, the job asks for {needed} a node"
            return
    fitting = sum(offer.nodes for offer in offers if all(needed <= getattr(offer, field) for needed, field in asked.values()))
    if spec.nodes > fitting:
        yield f"{name} has {fitting} node(s) of that kind, the job asks for {spec.nodes}"


def listed(offered: list[Offer]) -> str:
    """What the site offers, a line each."""
    return "take one of\n" + "\n".join(f"    {offer}" for offer in offered)


def _number(text: str) -> int:
    match = re.match(r"\d+", text)  # '64+' where nodes differ
    return int(match[0]) if match else 0
