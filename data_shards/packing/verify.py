"""Checking a packed dataset against its own record, fault by fault, each named by shard and sample."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from crc32c import crc32c

from data_shards import durable, stores
from data_shards.durable import PART
from data_shards.errors import CorruptData, RetinaforgeError, command
from data_shards.formats.faults import is_absent_link
from data_shards.look_alikes import warn_of_look_alikes
from data_shards.manifest import NAME, ShardEntry, read_manifest
from data_shards.packing.doubles import Doubles, few
from data_shards.shards import payload
from data_shards.shards.index import ShardIndex, index_path, open_index
from data_shards.shards.shard import tar_members

GROWING = re.compile(r"synthetic-\d{6}(\.first\d+)?\.tar")
"""Of a generated set: shards of the larger one that it is growing to, and the ends of smaller ones that it was."""
INDEX_ALONE = "; the shard itself is whole"  # behind what is said of an index
LOGGER = logging.getLogger("retinaforge")


def verify(folder: Path | str) -> Iterator[tuple[str, list[str]]]:
    """Yield (shard, faults) for each shard of the manifest, then for the dataset as a whole; no fault, an empty list.

    A subject or a picture in two splits is a fault of the dataset; a picture twice in one split is warned of.
    Of a set at a URL one shard at a time is copied to a temporary folder.

    Raises:
        InputError: no dataset there. CorruptData: the manifest itself cannot be read. TryAgain: the store does not answer.
    """
    manifest, store = read_manifest(folder), stores.open_store(folder)
    keys: dict[str, str] = {}
    split_of: dict[str, str] = {}
    whole: list[str] = []
    doubles, within, before = Doubles(folder), [], 0
    for entry in manifest.shards:
        with _at_hand(folder, store, entry) as shard:
            faults, index = check_shard(shard, entry)
        for key, subject in zip(index.keys, index.subjects, strict=True) if index else ():
            if key in keys:
                whole.append(f"sample {key}: in {keys[key]} and again in {entry.name}")
            keys[key] = entry.name
            if split_of.setdefault(subject, entry.split) != entry.split:
                whole.append(f"subject {subject}: in splits {split_of[subject]} and {entry.split}")
        for double in doubles.add(entry, index) if index and not faults else ():
            if double.across:
                whole.append(str(double))
            else:
                within.append(double)
        if index and "sample" in manifest.source:
            faults += _not_its_images(index, before)
        before += entry.count
        yield entry.name, faults
    known = {entry.name for entry in manifest.shards}
    strays = sorted(name for name in store.sizes() or () if name.endswith(".tar") and name not in known and PART not in name)
    if "sample" in manifest.source:
        strays = [name for name in strays if not GROWING.fullmatch(name)]
    whole += [f"{name}: a shard that {stores.where(folder, NAME)} does not name" for name in strays]
    for split, sizes in manifest.splits.items():
        count = sum(entry.count for entry in manifest.shards if entry.split == split)
        if count != sizes["count"]:
            whole.append(f"split {split}: {count} samples in its shards, {sizes['count']} in the manifest")
    if within:
        LOGGER.warning("%s: %s", folder, few(within))
    _warn_of_unfinished(folder, store)
    warn_of_look_alikes(split_of, folder, "correct subject_id in the source and pack it again")
    yield "dataset.json", whole


def _warn_of_unfinished(folder: Path | str, store: stores.Store) -> None:
    """Of files that were never published: whoever writes still needs them, and nobody else does."""
    if unfinished := [size for name, size in (store.sizes() or {}).items() if PART in name]:
        LOGGER.warning(
            "%s: %d unfinished file(s), %.3g MB in all, of writers that were killed, or that still write: once none does, remove what is "
            "named %s*; readers pass it by",
            *(folder, len(unfinished), sum(unfinished) / 1e6, PART),
        )


def _not_its_images(index: ShardIndex, first: int) -> list[str]:
    """Of a generated set, whose images are numbered through: those that stand in another's place."""
    wrong = [f"{key} in the place of image {i}" for i, key in enumerate(index.keys, first) if key != f"{i:09d}"]
    return [f"{len(wrong)} image(s) in the place of others: {wrong[0]}"] if wrong else []


def mend_of(faults: Mapping[str, Sequence[str]], folder: Path | str) -> str:
    """How a dataset with these faults is mended, by the command where there is one."""
    said = [fault for of_shard in faults.values() for fault in of_shard]
    if list(faults) == [NAME] and all("splits" in fault or "same picture" in fault for fault in said):
        return "correct subject_id or split of these cubes, or remove one of a pair, in the source, and pack it again"
    indices = [fault for fault in said if fault.endswith(INDEX_ALONE)]
    anew = "copy these indices again"
    if not stores.is_url(folder):
        anew = command("retinaforge", "data", "index", folder)
    if len(indices) == len(said):
        return anew
    copied = "copy the named shards again, or make them again from their source (of a synthetic set: docs/bulk.md, Faults)"
    return f"{copied}; then, for the indices of whole shards: {anew}" if indices else copied


@contextlib.contextmanager
def _at_hand(folder: Path | str, store: stores.Store, entry: ShardEntry) -> Iterator[Path]:
    """The shard, its index beside it, as files of this machine."""
    if not stores.is_url(folder):
        yield Path(folder) / entry.name
        return
    with tempfile.TemporaryDirectory(prefix="verify-") as folder_here:
        for name in (entry.name, index_path(Path(entry.name)).name):
            here = Path(folder_here) / name
            with contextlib.suppress(FileNotFoundError), durable.explained(here):  # check_shard says what is missing
                # one byte more than was written is enough to tell
                stores.fetch(store.open(name), here, limit=entry.bytes + 1 if name == entry.name else None)
        yield Path(folder_here) / entry.name


def check_shard(shard: Path, entry: ShardEntry) -> tuple[list[str], ShardIndex | None]:
    """Faults of one shard, and its index where that could be read."""
    if is_absent_link(shard):
        return [f"a link whose content is absent ({entry.count} samples): git annex get or datalad get fetches it"], None
    if not shard.exists():
        return [f"shard is missing ({entry.count} samples)"], None
    faults = []
    try:
        changed = durable.sha256_of(shard) != entry.sha256
    except OSError as error:  # a bad sector: which samples it hits is found below
        changed, faults = True, [f"cannot be read to its end: {error.strerror or error}"]
    whole = "" if changed else INDEX_ALONE
    if not index_path(shard).exists():
        return [f"index {index_path(shard).name} is missing{whole}"], None
    try:
        index = open_index(index_path(shard), sha256=entry.index_sha256)
    except RetinaforgeError as error:
        return [f"index {index_path(shard).name}: {error.what}{whole}"], None  # nothing that it says can be believed
    if changed and (gone := _members_gone(shard, index)):
        return gone, index
    if len(index) != entry.count:
        faults.append(f"{len(index)} samples in the index, {entry.count} in the manifest")
    size = shard.stat().st_size
    if size < entry.bytes:
        lost = [index.keys[i] for i in range(len(index)) if int((index.offset_NM[i] + index.size_NM[i]).max()) > size]
        faults.append(f"truncated: {size} bytes of {entry.bytes}; {f'lost samples: {_few(lost)}' if lost else 'only the end mark is lost'}")
    elif size > entry.bytes:
        faults.append(f"{size} bytes, {entry.bytes} in the manifest: something was added")
    faults += [fault for i in range(len(index)) for fault in check_sample(shard, index, i)]
    if changed and not faults:
        faults.append("sha256 mismatch: bytes between the members changed (tar headers or padding)")
    return faults, index


def check_sample(shard: Path, index: ShardIndex, i: int) -> list[str]:
    """Faults of one sample: each member's bytes by crc32c, then that the array decodes to its shape and the JSON parses."""
    faults = []
    with open(shard, "rb") as file:
        for m, member in enumerate(index.members):
            size = int(index.size_NM[i, m])
            if not size:
                continue
            try:
                file.seek(int(index.offset_NM[i, m]))
                content = file.read(size)
            except OSError as error:
                faults.append(f"sample {index.keys[i]}: member {member} cannot be read: {error.strerror or error}")
                continue
            codec = payload.codec_of(member)
            if len(content) != size or crc32c(content) != index.crc_NM[i, m]:
                faults.append(f"sample {index.keys[i]}: member {member} {'is cut off' if len(content) != size else 'has changed (crc32c)'}")
            elif codec:
                try:
                    payload.decode_into(content, codec, np.empty(index.shape(i), index.dtype), shard.name)
                except CorruptData as error:
                    faults.append(f"sample {index.keys[i]}: member {member}: {error.what}")
            elif member == "json":
                try:
                    json.loads(content)
                except ValueError as error:
                    faults.append(f"sample {index.keys[i]}: member json: {error}")
    if not any(payload.codec_of(m) and index.size_NM[i, k] for k, m in enumerate(index.members)):
        faults.append(f"sample {index.keys[i]}: the array is missing")
    return faults


def _members_gone(shard: Path, index: ShardIndex) -> list[str]:
    """Members that a shard, whole as a tar, no longer holds: it was written anew without them."""
    try:
        names = {name for name, _, _ in tar_members(shard)}
    except RetinaforgeError:
        return []  # not whole: what is cut off or changed is found member by member
    wanted = ((key, m) for i, key in enumerate(index.keys) for k, m in enumerate(index.members) if index.size_NM[i, k])
    return [f"sample {key}: member {member} is missing in the tar" for key, member in wanted if f"{key}.{member}" not in names]


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
