"""dataset.json: what a packed dataset is, and the digest that names it in every later file."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_shards import durable, stores
from data_shards.cube import KEY, PAYLOADS, Cube
from data_shards.errors import CorruptData, InputError, command

FORMAT = "retinaforge-dataset-2"
NAME = "dataset.json"
SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.tar")  # within the folder, and no unfinished file
MEND = "copy the set again, or pack it again from its source"
MAX_ARRAY_VALUES = 1 << 31
LOG_KNEE = 16.0  # stored counts below which the logarithmic scale is nearly linear, so that read noise is not blown up


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One shard; sha256 of the tar and of its index."""

    name: str
    split: str
    count: int
    bytes: int
    sha256: str
    index_sha256: str


@dataclass(frozen=True, kw_only=True)
class BandStats:
    """Per-band statistics in reflectance units (latents: latent units), over the field of view where there is one.

    `values` counts the pixels of a band that entered. `log_mean_C` and `log_std_C` are those of sign(n) ln(1 + |n| / LOG_KNEE)
    with n = stored - log_zero, the counts above reflectance 0; empty for latents. On that scale a vessel weighs as much in a
    dim band as in a bright one. `log_zero` is 0 where reflectance 0 is stored as 0, and in sets of before it was kept: they
    took the logarithm of the stored counts themselves, and what was trained on them still does. Taken from `split` alone: the
    training split, so that nothing of the held-out subjects reaches a model.
    """

    split: str
    mean_C: tuple[float, ...]
    std_C: tuple[float, ...]
    min_C: tuple[float, ...]
    max_C: tuple[float, ...]
    values: int
    log_mean_C: tuple[float, ...] = ()
    log_std_C: tuple[float, ...] = ()
    log_zero: float = 0.0

    def fields(self) -> dict[str, Any]:
        """As JSON: a `log_zero` of 0 is left out, so that the statistics of older sets, and checkpoints of them, stay equal."""
        return {name: value for name, value in asdict(self).items() if name != "log_zero" or value}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What all samples of a set have in common.

    Attributes:
        payload: 'cube' (uint16), 'latent' (float32) or 'codes' (uint16).
        shape: (C, H, W).
        scale, offset: reflectance = scale * stored + offset.
    """

    payload: str
    dtype: str
    shape: tuple[int, int, int]
    wavelengths_nm: tuple[float, ...]
    scale: float
    offset: float

    @classmethod
    def of(cls, cube: Cube) -> Kind:
        """That of a sample."""
        meta = cube.meta
        return cls(
            payload=payload_of(cube),
            dtype=cube.data_CHW.dtype.name,
            shape=cube.data_CHW.shape,
            wavelengths_nm=meta.wavelengths_nm,
            scale=meta.scale,
            offset=meta.offset,
        )


def payload_of(cube: Cube) -> str:
    """'cube' for stored counts, 'latent' for floats, 'codes' for indices into a codebook."""
    if cube.codes:
        return "codes"
    return "cube" if cube.data_CHW.dtype == np.uint16 else "latent"


@dataclass(frozen=True, kw_only=True)
class Manifest(Kind):
    """Attributes:
    max_error: how far a stored count may lie from the source's; 0: lossless.
    splits: for each split its number of samples and of subjects.
    source: how the set was made (command, options, digests of what it came from).
    """

    shards: tuple[ShardEntry, ...]
    splits: dict[str, dict[str, int]]
    max_error: int = 0
    stats: BandStats | None = None
    source: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises: ValueError: what no dataset is, whoever wrote it: a name that leaves the folder, sizes that contradict each other."""
        if self.dtype not in ("uint16", "float32") or self.payload not in PAYLOADS:
            raise ValueError(f"payload {self.payload!r} of dtype {self.dtype!r}")
        whole = [*self.shape, *(n for s in self.shards for n in (s.count, s.bytes)), *(n for v in self.splits.values() for n in v.values())]
        if len(self.shape) != 3 or min(self.shape) < 1 or not all(type(n) is int and n >= 0 for n in whole):
            raise ValueError(f"shape {self.shape}, or a count that is none")
        if math.prod(self.shape) > MAX_ARRAY_VALUES:
            raise ValueError(f"arrays of shape {self.shape}, larger than any may be")
        for shard in self.shards:
            if not SHARD_NAME.fullmatch(shard.name) or shard.split not in self.splits:
                raise ValueError(f"shard {shard.name!r} of split {shard.split!r}")
        if len({shard.name for shard in self.shards}) < len(self.shards) or not all(KEY.fullmatch(name) for name in self.splits):
            raise ValueError("the same shard twice, or a split whose name is not allowed")

    @property
    def digest(self) -> str:
        """sha256 over what the samples are and where they stand; not over statistics or provenance."""
        named = ("payload", "dtype", "shape", "wavelengths_nm", "scale", "offset")
        shards = sorted((s.name, s.split, s.count, s.sha256) for s in self.shards)
        return hashlib.sha256(durable.canonical_json({**{k: getattr(self, k) for k in named}, "shards": shards})).hexdigest()


def signed_log(counts: np.ndarray) -> np.ndarray:
    """sign(n) ln(1 + |n| / LOG_KNEE) of counts above reflectance 0: a logarithm that noise below 0 passes, too."""
    return np.copysign(np.log1p(np.abs(counts) / LOG_KNEE), counts)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Publish dataset.json: the mark that the dataset is whole."""
    stats = manifest.stats and manifest.stats.fields()
    durable.write_json(folder / NAME, _checked({"format": FORMAT, "digest": manifest.digest, **asdict(manifest), "stats": stats}))


def _checked(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields and a checksum over all of them: the digest leaves statistics out, and a wrong mean spoils a model unseen."""
    return {**fields, "sha256": hashlib.sha256(durable.canonical_json(fields)).hexdigest()}


def read_manifest(folder: Path | str) -> Manifest:
    """Read dataset.json of a folder or URL.

    Raises:
        InputError: no dataset there. CorruptData: damaged, or its digest does not match its content.
    """
    path = stores.where(folder, NAME)
    try:
        content = stores.read_whole(stores.open_store(folder).open(NAME), path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise InputError(
            "no packed dataset here",
            where=folder,
            expected=NAME,
            mend="retinaforge data pack FOLDER DATASET (a run on phantoms makes its own: retinaforge run PRESET)",
        ) from error
    except OSError as error:
        raise CorruptData(f"cannot be read: {error.strerror or error}", where=path, mend=MEND) from error
    mend = MEND if stores.is_url(folder) else f"{command('retinaforge', 'data', 'index', folder)} (where the shards are whole); else {MEND}"
    try:
        fields = json.loads(content)
        if fields["format"] != FORMAT:
            said = f"a manifest of format {fields['format']!r}"
            raise CorruptData(said, where=path, expected=FORMAT, mend=command("retinaforge", "data", "index", folder))
        del fields["sha256"]
        if content != durable.readable_json(_checked(fields)):
            raise CorruptData("the manifest is not as it was written", where=path, mend=mend)
        digest = fields.pop("digest")
        del fields["format"]
        stats = fields.pop("stats")
        manifest = Manifest(
            **{
                **fields,
                "shape": tuple(fields["shape"]),
                "wavelengths_nm": tuple(fields["wavelengths_nm"]),
                "shards": tuple(ShardEntry(**s) for s in fields["shards"]),
                "stats": stats and BandStats(**{k: tuple(v) if isinstance(v, list) else v for k, v in stats.items()}),
            }
        )
    except CorruptData:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptData(f"unreadable manifest: {error}", where=path, mend=mend) from error
    if manifest.digest != digest:
        raise CorruptData("the manifest's digest does not match its content", where=path, mend=mend)
    return manifest
