"""One shard: a plain WebDataset tar, and the index beside it.

The index is a safetensors file (numbers and text only, memory-mappable), one row a sample: key, subject, shape, and
offset, size and crc32c of each member. Its header carries count, size and sha256 of the shard. Tar members start on
512-byte borders, so a reader needs the index alone: no tar parsing while training.

Legend: N samples of the shard, M kinds of member.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from crc32c import crc32c
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from data_shards import durable
from data_shards.codec import CODECS, get_codec
from data_shards.cube import KEY, Cube
from data_shards.errors import CorruptData, InputError
from data_shards.folder import meta_bytes, meta_from, png_bytes

FORMAT = "retinaforge-index-1"
NAME_BYTES = 64
MAX_MEMBER_BYTES = 4 << 30
PICKLES = ("pkl", "pickle", "pyd", "pt", "pth", "joblib", "dill")


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """Where every member of a shard lies. `members[m]` is the name behind the key: 'cube.raw', 'json', 'labels.png', …; size 0: absent."""

    shard: str
    shard_bytes: int
    sha256: str
    dtype: str
    members: tuple[str, ...]
    keys: list[str]
    subjects: list[str]
    shape_N3: np.ndarray
    offset_NM: np.ndarray
    size_NM: np.ndarray
    crc_NM: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    def payload(self, i: int) -> tuple[int, str]:
        """Column and codec of sample i's array."""
        for m, member in enumerate(self.members):
            stem, _, codec = member.partition(".")
            if stem in ("cube", "latent") and codec in CODECS and self.size_NM[i, m]:
                return m, codec
        raise CorruptData("no array in the index", where=f"{self.shard}: sample {self.keys[i]}", mend="retinaforge data index FOLDER")


def _text_rows(texts: list[str]) -> np.ndarray:
    rows = np.zeros((len(texts), NAME_BYTES), np.uint8)
    for row, text in zip(rows, texts, strict=True):
        raw = text.encode()
        if len(raw) > NAME_BYTES:
            raise InputError(f"name {text!r} is longer than {NAME_BYTES} bytes", mend="use a shorter key or subject_id")
        row[: len(raw)] = np.frombuffer(raw, np.uint8)
    return rows


def _texts(rows: np.ndarray) -> list[str]:
    return [bytes(row).rstrip(b"\0").decode() for row in rows]


def index_bytes(index: ShardIndex) -> bytes:
    """The index file."""
    header = {k: getattr(index, k) for k in ("shard", "shard_bytes", "sha256", "dtype")}
    columns = {
        "key": _text_rows(index.keys),
        "subject": _text_rows(index.subjects),
        "shape": index.shape_N3.astype(np.uint32),
        "offset": index.offset_NM.astype(np.uint64),
        "size": index.size_NM.astype(np.uint64),
        "crc32c": index.crc_NM.astype(np.uint32),
    }
    # one metadata entry: safetensors keeps several in no fixed order, and an index has to be the same bytes every time
    return save(
        columns, {"retinaforge": json.dumps({**header, "format": FORMAT, "count": len(index), "members": index.members}, sort_keys=True)}
    )


def read_index(path: Path, *, sha256: str | None = None) -> ShardIndex:
    """Read an index file; with `sha256` (the manifest's), nothing of a changed file is believed.

    Raises:
        CorruptData: absent, damaged, of another format, or at odds with itself.
    """
    mend = f"retinaforge data index {path.parent}"
    try:
        if sha256 is not None and durable.sha256_of(path) != sha256:
            raise CorruptData("the index is not the one that the manifest names (sha256)", where=path, mend=mend)
        with safe_open(path, framework="np") as file:
            header = json.loads((file.metadata() or {}).get("retinaforge", "{}"))
            columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header.get("format") != FORMAT:
            raise CorruptData(f"index of format {header.get('format')!r}", where=path, expected=FORMAT, mend=mend)
        index = ShardIndex(
            **{k: header[k] for k in ("shard", "shard_bytes", "sha256", "dtype")},
            members=tuple(header["members"]),
            keys=_texts(columns["key"]),
            subjects=_texts(columns["subject"]),
            shape_N3=columns["shape"],
            offset_NM=columns["offset"],
            size_NM=columns["size"],
            crc_NM=columns["crc32c"],
        )
    except CorruptData:
        raise
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CorruptData(f"unreadable index: {error}", where=path, mend=mend) from error
    rows = {len(c) for c in columns.values()} | {header["count"]}
    ends = index.offset_NM + index.size_NM
    if len(rows) != 1 or (len(index) and int(ends.max()) > index.shard_bytes):
        raise CorruptData("the index contradicts itself", where=path, expected="equal column lengths, members inside the shard", mend=mend)
    return index


def index_path(shard: Path) -> Path:
    """`train-000000.tar` → `train-000000.index`."""
    return shard.with_suffix(".index")


def members_of(cube: Cube, codec: str, payload: str) -> list[tuple[str, bytes]]:
    """The tar members of one sample: metadata first, so that a sequential reader knows what follows."""
    members = [("json", meta_bytes(cube.meta, cube.data_CHW)), (f"{payload}.{codec}", get_codec(codec).encode(cube.data_CHW))]
    if cube.labels_HW is not None:
        members.append(("labels.png", png_bytes(cube.labels_HW)))
    if cube.fov_HW is not None:
        members.append(("fov.png", png_bytes(cube.fov_HW)))
    return members


def write_shard(shard: Path, cubes: Iterable[Cube], *, codec: str = "raw", payload: str = "cube", keep_first: bool = False) -> ShardIndex:
    """Write a tar and its index, each whole or absent. The same cubes give the same bytes, whenever and by whom written.

    With `keep_first`, another writer's finished shard stands and its index is returned.
    """
    with durable.writing(shard, keep_first=keep_first) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for cube in cubes:
            for member, content in members_of(cube, codec, payload):
                info = tarfile.TarInfo(f"{cube.meta.key}.{member}")  # mtime, uid and gid stay 0
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    index = scan_shard(shard)
    durable.write_bytes(index_path(shard), index_bytes(index))
    return index


def scan_shard(shard: Path) -> ShardIndex:
    """Index a shard by reading it once: ours, or one that stock webdataset wrote.

    Raises:
        CorruptData: the tar ends early or its headers are damaged.
        InputError: unsafe member names, a pickle, a sample without array or metadata, samples of mixed dtype.
    """
    rows: dict[str, dict[str, tuple[int, int, int]]] = {}
    metas: dict[str, bytes] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: set[str] = set()
    for name, offset, content in tar_members(shard):
        key, _, member = name.partition(".")
        if member in rows.setdefault(key, {}):
            raise InputError(f"member {name!r} stands twice", where=shard, expected="unique names", mend="write the shard again")
        rows[key][member] = (offset, len(content), crc32c(content))
        if member == "json":
            metas[key] = content
        elif member.partition(".")[0] in ("cube", "latent") and member.endswith(".npy"):
            header = io.BytesIO(content)
            shapes[key], dtype = _npy_header(header, where=f"{shard.name}: {name}")
            dtypes.add(dtype)
    return _index_of(shard, rows, metas, shapes, dtypes)


def tar_members(shard: Path) -> Iterable[tuple[str, int, bytes]]:
    """(name, offset, content) of each regular member, names checked before content is touched."""
    mend = "copy or write the shard again"
    try:
        with tarfile.open(shard, "r:") as tar:
            for info in tar:
                if info.isdir():
                    continue
                parts = Path(info.name).parts
                if not info.isreg() or info.name.startswith("/") or ".." in parts or info.size > MAX_MEMBER_BYTES:
                    raise InputError(f"unsafe member {info.name!r}", where=shard, expected="regular files, relative names, below 4 GiB")
                name = parts[-1]
                if name.rpartition(".")[2] in PICKLES:
                    raise InputError(
                        f"member {info.name!r} is a pickle, which may run code when read",
                        where=shard,
                        expected="arrays as .npy or raw, metadata as .json",
                        mend="write the shard again without it",
                    )
                if not KEY.fullmatch(name.partition(".")[0]):
                    raise InputError(
                        f"sample key {name.partition('.')[0]!r} is not allowed", where=shard, expected="letters, digits, '_', '-'"
                    )
                content = tar.extractfile(info).read()
                if len(content) != info.size:
                    raise CorruptData(f"shard ends inside member {info.name!r}", where=shard, mend=mend)
                yield name, info.offset_data, content
        # tarfile takes a damaged header, or a cut at a member's border, for the end; the true end is a block of zeros
        with open(shard, "rb") as file:
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise CorruptData(f"the tar breaks off at byte {tar.offset}: cut short, or a damaged header", where=shard, mend=mend)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise CorruptData(f"not a whole tar: {error}", where=shard, expected="a plain, uncompressed tar", mend=mend) from error


def _npy_header(file: io.BytesIO, where: object) -> tuple[tuple[int, ...], str]:
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except ValueError as error:
        raise CorruptData(f"not a .npy array: {error}", where=where) from error
    if dtype.hasobject or fortran:
        raise InputError(f"array of dtype {dtype}", where=where, expected="numbers in C order, never pickled objects")
    return shape, dtype.name


def _index_of(
    shard: Path,
    rows: dict[str, dict[str, tuple[int, int, int]]],
    metas: dict[str, bytes],
    shapes: dict[str, tuple[int, ...]],
    dtypes: set[str],
) -> ShardIndex:
    members = tuple(sorted({member for row in rows.values() for member in row}))
    table_NM3 = np.zeros((len(rows), len(members), 3), np.uint64)
    subjects = []
    for i, (key, row) in enumerate(rows.items()):
        where = f"{shard.name}: sample {key}"
        if key not in metas or not any(m.partition(".")[0] in ("cube", "latent") for m in row):
            raise InputError(f"members {sorted(row)}", where=where, expected="KEY.json and one KEY.cube.<codec>")
        subjects.append(meta_from(metas[key], where=where, key=key).subject_id)
        if key not in shapes:
            fields = json.loads(metas[key])
            shape, dtype = fields.get("shape"), fields.get("dtype")
            if not (isinstance(shape, list) and all(isinstance(n, int) and n > 0 for n in shape)) or dtype not in ("uint16", "float32"):
                raise InputError(
                    f"bare bytes of shape {shape!r} and dtype {dtype!r}",
                    where=where,
                    expected=f"'shape' (a list) and 'dtype' (uint16 or float32) in {key}.json",
                )
            shapes[key] = tuple(shape)
            dtypes.add(dtype)
        for m, member in enumerate(members):
            table_NM3[i, m] = row.get(member, (0, 0, 0))
    if len(dtypes) > 1 or any(len(s) != 3 for s in shapes.values()):
        raise InputError(
            f"dtypes {sorted(dtypes)}, shapes {set(shapes.values())}", where=shard, expected="one dtype, (bands, height, width)"
        )
    return ShardIndex(
        shard=shard.name,
        shard_bytes=shard.stat().st_size,
        sha256=durable.sha256_of(shard),
        dtype=dtypes.pop() if dtypes else "uint16",
        members=members,
        keys=list(rows),
        subjects=subjects,
        shape_N3=np.array([shapes[key] for key in rows], np.uint32).reshape(-1, 3),
        offset_NM=table_NM3[..., 0],
        size_NM=table_NM3[..., 1],
        crc_NM=table_NM3[..., 2].astype(np.uint32),
    )
