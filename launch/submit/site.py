"""What a site's jobs have in common: YAML files with defaults for every job, and for the jobs of one verb.

    partition: gpu
    account: retina
    verbs:
      train: {gpus_per_task: 1, cpus_per_task: 8, time_minutes: 1440}
      sample: {partition: gpu-short}
    ask_every_seconds: 60       # how often SLURM is asked for states, at most; 30 when left out

`~/.config/retinaforge/site.yaml` is read first, then `site.yaml` of the present folder; the later and the closer word counts, and an
option of the command line above all. Both have to be files that nobody else may write; what names programs or secrets (python, secrets,
setup, launcher) is taken from the user's own file alone.
"""

from __future__ import annotations

import grp
import math
import os
import pwd
import re
import shlex
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data_shards.errors import InputError, nearest
from launch.parse import parse_yaml
from slurm.fields import RUNS_PROGRAMS, seconds_of
from slurm.jobs import JobSpec
from slurm.queue import ASK_EVERY_S, Queue

NAME = "site.yaml"
OF_ONE_JOB = {"name", "command", "folder", "array", "dependency", "progress", "share", "code"}  # what no two jobs share
LISTS = {"extra", "exports", "setup", "srun_options"}
GPUS = {"gpus_per_task", "gpus_per_node"}
SPELLED = {"time", "snapshot"}
"""Keys that stand for fields of a job, see `as_fields`."""
KEYS = set(JobSpec.__dataclass_fields__) - OF_ONE_JOB | SPELLED
TEXTS = {field for field, kind in JobSpec.__annotations__.items() if kind in ("str", "str | None")}
ASK = "ask_every_seconds"
"""How often SLURM may be asked; no field of a job."""


OF_THE_USER = {"python", "secrets", "setup", "launcher"}
"""Fields that name programs or secrets: a folder that was unpacked or cloned must not bring them along."""


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """Attributes:
    fields: of a JobSpec.
    sources: which file says so, by field.
    """

    fields: dict[str, Any]
    sources: dict[str, str]


def home_file() -> Path | None:
    """The user's own site.yaml, whether it is there or not; None for a user without a home."""
    folder = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(folder) / "retinaforge" / NAME if os.path.isabs(folder) else None


def site_files() -> list[Path]:
    """Where defaults may stand, the closest last."""
    return [path for path in (home_file(), Path(NAME).absolute()) if path]


def site_defaults(verb: str, verbs: set[str]) -> Defaults:
    """Fields of a JobSpec for jobs of this verb, from all files there are; `verbs` are those that can be submitted.

    Raises:
        InputError: a file that another could have written, one that is no YAML mapping, an unknown key or verb (with the nearest), or a
        key that only the user's own file may have.
    """
    fields: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for path in site_files():
        tree = _tree(path)
        _check_ask(tree.pop(ASK, ASK_EVERY_S), path)
        by_verb = _mapping(tree.pop("verbs", {}), f"{path}: verbs")
        for name in by_verb:
            if name not in verbs:
                raise InputError(f"unknown verb {name!r}", where=f"{path}: verbs", expected=nearest(name, verbs))
        sections = {str(path): tree, **{f"{path}: verbs: {name}": _mapping(found, path) for name, found in by_verb.items()}}
        for where, section in sections.items():
            _check_keys(section, where, own=path == home_file())
        for where in (str(path), f"{path}: verbs: {verb}"):
            said = as_fields(sections.get(where, {}), where=where)  # before they meet: `time` of one stands for time_minutes of another
            fields |= said
            sources |= dict.fromkeys(said, where)
    return Defaults(fields=fields, sources=sources)


def _bring_programs(options: Any) -> bool:
    """Whether options of SLURM's programs run something: one of those, an abbreviation, or a longer one of the kind."""
    given = [str(line).partition("=")[0].lstrip("-") for line in (options if isinstance(options, list) else [options])]
    return any(name.startswith(option) or option.startswith(name) for option in given for name in RUNS_PROGRAMS)


def as_fields(given: Mapping[str, Any], *, where: object = None) -> dict[str, Any]:
    """Fields of a JobSpec, where some are spelled as SLURM spells them: time D-HH:MM:SS, GPUs TYPE:NUMBER.

    Raises:
        InputError: neither that nor a number, one thing said twice, one value in place of a list, or no text in place of one.
    """
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    for key in LISTS & fields.keys():
        if not isinstance(fields[key], tuple):
            raise InputError(f"{key}: {fields[key]!r}", where=where, expected="a list, also of one: [" + str(fields[key]) + "]")
    for key in fields.keys() & TEXTS:
        if fields[key] is not None and not isinstance(fields[key], str):
            written = yaml.safe_dump(fields[key]).partition("\n")[0]
            raise InputError(f"{key}: {fields[key]!r}", where=where, expected=f'text, in quotes in YAML: {key}: "{written}"')
    if not isinstance(fields.get("snapshot", True), bool):
        raise InputError(f"snapshot: {fields['snapshot']!r}", where=where, expected="true or false")
    if "nodes" in fields:
        fields |= _nodes(fields, where)
    if "time" in fields:
        if "time_minutes" in fields:
            raise InputError("time and time_minutes", where=where, expected="one of both: they say the same")
        fields["time_minutes"] = minutes_of(fields.pop("time"))
    types: set[str | None] = set()
    for key in GPUS & fields.keys():
        match = re.fullmatch(r"(?:([\w.-]+):)?(\d+)", str(fields[key]))
        if not match:
            raise InputError(f"{key}: {fields[key]!r}", where=where, expected="a number, or a type and a number: a100:4")
        fields[key] = int(match[2])
        types.add(match[1] or fields.get("gpu_type"))
    if len(named := types - {None}) > 1:
        raise InputError(f"GPUs of {len(named)} types: {', '.join(sorted(map(str, named)))}", where=where, expected="one type")
    # GPUs that are asked for without a type are of any, whatever was said farther away
    return fields | ({"gpu_type": next(iter(named), None)} if types else {})


def _nodes(fields: Mapping[str, Any], where: object) -> dict[str, Any]:
    """nodes: 2 or 1-4 as fields of a job. Without most_nodes beside it, what was said of that farther away is void.

    Raises:
        InputError: neither, or the most said twice.
    """
    match = re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", str(fields["nodes"]))
    if not match:
        raise InputError(f"nodes: {fields['nodes']!r}", where=where, expected="a number, or the fewest and the most: 1-4")
    if match[2] and "most_nodes" in fields:
        raise InputError(f"nodes: {match[0]} and most_nodes", where=where, expected="one of both: they say the same")
    return {"nodes": int(match[1]), "most_nodes": int(match[2]) if match[2] else fields.get("most_nodes")}


def minutes_of(text: Any) -> int:
    """A time limit in minutes, a part of one counted whole, in any of SLURM's forms: 90, 90:30, 1:30:00, 2-0, 2-12:30, 2-12:30:00.

    Raises:
        InputError: another form.
    """
    seconds = seconds_of(str(text))
    if seconds is None:
        raise InputError(f"time: {text!r}", expected="D-HH:MM:SS, HH:MM:SS or minutes")
    return math.ceil(seconds / 60)


def _check_keys(section: Mapping[str, Any], where: str, *, own: bool) -> None:
    for key in section:
        if key not in KEYS:
            raise InputError(f"unknown key {key!r}", where=where, expected=nearest(key, KEYS))
        if not own and (key in OF_THE_USER or (key in ("extra", "srun_options") and _bring_programs(section[key]))):
            raise InputError(
                f"{key!r} in the site.yaml of a folder: it names a program or a secret",
                where=where,
                expected=f"{key!r} in your own file alone: a folder may come from somebody else",
                mend=f"move the line to {home_file()}",
            )


def _tree(path: Path) -> dict[str, Any]:
    """What a site.yaml says; nothing where there is none.

    Raises:
        InputError: somebody else could have written it, or it is no YAML mapping.
    """
    try:
        entry = path.lstat()
        # what is looked at is what is read, whoever moves files here meanwhile; a pipe keeps nobody waiting
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), encoding="utf-8") as opened:
            file = os.fstat(opened.fileno())
            _check_safe(path, entry, file)
            text = opened.read()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}", where=path, expected="YAML, in UTF-8") from error
    return _mapping(parse_yaml(text, path), path)


def _check_safe(path: Path, entry: os.stat_result, file: os.stat_result) -> None:
    for about in (entry, file):
        if about.st_uid not in (0, os.geteuid()):
            raise InputError(
                f"this file belongs to another user (number {about.st_uid})",
                where=path,
                expected="your own, or the administrator's: it decides what your jobs do",
                mend="run the command in another folder, or put a copy that you have read in its place",
            )
    if not stat.S_ISREG(file.st_mode):
        raise InputError("this is no file", where=path, expected="a file of YAML, or none of this name")
    others = stat.S_IWOTH if _of_one_user(file) else stat.S_IWGRP | stat.S_IWOTH
    if file.st_mode & others:
        raise InputError(
            f"this file may be written by others (mode {file.st_mode & 0o777:o})",
            where=path,
            expected="a file that only you may write: it decides what your jobs do",
            mend=f"look at what it says, then chmod go-w {shlex.quote(str(path))}",
        )


def _of_one_user(file: os.stat_result) -> bool:
    """Whether the file's group is that of its owner alone, who has the same name: such systems give files to it by a umask of 002."""
    try:
        owner, group = pwd.getpwuid(file.st_uid), grp.getgrgid(file.st_gid)
    except KeyError:
        return False
    return (owner.pw_gid, owner.pw_name) == (group.gr_gid, group.gr_name) and not set(group.gr_mem) - {owner.pw_name}


def queue() -> Queue:
    """The scheduler's queue, asked as often as this site likes.

    Raises:
        InputError: ask_every_seconds is no number above 0.
    """
    every: Any = ASK_EVERY_S
    for path in site_files():
        every = _tree(path).get(ASK, every)
        _check_ask(every, path)
    return Queue(every)


def _check_ask(every: Any, path: Path) -> None:
    if isinstance(every, bool) or not isinstance(every, (int, float)) or not 0 < every < math.inf:
        raise InputError(f"{ASK}: {every!r}", where=path, expected="seconds, above 0")


def network_variables(environ: Mapping[str, str]) -> set[str]:
    """Names of the variables there by which networks of clusters are set up: those of NCCL and what lies below it, and of gloo."""
    return {name for name in environ if re.fullmatch(r"(NCCL|TORCH_NCCL|UCX|FI|GLOO)_\w+", name)}


def _mapping(value: Any, where: object) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise InputError(f"{value!r} in place of keys and values", where=where, expected="such as partition: gpu")
    return value
