"""retinaforge slurm-local: a real SLURM on this machine, to try jobs out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_shards.errors import InputError

if TYPE_CHECKING:
    from slurm.local_cluster import LocalCluster

app = typer.Typer(help="A real SLURM of several nodes on this one machine, to try jobs out.", no_args_is_help=True)
Root = Annotated[Path | None, typer.Option(help="Its folder, by a short path; left out: one a user, in /tmp.")]


@app.command()
def start(
    nodes: Annotated[int, typer.Option(min=1, max=64, help="How many: n1, n2, …")] = 4,
    cpus: Annotated[int, typer.Option(min=1, help="Cores that each claims to have.")] = 4,
    accounting: Annotated[bool, typer.Option("--accounting", help="With slurmdbd and MariaDB, so that sacct answers.")] = False,
    root: Root = None,
) -> None:
    """Start it and leave it running; no root needed. Then: eval "$(retinaforge slurm-local env)"."""
    from slurm.local_cluster import LocalCluster, missing
    from slurm.local_folder import default_root, slurm_local

    if reason := missing(accounting=accounting):
        raise InputError("SLURM cannot be started here", expected="its programs", mend=reason)
    root = (root or default_root()).absolute()
    if (there := LocalCluster.at(root)) and not there.dead:
        raise InputError("it runs already", where=root, mend=f"{slurm_local('status', root)}, or {slurm_local('stop', root)}")
    if there:
        there.stop()  # what a crash or a restart of the machine left
    cluster = LocalCluster(nodes, cpus, accounting=accounting, root=root, detached=True)
    try:
        cluster.start()
    except BaseException:
        cluster.stop()
        raise
    typer.echo(f'{nodes} nodes are idle; to speak with them: eval "$({slurm_local("env", root)})"')


@app.command()
def stop(root: Root = None) -> None:
    """End its jobs and its daemons, and remove its folder."""
    from data_shards.errors import CorruptData
    from slurm.local_cluster import LocalCluster
    from slurm.local_folder import default_root

    try:
        cluster = _running(root)
    except CorruptData:
        cluster = LocalCluster.left_at((root or default_root()).absolute())
    cluster.stop()


@app.command()
def status(root: Root = None, as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Its daemons and nodes. Exit code 75 when a daemon is gone."""
    from data_shards.errors import TryAgain
    from slurm.local_folder import slurm_local

    cluster = _running(root)
    said = {name: {"pid": daemon.pid, "alive": daemon.alive()} for name, daemon in cluster.daemons.items()}
    states = cluster.run("sinfo", "--noheader", "--Node", "--format=%N %T", check=False).split("\n") if not cluster.dead else []
    nodes = dict(sorted({tuple(line.split()) for line in states if line}))
    if as_json:
        typer.echo(json.dumps({"root": str(cluster.root), "daemons": said, "nodes": nodes}))
    else:
        for name, daemon in said.items():
            typer.echo(f"{name:12} {daemon['pid']:8} {'runs' if daemon['alive'] else 'is gone'}")
        for name, state in nodes.items():
            typer.echo(f"{name:12} {state}")
    if cluster.dead:
        raise TryAgain(
            f"gone: {', '.join(cluster.dead)}",
            where=cluster.root,
            expected="daemons that run",
            mend=f"{slurm_local('stop', cluster.root)}, then {slurm_local('start', cluster.root)}",
        )


@app.command()
def env(root: Root = None) -> None:
    """The variables by which SLURM's programs find it, as a shell reads them."""
    import shlex

    for name, value in _running(root).environ.items():
        typer.echo(f"export {name}={shlex.quote(value)}")


def _running(root: Path | None) -> LocalCluster:
    from slurm.local_cluster import LocalCluster
    from slurm.local_folder import default_root, elsewhere, slurm_local

    root = (root or default_root()).absolute()
    cluster = LocalCluster.at(root)
    if cluster is None:
        free = not root.exists() or not any(root.iterdir())
        raise InputError(
            "no cluster was started here",
            where=root,
            expected="the folder of one that was",
            mend=slurm_local("start", root) if free else elsewhere(),
        )
    return cluster
