"""How fast 672x672x16 cubes reach a staging buffer, in batches: our stream, other loaders, and a plain pread, on the same cubes.

Peers: `pip install -c constraints.txt -e '.[codecs,bench]'` in an environment of its own; those that are absent are named.

A batch is one run of page-aligned memory, from which a GPU would copy. Ours are read straight into the stream's own few batches.
Peers go the way that their documentation shows, through a DataLoader that stacks a batch, and are copied into one staging
buffer; "items" is the shortest way there is: their samples one by one, without stacking, copied into its places. The floor is one
thread's pread of cube after cube into one buffer. In the round that is not counted every cube is compared, bit for bit.
Every round reads every cube 8 times (crops: 16 times, from a cold disk: once), and rounds alternate between loaders.
"""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rounds import arguments, finish
from stream_peers import BATCH, CROP, MIB, PEERS, SHAPE, Batches, Loader, batched, corner, crop_of, items, webdataset_2w

from data_shards.cube import Cube, CubeMeta
from data_shards.packing.pack import write_dataset
from data_shards.phantom.eyes import PhantomConfig, phantom_cube
from data_shards.reading.config import ReadConfig
from data_shards.reading.dataset import Dataset
from data_shards.reading.ring import page_aligned
from data_shards.reading.stream import CubeStream
from data_shards.shards.codecs import Encoding
from data_shards.shards.layout import TILE
from data_shards.shards.payload import decode_into, encode


def cubes(count: int) -> np.ndarray:
    """Phantom eyes: a few are painted, the others are mirrored and shifted copies, so that no two are alike."""
    out = np.empty((count, *SHAPE), np.uint16)
    for i in range(count):
        out[i] = (
            phantom_cube(PhantomConfig(size=SHAPE[1]), subject=i, eye="OD", visit=0).data_CHW
            if i < 4
            else np.roll(out[i % 4][:, ::-1], 8 * i, 2)
        )
    return out


# --- loaders --------------------------------------------------------------------------------------------------------


def ours(dataset: Dataset, *, check: bool = True, crop: bool = False) -> Loader:
    stream = CubeStream(dataset, "train", batch_size=BATCH, crop=(CROP, CROP) if crop else None, read=ReadConfig(check=check))
    if crop:  # the corners of this benchmark in place of the stream's own
        stream._corners = lambda sample_KB, epoch_KB: np.array([[corner(int(i)) for i in row] for row in sample_KB])

    def read(staging: np.ndarray, rounds: int) -> Batches:
        for batch in islice(stream.batches(), rounds * stream.count // BATCH):
            yield batch.sample_B.tolist(), batch.cubes_BCHW.numpy()

    return read


def floor(dataset: Dataset) -> Loader:
    """One thread, whole cubes, always into the same place."""

    def read(staging: np.ndarray, rounds: int) -> Batches:
        view = memoryview(staging[0].reshape(-1).view(np.uint8))
        for i in list(range(dataset.count("train"))) * rounds:
            shard, row = dataset.locate("train", i)
            m, _ = shard.index.payload(row)
            os.preadv(shard.file.fd, [view], int(shard.index.offset_NM[row, m]))
            yield [i], staging[:1]

    return read


# --- measuring ------------------------------------------------------------------------------------------------------


def used_s() -> float:
    """CPU seconds of this process and of the children that ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def evict(folder: Path) -> None:
    """Put the folder's files out of the page cache."""
    for path in (p for p in folder.rglob("*") if p.is_file()):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def drain(loader: Loader, staging: np.ndarray, times: int, wanted: Callable[[int], np.ndarray] | None) -> tuple[Counter[int], bool]:
    """Read all, so many times: how often each number came, and whether they were what is wanted."""
    seen, right = Counter(), True
    for numbers, batch in loader(staging, times):
        seen.update(numbers)
        right = right and (wanted is None or all(np.array_equal(cube, wanted(i)) for i, cube in zip(numbers, batch, strict=True)))
    return seen, right


def measure(
    loaders: dict[str, Loader],
    staging: np.ndarray,
    wanted: Callable[[int], np.ndarray],
    count: int,
    rounds: int,
    times: int = 1,
    cold: dict[str, Path] | None = None,
) -> dict[str, dict[str, Any]]:
    """Loaders by turns: median seconds and CPU seconds a cube, and whether each gave every cube as it is.

    A peer that fails in the first round is left out, and says so.
    """
    loaders = dict(loaders)
    found = {name: {"wall": [], "cpu": [], "equal": True} for name in loaders}
    for turn in range(rounds + 1):
        for name, loader in list(loaders.items()):
            if cold:
                evict(cold[name])
            began, used = time.perf_counter(), used_s()
            try:
                seen, right = drain(loader, staging, times, wanted if not turn else None)
            except Exception as error:
                if turn or not name.startswith(tuple(PEERS)):
                    raise
                print(f"{name} cannot be measured: {str(error).strip().splitlines()[-1]}", file=sys.stderr)
                del loaders[name], found[name]
                continue
            if turn:
                found[name]["wall"].append((time.perf_counter() - began) / (count * times))
                found[name]["cpu"].append((used_s() - used) / (count * times))
            found[name]["equal"] &= right and seen == Counter(list(range(count)) * times)
    return {name: {**f, "wall": statistics.median(f["wall"]), "cpu": statistics.median(f["cpu"])} for name, f in found.items()}


def show(title: str, found: dict[str, dict[str, Any]]) -> None:
    print(title)
    for name, f in sorted(found.items(), key=lambda item: item[1]["wall"]):
        print(f"  {name:24} {1 / f['wall']:8.1f} cubes/s   {1000 * f['cpu']:7.2f} CPU ms a cube   equal {f['equal']}", flush=True)


def row(case: str, found: dict[str, dict[str, Any]], other: str, ours_name: str = "ours") -> dict[str, Any]:
    mine, theirs = found[ours_name], found[other]
    return {
        "case": case,
        "ours": 1 / mine["wall"],
        "other": 1 / theirs["wall"],
        "unit": "cubes/s",
        "ratio": theirs["wall"] / mine["wall"],
        "cpu_ratio": theirs["cpu"] / mine["cpu"],
        "equal": bool(mine["equal"] and theirs["equal"]),
        "against": other,
    }


def codec_rows(made: np.ndarray, rounds: int) -> list[dict[str, Any]]:
    """Each codec on one thread, against memcpy in the same run: `ratio` is decoding speed over memcpy's, `compression` the size."""
    cube, out, rows = made[0], page_aligned(made[0].nbytes).view(np.uint16).reshape(SHAPE), []

    def seconds(work: Callable[[], Any]) -> float:
        times = []
        for _ in range(rounds + 3):
            began = time.perf_counter()
            work()
            times.append(time.perf_counter() - began)
        return statistics.median(times[1:])

    copy_s = seconds(lambda: np.copyto(out, cube))
    for name, bound in (("blosc2", 0), ("pcodec", 0), ("near", 2)):
        content = encode(cube, Encoding(name, bound))
        took_s = seconds(lambda content=content, name=name: decode_into(content, name, out, name))
        off = int(np.abs(out.astype(np.int32) - cube).max())
        sizes = [cube.nbytes / len(encode(other, Encoding(name, bound))) for other in made[1:4]] + [cube.nbytes / len(content)]
        rows.append(
            {
                "case": f"decode_{name}{bound or ''}_vs_memcpy",
                "ours": cube.nbytes / took_s / 1e9,
                "other": cube.nbytes / copy_s / 1e9,
                "unit": "GB/s",
                "ratio": copy_s / took_s,
                "cpu_ratio": copy_s / took_s,
                "equal": off <= bound,
                "compression": statistics.mean(sizes),
            }
        )
        print(
            f"  {name:8} {rows[-1]['compression']:5.2f} x smaller   decodes {rows[-1]['ours']:5.2f} GB/s   largest error {off}", flush=True
        )
    return rows


def written(folder: Path, made: np.ndarray) -> dict[str, Dataset]:
    """The cubes as our sets, eight to a shard."""
    sets = {}
    for codec, tile in (("raw", 0), ("blosc2", 0), ("tiles", TILE), ("blosc2 in tiles", TILE)):
        source = (
            Cube(data_CHW=cube, meta=CubeMeta(key=f"{i:06d}", wavelengths_nm=tuple(range(16)), scale=1 / 4095, subject_id=f"s{i}"))
            for i, cube in enumerate(made)
        )
        name, shard_mib = codec.partition(" ")[0], 8 * made[0].nbytes // MIB
        write_dataset(folder / codec, {"train": source}, codec=name, tile=tile, shard_mib=shard_mib, source={})
        sets[codec] = Dataset(folder / codec)
    return sets


def peers_of(folder: Path, made: np.ndarray, quick: bool) -> tuple[dict[str, Loader], dict[str, str]]:
    """The peers that are installed, and why the others are not measured."""
    peers: dict[str, Loader] = {}
    missing: dict[str, str] = {}
    for name, make in PEERS.items():
        try:
            (folder / name).mkdir()
            data = make(folder / name, made)
            peers[f"{name}, items"] = items(data)
            for workers in (0,) if quick or name == "tensorstore" else (0, 2):
                peers[f"{name}, {workers} workers"] = batched(data, workers)
        except ImportError as error:
            missing[f"warm_vs_{name}"] = f"not installed: {error}"
    return peers, missing


Found = dict[str, dict[str, Any]]


def warm_cubes(folder: Path, sets: dict[str, Dataset], made: np.ndarray, peers: dict[str, Loader], rounds: int) -> Found:
    loaders = {
        "ours": ours(sets["raw"]),
        "ours, unchecked": ours(sets["raw"], check=False),
        "ours, blosc2": ours(sets["blosc2"]),
        "ours, tiles": ours(sets["tiles"]),
        "pread floor": floor(sets["raw"]),
        "webdataset, 2 workers": webdataset_2w(folder / "raw", crop=False),
        **peers,
    }
    # threads and processes start anew each round, and read on a little beyond its end: eight times all cubes, so that this weighs little
    return measure(loaders, staging_of(SHAPE), lambda i: made[i], len(made), rounds, times=8)


def warm_crops(folder: Path, sets: dict[str, Dataset], made: np.ndarray, rounds: int) -> Found:
    loaders = {
        "ours": ours(sets["tiles"], crop=True),
        "ours, unchecked": ours(sets["tiles"], check=False, crop=True),
        "ours, raw": ours(sets["raw"], crop=True),
        "ours, blosc2": ours(sets["blosc2"], crop=True),
        "ours, blosc2 in tiles": ours(sets["blosc2 in tiles"], crop=True),
        "webdataset, 2 workers": webdataset_2w(folder / "raw", crop=True),
    }
    return measure(loaders, staging_of((SHAPE[0], CROP, CROP)), lambda i: crop_of(i, made[i]), len(made), rounds, times=16)


def cold_cubes(folder: Path, sets: dict[str, Dataset], made: np.ndarray, rounds: int) -> Found:
    loaders = {
        "ours": ours(sets["blosc2"]),
        "ours, raw": ours(sets["raw"]),
        "pread floor": floor(sets["raw"]),
        "webdataset, 2 workers": webdataset_2w(folder / "raw", crop=False),
    }
    cold = {name: folder / ("blosc2" if name == "ours" else "raw") for name in loaders}
    return measure(loaders, staging_of(SHAPE), lambda i: made[i], len(made), rounds, cold=cold)


def staging_of(shape: tuple[int, ...]) -> np.ndarray:
    """Room for a batch."""
    return page_aligned(2 * BATCH * math.prod(shape)).view(np.uint16).reshape(BATCH, *shape)


def fastest(warm: Found, peers: Iterable[str]) -> str:
    return min((name for name in peers if name in warm), key=lambda name: warm[name]["wall"], default="")


def main() -> None:
    args = arguments(__doc__.partition("\n")[0])
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # of peers
    folder = Path(tempfile.mkdtemp(prefix="stream-"))
    try:
        made = cubes(16 if args.quick else 48)
        sets = written(folder, made)
        peers, missing = peers_of(folder, made, args.quick)
        show("warm cache, whole cubes", warm := warm_cubes(folder, sets, made, peers, args.rounds))
        show(f"warm cache, crops of {CROP} x {CROP} (ours: tiles)", crop := warm_crops(folder, sets, made, args.rounds))
        show("cold cache, whole cubes (ours: blosc2)", cold := cold_cubes(folder, sets, made, args.rounds))
        missing |= {f"warm_vs_{name}": "it fails here; its message is above" for name in peers if name not in warm}
        best, shortest = (fastest(warm, [name for name in peers if name.endswith("items") == bare]) for bare in (False, True))
        print("codecs, one thread")
        rows = [
            row("warm_vs_webdataset_2w", warm, "webdataset, 2 workers"),
            *([row("warm_vs_best_peer", warm, best), row("warm_vs_best_peer_items", warm, shortest)] if best else []),
            row("warm_vs_pread_floor", warm, "pread floor"),
            row("crop_vs_webdataset_2w", crop, "webdataset, 2 workers"),
            row("cold_vs_webdataset_2w", cold, "webdataset, 2 workers"),
            row("checked_vs_unchecked", warm, "ours, unchecked"),
            row("crop_checked_vs_unchecked", crop, "ours, unchecked"),
            *codec_rows(made, args.rounds),
        ]
        print(json.dumps({r["case"]: round(r["ratio"], 2) for r in rows}, indent=1))
        finish("stream", rows, missing)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
