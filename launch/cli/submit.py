"""retinaforge submit: any verb as a SLURM job."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Annotated

import typer

from data_shards.errors import InputError, nearest
from launch.cli.options import JOBS, Jobs


def command(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="-- VERB ARGS",
            help="What to run, as after `retinaforge`; {array_task} becomes the index: --array 1-9, sample demo --task {array_task}/9",
        ),
    ],
    name: Annotated[str | None, typer.Option(help="Name of the job; the words, joined, when left out.")] = None,
    jobs: Jobs = JOBS,
    nodes: Annotated[str | None, typer.Option(help="Nodes; 1-4: any number of them, whatever SLURM has free.")] = None,
    tasks_per_node: Annotated[int | None, typer.Option(min=1, help="Processes a node, one a GPU; nodes x tasks is the world size.")] = None,
    cpus_per_task: Annotated[int | None, typer.Option(min=1, help="Cores a process, and its OMP_NUM_THREADS.")] = None,
    gpus_per_task: Annotated[int | None, typer.Option(min=0, help="GPUs a process.")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory a node: 64G.")] = None,
    time_minutes: Annotated[int | None, typer.Option(min=1, help="Time limit; SIGUSR1 comes before it.")] = None,
    partition: Annotated[str | None, typer.Option(help="Partition(s).")] = None,
    account: Annotated[str | None, typer.Option(help="Account to charge.")] = None,
    qos: Annotated[str | None, typer.Option(help="Quality of service.")] = None,
    constraint: Annotated[str | None, typer.Option(help="Node features: a100|h100.")] = None,
    array: Annotated[str | None, typer.Option(help="Job array: 1-10, 1-100%8.")] = None,
    dependency: Annotated[str | None, typer.Option(help="Jobs to wait for: afterok:123.")] = None,
    reservation: Annotated[str | None, typer.Option(help="A reservation of the site.")] = None,
    extra: Annotated[
        list[str] | None, typer.Option(help="A further option for sbatch: --extra=--gres-flags=enforce-binding. Repeatable.")
    ] = None,
    requeue: Annotated[
        bool | None, typer.Option(help="Come back after preemption, a failed node, or exit code 75; the verb resumes. (Default: yes.)")
    ] = None,
    signal_seconds: Annotated[
        int | None, typer.Option(min=1, help="How long before the time limit the warning signal comes. (Default: 120.)")
    ] = None,
    export: Annotated[
        list[str] | None, typer.Option(help="A further variable of this shell that the job sees, by name. No secrets. Repeatable.")
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="Run the same job here, now, without SLURM.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the sbatch script and submit nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Submit `retinaforge VERB ARGS` to SLURM: retinaforge submit --nodes 2 --gpus-per-task 1 -- train vqgan retina-224.

    What is left out comes from site.yaml, here or in ~/.config/retinaforge.
    """
    from launch.site import network_variables, site_defaults
    from slurm.executor import job_folder
    from slurm.jobs import sbatch_text, spec_from, spec_json

    verbs = _verbs()
    if words[0] not in verbs:
        raise InputError(f"no verb {words[0]!r} to submit", expected=nearest(words[0], verbs), mend="retinaforge --help")
    given = {
        **_nodes(nodes),
        "tasks_per_node": tasks_per_node,
        "cpus_per_task": cpus_per_task,
        "gpus_per_task": gpus_per_task,
        "memory": memory,
        "time_minutes": time_minutes,
        "partition": partition,
        "account": account,
        "qos": qos,
        "constraint": constraint,
        "array": array,
        "dependency": dependency,
        "reservation": reservation,
        "extra": extra or None,
        "requeue": requeue,
        "signal_seconds": signal_seconds,
    }
    fields = site_defaults(words[0], verbs) | {field: value for field, value in given.items() if value is not None}
    fields["exports"] = sorted({*fields.get("exports", ()), *(export or ()), *network_variables(os.environ)})
    own = {"name": name or "-".join(words)[:128], "command": ["retinaforge", *words], "folder": str(Path.cwd())}
    spec = spec_from(json.dumps(fields | own).encode(), where="the job, as site.yaml and the options say")
    folder = job_folder(jobs, spec.name)
    if dry_run:
        text = sbatch_text(spec, folder)
        typer.echo(json.dumps({"folder": str(folder), "sbatch": text, "job": json.loads(spec_json(spec))}) if as_json else text, nl=as_json)
        return
    from slurm import executor

    if local:
        raise typer.Exit(executor.run_local(spec, folder))
    job = executor.submit(spec, folder)
    said = {"job_id": job.job_id, "name": spec.name, "folder": str(folder), "log": str(job.paths.stdout)}
    typer.echo(
        json.dumps(said)
        if as_json
        else f"job {job.job_id} ({spec.name})\n  log:    {said['log']}\n  status: retinaforge status {spec.name!r}"
    )


def _nodes(text: str | None) -> dict[str, int]:
    """'2' or '1-4', as fields of a job.

    Raises:
        InputError: neither.
    """
    if text is None:
        return {}
    match = re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", text)
    if not match:
        raise InputError(f"--nodes {text}", expected="a number, or the fewest and the most: 1-4")
    return {"nodes": int(match[1]), **({"most_nodes": int(match[2])} if match[2] else {})}


def _verbs() -> set[str]:
    """What can be submitted."""
    from launch.cli import app

    here = {"submit", "status", "logs", "cancel", "slurm-local"}
    return {entry.name for entry in (*app.registered_commands, *app.registered_groups)} - here
