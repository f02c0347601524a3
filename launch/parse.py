"""YAML as data, and never as objects. Apart from launch.tree, which takes seconds to import."""

from __future__ import annotations

import re
from typing import Any

import yaml

from data_shards.errors import InputError

TEXT, DATE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:timestamp"
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
OCTAL = re.compile(r"[+-]?0[0-9_]")


class _Loader(yaml.SafeLoader):
    """The safe loader, but what YAML 1.1 takes for another number than stands there is text: 1:30:00 to the base of 60, 0123 to that of 8.

    So are dates, of which no file of ours has any.
    """

    def resolve(self, kind: type, value: Any, implicit: Any) -> str:
        tag = super().resolve(kind, value, implicit)
        to_another_base = (tag in NUMBERS and ":" in value) or (tag == NUMBERS[0] and OCTAL.match(value))
        return TEXT if to_another_base or tag == DATE else tag


def parse_yaml(text: str, where: object) -> Any:
    """YAML by the safe loader: data only, never objects."""
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise InputError(f"not YAML: {error}", where=where) from error
    return {} if value is None else value
