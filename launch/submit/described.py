"""Words and options of `submit` as a job: what SLURM is told, what is frozen with it, and what a dry run shows."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from data_shards.errors import InputError, nearest, without_credentials

if TYPE_CHECKING:
    from typer.core import TyperGroup

    from launch.config import Config
    from launch.submit.frozen import Target
    from launch.submit.site import Defaults
    from slurm.jobs import JobSpec
    from slurm.offers import Offer

NOT_SUBMITTED = {"submit", "status", "logs", "cancel", "resume", "runs", "slurm-local"}


@dataclass(frozen=True)
class Described:
    """A job before it is submitted: what SLURM is told, its folder, and what it makes of which run, if of one."""

    spec: JobSpec
    folder: Path
    config: Config | None = None
    target: Target | None = None
    sources: Mapping[str, str] = field(default_factory=dict)
    """Who says so, by field, where neither a default of ours nor the verb does."""

    def check(self) -> None:
        """Refuse what could not run on this machine either, before anything is written.

        Raises:
            InputError: the name is another command's, the secrets are no file of one's own, the run was begun with another
            configuration, there is no such dataset, or a folder cannot be written.
        """
        from launch.submit.frozen import check_target, check_writable
        from slurm.jobs import check_same
        from slurm.task import read_secrets

        check_same(self.spec, self.folder)
        if self.spec.secrets:
            read_secrets(Path(self.spec.secrets))
        if self.config is not None and self.target is not None:
            from launch.run import Run  # it takes seconds
            from launch.stages.data import check_inputs
            from launch.stages.outdated import check_outdated

            check_target(self.folder, self.target)
            run = Run(self.config)
            run.check()
            if self.config.data.dataset:
                check_inputs(run)
            if self.target.stage == "run":
                check_outdated(run)
            check_writable(run.folder)
        check_writable(self.folder)

    def check_on(self, offered: list[Offer]) -> None:
        """Refuse what this cluster could not start, or what would be ended before its first checkpoint.

        Raises:
            InputError: as said.
        """
        from launch.submit.frozen import check_time
        from slurm.offers import check_fit, waits_for

        check_fit(self.spec, offered)
        if warning := waits_for(self.spec, offered):
            typer.echo(warning, err=True)
        if self.target is not None:
            check_time(self.spec, self.target)

    def freeze(self) -> None:
        """Write what the job works with into its folder, the packages that run it too."""
        if self.spec.code:
            from launch.provenance import keep_code
            from launch.submit.frozen import private

            private(self.folder)
            keep_code(Path(self.spec.code))
        if self.config is not None and self.target is not None:
            from launch.submit.frozen import freeze_run

            freeze_run(self.folder, self.config, self.target)


def described(
    program: TyperGroup, words: list[str], given: dict[str, Any], name: str | None, jobs: Path, given_by: str = "the command line"
) -> Described:
    """The job that these words and options mean; nothing is written.

    Args:
        program: our command line, which knows the verbs.
        words: after `retinaforge`.

    Raises:
        InputError: no such verb or option, a configuration that is refused, or fields that JobSpec refuses.
    """
    from launch.submit.frozen import CONFIG_NAME, target_of, verbs_on_runs
    from slurm.fields import masked
    from slurm.jobs import spec_from
    from slurm.records import job_folder

    verb, parsed = parse(program, words)
    defaults = _with_options(words[0], verbs(program), given, given_by)
    fields = defaults.fields
    snapshot = fields.pop("snapshot", None)
    config = target = None
    if verb in verbs_on_runs() and parsed.get("preset") is not None:
        from launch.tree import load

        config = load(parsed["preset"], parsed["overrides"] or [])
        target = target_of(config, verb)
        name = name or f"{Path(target.run).name}/{target.stage}"
        words = _on_frozen(verb, words, parsed, job_folder(jobs, name) / CONFIG_NAME)
    fields |= _grown_files(verb, target, parsed, as_written=parse(program, words, index=None)[1])
    name = name or re.sub("[/:]", "_", "-".join(map(masked, words)))[:128]
    _check_exported(fields["exports"])
    fields |= {"name": name, "command": ["retinaforge", *words], "folder": str(Path.cwd()), **_code(snapshot, job_folder(jobs, name))}
    spec = spec_from(json.dumps(fields).encode(), where="the job, as site.yaml and the options say")
    sources = {field_name: who for field_name, who in defaults.sources.items() if who and field_name in fields}
    return Described(spec, job_folder(jobs, name), config, target, sources)


def _with_options(verb: str, known: set[str], given: dict[str, Any], given_by: str) -> Defaults:
    """What site.yaml says for jobs of this verb, and above it what was given; what is exported adds up."""
    from launch.submit.site import Defaults, as_fields, network_variables, site_defaults

    site = site_defaults(verb, known)
    given = as_fields(given, where=given_by)
    exports = {
        site.sources.get("exports"): site.fields.get("exports", ()),
        given_by: given.get("exports", ()),
        "networks of clusters, as set in this shell": network_variables(os.environ),
    }
    together = sorted({name for names in exports.values() for name in names})
    sources = site.sources | dict.fromkeys(given, given_by) | {"exports": "; ".join(who for who, names in exports.items() if names)}
    return Defaults(fields={**site.fields, **given, "exports": together}, sources=sources)


def _on_frozen(verb: str, words: list[str], parsed: dict[str, Any], config: Path) -> list[str]:
    """The words of a verb with the frozen configuration in place of preset and overrides.

    Raises:
        InputError: the configuration is another one for each index of an array.
    """
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
    return [*verb.split(), str(config), *rest]


def _grown_files(verb: str, target: Target | None, parsed: dict[str, Any], as_written: dict[str, Any]) -> dict[str, Any]:
    """Which files change as the job gets on, as fields of it; none where nobody knows any."""
    from launch.submit.frozen import progress_patterns

    if target is None:
        files = {"codebook fit": _codebook_files, "sweep": _sweep_files}
        return {"progress": files[verb](as_written)} if verb in files else {}
    share = {"share": as_written["task"]} if target.stage == "sample" and parsed["task"] != "1/1" else {}
    return {"progress": progress_patterns(target), **share}


def _check_exported(names: list[str]) -> None:
    """Refuse to export a variable whose value holds a password.

    Raises:
        InputError: as said.
    """
    for name in names:
        if (value := os.environ.get(name, "")) != without_credentials(value):
            raise InputError(
                f"export {name!r}: its value {value} holds a password",
                expected="no secrets: what is exported is kept by SLURM",
                mend=f"put the line {name}=… into a file that only you may read (chmod 600), and submit with --secrets FILE",
            )


def _code(snapshot: bool | None, folder: Path) -> dict[str, str]:
    """Where the job finds our packages, as a field of it; none where its Python has them installed."""
    from launch.provenance import ROOT, installed, on_pythonpath, snapshot_in

    if snapshot or (snapshot is None and not installed()):
        return {"code": str(snapshot_in(folder))}
    if on_pythonpath():  # what runs here, and not what the interpreter would find without it
        return {"code": str(ROOT)}
    return {}


def parse(program: TyperGroup, words: list[str], index: str | None = "1") -> tuple[str, dict[str, Any]]:
    """The verb ('train vqgan') and what its own command line makes of the rest.

    Args:
        index: of an array, in place of {array_task}; None leaves that as it is written, and refuses nothing that then makes no sense.

    Raises:
        InputError: no such verb, or what the verb would refuse once it runs.
    """
    node, path, rest = program, [], [word.replace("{array_task}", index or "{array_task}") for word in words]
    while hasattr(node, "commands"):  # a group of verbs
        known = set(node.commands) - (set() if path else NOT_SUBMITTED)
        verb = rest.pop(0) if rest else ""
        if verb not in known:
            said = " ".join([*path, verb]).strip()
            raise InputError(f"no verb {said!r} to submit", expected=nearest(verb, known), mend="retinaforge --help")
        node, path = node.commands[verb], [*path, verb]
    try:
        return " ".join(path), node.make_context(" ".join(path), rest, resilient_parsing=index is None).params
    except Exception as error:
        if not hasattr(error, "format_message"):  # click's word for what a person mistyped
            raise
        raise InputError(error.format_message(), where=" ".join(words), mend=f"retinaforge {' '.join(path)} --help") from error


def verbs(program: TyperGroup) -> set[str]:
    """What can be submitted, by the first word."""
    return set(program.commands) - NOT_SUBMITTED


def _codebook_files(parsed: dict[str, Any]) -> tuple[str, ...]:
    from data_shards.stores import is_url

    if parsed["out"] is None and is_url(parsed["latents"]):
        return ()  # refused by the verb itself
    out = Path(parsed["out"] or Path(parsed["latents"]).absolute().parent / "codebook.safetensors").absolute()
    return (glob.escape(str(out)), glob.escape(str(out.with_name(f".{out.name}.unfinished"))))


def _sweep_files(parsed: dict[str, Any]) -> tuple[str, ...]:
    from launch.sweep.runs import base_of, progress_patterns

    return progress_patterns(Path(base_of(parsed["preset"], parsed["overrides"] or []).run).absolute())


def show(job: Described, as_json: bool) -> None:
    """What would be submitted: the script, and below it, as comments, the configuration and the names of secrets."""
    tree = as_tree(job)
    if as_json:
        typer.echo(json.dumps(tree))
        return
    typer.echo(tree["sbatch"], nl=False)
    for field_name, who in tree["sources"].items():
        typer.echo(f"# {field_name}: {json.dumps(tree['job'][field_name], ensure_ascii=False)}  says {who}")
    for name, value in tree["secrets"].items():
        typer.echo(f"# {name}={value}  from {job.spec.secrets}")
    if job.config:
        from launch.tree import to_public_yaml

        typer.echo(f"\n# {job.folder}/config.yaml:")
        typer.echo("".join(f"#   {line}\n" for line in to_public_yaml(job.config).splitlines()), nl=False)


def as_tree(job: Described) -> dict[str, Any]:
    """The same as plain values, with secrets starred."""
    from slurm.executor import umask_here
    from slurm.fields import masked
    from slurm.jobs import spec_json
    from slurm.script import sbatch_text
    from slurm.task import read_secrets

    secrets = dict.fromkeys(read_secrets(Path(job.spec.secrets)), "***") if job.spec.secrets else {}
    sent = replace(job.spec, umask=job.spec.umask or umask_here())  # as `submit` notes it
    spec = json.loads(spec_json(replace(sent, command=tuple(map(masked, sent.command)))))
    config = None
    if job.config:
        from launch.credentials import concealed
        from launch.tree import to_tree

        config = concealed(to_tree(job.config))
    return {
        "folder": str(job.folder),
        "sbatch": sbatch_text(sent, job.folder),
        "job": spec,
        "sources": dict(job.sources),
        "config": config,
        "secrets": secrets,
    }
