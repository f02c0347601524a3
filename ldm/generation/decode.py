"""Sets of codes as cubes: decoded as they are read, or written down. Both give the pixels, to the bit, that the set would hold had it been
made of pixels on the same hardware: an image's decoder sees batches of the shape in which the image was generated.

Legend: B batch, C band, H W pixels, h w codes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_shards.cube import Cube
from data_shards.errors import InputError
from data_shards.manifest import ShardEntry
from data_shards.reading.batch import Batch
from data_shards.reading.config import ReadConfig
from data_shards.reading.dataset import Dataset
from data_shards.reading.reader import Shard
from data_shards.reading.stream import CubeStream
from ldm.checkpoints.trained import Autoencoder, load_autoencoder
from ldm.generation.generate import ImageSet
from ldm.generation.images import cube_of
from ldm.generation.standing import OF_SHARDS, SPLIT
from ldm.models.config import InferenceConfig
from ldm.models.inference import FP32, stated
from ldm.speed import out_of_memory


def pixels_of(index_Bhw: Tensor, batch: int, autoencoder: Autoencoder) -> Tensor:
    """Stored counts of up to `batch` images, (B, C, H, W), on the decoder's device. It sees a whole batch, filled up with the same images:
    how a convolution rounds depends on the shape of what it gets (Generator.images)."""
    index_Bhw = index_Bhw.to(autoencoder.fov_HW.device)
    filled = index_Bhw[torch.arange(batch, device=index_Bhw.device) % len(index_Bhw)]
    try:
        return autoencoder.decode_codes(filled)[: len(index_Bhw)]
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise InputError(
            f"no memory to decode {batch} images at a time ({str(error).splitlines()[0]})",
            expected=f"a device that bears {batch}, in which they were made: fewer would round otherwise",
            mend="another device; a set that others shall decode is made with a small sample.batch",
        ) from error


def decoded(samples: Iterable[Cube], autoencoder: Autoencoder) -> Iterator[Cube]:
    """Samples of codes → the cubes that a set of pixels holds in their place, in order.

    Raises:
        InputError: codes of another autoencoder.
    """
    for batch, alike in groupby(samples, key=lambda sample: stated_batch(sample, autoencoder)):
        while part := list(islice(alike, batch)):
            index_Bhw = torch.from_numpy(np.concatenate([sample.data_CHW for sample in part]).astype(np.int64))
            for sample, stored_CHW in zip(part, pixels_of(index_Bhw, batch, autoencoder).cpu().numpy(), strict=True):
                notes = {name: value for name, value in sample.meta.notes.items() if name != "autoencoder"}
                yield cube_of(stored_CHW, autoencoder, notes)


def stated_batch(sample: Cube, autoencoder: Autoencoder) -> int:
    """In how many at a time an image was generated, and is decoded.

    Raises:
        InputError: it does not say so, or its codes are another autoencoder's.
    """
    notes = sample.meta.notes
    batch, digest = notes.get("batch"), notes.get("autoencoder")
    if not sample.codes or type(batch) is not int or batch < 1 or not digest:
        raise InputError(
            f"a sample with the notes {notes}", where=sample.meta.key, expected="codes of a generated image, their batch and autoencoder"
        )
    if digest != autoencoder.digest:
        raise InputError(
            "codes of another autoencoder",
            where=sample.meta.key,
            expected=f"autoencoder {digest}, this one is {autoencoder.digest}",
            mend="--autoencoder RUN/vqgan, as it was when the set was made: README.md of the set names the run",
        )
    return batch


class DecodedDataset(Dataset):
    """A set of codes, read as the cubes that they stand for. `stream` in place of CubeStream.

    Raises:
        InputError: no set of codes, or of another autoencoder, or of the same in another precision.
    """

    def __init__(self, codes: Dataset, autoencoder: Autoencoder) -> None:
        codes.expect("codes")
        if autoencoder.inference != (made_in := inference_of(codes)):
            raise InputError(f"an autoencoder in {autoencoder.inference}", where=codes.path, expected=f"{made_in}, as the set was made")
        super().__init__(codes.path, codes.manifest, codes._cache)
        self.codes, self.autoencoder, self._batch_of = codes, autoencoder, {}
        self.batch_of(next(split for split, info in codes.splits.items() if info.count), 0)

    @classmethod
    def open(cls, codes: Path | str, vqgan: Path | str, device: torch.device | str = "cpu") -> DecodedDataset:
        """A set, with the autoencoder of a training folder in the precision in which the set was made."""
        dataset = Dataset(codes)
        return cls(dataset, load_autoencoder(Path(vqgan), device, inference=inference_of(dataset)))

    payload = "cube"
    shape = property(lambda self: (len(self.wavelengths_nm), *self.autoencoder.fov_HW.shape))
    wavelengths_nm = property(lambda self: tuple(self.autoencoder.data["wavelengths_nm"]))
    scale = property(lambda self: self.autoencoder.data["scale"])
    offset = property(lambda self: self.autoencoder.data["offset"])

    def _shard(self, entry: ShardEntry) -> Shard:
        return self.codes._shard(entry)

    def batch_of(self, split: str, i: int) -> int:
        """In how many at a time sample `i` is decoded: as its whole shard."""
        shard, _ = self.codes.locate(split, i)
        if shard.entry.name not in self._batch_of:
            self._batch_of[shard.entry.name] = stated_batch(shard.cube(0), self.autoencoder)
        return self._batch_of[shard.entry.name]

    def cube(self, split: str, i: int) -> Cube:
        return next(self.cubes(split, [i]))

    def cubes(self, split: str, which: Iterable[int] | None = None) -> Iterator[Cube]:
        return decoded(self.codes.cubes(split, which), self.autoencoder)

    def stream(self, split: str, **how: object) -> DecodedStream:
        """As CubeStream(dataset, split, …)."""
        return DecodedStream(self, split, **how)


class DecodedStream:
    """Batches of one split, in the order of CubeStream, decoded; with the field of view.

    Args:
        batch_size: samples a rank and batch; 0: as many as are decoded at once. Of numbers that are no multiple of that, a part of what
            the decoder does is thrown away.
        device: where cubes are wanted; None: where the decoder is.
        seed, rank, world, epoch_samples, read: as of CubeStream.
    """

    def __init__(
        self,
        dataset: DecodedDataset,
        split: str,
        *,
        batch_size: int = 0,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        epoch_samples: int = 0,
        read: ReadConfig = ReadConfig(),
        device: torch.device | str | None = None,
    ) -> None:
        batch_size = batch_size or dataset.batch_of(split, 0)
        order = {"seed": seed, "rank": rank, "world": world, "epoch_samples": epoch_samples}
        self.codes = CubeStream(dataset.codes, split, batch_size=batch_size, read=read, **order)
        self.dataset, self.split, self.batch_size, self.count, self.shape = dataset, split, batch_size, self.codes.count, dataset.shape
        self.device = torch.device(device or dataset.autoencoder.fov_HW.device)

    def batches(self, consumed: int = 0) -> Iterator[Batch]:
        """As of CubeStream."""
        return map(self._decoded, self.codes.batches(consumed))

    def once(self) -> Iterator[Batch]:
        """As of CubeStream."""
        return map(self._decoded, self.codes.once())

    def each(self, sample_N: np.ndarray) -> Iterator[Batch]:
        """As of CubeStream."""
        return map(self._decoded, self.codes.each(sample_N))

    def read(self, sample_B: np.ndarray, epoch_B: np.ndarray | None = None) -> Batch:
        """As of CubeStream."""
        return self._decoded(self.codes.read(sample_B, epoch_B))

    def _decoded(self, codes: Batch) -> Batch:
        autoencoder, batch_B = self.dataset.autoencoder, [self.dataset.batch_of(self.split, i) for i in codes.sample_B.tolist()]
        index_Bhw = codes.cubes_BCHW[:, 0].long()
        cubes_BCHW = torch.empty((len(batch_B), *self.shape), dtype=torch.uint16, device=self.device)
        for batch in sorted(set(batch_B)):
            rows = [row for row, of_row in enumerate(batch_B) if of_row == batch]
            for part in parts_of(rows, batch):
                for row, stored_CHW in zip(part, pixels_of(index_Bhw[part], batch, autoencoder), strict=True):
                    cubes_BCHW[row] = stored_CHW
        fov_BHW = autoencoder.fov_HW.to(self.device).expand(len(batch_B), -1, -1)
        return replace(codes, cubes_BCHW=cubes_BCHW, fov_BHW=fov_BHW)


def stream_of(dataset: Dataset, split: str, *, batch_size: int) -> CubeStream | DecodedStream:
    """Cubes with their maps, on the processor, whatever a set keeps of them; of codes at least as many at a time as are decoded at once."""
    if isinstance(dataset, DecodedDataset):
        return dataset.stream(split, batch_size=max(batch_size, dataset.batch_of(split, 0)), device="cpu")
    return CubeStream(dataset, split, batch_size=batch_size, maps=True)


def parts_of(rows: Sequence[int], most: int) -> Iterator[Sequence[int]]:
    """At most so many at a time."""
    return (rows[start : start + most] for start in range(0, len(rows), most))


class DecodedSet(ImageSet):
    """A set of codes written down as pixels, in units: shard for shard the set that would have been made of pixels.

    Raises:
        InputError: no set of generated codes, or of another autoencoder; `out` holds another set.
    """

    def __init__(self, codes: Dataset, autoencoder: Autoencoder, out: Path) -> None:
        self.cubes = DecodedDataset(codes, autoencoder)
        if "sample" not in codes.manifest.source:
            raise InputError("a set that does not state how it was made", where=codes.path, expected="one that `retinaforge sample` made")
        stated = {**codes.manifest.source["sample"], "payload": "cube"}
        request = {key: value for key, value in stated.items() if key not in OF_SHARDS}
        super().__init__(request, out, count=stated["count"], shard=stated["shard"])

    def images(self, ids: np.ndarray) -> Iterator[Cube]:
        return self.cubes.cubes(SPLIT, ids.tolist())


def decoding(codes: Path | str, vqgan: Path, out: Path, device: torch.device | str) -> DecodedSet:
    """The units that write a set of codes down as pixels, by the autoencoder of a training folder."""
    dataset = Dataset(codes)
    return DecodedSet(dataset, load_autoencoder(vqgan, device, inference=inference_of(dataset)), out)


def inference_of(codes: Dataset) -> InferenceConfig:
    """How the networks computed as the set was made, and have to as it is decoded."""
    return InferenceConfig(**codes.manifest.source.get("sample", {}).get("inference", stated(FP32)))
