"""How fast 672x672x16 cubes reach a staging buffer, in batches: our stream, other loaders, and a plain pread, on the same cubes.

Peers: `pip install -c constraints.txt -e '.[codecs,bench]'` in an environment of its own; those that are absent are named.

A batch is one run of page-aligned memory, from which a GPU would copy. Ours are read straight into the stream's own few batches.
Peers go the way that their documentation shows, through a DataLoader that stacks a batch, and are copied into one staging
buffer; "items" is the shortest way there is: their samples one by one, without stacking, copied into its places. The floor is one
thread's pread of cube after cube into one buffer. In the round that is not counted every cube is compared, bit for bit.
Every round reads every cube once (crops: 8 times), and rounds alternate between loaders.
"""

from __future__ import annotations

import importlib.machinery
import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rounds import arguments, finish
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from data_shards.codecs import get_codec
from data_shards.cube import Cube, CubeMeta
from data_shards.dataset import Dataset
from data_shards.pack import write_dataset
from data_shards.payload import decode_into, encode
from data_shards.phantom.eyes import PhantomConfig, phantom_cube
from data_shards.ring import page_aligned
from data_shards.stream import CubeStream, ReadConfig

SHAPE, CROP, MIB = (16, 672, 672), 256, 1 << 20
BATCH = 4
Batches = Iterator[tuple[Sequence[int], np.ndarray]]
Loader = Callable[[np.ndarray, int], Batches]
"""Given the staging buffer and a number n: (numbers, cubes) of each batch, every cube n times; crops where crops are measured."""


def corner(i: int) -> tuple[int, int]:
    """Where cube i is cropped, the same for every loader."""
    return (i * 97) % (SHAPE[1] - CROP), (i * 61) % (SHAPE[2] - CROP)


def crop_of(i: int, cube_CHW: np.ndarray) -> np.ndarray:
    top, left = corner(i)
    return cube_CHW[:, top : top + CROP, left : left + CROP]


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


def staged(staging: np.ndarray, batch: np.ndarray | torch.Tensor) -> np.ndarray:
    np.copyto(staging[: len(batch)], batch.numpy() if isinstance(batch, torch.Tensor) else batch)
    return staging[: len(batch)]


def webdataset_2w(folder: Path, crop: bool) -> Loader:
    import webdataset as wds

    def decode(sample: dict[str, Any]) -> tuple[int, np.ndarray]:
        i, cube_CHW = int(sample["__key__"]), np.frombuffer(sample["cube.raw"], np.uint16).reshape(SHAPE)
        return i, np.ascontiguousarray(crop_of(i, cube_CHW)) if crop else cube_CHW

    def read(staging: np.ndarray, rounds: int) -> Batches:
        shards = sorted(str(path) for path in folder.glob("*.tar"))
        data = wds.WebDataset(
            shards, shardshuffle=False, empty_check=False, nodesplitter=wds.split_by_node, workersplitter=wds.split_by_worker
        )
        for numbers, batch in wds.WebLoader(data.repeat(rounds).map(decode).batched(BATCH), batch_size=None, num_workers=2):
            yield [int(i) for i in numbers], staged(staging, batch)

    return read


class Indexed(TorchDataset):
    """Cube i from `get`: what a DataLoader reads."""

    def __init__(self, count: int, get: Callable[[int], np.ndarray]) -> None:
        self.count, self.get = count, get

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[int, np.ndarray]:
        return i, self.get(i)


def batched(data: TorchDataset, workers: int) -> Loader:
    """Through a DataLoader, as documented."""

    def read(staging: np.ndarray, rounds: int) -> Batches:
        loader = DataLoader(data, batch_size=BATCH, num_workers=workers, persistent_workers=workers > 0)
        for _ in range(rounds):
            for numbers, batch in loader:
                yield numbers.tolist(), staged(staging, batch)

    return read


def items(data: TorchDataset) -> Loader:
    """Sample by sample, no DataLoader."""

    def read(staging: np.ndarray, rounds: int) -> Batches:
        for first in list(range(0, len(data), BATCH)) * rounds:
            numbers = []
            for b, (i, cube) in enumerate(data[k] for k in range(first, min(first + BATCH, len(data)))):
                np.copyto(staging[b], cube.numpy() if isinstance(cube, torch.Tensor) else cube)
                numbers.append(int(i))
            yield numbers, staging[: len(numbers)]

    return read


def memmap(folder: Path, made: np.ndarray) -> TorchDataset:
    made.tofile(folder / "all.bin")
    mapped = np.memmap(folder / "all.bin", np.uint16, "r", shape=made.shape)
    return Indexed(len(made), lambda i: mapped[i])


def without_torchvision() -> None:
    """Let mosaicml-streaming be imported where torchvision does not fit a CPU build of torch: its image sets are not used here."""
    try:
        import torchvision.datasets  # noqa: F401
    except (ImportError, RuntimeError):
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        names = {"torchvision.datasets": ["VisionDataset"], "torchvision.datasets.folder": ["default_loader"]}
        names |= {"torchvision": [], "torchvision.transforms": [], "torchvision.transforms.functional": ["to_tensor", "to_pil_image"]}
        for name, inside in names.items():
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
            for what in inside:
                setattr(sys.modules[name], what, type(what, (), {}))


def mosaicml(folder: Path, made: np.ndarray) -> TorchDataset:
    without_torchvision()
    from streaming import MDSWriter, StreamingDataset

    with MDSWriter(
        out=str(folder / "mds"), columns={"i": "int", "cube": f"ndarray:uint16:{','.join(map(str, SHAPE))}"}, size_limit=1 << 29
    ) as out:
        for i, cube in enumerate(made):
            out.write({"i": i, "cube": cube})

    class Cubes(StreamingDataset):
        def __getitem__(self, k: int) -> tuple[int, np.ndarray]:
            item = super().__getitem__(k)
            return item["i"], item["cube"]

    return Cubes(local=str(folder / "mds"), shuffle=False, batch_size=1)


def litdata(folder: Path, made: np.ndarray) -> TorchDataset:
    from litdata import StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder / "lit"), chunk_bytes=1 << 29)
    for i, cube in enumerate(made):
        writer.add_item(i, {"i": i, "cube": torch.from_numpy(cube)})
    writer.done()
    writer.merge()

    class Cubes(StreamingDataset):
        def __getitem__(self, k: int) -> tuple[int, Any]:
            item = super().__getitem__(k)
            return item["i"], item["cube"]

    return Cubes(str(folder / "lit"), shuffle=False)


def zarr3(folder: Path, made: np.ndarray) -> TorchDataset:
    import zarr

    array = zarr.create_array(folder / "cubes.zarr", shape=made.shape, chunks=(1, *SHAPE), dtype="uint16", compressors=None)
    array[:] = made
    return Indexed(len(made), lambda i: array[i])


def tensorstore(folder: Path, made: np.ndarray) -> TorchDataset:
    import tensorstore as ts

    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": str(folder / "ts.zarr")},
        "metadata": {
            "shape": made.shape,
            "data_type": "uint16",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": (1, *SHAPE)}},
        },
    }
    array = ts.open(spec, create=True).result()
    array[:] = made
    return Indexed(len(made), lambda i: array[i].read().result())


PEERS = {"memmap": memmap, "mosaicml-streaming": mosaicml, "litdata": litdata, "zarr": zarr3, "tensorstore": tensorstore}


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
        content = encode(cube, name, get_codec(name, bound))
        took_s = seconds(lambda content=content, name=name: decode_into(content, name, out, name))
        off = int(np.abs(out.astype(np.int32) - cube).max())
        sizes = [cube.nbytes / len(encode(other, name, get_codec(name, bound))) for other in made[1:4]] + [cube.nbytes / len(content)]
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


def main() -> None:
    args = arguments(__doc__.partition("\n")[0])
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # of peers
    count, rounds = (16 if args.quick else 48), args.rounds
    folder = Path(tempfile.mkdtemp(prefix="stream-"))
    missing: dict[str, str] = {}
    try:
        made = cubes(count)
        meta = [CubeMeta(key=f"{i:06d}", wavelengths_nm=tuple(range(16)), scale=1 / 4095, subject_id=f"s{i}") for i in range(count)]
        sets = {}
        for codec in ("raw", "blosc2"):
            source = (Cube(data_CHW=made[i], meta=meta[i]) for i in range(count))
            write_dataset(folder / codec, {"train": source}, codec=codec, shard_mib=8 * len(made[0].tobytes()) // MIB, source={})
            sets[codec] = Dataset(folder / codec)
        buffer = page_aligned(made[:BATCH].nbytes).view(np.uint16).reshape(BATCH, *SHAPE)
        small = page_aligned(BATCH * SHAPE[0] * CROP * CROP * 2).view(np.uint16).reshape(BATCH, SHAPE[0], CROP, CROP)

        peers: dict[str, Loader] = {}
        for name, make in PEERS.items():
            try:
                (folder / name).mkdir()
                data = make(folder / name, made)
                peers[f"{name}, items"] = items(data)
                for workers in (0,) if args.quick or name == "tensorstore" else (0, 2):
                    peers[f"{name}, {workers} workers"] = batched(data, workers)
            except ImportError as error:
                missing[f"warm_vs_{name}"] = f"not installed: {error}"
        warm = measure(
            {
                "ours": ours(sets["raw"]),
                "ours, unchecked": ours(sets["raw"], check=False),
                "ours, blosc2": ours(sets["blosc2"]),
                "pread floor": floor(sets["raw"]),
                "webdataset, 2 workers": webdataset_2w(folder / "raw", crop=False),
                **peers,
            },
            buffer,
            lambda i: made[i],
            count,
            rounds,
        )
        show("warm cache, whole cubes", warm)
        crop = measure(
            {
                "ours": ours(sets["raw"], crop=True),
                "ours, unchecked": ours(sets["raw"], check=False, crop=True),
                "ours, blosc2": ours(sets["blosc2"], crop=True),
                "webdataset, 2 workers": webdataset_2w(folder / "raw", crop=True),
            },
            small,
            lambda i: crop_of(i, made[i]),
            count,
            rounds,
            times=8,  # the peer's processes take as long to start as some hundred crops
        )
        show(f"warm cache, crops of {CROP} x {CROP}", crop)
        cold = measure(
            {
                "ours": ours(sets["blosc2"]),
                "ours, raw": ours(sets["raw"]),
                "pread floor": floor(sets["raw"]),
                "webdataset, 2 workers": webdataset_2w(folder / "raw", crop=False),
            },
            buffer,
            lambda i: made[i],
            count,
            rounds,
            cold={"ours": folder / "blosc2", **dict.fromkeys(("ours, raw", "pread floor", "webdataset, 2 workers"), folder / "raw")},
        )
        show("cold cache, whole cubes (ours: blosc2)", cold)
        missing |= {f"warm_vs_{name}": "it fails here; its message is above" for name in peers if name not in warm}
        print("codecs, one thread")
        rows = codec_rows(made, rounds)
        best, shortest = (
            min(
                (name for name in peers if name in warm and name.endswith("items") == bare), key=lambda name: warm[name]["wall"], default=""
            )
            for bare in (False, True)
        )
        rows = [
            row("warm_vs_webdataset_2w", warm, "webdataset, 2 workers"),
            *([row("warm_vs_best_peer", warm, best), row("warm_vs_best_peer_items", warm, shortest)] if best else []),
            row("warm_vs_pread_floor", warm, "pread floor"),
            row("crop_vs_webdataset_2w", crop, "webdataset, 2 workers"),
            row("cold_vs_webdataset_2w", cold, "webdataset, 2 workers"),
            row("checked_vs_unchecked", warm, "ours, unchecked"),
            row("crop_checked_vs_unchecked", crop, "ours, unchecked"),
            *rows,
        ]
        print(json.dumps({r["case"]: round(r["ratio"], 2) for r in rows}, indent=1))
        finish("stream", rows, missing)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
