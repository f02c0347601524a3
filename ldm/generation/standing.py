"""What stands in the folder of a set of images, whole or not, against what is asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_shards import durable
from data_shards.errors import CorruptData, InputError, RetinaforgeError, command, moved_aside
from data_shards.manifest import NAME, Manifest, ShardEntry, read_manifest
from data_shards.packing.units import read_request, read_unit, record_path
from data_shards.shards.index import index_path, open_index
from ldm.generation.images import EARLIER
from ldm.models.inference import FP32, as_begun, stated

SPLIT = "synthetic"
OF_SHARDS = ("count", "batch", "refused")  # what a manifest says of a generated set besides its request
PATIENCE_S = 60.0  # to wait for another process that finishes the set
MOST_NAMED = 10  # damaged shards in one command that removes them
REQUEST = "request.json"
KEPT_BEFORE = {"noise": EARLIER, "gate": None, "straight_through": True}  # of sets that do not state it; they go on with it
BEFORE = {
    **KEPT_BEFORE,
    "payload": "cube",
    "inference": stated(FP32),
    "stripes": None,
    "shift": 1.0,
    "sigma_min": 0.001,
    "cache_every": 1,
    "segmenter": None,
    "guide": None,
    "guidance": 1.0,
}
"""Of sets that do not state it: what versions did that could do nothing else."""


def request_of(out: Path) -> dict[str, Any]:
    """What the set in this folder, whole or not, was asked for; {} where there is none."""
    written = _written(out)
    return {} if written is None else {**BEFORE, **written}


def _written(out: Path) -> dict[str, Any] | None:
    """The request as it was written, or as a finished set states it; None where nothing stands.

    Raises:
        InputError: shards, and nothing that says what they are. CorruptData: what says it is damaged.
    """
    if (request := read_request(out / REQUEST)) is not None:
        return request
    if done := manifest_of(out):
        return done.source["sample"]
    if found := sorted(path.name for path in out.glob(f"{SPLIT}-*.tar")):
        if (request := read_request(out / REQUEST)) is not None:  # begun by another between the two looks
            return request
        raise InputError(
            f"{len(found)} shards of a set, such as {found[0]}, and no {REQUEST}",
            where=out,
            expected=f"{REQUEST}, which says what they are and what the others have to be",
            mend=f"copy it back; or {moved_aside(out)}",
        )
    return None


def agreed(out: Path, request: dict[str, Any]) -> tuple[dict[str, Any], int | None]:
    """The request of the set that stands here, or else this one. How many images is no part of it, nor the batch; what KEPT_BEFORE
    names is as in the version that began the set, and one that was begun without labels goes on without.

    Returns:
        The request, and the batch of shards that do not state theirs: of a set that was begun when it was part of the request.

    Raises:
        InputError: images of another kind stand here.
    """
    if (written := _written(out)) is None:
        return request, None
    standing = {**BEFORE, **written}
    request = request | {key: value for key, value in KEPT_BEFORE.items() if key in request and key not in written}
    if "segmenter" in request and standing["segmenter"] is None:
        request = {**request, "segmenter": None}
    batch, _ = standing.pop("batch", None), standing.pop("count", None)
    if differing := [key for key in request if standing.get(key) != request[key]]:
        words = ", ".join(f"{key} {standing.get(key)}" for key in differing)
        raise InputError(
            f"a set of another request stands here ({words})",
            where=out,
            expected="the same request; its count may grow, its batch may change",
            mend=as_begun(standing) if differing == ["inference"] else f"another run folder: run=runs/NAME, or {moved_aside(out)}",
        )
    return request, batch


def manifest_of(out: Path) -> Manifest | None:
    """The manifest of a finished set; None where there is none.

    Raises:
        CorruptData: it is damaged, or does not say how the set was made.
    """
    mend = "copy it back"
    if (out / REQUEST).exists():  # without it nothing else says what the shards hold
        mend += f"; or {command('rm', out / NAME)}, and `retinaforge sample` makes it anew of what each shard left"
    try:
        done = read_manifest(out) if (out / NAME).exists() else None
    except CorruptData as error:
        raise CorruptData(error.what, where=error.where, mend=mend) from error
    if done and "sample" not in done.source:
        raise CorruptData("a manifest that does not say how the set was made", where=out / NAME, expected="source.sample", mend=mend)
    return done


def standing_set(out: Path, count: int) -> Manifest | None:
    """The finished set, where it has this many images; None where there is none, or a smaller one.

    Raises:
        InputError: it has more. CorruptData: what says so is damaged.
    """
    done = manifest_of(out)
    check_count(out, count, done)
    return done if done and done.splits[SPLIT]["count"] == count else None


def finishing(out: Path) -> contextlib.AbstractContextManager[None]:
    """Around what one process at a time does in the folder of a set whose shards are all there.

    Raises:
        TryAgain: another is about it for too long. InputError: the folder cannot be written.
    """
    return durable.claimed(out / ".finishing", "finishing a set", patience_s=PATIENCE_S)


def check_count(out: Path, count: int, done: Manifest | None) -> None:
    """Refuse to make a finished set smaller.

    Raises:
        InputError: as said.
    """
    if done and done.splits[SPLIT]["count"] > count:
        stands = done.splits[SPLIT]["count"]
        raise InputError(
            f"sample.count={count}, and a set of {stands} images stands",
            where=out,
            expected=f"{stands} or more: a set may grow, not shrink",
            mend=f"sample.count={stands}, or another run folder: run=runs/NAME",
        )


def check_sizes(out: Path, done: Manifest) -> None:
    """Refuse to call a set finished whose shards and indices are not all there; their bytes are for `data verify`.

    Raises:
        CorruptData: a shard is gone, or has another size than was written, or has no index.
    """
    damaged = {entry.name: fault for entry in done.shards if (fault := fault_of(out, entry))}
    if not damaged:
        return
    (first, fault), *more = damaged.items()
    with contextlib.suppress(RetinaforgeError):  # in a folder that is read-only
        _keep_request(out, done)
    mend = "copy back what was lost"
    if (out / REQUEST).exists():
        named = [path for name in list(damaged)[:MOST_NAMED] for path in of_shard(out / name)]
        again = "makes it anew" if len(damaged) <= MOST_NAMED else "names the next"
        mend += f"; or {command('rm', '-f', out / NAME, *named)}, and the same command again {again}"
    raise CorruptData(
        f"{first} of a finished set {fault}" + (f", and {len(more)} more of its {len(done.shards)} shards are damaged" if more else ""),
        where=out,
        expected=f"what {NAME} says",
        mend=mend,
    )


def fault_of(out: Path, entry: ShardEntry) -> str | None:
    """What a look at its names shows to be wrong with a finished shard; None where that is nothing."""
    found = size_of(out / entry.name)
    if found is None:
        return "is gone"
    if found != entry.bytes:
        return f"has {found} bytes of {entry.bytes}"
    return "has lost its index" if size_of(index_path(out / entry.name)) is None else None


def _keep_request(out: Path, done: Manifest) -> None:
    """Write the request of a finished set where that alone was lost: once its manifest is removed, nothing else would say what it is."""
    request = {key: value for key, value in done.source["sample"].items() if key not in OF_SHARDS}
    if not (out / REQUEST).exists():
        durable.write_bytes(out / REQUEST, durable.canonical_json(request), keep_first=True)


def of_shard(shard: Path) -> tuple[Path, Path, Path]:
    """The shard, its index and its record."""
    return shard, index_path(shard), record_path(shard)


def size_of(path: Path) -> int | None:
    """Bytes; None where there is no such file."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def check_same(out: Path, entries: Sequence[ShardEntry]) -> None:
    """Refuse to let a set grow over a shard that is not the one which the smaller set names: altered, or lost and made again in other
    batches or on other hardware.

    Raises:
        CorruptData: as said.
    """
    if not (out / NAME).exists():
        return
    named = {entry.name: entry.sha256 for entry in read_manifest(out).shards}
    for entry in entries:
        if named.get(entry.name, entry.sha256) != entry.sha256:
            shard = out / entry.name
            raise CorruptData(
                f"{entry.name} is not the one of the finished set",
                where=out,
                expected=f"the bytes that {NAME} names",
                mend=f"copy it back; or {command('rm', '-f', out / NAME, *of_shard(shard))}, and the same command again",
            )


def check_whole(paths: list[Path], shard: int, count: int) -> None:
    """Raises: InputError: a finished shard that holds another number of images than its name says, as an earlier version left them."""
    for number, path in enumerate(paths):
        images_here = min(shard, count - number * shard)
        if (found := _images_in(path)) not in (None, images_here):
            raise InputError(
                f"{found} images in a shard that shall hold {images_here}",
                where=path,
                expected="a whole shard: the set was begun by a version whose sets could not grow",
                mend="another run folder: run=runs/NAME",
            )


def _images_in(shard: Path) -> int | None:
    """How many images a finished shard holds; its index, which is far larger, is opened where there is no record. None: no such shard, or
    one whose index is damaged, as its record will tell."""
    try:
        if unit := read_unit(shard):
            return unit.entry.count
        return len(open_index(index_path(shard))) if index_path(shard).exists() else None
    except CorruptData:
        return None
