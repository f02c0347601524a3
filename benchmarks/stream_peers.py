"""The loaders that benchmarks/stream.py compares the stream with: each writes the cubes its own way, and reads them as documented."""

from __future__ import annotations

import importlib.machinery
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

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
