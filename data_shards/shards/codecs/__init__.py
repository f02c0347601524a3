"""Payload codecs: how the blocks of an array (layout.py) become the bytes of `KEY.cube.<codec>` and come back.

Add one: a file with a class that has `encode` and `decode_into`, and a line in CODECS. A codec sees one block at a time and
lets go of the interpreter's lock while it works, so that threads decode side by side.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from data_shards.errors import InputError, nearest
from data_shards.shards.codecs.blosc import Blosc2
from data_shards.shards.codecs.pco import Near, Pcodec
from data_shards.shards.layout import TILE


class Codec(Protocol):
    """`module` is its library, imported by its constructor; `out_N` bounds what `decode_into` may unfold.

    `decode_into` raises CorruptData where the bytes do not hold exactly that array.
    """

    module: str

    def encode(self, block_N: np.ndarray) -> bytes: ...

    def decode_into(self, content: memoryview, out_N: np.ndarray, where: object) -> None: ...


CODECS: dict[str, type[Codec]] = {"blosc2": Blosc2, "pcodec": Pcodec, "near": Near}

BARE = ("raw", "npy")
"""Payloads that are one array in C order: bare little-endian bytes, or those behind numpy's own header."""

STORED = (*BARE, "tiles")
"""Payloads whose blocks lie as they are; tiles for random crops."""


@dataclass(frozen=True)
class Encoding:
    """How arrays are written.

    Attributes:
        codec: a name of STORED or CODECS.
        max_error: of `near`, in stored counts.
        tile: side of a tile, in pixels; 0: rows of the whole width (of the codec `tiles`: TILE).

    Raises:
        InputError: an unknown codec, a bound or tiles that it does not have.
    """

    codec: str = "raw"
    max_error: int = 0
    tile: int = 0

    def __post_init__(self) -> None:
        if self.codec not in (*STORED, *CODECS):
            raise InputError(f"unknown codec {self.codec!r}", expected=nearest(self.codec, [*STORED, *CODECS]))
        if bool(self.max_error) != (self.codec == "near") or not 0 <= self.max_error <= Near.LARGEST:
            raise InputError(
                f"codec {self.codec!r} with a maximum error of {self.max_error} counts",
                expected=f"1 to {Near.LARGEST} with 'near', 0 with the others, which lose nothing",
                mend="--codec near --max-error 2   (data.codec=near data.max_error=2)",
            )
        if self.tile < 0 or (self.tile and self.codec in BARE):
            raise InputError(
                f"codec {self.codec!r} with tiles of {self.tile} pixels",
                expected="tiles of 1 pixel or more, and a codec that has any: 'raw' and 'npy' are whole arrays, which others read too",
                mend=f"--codec tiles --tile {TILE}   (data.codec=tiles data.tile={TILE})",
            )
        if self.codec == "tiles" and not self.tile:
            object.__setattr__(self, "tile", TILE)

    def __str__(self) -> str:
        """'near ±2, tiles of 96'."""
        codec = "" if self.codec == "tiles" else self.codec + (f" ±{self.max_error}" if self.max_error else "")
        return ", ".join(word for word in (codec, f"tiles of {self.tile}" if self.tile else "") if word)

    @functools.cached_property
    def coder(self) -> Codec | None:
        """Encodes blocks; None where they lie as they are. Raises InputError where its library is not installed."""
        return get_codec(self.codec, self.max_error)


def get_codec(name: str, max_error: int = 0) -> Codec | None:
    """The codec of that name, its library checked; None for those of STORED, which need none.

    Raises:
        InputError: its library is not installed (with the command that installs it).
    """
    if name in STORED:
        return None
    codec = CODECS[name]
    try:
        return codec(max_error) if name == "near" else codec()
    except ImportError as error:
        raise InputError(
            f"codec {name!r} is not installed here",
            expected=f"the Python package {codec.module}",
            mend=f"pip install -c constraints.txt {codec.module}   (or pack again with --codec raw)",
        ) from error


@functools.cache
def decoder(name: str) -> Codec | None:
    """The codec that reads payloads of that name: `near` finds its bound in every block.

    Raises:
        InputError: as get_codec.
    """
    return get_codec(name, max_error=1 if name == "near" else 0)
