"""What a site's jobs have in common: YAML files with defaults for every job, and for the jobs of one verb.

    partition: gpu
    account: retina
    verbs:
      train: {gpus_per_task: 1, cpus_per_task: 8, time_minutes: 1440}
      sample: {partition: gpu-short}
    ask_every_seconds: 60       # how often SLURM is asked for states, at most; 30 when left out

`~/.config/retinaforge/site.yaml` is read first, then `site.yaml` of the present folder; the later and the closer word counts, and an
option of the command line above all.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_shards.errors import InputError, nearest
from launch.parse import parse_yaml
from slurm.jobs import JobSpec
from slurm.status import ASK_EVERY_S, Queue

NAME = "site.yaml"
OF_ONE_JOB = {"name", "command", "folder", "array", "dependency", "progress", "share"}  # what no two jobs share
KEYS = set(JobSpec.__dataclass_fields__) - OF_ONE_JOB
ASK = "ask_every_seconds"
"""How often SLURM may be asked; no field of a job."""


def site_files() -> list[Path]:
    """Where defaults may stand, the closest last."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return [home / "retinaforge" / NAME, Path(NAME).absolute()]


def site_defaults(verb: str, verbs: set[str]) -> dict[str, Any]:
    """Fields of a JobSpec for jobs of this verb, from all files there are; `verbs` are those that can be submitted.

    Raises:
        InputError: a file that is no YAML mapping, or an unknown key or verb, with the nearest.
    """
    found: dict[str, Any] = {}
    for path in site_files():
        try:
            text = path.read_text()
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot be read: {error}", where=path, expected="YAML, in UTF-8") from error
        tree = _mapping(parse_yaml(text, path), path)
        tree.pop(ASK, None)
        by_verb = _mapping(tree.pop("verbs", {}), f"{path}: verbs")
        for name in by_verb:
            if name not in verbs:
                raise InputError(f"unknown verb {name!r}", where=f"{path}: verbs", expected=nearest(name, verbs))
        for where, fields in ((path, tree), *((f"{path}: verbs: {name}", _mapping(fields, path)) for name, fields in by_verb.items())):
            for key in fields:
                if key not in KEYS:
                    raise InputError(f"unknown key {key!r}", where=where, expected=nearest(key, KEYS))
        found |= tree | by_verb.get(verb, {})
    return {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}


def queue() -> Queue:
    """The scheduler's queue, asked as often as this site likes.

    Raises:
        InputError: ask_every_seconds is no number above 0.
    """
    every: Any = ASK_EVERY_S
    for path in site_files():
        if path.exists():
            every = _mapping(parse_yaml(path.read_text(), path), path).get(ASK, every)
            if isinstance(every, bool) or not isinstance(every, (int, float)) or not every > 0:
                raise InputError(f"{ASK}: {every!r}", where=path, expected="seconds, above 0")
    return Queue(every)


def network_variables(environ: Mapping[str, str]) -> set[str]:
    """Names of the variables there by which networks of clusters are set up: those of NCCL and what lies below it, and of gloo."""
    return {name for name in environ if re.fullmatch(r"(NCCL|TORCH_NCCL|UCX|FI|GLOO)_\w+", name)}


def _mapping(value: Any, where: object) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise InputError(f"{value!r} in place of keys and values", where=where, expected="such as partition: gpu")
    return value
