"""A configuration as nested plain values: presets, dotted overrides, YAML, and errors that name the nearest key."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from data_shards.errors import InputError, nearest
from launch.config import Config
from launch.credentials import concealed, revealed
from launch.parse import parse_yaml


def preset_names() -> list[str]:
    """Names of the presets that travel with the package."""
    return sorted(p.name.removesuffix(".yaml") for p in resources.files("launch").joinpath("presets").iterdir() if p.name.endswith(".yaml"))


def preset_text(name: str) -> str:
    """The YAML of a preset; its first line says what it is for."""
    return resources.files("launch").joinpath("presets", f"{name}.yaml").read_text()


def load(preset: str, overrides: list[str] = ()) -> Config:
    """A preset's name or a YAML file, then `a.b.c=value` overrides.

    Raises:
        InputError: unknown preset or key (with the nearest), a value of the wrong type or out of range.
    """
    tree = _unshared(parse_yaml(_text_of(preset), preset))
    _check_keys(tree, Config, "", preset)
    for override in overrides:
        _override(tree, override)
    _keep_as_begun(tree)
    return from_tree(revealed(tree, Path(preset)), where=preset)


def _unshared(tree: Any) -> Any:
    """The same tree without aliases: an override of one place must not reach another that YAML's `*name` put the same section into."""
    return {key: _unshared(value) for key, value in tree.items()} if isinstance(tree, dict) else tree


def _text_of(preset: str) -> str:
    path = Path(preset)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise InputError("no such file", where=path, expected="a YAML configuration", mend="retinaforge presets")
        try:
            return path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot be read: {error}", where=path, expected="a YAML configuration, in UTF-8") from error
    if preset not in preset_names():
        raise InputError(f"unknown preset {preset!r}", expected=nearest(preset, preset_names()), mend="retinaforge presets")
    return preset_text(preset)


def _override(tree: dict[str, Any], override: str) -> None:
    """Set one value of the tree: `a.b.c=value`."""
    key, sep, value = override.partition("=")
    if not sep:
        raise InputError(f"override {override!r}", expected="KEY.SUBKEY=VALUE", mend="for example vqgan.model.channels=64")
    *sections, last = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise InputError(
                f"{key!r}: {section!r} is a value, not a section", expected="a key of the tree", mend="retinaforge run demo --dry-run"
            )
    tree[last] = parse_yaml(value, override)


FORMER: dict[str, Any] = {"diffusion.model.attention_head_dim": 8}
"""What held before a setting existed, where that is not its default: a run that was begun then goes on with it."""


def _keep_as_begun(tree: dict[str, Any]) -> None:
    """Fill in what holds of FORMER for the run folder that `tree` names, unless `tree` states it."""
    folder = Path(str(tree.get("run", Config.run)))
    if not (folder / "run.yaml").is_file():
        return
    begun = parse_yaml((folder / "run.yaml").read_text(), folder / "run.yaml")
    for key, former in FORMER.items():
        stage, section, name = key.split(".")
        there = begun.get(stage, {}).get(section, {})
        # once such a run has gone on, its run.yaml states what held: that is no other run
        if there and there.get(name, former) == former and (folder / stage / "checkpoints").is_dir():
            tree.setdefault(stage, {}).setdefault(section, {}).setdefault(name, former)


def completed(tree: Mapping[str, Any], default: Any = None, prefix: str = "") -> dict[str, Any]:
    """A run.yaml of this or an earlier version, with what it leaves out as it was meant."""
    default = Config() if default is None else default
    whole = dict(tree)
    for field_ in dataclasses.fields(default):
        key, value = field_.name, getattr(default, field_.name)
        if dataclasses.is_dataclass(value):
            whole[key] = completed(tree.get(key, {}), value, f"{prefix}{key}.")
        elif key not in tree:
            whole[key] = json.loads(json.dumps(FORMER.get(prefix + key, value)))
    return whole


def from_tree(tree: Mapping[str, Any], *, where: object = None) -> Config:
    """A validated Config from nested mappings."""
    _check_keys(tree, Config, "", where)
    try:
        return TypeAdapter(Config).validate_python(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, InputError):
            raise InputError(cause.what, where=f"{where}: {key}", expected=cause.expected, mend=cause.mend) from None
        raise InputError(
            f"{key} = {first['input']!r}: {first['msg']}", where=where, expected="see retinaforge run demo --dry-run"
        ) from None


def to_tree(config: Any) -> dict[str, Any]:
    """Nested plain values, ready for YAML or JSON."""
    return TypeAdapter(type(config)).dump_python(config, mode="json")


def to_yaml(config: Config) -> str:
    """The whole resolved tree, with the passwords that stand in URLs: for private files only."""
    return _as_yaml(to_tree(config))


def to_public_yaml(config: Config) -> str:
    """The resolved tree, as `--dry-run` prints it and run.yaml keeps it: what only its user may know is starred."""
    return _as_yaml(concealed(to_tree(config)))


def _as_yaml(tree: dict[str, Any]) -> str:
    return yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, width=120)


def _check_keys(tree: Any, cls: type, prefix: str, where: object) -> None:
    """Refuse unknown keys, naming the nearest known one at that place."""
    if not isinstance(tree, Mapping):
        raise InputError(f"{prefix.rstrip('.') or 'the configuration'} is {tree!r}", where=where, expected="a section with keys")
    hints = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]
    for key, value in tree.items():
        if key not in known:
            raise InputError(
                f"unknown key {prefix + str(key)!r}",
                where=where,
                expected=nearest(str(key), known),
                mend="retinaforge run demo --dry-run shows all keys",
            )
        if dataclasses.is_dataclass(hints[key]):
            _check_keys(value, hints[key], f"{prefix}{key}.", where)
