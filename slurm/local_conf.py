"""What the daemons of a local cluster are given: slurm.conf, slurmdbd.conf, and the options and accounts of the database."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

# cred_expire: a requeued job waits until its old self is surely gone, twice the credential's life; a test has no 4 minutes.
CONF = """\
ClusterName={cluster}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket,cred_expire=5
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
{accounting}SelectType=select/cons_tres
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

DBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket,cred_expire=5
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={dbd_port}
SlurmUser={user}
LogFile={root}/slurmdbd.log
PidFile={root}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={db_port}
StorageLoc=slurm_acct
StorageUser=slurm
StoragePass={password}
"""


INIT_SQL = """\
CREATE DATABASE IF NOT EXISTS slurm_acct;
CREATE USER IF NOT EXISTS slurm@'127.0.0.1' IDENTIFIED BY '{password}';
GRANT ALL ON slurm_acct.* TO slurm@'127.0.0.1';
"""


def slurmdbd_conf(root: Path, *, host: str, user: str, dbd_port: int, db_port: int, password: str) -> str:
    """slurmdbd.conf of a cluster whose books are kept at `db_port`."""
    return DBD_CONF.format(root=root, host=host, user=user, dbd_port=dbd_port, db_port=db_port, password=password)


def mariadbd_words(root: Path, *, user: str, port: int) -> list[str]:
    """Options of a small database that lies in the cluster's folder."""
    return [
        "--no-defaults",
        f"--user={user}",
        f"--datadir={root}/mysql",
        f"--socket={root}/mysql.sock",
        f"--pid-file={root}/mariadbd.pid",
        f"--init-file={root}/init.sql",
        "--bind-address=127.0.0.1",
        f"--port={port}",
        "--skip-name-resolve",
        "--innodb-buffer-pool-size=64M",
        "--innodb-log-file-size=16M",
        "--innodb-lock-wait-timeout=900",
        "--performance-schema=OFF",
    ]


def slurm_conf(
    root: Path, *, host: str, user: str, ctld_port: int, dbd_port: int | None, node_ports: list[int], cpus: int, settings: Mapping[str, str]
) -> str:
    """slurm.conf of a cluster of so many nodes as there are ports.

    Args:
        dbd_port: of slurmdbd; None: no books are kept.
        settings: lines that go before those here.
    """
    books = f"AccountingStorageHost=127.0.0.1\nAccountingStoragePort={dbd_port}\nAccountingStoragePass={root}/munge/socket\n"
    accounting = f"AccountingStorageType=accounting_storage/{'none' if dbd_port is None else 'slurmdbd'}\n"
    accounting += "" if dbd_port is None else books
    text = "".join(line for line in CONF.splitlines(keepends=True) if line.partition("=")[0] not in settings)
    text = "".join(f"{key}={value}\n" for key, value in settings.items()) + text
    cluster = f"local-{hashlib.sha256(str(root).encode()).hexdigest()[:6]}"  # several may stand on one machine
    lines = [text.format(root=root, cluster=cluster, host=host, ctld_port=ctld_port, user=user, accounting=accounting)]
    for i, port in enumerate(node_ports, start=1):
        lines.append(f"NodeName=n{i} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory=4000 State=UNKNOWN\n")
    all_nodes = f"n[1-{len(node_ports)}]"
    lines.append(f"PartitionName=main Nodes={all_nodes} Default=YES PriorityTier=10 PreemptMode=OFF State=UP\n")
    lines.append(f"PartitionName=scavenge Nodes={all_nodes} PriorityTier=1 PreemptMode=REQUEUE State=UP\n")
    return "".join(lines)
