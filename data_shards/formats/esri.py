"""ESRI's NAME.hdr for .bil, .bip and .bsq (also .flt): `KEY VALUE` a line, here under the names that ENVI gives the same facts."""

from __future__ import annotations

import re
from pathlib import Path

from data_shards.errors import InputError, command

DTYPE_CODES = {  # (NBITS, PIXELTYPE) to ENVI's data type
    ("8", "UNSIGNEDINT"): 1,
    ("16", "UNSIGNEDINT"): 12,
    ("32", "UNSIGNEDINT"): 13,
    ("16", "SIGNEDINT"): 2,
    ("32", "SIGNEDINT"): 3,
    ("32", "FLOAT"): 4,
    ("64", "FLOAT"): 5,
}
ORDERS = {"I": 0, "LSBFIRST": 0, "M": 1, "MSBFIRST": 1}


def is_header(text: str) -> bool:
    """Whether a text is such a header."""
    names = {line.split()[0].upper() for line in text.splitlines() if line.split()}
    return {"NROWS", "NCOLS"} <= names


def as_envi(text: str, path: Path) -> dict[str, str]:
    """The fields under ENVI's names.

    Raises:
        InputError: a layout with gaps, or a kind of pixel that is not known.
    """
    centres = re.search(r"^\s*WAVELENGTHS\s*$(.*?)^\s*WAVELENGTHS_END", text, re.MULTILINE | re.DOTALL | re.IGNORECASE)
    rest = text.replace(centres[0], "") if centres else text
    words = {parts[0].upper(): parts[1].strip() for line in rest.splitlines() if len(parts := line.split(None, 1)) == 2}
    bits = words.get("NBITS", "8")
    kind = words.get("PIXELTYPE", "FLOAT" if "NBITS" not in words and "CELLSIZE" in words else "UNSIGNEDINT").upper()
    bits = "32" if kind == "FLOAT" and "NBITS" not in words else bits
    layout, order = words.get("LAYOUT", "BIL").lower(), words.get("BYTEORDER", "I").upper()
    if (bits, kind) not in DTYPE_CODES or layout not in ("bil", "bip", "bsq") or order not in ORDERS:
        raise InputError(
            f"an ESRI header with NBITS {bits}, PIXELTYPE {kind}, LAYOUT {layout}, BYTEORDER {order}",
            where=path,
            expected="8, 16, 32 or 64 bits; SIGNEDINT, UNSIGNEDINT or FLOAT; BIL, BIP or BSQ; I or M",
            mend=command("gdal_translate", "-of", "ENVI", path.stem, f"{path.stem}.img"),
        )
    bands, columns, size = words.get("NBANDS", "1"), words["NCOLS"], int(bits) // 8
    _refuse_gaps(words, layout, int(bands) if bands.isdecimal() else 0, int(columns) if columns.isdecimal() else 0, size, path)
    fields = {
        "samples": columns,
        "lines": words["NROWS"],
        "bands": bands,
        "header offset": words.get("SKIPBYTES", "0"),
        "data type": str(DTYPE_CODES[bits, kind]),
        "interleave": layout,
        "byte order": str(ORDERS[order]),
        "nodata": words.get("NODATA", words.get("NODATA_VALUE")),
        "wavelength": centres and "{" + ", ".join(centres[1].split()) + "}",
    }
    return {name: value for name, value in fields.items() if value is not None}


def _refuse_gaps(words: dict[str, str], layout: str, bands: int, columns: int, size: int, path: Path) -> None:
    """Bytes between rows or bands, of which ENVI's header knows nothing."""
    row = columns * size
    whole = {"bil": row * bands, "bip": row * bands, "bsq": row}[layout]
    expected = {"BANDROWBYTES": row, "TOTALROWBYTES": whole, "BANDGAPBYTES": 0}
    for name, value in expected.items():
        if name in words and words[name] != str(value) and not (name == "BANDROWBYTES" and layout == "bip"):
            raise InputError(
                f"{name} {words[name]}: bytes between the rows or bands",
                where=path,
                expected=f"{name} {value}",
                mend=command("gdal_translate", "-of", "ENVI", path.stem, f"{path.stem}.img"),
            )
