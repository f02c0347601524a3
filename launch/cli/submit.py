"""retinaforge submit: any verb as a SLURM job; a pipeline as a graph of them."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Annotated

import typer

from data_shards.errors import InputError
from launch.cli.options import Jobs, looking_on
from slurm.fields import JOBS, check_name

if TYPE_CHECKING:
    from launch.submit.described import Described


def command(
    context: typer.Context,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="-- VERB ARGS",
            help="What to run, as after `retinaforge`, or `pipeline FILE`. {array_task} becomes the index: "
            "--array 1-9 -- sample demo --task {array_task}/9",
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="Name of the job. Left out: RUN/STAGE for what works on a run, else the words, joined.")
    ] = None,
    jobs: Jobs = JOBS,
    nodes: Annotated[str | None, typer.Option(help="Nodes; 1-4: any number of them, whatever SLURM has free.")] = None,
    tasks_per_node: Annotated[int | None, typer.Option(min=1, help="Processes a node, one a GPU; nodes x tasks is the world size.")] = None,
    cpus_per_task: Annotated[int | None, typer.Option(min=1, help="Cores a process, and its OMP_NUM_THREADS.")] = None,
    gpus_per_task: Annotated[str | None, typer.Option(help="GPUs a process: 1, or with their type: a100:1.")] = None,
    gpus_per_node: Annotated[str | None, typer.Option(help="GPUs a node, where that is another number: a100:4.")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory a node: 64G.")] = None,
    time_minutes: Annotated[int | None, typer.Option(min=1, help="Time limit; SIGUSR1 comes before it.")] = None,
    time: Annotated[str | None, typer.Option(help="The same as SLURM writes it: 2-12:00:00.")] = None,
    partition: Annotated[str | None, typer.Option(help="Partition(s).")] = None,
    account: Annotated[str | None, typer.Option(help="Account to charge.")] = None,
    qos: Annotated[str | None, typer.Option(help="Quality of service.")] = None,
    constraint: Annotated[str | None, typer.Option(help="Node features: a100|h100.")] = None,
    array: Annotated[str | None, typer.Option(help="Job array: 1-10, 1-100%8. Longer than the cluster takes, it goes as several.")] = None,
    dependency: Annotated[str | None, typer.Option(help="Jobs to wait for: afterok:123.")] = None,
    reservation: Annotated[str | None, typer.Option(help="A reservation of the site.")] = None,
    extra: Annotated[
        list[str] | None, typer.Option(help="A further option for sbatch: --extra=--gres-flags=enforce-binding. Repeatable.")
    ] = None,
    setup: Annotated[
        list[str] | None,
        typer.Option(metavar="LINE", help="A line of bash at the script's head: 'module load cuda'. Repeatable."),
    ] = None,
    launcher: Annotated[
        str | None, typer.Option(metavar="WORDS", help="What starts each task's Python: 'apptainer exec --nv image.sif'.")
    ] = None,
    srun_options: Annotated[
        list[str] | None, typer.Option("--srun-option", help="A further option for srun: --srun-option=--cpu-bind=none. Repeatable.")
    ] = None,
    mail_user: Annotated[str | None, typer.Option(help="Whom SLURM writes to.")] = None,
    mail_type: Annotated[str | None, typer.Option(help="When: END,FAIL.")] = None,
    snapshot: Annotated[
        bool | None,
        typer.Option(
            "--snapshot/--no-snapshot",
            help="Run a copy of our packages as they are now, kept in the job's folder. (Default: where they are no plain installation.)",
        ),
    ] = None,
    requeue: Annotated[
        bool | None, typer.Option(help="Come back after preemption, a failed node, or exit code 75; the verb resumes. (Default: yes.)")
    ] = None,
    signal_seconds: Annotated[
        int | None, typer.Option(min=1, help="How long before the time limit the warning signal comes. (Default: 120.)")
    ] = None,
    exports: Annotated[
        list[str] | None,
        typer.Option("--export", help="A further variable of this shell that the job sees, by name. No secrets. Repeatable."),
    ] = None,
    secrets: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Lines NAME=VALUE that the job sees as variables; of mode 0600.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also where SLURM does not know whether the job of this name still lives.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until the job has ended; the exit code is the job's.")] = False,
    local: Annotated[bool, typer.Option("--local", help="Run the same job here, now, without SLURM.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the sbatch script and the configuration, and submit nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Submit `retinaforge VERB ARGS` to SLURM: retinaforge submit --nodes 2 --gpus-per-task 1 -- train vqgan retina-224.

    What is left out comes from site.yaml, here or in ~/.config/retinaforge. Submitted again, a job of the same name goes on with what
    it left, also with other resources.
    """
    from launch.submit.site import KEYS

    fields = {*KEYS, "array", "dependency"}  # the options that are fields of a job
    given = {key: value for key, value in context.params.items() if key in fields and value not in (None, (), [])}
    if secrets:
        given["secrets"] = str(secrets.absolute())
    if name is not None:
        check_name(name)
    if wait and (local or words[0] == "pipeline"):
        raise InputError(
            f"--wait with {'--local' if local else 'a pipeline'}",
            expected="one job of SLURM",
            mend="leave --wait out: --local stays until its end anyway" if local else "retinaforge status NAME follows a pipeline",
        )
    if words[0] == "pipeline":
        from launch.cli.pipeline import submit_pipeline

        submit_pipeline(
            context.find_root().command, words[1:], given, name, jobs=jobs, local=local, dry_run=dry_run, as_json=as_json, force=force
        )
        return
    from launch.submit.described import described, show

    job = described(context.find_root().command, words, given, name, jobs)
    if dry_run:
        show(job, as_json)
        return
    from slurm import executor
    from slurm.foreground import run_local
    from slurm.jobs import words_on
    from slurm.states import check_free

    if not local:
        executor.check_slurm()
    job.check()
    if local:
        if shutil.which("squeue"):
            check_free(job.folder, force=force)  # a job of this name that waits would read what is frozen now
        job.freeze()
        raise typer.Exit(run_local(job.spec, job.folder))
    from slurm.offers import offers

    job.check_on(offers())
    over = check_free(job.folder, force=force)
    submit_once(job, over, as_json, force=force)
    if wait:
        with looking_on(f"the job goes on: {words_on('status', job.spec.name, job.folder)}"):
            raise typer.Exit(_ended(job.folder))


def submit_once(job: Described, over: str, as_json: bool, *, force: bool, only: str | None = None) -> None:
    """Submit a job and print its numbers.

    Args:
        over: which submission of it is over.
        only: of its array, these indices.
    """
    from slurm import executor
    from slurm.jobs import words_on

    spec, folder = job.spec, job.folder
    record = executor.submit(spec, folder, only=only, over=over, force=force, frozen_with_it=job.freeze)
    log = executor.handles(record, folder)[0].paths.stdout
    if as_json:
        row = {"job_id": record.job_id, "job_ids": record.job_ids, "name": spec.name, "folder": str(folder), "log": str(log)}
        typer.echo(json.dumps(row))
        return
    parts = f" in {len(record.job_ids)} arrays: {', '.join(record.job_ids)}" if len(record.job_ids) > 1 else ""
    typer.echo(f"job {record.job_id} ({spec.name}){parts}\n  log:    {log}\n  status: {words_on('status', spec.name, folder)}")


def _ended(folder: Path) -> int:
    """Wait until nothing of a job waits or runs; its exit code, of an array the first that is not 0."""
    from data_shards.errors import TryAgain
    from launch.submit.site import queue
    from slurm.history import read_all
    from slurm.records import RECORD_NAME, read_record
    from slurm.states import current, is_live

    asked, record, states = queue(), read_record(folder / RECORD_NAME), None
    while states is None or is_live(states):
        with suppress(TryAgain):  # a controller that is away has not said that the job is over
            states = current([record], asked)[record.name]
        if states is None or is_live(states):
            sleep(min(asked.ask_every_s, 5))
    if all(state.state == "COMPLETED" for state in states):
        return 0
    codes = (attempts[-1].code for attempts in read_all(folder).values() if attempts[-1].token == record.token)
    return next((code for code in codes if code), 1)
