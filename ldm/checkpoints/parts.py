"""Part files of checkpoints: safetensors, written straight from where the tensors lie, and read a stretch at a time.

The library's own writer either holds the whole file in memory once more, and the interpreter's lock with it, or writes past
`data_shards/durable.py`; its reader maps the file, so a file server that stalls stops all threads of the process, its heartbeat too.
What is written here is read by the library, and what is read here was checked by it.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from data_shards import durable
from data_shards.errors import TryAgain, UnsafeResume

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "BOOL": torch.bool,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
METADATA = "__metadata__"
SHAPES = "shapes"  # of the metadata: the whole shape of each tensor that the part holds a stretch of
CHUNK = 16 << 20  # bytes that are hashed and written in turn
Share = tuple[dict[str, Tensor], dict[str, tuple[int, ...]]]
"""What a rank writes into one part: tensors by key, and the whole shapes of those that it holds a stretch of."""


def write_part(final: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """Write contiguous tensors of the host; returns the file's sha256. Takes no memory beside theirs.

    Raises:
        TryAgain: disk full. InputError: the place cannot be written.
    """
    digest = hashlib.sha256()

    def hashed() -> Iterator[memoryview]:
        for piece in _pieces(tensors, metadata):
            digest.update(piece)
            yield piece

    with durable.writing(final) as file:
        file.writelines(hashed())
    return digest.hexdigest()


def _pieces(tensors: dict[str, Tensor], metadata: dict[str, str]) -> Iterator[memoryview]:
    """The file's bytes: the header's length, the header, the tensors in its order."""
    header: dict[str, object] = {METADATA: metadata}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
        content = _bytes_of(tensor.reshape(-1))
        for begin in range(0, len(content), CHUNK):
            yield content[begin : begin + CHUNK]


def _bytes_of(flat: Tensor) -> memoryview:
    return memoryview(flat.view(torch.uint8).numpy())


class Part:
    """One part file.

    Raises:
        UnsafeResume: the file is no safetensors; whatever else it may be, a pickle too, is refused unread.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, framework="pt"):
                pass  # the library has checked header, offsets and size
            with open(path, "rb") as file:
                header_bytes = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(header_bytes))
        except (SafetensorError, OSError) as error:
            raise UnsafeResume(
                f"a part that is no safetensors file: {error}",
                where=path,
                expected="what this program writes; nothing else is opened, and nothing is ever unpickled",
                mend=f"remove {path.parent}; the run goes on from the checkpoint before",
            ) from error
        self.metadata: dict[str, str] = header.pop(METADATA, {})
        self.entries, self.begin = header, 8 + header_bytes

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the tensors by name."""
        return {name: tuple(entry["shape"]) for name, entry in self.entries.items()}

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """The stretch [start, stop) of a tensor, flattened."""
        entry = self.entries[name]
        flat = torch.empty(stop - start, dtype=DTYPES[entry["dtype"]])
        wanted, done = _bytes_of(flat), 0
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self.begin + entry["data_offsets"][0] + start * flat.element_size())
            while done < len(wanted):
                if not (count := file.readinto(wanted[done:])):
                    raise UnsafeResume(f"{name}: the file ends early", where=self.path, expected="the length it had when it was opened")
                done += count
        return flat


class Writing(threading.Thread):
    """One rank's parts on their way to the disk."""

    def __init__(self, final: Path, samples: int, state: dict[str, Any], shares: dict[str, Share]) -> None:
        super().__init__(name=f"checkpoint-{samples}", daemon=True)
        self.final, self.samples, self.state, self.shares = final, samples, state, shares
        self.parts: list[tuple[str, str]] = []
        self.fault: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            while self.shares:
                name = next(iter(self.shares))
                share, shapes = self.shares.pop(name)
                self.parts.append((name, write_part(self.final / name, share, {SHAPES: json.dumps(shapes)})))
        except BaseException as raised:
            self.fault = raised
        finally:
            self.shares = {}

    def result(self) -> list[tuple[str, str]]:
        """(file name, sha256) of each part, once they are written.

        Raises:
            RetinaforgeError: they could not be.
        """
        self.join()
        if isinstance(self.fault, OSError):
            raise TryAgain(f"writing failed: {self.fault}", where=self.final, mend="run the same command again") from self.fault
        if self.fault is not None:
            raise self.fault
        return self.parts
