"""retinaforge submit, resume: any verb as a SLURM job; a pipeline as a graph of them."""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_shards.errors import InputError, nearest
from launch.cli.options import JOBS, Jobs

if TYPE_CHECKING:
    from launch.config import Config
    from launch.jobs import Target
    from slurm.jobs import JobSpec
    from slurm.offers import Offer

NOT_SUBMITTED = {"submit", "status", "logs", "cancel", "resume", "runs", "slurm-local"}


def command(
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
    gpus_per_task: Annotated[int | None, typer.Option(min=0, help="GPUs a process.")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory a node: 64G.")] = None,
    time_minutes: Annotated[int | None, typer.Option(min=1, help="Time limit; SIGUSR1 comes before it.")] = None,
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
    requeue: Annotated[
        bool | None, typer.Option(help="Come back after preemption, a failed node, or exit code 75; the verb resumes. (Default: yes.)")
    ] = None,
    signal_seconds: Annotated[
        int | None, typer.Option(min=1, help="How long before the time limit the warning signal comes. (Default: 120.)")
    ] = None,
    export: Annotated[
        list[str] | None, typer.Option(help="A further variable of this shell that the job sees, by name. No secrets. Repeatable.")
    ] = None,
    secrets: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Lines NAME=VALUE that the job sees as variables; of mode 0600.")
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="Run the same job here, now, without SLURM.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the sbatch script and the configuration, and submit nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Submit `retinaforge VERB ARGS` to SLURM: retinaforge submit --nodes 2 --gpus-per-task 1 -- train vqgan retina-224.

    What is left out comes from site.yaml, here or in ~/.config/retinaforge. Submitted again, a job of the same name goes on with what
    it left, also with other resources.
    """
    given = {
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
        "exports": export or None,
        "secrets": str(secrets.absolute()) if secrets else None,
    }
    given = {**_nodes(nodes), **{field: value for field, value in given.items() if value is not None}}
    if words[0] == "pipeline":
        from launch.cli.pipeline import submit_pipeline

        submit_pipeline(words[1:], given, name, jobs=jobs, local=local, dry_run=dry_run, as_json=as_json)
        return
    job = described(words, given, name, jobs)
    if dry_run:
        show(job, as_json)
        return
    from slurm import executor

    if not local:
        executor.check_slurm()
    job.check()
    if local:
        if shutil.which("squeue"):
            executor.check_free(job.folder)  # a job of this name that waits would read what is frozen now
        job.freeze()
        raise typer.Exit(executor.run_local(job.spec, job.folder))
    from slurm.offers import offers

    job.check_on(offers())
    executor.check_free(job.folder)
    job.freeze()
    _submitted(job.spec, job.folder, as_json)


@dataclass(frozen=True)
class Described:
    """A job before it is submitted: what SLURM is told, its folder, and what it makes of which run, if of one."""

    spec: JobSpec
    folder: Path
    config: Config | None = None
    target: Target | None = None

    def check(self) -> None:
        """Refuse what could not run on this machine either, before anything is written.

        Raises:
            InputError: the name is another command's, the secrets are no file of one's own, the run was begun with another
            configuration, or a folder cannot be written.
        """
        from launch.jobs import check_target, check_writable
        from slurm.jobs import check_same
        from slurm.task import read_secrets

        check_same(self.spec, self.folder)
        if self.spec.secrets:
            read_secrets(Path(self.spec.secrets))
        if self.config is not None and self.target is not None:
            from launch.stages import Run  # it takes seconds

            check_target(self.folder, self.target)
            run = Run(self.config)
            run.check()
            check_writable(run.folder)
        check_writable(self.folder)

    def check_on(self, there: list[Offer]) -> None:
        """Refuse what this cluster could not start, or what would be ended before its first checkpoint.

        Raises:
            InputError: as said.
        """
        from launch.jobs import check_time
        from slurm.offers import check_fit

        check_fit(self.spec, there)
        if self.target is not None:
            check_time(self.spec, self.target)

    def freeze(self) -> None:
        """Write what the job works with into its folder."""
        if self.config is not None and self.target is not None:
            from launch.jobs import freeze_run

            freeze_run(self.folder, self.config, self.target)


def described(words: list[str], given: dict[str, Any], name: str | None, jobs: Path) -> Described:
    """The job that these words and options mean; nothing is written.

    Raises:
        InputError: no such verb or option, a configuration that is refused, or fields that JobSpec refuses.
    """
    from launch.jobs import CONFIG_NAME, STAGES, progress_patterns, target_of
    from launch.site import network_variables, site_defaults
    from slurm.jobs import spec_from
    from slurm.records import job_folder

    verb, parsed = parse(words)
    fields = site_defaults(words[0], verbs()) | given
    fields["exports"] = sorted({*fields.get("exports", ()), *given.get("exports", ()), *network_variables(os.environ)})
    config = target = None
    if verb in STAGES and parsed.get("preset"):
        from launch.config import load

        config = load(parsed["preset"], parsed["overrides"] or [])
        target = target_of(config, verb)
        name = name or f"{Path(target.run).name}/{target.stage}"
        rest = words[len(verb.split()) :]
        for word in (parsed["preset"], *(parsed["overrides"] or [])):
            if word not in rest:
                raise InputError(
                    "{array_task} within the configuration",
                    where=" ".join(words),
                    expected="one configuration for the whole array, for it is frozen with the job; {array_task} among the verb's options",
                    mend="sample … --task {array_task}/N, or a job of its own for each configuration",
                )
            rest.remove(word)
        words = [*verb.split(), str(job_folder(jobs, name) / CONFIG_NAME), *rest]
        fields["progress"] = progress_patterns(target)
    elif verb == "codebook fit":
        fields["progress"] = _codebook_files(parsed)
    name = name or "-".join(words).replace("/", "_")[:128]
    own = {"name": name, "command": ["retinaforge", *words], "folder": str(Path.cwd())}
    spec = spec_from(json.dumps(fields | own).encode(), where="the job, as site.yaml and the options say")
    return Described(spec, job_folder(jobs, name), config, target)


def parse(words: list[str]) -> tuple[str, dict[str, Any]]:
    """The verb ('train vqgan') and what its own command line makes of the rest.

    Raises:
        InputError: no such verb, or what the verb would refuse once it runs.
    """
    from launch.cli import app

    node, path, rest = typer.main.get_command(app), [], [word.replace("{array_task}", "1") for word in words]
    while hasattr(node, "commands"):  # a group of verbs
        known = set(node.commands) - (set() if path else NOT_SUBMITTED)
        verb = rest.pop(0) if rest else ""
        if verb not in known:
            said = " ".join([*path, verb]).strip()
            raise InputError(f"no verb {said!r} to submit", expected=nearest(verb, known), mend="retinaforge --help")
        node, path = node.commands[verb], [*path, verb]
    try:
        return " ".join(path), node.make_context(" ".join(path), rest).params
    except Exception as error:
        if not hasattr(error, "format_message"):  # click's word for what a person mistyped
            raise
        raise InputError(error.format_message(), where=" ".join(words), mend=f"retinaforge {' '.join(path)} --help") from error


def verbs() -> set[str]:
    """What can be submitted, by the first word."""
    from launch.cli import app

    return {entry.name for entry in (*app.registered_commands, *app.registered_groups)} - NOT_SUBMITTED


def _codebook_files(parsed: dict[str, Any]) -> tuple[str, ...]:
    from data_shards.stores import is_url

    if parsed["out"] is None and is_url(parsed["latents"]):
        return ()  # refused by the verb itself
    out = Path(parsed["out"] or Path(parsed["latents"]).absolute().parent / "codebook.safetensors").absolute()
    return (glob.escape(str(out)), glob.escape(str(out.with_name(f".{out.name}.unfinished"))))


def show(job: Described, as_json: bool) -> None:
    """What would be submitted: the script, and below it, as comments, the configuration and the names of secrets."""
    tree = as_tree(job)
    if as_json:
        typer.echo(json.dumps(tree))
        return
    typer.echo(tree["sbatch"], nl=False)
    for name, value in tree["secrets"].items():
        typer.echo(f"# {name}={value}  from {job.spec.secrets}")
    if job.config:
        from launch.config import to_yaml
        from slurm.jobs import masked

        typer.echo(f"\n# {job.folder}/config.yaml:")
        typer.echo("".join(f"#   {masked(line)}\n" for line in to_yaml(job.config).splitlines()), nl=False)


def as_tree(job: Described) -> dict[str, Any]:
    """The same as plain values, with secrets starred."""
    from slurm.jobs import masked, sbatch_text, spec_json
    from slurm.task import read_secrets

    secrets = dict.fromkeys(read_secrets(Path(job.spec.secrets)), "***") if job.spec.secrets else {}
    spec = json.loads(spec_json(replace(job.spec, command=tuple(map(masked, job.spec.command)))))
    config = None
    if job.config:
        from launch.config import to_tree

        config = _masked(to_tree(job.config))
    return {"folder": str(job.folder), "sbatch": sbatch_text(job.spec, job.folder), "job": spec, "config": config, "secrets": secrets}


def _masked(tree: Any) -> Any:
    """A tree of plain values, passwords in it starred."""
    from slurm.jobs import masked

    if isinstance(tree, dict):
        return {key: _masked(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_masked(value) for value in tree]
    return masked(tree) if isinstance(tree, str) else tree


def resume(
    name: Annotated[str, typer.Argument(help="Name of a job that has ended, or of a pipeline.")],
    nodes: Annotated[str | None, typer.Option(help="Other nodes than before: 2, or 1-4.")] = None,
    time_minutes: Annotated[int | None, typer.Option(min=1, help="Another time limit.")] = None,
    partition: Annotated[str | None, typer.Option(help="Other partition(s).")] = None,
    array: Annotated[str | None, typer.Option(help="Other indices of an array: those that failed.")] = None,
    jobs: Jobs = JOBS,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Submit a job again as it was frozen; it goes on from its newest verified checkpoint. Of a pipeline, what is missing."""
    from launch.jobs import read_target
    from slurm import executor
    from slurm.jobs import SPEC_NAME, read_spec
    from slurm.offers import offers
    from slurm.records import job_folder

    changes = {"time_minutes": time_minutes, "partition": partition, "array": array}
    changes = {**_nodes(nodes), **{field: value for field, value in changes.items() if value is not None}}
    folder = job_folder(jobs, name)
    from launch.cli.pipeline import PIPELINE_NAME, submit_pipeline

    if (folder / PIPELINE_NAME).exists():
        if changes:
            raise InputError(
                f"{', '.join(changes)} for the pipeline {name!r}",
                expected="no resources: each of its jobs has its own",
                mend=f"retinaforge resume {name}/STAGE …, or edit the file and retinaforge submit -- pipeline FILE",
            )
        submit_pipeline([str(folder / PIPELINE_NAME)], {}, name, jobs=jobs, local=False, dry_run=False, as_json=as_json)
        return
    if not (folder / SPEC_NAME).exists():
        raise InputError(f"no job {name!r}", where=jobs, expected="one that was submitted", mend="retinaforge runs lists them")
    spec = replace(read_spec(folder / SPEC_NAME), **changes, dependency=None)  # what it waited for may be long gone
    executor.check_slurm()
    Described(spec, folder, target=read_target(folder)).check_on(offers())
    executor.check_free(folder)
    _submitted(spec, folder, as_json)


def _submitted(spec: JobSpec, folder: Path, as_json: bool) -> None:
    from slurm import executor

    record = executor.submit(spec, folder, free=True)
    log = executor.handles(record, folder)[0].paths.stdout
    said = {"job_id": record.job_id, "job_ids": record.job_ids, "name": spec.name, "folder": str(folder), "log": str(log)}
    if as_json:
        typer.echo(json.dumps(said))
        return
    parts = f" in {len(record.job_ids)} arrays: {', '.join(record.job_ids)}" if len(record.job_ids) > 1 else ""
    typer.echo(f"job {record.job_id} ({spec.name}){parts}\n  log:    {said['log']}\n  status: retinaforge status {spec.name!r}")


def _nodes(text: str | None) -> dict[str, Any]:
    """'2' or '1-4', as fields of a job; what a site's file says of either is void then.

    Raises:
        InputError: neither.
    """
    if text is None:
        return {}
    match = re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", text)
    if not match:
        raise InputError(f"--nodes {text}", expected="a number, or the fewest and the most: 1-4")
    return {"nodes": int(match[1]), "most_nodes": int(match[2]) if match[2] else None}
