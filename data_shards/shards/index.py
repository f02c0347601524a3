"""The index beside a shard: where each sample and each block of its array lies.

It is a safetensors file (numbers and text only), one row a sample: key, subject, shape, offset, size and crc32c of each
member, and where the blocks of the array lie (layout.py) with the crc32c of each. Its header carries count, size and sha256 of
the shard. Tar members start on 512-byte borders, so a reader needs the index alone: no tar parsing while training. It is
mapped, not read: a shard of many small samples costs no memory but the rows that are looked at.

Legend: N samples of the shard, M kinds of member, K blocks of an array.
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from data_shards.cube import NAME_BYTES
from data_shards.errors import CorruptData, InputError, TryAgain
from data_shards.shards import payload
from data_shards.shards.codecs import STORED
from data_shards.shards.layout import Layout

FORMAT = "retinaforge-index-3"
READ_BELOW_BYTES = 1 << 20


class Names(Sequence[str]):
    """Keys or subjects, each decoded when it is asked for."""

    def __init__(self, rows_NB: np.ndarray) -> None:
        self.rows_NB = rows_NB

    @classmethod
    def of(cls, texts: Sequence[str]) -> Names:
        """Raises: InputError: a name longer than NAME_BYTES."""
        rows = np.zeros((len(texts), NAME_BYTES), np.uint8)
        for row, text in zip(rows, texts, strict=True):
            raw = text.encode()
            if len(raw) > NAME_BYTES:
                raise InputError(f"name {text!r} is longer than {NAME_BYTES} bytes", mend="use a shorter key or subject_id")
            row[: len(raw)] = np.frombuffer(raw, np.uint8)
        return cls(rows)

    def __len__(self) -> int:
        return len(self.rows_NB)

    def __getitem__(self, i: int) -> str:
        return self.rows_NB[i].tobytes().rstrip(b"\0").decode()

    def __iter__(self) -> Iterator[str]:
        content = self.rows_NB.tobytes()
        return (content[a : a + NAME_BYTES].rstrip(b"\0").decode() for a in range(0, len(content), NAME_BYTES))


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """Where every member of a shard lies.

    Attributes:
        members: names behind the key: 'cube.raw', 'json', 'labels.png', …; size 0: absent.
        block: bands, rows and columns of a block, the same in every sample; None: the arrays are of several shapes and read whole.
        edge_NK1: where the blocks of each array begin and end, counted from the array's offset.
    """

    shard: str
    shard_bytes: int
    sha256: str
    dtype: str
    members: tuple[str, ...]
    keys: Sequence[str]
    subjects: Sequence[str]
    shape_N3: np.ndarray
    offset_NM: np.ndarray
    size_NM: np.ndarray
    crc_NM: np.ndarray
    block: tuple[int, int, int] | None
    edge_NK1: np.ndarray
    block_crc_NK: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    def payload(self, i: int) -> tuple[int, str]:
        """Column and codec of sample i's array."""
        for m, member in enumerate(self.members):
            if (codec := payload.codec_of(member)) and self.size_NM[i, m]:
                return m, codec
        raise CorruptData("no array in the index", where=f"{self.shard}: sample {self.keys[i]}", mend="retinaforge data verify FOLDER")

    def holds_codes(self, i: int) -> bool:
        """Whether sample i's array is of codes, not of counts or latents."""
        return self.members[self.payload(i)[0]].startswith("codes.")

    def shape(self, i: int) -> tuple[int, int, int]:
        """(C, H, W) of sample i."""
        return tuple(self.shape_N3[i].tolist())


_COLUMNS = {
    "key": np.uint8,
    "subject": np.uint8,
    "shape": np.uint32,
    "offset": np.uint64,
    "size": np.uint64,
    "crc32c": np.uint32,
    "block_edge": np.uint32,
    "block_crc32c": np.uint32,
}
_DTYPES = {"U8": np.uint8, "U32": np.uint32, "U64": np.uint64}


def index_bytes(index: ShardIndex) -> bytes:
    """The index file."""
    header = {k: getattr(index, k) for k in ("shard", "shard_bytes", "sha256", "dtype", "members", "block")}
    rows = (
        Names.of(index.keys).rows_NB,
        Names.of(index.subjects).rows_NB,
        index.shape_N3,
        index.offset_NM,
        index.size_NM,
        index.crc_NM,
        index.edge_NK1,
        index.block_crc_NK,
    )
    columns = {name: np.ascontiguousarray(row, dtype) for (name, dtype), row in zip(_COLUMNS.items(), rows, strict=True)}
    # one metadata entry: safetensors keeps several in no fixed order, and an index has to be the same bytes every time
    return save(columns, {"retinaforge": json.dumps({**header, "format": FORMAT, "count": len(index)}, sort_keys=True)})


def open_index(path: Path, *, sha256: str | None = None) -> ShardIndex:
    """An index file; with `sha256` (the manifest's), nothing of a changed file is believed.

    A small one is read. A large one (of many small samples) is mapped, which holds a descriptor as long as it is open.

    Raises:
        CorruptData: absent, damaged, of another format, or at odds with itself. TryAgain: too many files are open.
    """
    try:
        with open(path, "rb") as file:
            small = os.fstat(file.fileno()).st_size <= READ_BELOW_BYTES
            content = file.read() if small else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        if getattr(error, "errno", 0) in (errno.EMFILE, errno.ENFILE):
            raise too_many_files(path) from error
        # what was never there is made anew from whole shards; what cannot be read may not be the only damage
        mend = _mend(path, "index" if isinstance(error, FileNotFoundError) else "verify")
        raise CorruptData(f"unreadable index: {error}", where=path, mend=mend) from error
    return read_index(content, where=path, sha256=sha256)


def too_many_files(path: object) -> TryAgain:
    """What is said where the limit on open files is reached."""
    return TryAgain(
        "too many open files", where=path, expected="room for a few hundred shards", mend="ulimit -n 4096, then the same command"
    )


def _mend(where: object, verb: str = "verify") -> str:
    folder = str(where).rpartition("/")[0] or "."
    return f"retinaforge data {'verify' if '://' in folder else verb} {folder}"


def read_index(content: bytes | mmap.mmap, *, where: object, sha256: str | None = None) -> ShardIndex:
    """An index from its bytes; its columns stay views of them.

    Raises:
        CorruptData: damaged, of another format, or at odds with itself.
    """
    mend = _mend(where)
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise CorruptData("the index is not the one that the manifest names (sha256)", where=where, mend=mend)
    try:
        fields, columns = _columns(content)
        header = json.loads(fields.get("retinaforge", "{}"))
        if header.get("format") != FORMAT:
            said = f"index of format {header.get('format')!r}"
            raise CorruptData(said, where=where, expected=FORMAT, mend=_mend(where, "index"))
        index = ShardIndex(
            **{k: header[k] for k in ("shard", "shard_bytes", "sha256", "dtype")},
            members=tuple(header["members"]),
            block=header["block"] and tuple(header["block"]),
            keys=Names(columns["key"]),
            subjects=Names(columns["subject"]),
            shape_N3=columns["shape"],
            offset_NM=columns["offset"],
            size_NM=columns["size"],
            crc_NM=columns["crc32c"],
            edge_NK1=columns["block_edge"],
            block_crc_NK=columns["block_crc32c"],
        )
        _check_index(index, header["count"])
    except CorruptData:
        raise
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise CorruptData(f"unreadable index: {error}", where=where, mend=mend) from error
    return index


def _columns(content: bytes | mmap.mmap) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Metadata and columns of a safetensors file, as views: the library's own reader copies."""
    head = int.from_bytes(content[:8], "little")
    if not 0 < head <= len(content) - 8:
        raise ValueError("no safetensors header")
    fields = json.loads(content[8 : 8 + head])
    columns = {}
    for name, dtype in _COLUMNS.items():
        entry = fields[name]
        begin, end = entry["data_offsets"]
        if _DTYPES[entry["dtype"]] is not dtype or not 0 <= begin <= end <= len(content) - 8 - head:
            raise ValueError(f"column {name!r} is of another type, or outside the file")
        values = np.frombuffer(content, np.uint8, end - begin, 8 + head + begin)
        columns[name] = values.view(dtype) if values.ctypes.data % dtype().itemsize == 0 else np.frombuffer(values.tobytes(), dtype)
        columns[name] = columns[name].reshape(entry["shape"])
    return fields.get("__metadata__", {}), columns


def _check_index(index: ShardIndex, count: int) -> None:
    """Raises: ValueError: columns of other lengths or shapes, or members and blocks that lie outside one another."""
    n, m = count, len(index.members)
    if index.dtype not in ("uint16", "float32"):
        raise ValueError(f"dtype {index.dtype!r}")
    values = np.prod(index.shape_N3.astype(np.float64), axis=1)
    if n and (values.min() < 1 or values.max() > payload.MAX_ARRAY_BYTES // np.dtype(index.dtype).itemsize):
        raise ValueError("arrays of no size, or larger than any may be")
    layout = Layout(index.shape(0), *index.block) if index.block and n else None
    blocks = len(layout) if layout else 0
    wanted = [(n, NAME_BYTES)] * 2 + [(n, 3)] + [(n, m)] * 3 + [(n, blocks + 1 if layout else 0), (n, blocks)]
    columns = (index.keys.rows_NB, index.subjects.rows_NB, index.shape_N3, index.offset_NM, index.size_NM, index.crc_NM)
    shapes = [column.shape for column in (*columns, index.edge_NK1, index.block_crc_NK)]
    if shapes != wanted:
        raise ValueError(f"columns of shapes {shapes}, not {wanted}")
    if (index.size_NM > index.shard_bytes).any() or (index.offset_NM > index.shard_bytes - index.size_NM.astype(np.int64)).any():
        raise ValueError("a member lies outside the shard")
    if layout and ((index.shape_N3 != index.shape_N3[0]).any() or (index.edge_NK1[:, 1:] <= index.edge_NK1[:, :-1]).any()):
        raise ValueError("the blocks contradict the shape")
    arrays = [k for k, member in enumerate(index.members) if payload.codec_of(member)]
    if n and not arrays:
        raise ValueError("no arrays")
    if layout and (index.edge_NK1[:, -1] != index.size_NM[:, arrays].max(axis=1)).any():
        raise ValueError("the blocks do not fill the array")
    stored = [k for k in arrays if payload.codec_of(index.members[k]) in STORED]
    if layout and stored:
        stored_N = index.size_NM[:, stored].any(axis=1)
        size_K = np.dtype(index.dtype).itemsize * np.diff(layout.starts())
        if (np.diff(index.edge_NK1.astype(np.int64)) != size_K)[stored_N].any():
            raise ValueError("stored blocks of other sizes than they have to be")


def index_path(shard: Path) -> Path:
    """`train-000000.tar` → `train-000000.index`."""
    return shard.with_suffix(".index")
