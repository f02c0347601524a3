"""YAML as data, and never as objects. Apart from launch.config, which takes seconds to import."""

from __future__ import annotations

from typing import Any

import yaml

from data_shards.errors import InputError


def parse_yaml(text: str, where: object) -> Any:
    """YAML by the safe loader: data only, never objects."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"not YAML: {error}", where=where) from error
    return {} if value is None else value
