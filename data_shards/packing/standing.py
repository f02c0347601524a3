"""A packed set that stands already: whether it is the one asked for, and whether its source is still what was packed.

Metadata are hashed at each call. Arrays and maps are told by size and times of their files (`packed-from.json`); where these
differ, or are not known, the cubes are compared with what the set holds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shlex
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from data_shards import durable
from data_shards.cube import Cube
from data_shards.errors import InputError, RetinaforgeError
from data_shards.manifest import NAME, Manifest, read_manifest
from data_shards.packing.sources import Read
from data_shards.reading.dataset import Dataset
from data_shards.shards.codecs import Encoding

STAMPS = "packed-from.json"


def standing(
    out: Path, encoding: Encoding, request: dict[str, Any], read: Read, again: list[str], grown: Sequence[str] = ()
) -> Manifest | None:
    """The dataset at `out` where it is the one asked for; None where nothing stands there.

    Args:
        again: the words of the command, with '{}' for the place.
        grown: what it says besides where other cubes are packed than before, so that people keep their splits.

    Raises:
        InputError: something else does, its source changed since, or the codec cannot be used.
    """
    _ = encoding.coder
    if not out.exists():
        return None
    done = read_manifest(out) if (out / NAME).exists() else None
    options = _other_options(done, request)
    mend = _elsewhere(out, [*again, *(() if options else grown)])
    if done is None or done.source != request:
        said = f"the place is taken: {options or 'other cubes, or other metadata of theirs, than were packed'}"
        raise InputError(said, where=out, expected="a path that does not exist yet, or this very dataset", mend=mend)
    if changed := _changed(Dataset(out, done), encoding, read):
        raise InputError(
            f"the place is taken: {changed} since it was packed",
            where=out,
            expected="the files that were packed; the set still holds what they were then",
            mend=mend,
        )
    return done


def _elsewhere(out: Path, again: list[str]) -> str:
    """The command with a place that is free: the old set stays."""
    free = next(place for n in count(2) if not (place := out.with_name(f"{out.name}-{n}")).exists())
    return shlex.join(word.format(free) if word == "{}" else word for word in again)


def _other_options(done: Manifest | None, request: dict[str, Any]) -> str:
    """In what the set that stands was asked for otherwise."""
    verb, asked = next(iter(request.items()))
    if done is None or not isinstance(old := done.source.get(verb), dict):
        return f"no `data {verb}` made what is there"
    return "; ".join(f"{name} {old.get(name)}, now {asked.get(name)}" for name in {**old, **asked} if old.get(name) != asked.get(name))


def stamps_digest(read: Read, keys: Iterable[str]) -> str:
    """What the files of a shard's samples look like from outside; '' where a digest names their content already."""
    stamps = [[key, read.stamp(key)] for key in keys]
    return hashlib.sha256(durable.canonical_json(stamps)).hexdigest() if any(stamp for _, stamp in stamps) else ""


def write_stamps(folder: Path, digest_of: dict[str, str]) -> None:
    """Record the digests, by shard, beside the shards."""
    if any(digest_of.values()):
        durable.write_json(folder / STAMPS, digest_of)


def _changed(dataset: Dataset, encoding: Encoding, read: Read) -> str:
    """The first sample whose source is not what the set holds, '' where there is none."""
    try:
        known = dict(json.loads((dataset.path / STAMPS).read_bytes()))
    except (OSError, ValueError, TypeError):
        known = {}  # a set from before there were stamps, or one that was copied without: its cubes are compared
    fresh = {}
    for shard in (shard for split, info in dataset.splits.items() if info.count for shard in dataset.shards(split)):
        keys = list(shard.index.keys)
        fresh[shard.entry.name] = stamps_digest(read, keys)
        if fresh[shard.entry.name] not in ("", known.get(shard.entry.name)):
            for i, key in enumerate(keys):
                if what := _unlike(read(key), shard.cube(i), encoding):
                    return f"the {what} of sample {key} changed"
    if fresh != known:
        with contextlib.suppress(RetinaforgeError):  # in a place that may not be written they are compared each time
            write_stamps(dataset.path, fresh)
    return ""


def _unlike(cube: Cube, stored: Cube, encoding: Encoding) -> str:
    """What of a cube is not as it is stored."""
    data_CHW = encoding.coder.rounded(cube.data_CHW) if encoding.max_error else cube.data_CHW
    pairs = {"array": (data_CHW, stored.data_CHW), "label map": (cube.labels_HW, stored.labels_HW), "mask": (cube.fov_HW, stored.fov_HW)}
    for name, (a, b) in pairs.items():
        if (a is None) != (b is None) or (a is not None and not np.array_equal(a, b)):
            return name
    return ""
