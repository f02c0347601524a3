"""Payload codecs: how the blocks of an array (layout.py) become the bytes of `KEY.cube.<codec>` and come back.

Add one: a file with a class that has `encode` and `decode_into`, and a line in CODECS. A codec sees one block at a time and
lets go of the interpreter's lock while it works, so that threads decode side by side.
"""

from __future__ import annotations

import functools
from typing import Protocol

import numpy as np

from data_shards.codecs.blosc import Blosc2
from data_shards.codecs.pco import Near, Pcodec
from data_shards.errors import InputError, nearest


class Codec(Protocol):
    """`module` is its library, imported by its constructor; `out_N` bounds what `decode_into` may unfold.

    `decode_into` raises CorruptData where the bytes do not hold exactly that array.
    """

    module: str

    def encode(self, block_N: np.ndarray) -> bytes: ...

    def decode_into(self, content: memoryview, out_N: np.ndarray, where: object) -> None: ...


CODECS: dict[str, type[Codec]] = {"blosc2": Blosc2, "pcodec": Pcodec, "near": Near}

STORED = ("raw", "npy")
"""Payloads whose blocks lie as they are: bare little-endian bytes, or those behind numpy's own header."""


def get_codec(name: str, max_error: int = 0) -> Codec | None:
    """The codec of that name, its library checked; None for `raw` and `npy`, which need none.

    Args:
        max_error: of `near`, in stored counts.

    Raises:
        InputError: unknown name, a bound that it does not have, or its library is not installed (with the command that installs it).
    """
    if name not in (*STORED, *CODECS):
        raise InputError(f"unknown codec {name!r}", expected=nearest(name, [*STORED, *CODECS]))
    check_bound(name, max_error)
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


def check_bound(name: str, max_error: int) -> None:
    """Raises: InputError: `near` without a bound, or a bound on a codec that loses nothing."""
    if bool(max_error) != (name == "near") or not 0 <= max_error <= Near.LARGEST:
        raise InputError(
            f"codec {name!r} with a maximum error of {max_error} counts",
            expected=f"1 to {Near.LARGEST} with 'near', 0 with the others, which lose nothing",
            mend="--codec near --max-error 2   (data.codec=near data.max_error=2)",
        )


@functools.cache
def decoder(name: str) -> Codec | None:
    """The codec that reads payloads of that name: `near` finds its bound in every block.

    Raises:
        InputError: as get_codec.
    """
    return get_codec(name, max_error=1 if name == "near" else 0)
