"""Checking a packed dataset against its own record, fault by fault, each named by shard and sample."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from crc32c import crc32c

from data_shards import durable
from data_shards.codec import CODECS, get_codec
from data_shards.errors import RetinaforgeError
from data_shards.index import ShardIndex, index_path, read_index, scan_shard
from data_shards.manifest import ShardEntry, read_manifest


def verify(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield (shard, faults) for each shard of the manifest, then for the dataset as a whole; no fault, an empty list.

    Raises:
        InputError: no dataset there. CorruptData: the manifest itself cannot be read.
    """
    manifest = read_manifest(folder)
    keys: dict[str, str] = {}
    split_of: dict[str, str] = {}
    whole: list[str] = []
    for entry in manifest.shards:
        faults, index = check_shard(folder / entry.name, entry)
        for key, subject in zip(index.keys, index.subjects, strict=True) if index else ():
            if key in keys:
                whole.append(f"sample {key}: in {keys[key]} and again in {entry.name}")
            keys[key] = entry.name
            if split_of.setdefault(subject, entry.split) != entry.split:
                whole.append(f"subject {subject}: in splits {split_of[subject]} and {entry.split}")
        yield entry.name, faults
    known = {entry.name for entry in manifest.shards}
    whole += [f"{path.name}: a shard that {folder.name}/dataset.json does not name" for path in folder.glob("*.tar") if path.name not in known]
    for split, sizes in manifest.splits.items():
        count = sum(entry.count for entry in manifest.shards if entry.split == split)
        if count != sizes["count"]:
            whole.append(f"split {split}: {count} samples in its shards, {sizes['count']} in the manifest")
    yield "dataset.json", whole


def check_shard(shard: Path, entry: ShardEntry) -> tuple[list[str], ShardIndex | None]:
    """Faults of one shard, and its index where that could be read."""
    if not shard.exists():
        return [f"shard is missing ({entry.count} samples)"], None
    if not index_path(shard).exists():
        return [f"index {index_path(shard).name} is missing"], None
    faults = []
    if durable.sha256_of(index_path(shard)) != entry.index_sha256:
        faults.append(f"index {index_path(shard).name}: sha256 mismatch")
    try:
        index = read_index(index_path(shard))
    except RetinaforgeError as error:
        return [*faults, f"index: {error.what}"], None
    if len(index) != entry.count:
        faults.append(f"{len(index)} samples in the index, {entry.count} in the manifest")
    size = shard.stat().st_size
    if size < entry.bytes:
        lost = [index.keys[i] for i in range(len(index)) if int((index.offset_NM[i] + index.size_NM[i]).max()) > size]
        faults.append(f"truncated: {size} bytes of {entry.bytes}; {f'lost samples: {_few(lost)}' if lost else 'only the end mark is lost'}")
    elif size > entry.bytes:
        faults.append(f"{size} bytes, {entry.bytes} in the manifest: something was added")
    found = [fault for i in range(len(index)) for fault in check_sample(shard, index, i)]
    faults += found
    if durable.sha256_of(shard) != entry.sha256 and not faults:
        faults.append(_between_members(shard, index))
    return faults, index


def check_sample(shard: Path, index: ShardIndex, i: int) -> list[str]:
    """Faults of one sample: each member's bytes by crc32c, then that the array decodes to its shape and the JSON parses."""
    faults = []
    with open(shard, "rb") as file:
        for m, member in enumerate(index.members):
            size = int(index.size_NM[i, m])
            if not size:
                continue
            file.seek(int(index.offset_NM[i, m]))
            content = file.read(size)
            stem, _, codec = member.partition(".")
            if len(content) != size or crc32c(content) != index.crc_NM[i, m]:
                faults.append(f"sample {index.keys[i]}: member {member} {'is cut off' if len(content) != size else 'has changed (crc32c)'}")
            elif stem in ("cube", "latent") and codec in CODECS:
                try:
                    get_codec(codec).decode_into(content, np.empty(tuple(index.shape_N3[i]), index.dtype), shard.name)
                except RetinaforgeError as error:
                    faults.append(f"sample {index.keys[i]}: member {member}: {error.what}")
            elif member == "json":
                try:
                    json.loads(content)
                except ValueError as error:
                    faults.append(f"sample {index.keys[i]}: member json: {error}")
    if not any(m.partition(".")[0] in ("cube", "latent") and index.size_NM[i, k] for k, m in enumerate(index.members)):
        faults.append(f"sample {index.keys[i]}: the array is missing")
    return faults


def _between_members(shard: Path, index: ShardIndex) -> str:
    """sha256 differs though every member is right: say whether the tar's own headers were hit."""
    try:
        scanned = scan_shard(shard)
    except RetinaforgeError as error:
        return f"sha256 mismatch in the tar headers: {error.what}"
    missing = [key for key in index.keys if key not in set(scanned.keys)]
    return f"sha256 mismatch: {f'samples missing in the tar: {_few(missing)}' if missing else 'bytes between the members changed'}"


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
