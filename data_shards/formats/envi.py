"""ENVI: a text header NAME.hdr beside a flat binary file, interleaved bsq, bil or bip. ESRI's NAME.hdr: see `esri`.

The header is parsed here and not by the library `spectral`, which knows no latin-1 (the sign µ), no missing byte order and
no compression. Values are taken from the file as they stand.
"""

from __future__ import annotations

import gzip
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_shards.errors import CorruptData, InputError, command
from data_shards.formats import declared, esri
from data_shards.formats.band_centres import in_nm
from data_shards.formats.declared import Statement
from data_shards.formats.faults import READ_FAULTS, refuse_absent_links, unreadable
from data_shards.formats.raw import Raw, ReadOptions, check_numeric, check_size

MAX_HEADER_BYTES = 1 << 24
DTYPES = {1: "u1", 2: "i2", 3: "i4", 4: "f4", 5: "f8", 6: "c8", 9: "c16", 12: "u2", 13: "u4", 14: "i8", 15: "u8"}
AXES = {"bsq": "CHW", "bil": "HCW", "bip": "HWC"}
DATA_SUFFIXES = ("", ".img", ".dat", ".raw", ".bin", ".hyspex", ".bsq", ".bil", ".bip", ".flt", ".sli")
STATEMENTS = {  # fields that speak of the values
    "data ignore value": declared.NO_DATA,
    "nodata": declared.NO_DATA,
    "data gain values": declared.SCALE,
    "data reflectance gain values": declared.SCALE,
    "data offset values": declared.OFFSET,
    "data reflectance offset values": declared.OFFSET,
    "reflectance scale factor": declared.FULL_SCALE,
    "bbl": declared.BAD_BANDS,
    "data units": declared.UNIT,
}
USED = ("samples", "lines", "bands", "header offset", "file type", "data type", "interleave", "byte order", "file compression")
USED += ("wavelength", "wavelength units", "major frame offsets", "minor frame offsets")
GZIP = b"\x1f\x8b\x08"
ANALYZE = (b"\x5c\x01\x00\x00", b"\x00\x00\x01\x5c")  # 348, the length of an Analyze or NIfTI header


def read_envi(path: Path, options: ReadOptions) -> Raw:
    """The image of one ENVI or ESRI header, with what the header says of its values and bands.

    Raises:
        InputError: no such header, one that lacks what is needed, a spectral library, classes, a complex dtype, wavelengths in
            an unknown unit, a missing data file. CorruptData: a data file shorter than the header says.
    """
    header = _header(path)
    check_size(header.shape_CHW, options, path)
    array = (_inflated if header.packed else _mapped)(header, path)
    axes = AXES[header.interleave]
    data_CHW = np.array(array.transpose([axes.index(axis) for axis in "CHW"]), dtype=header.dtype.newbyteorder("="))
    facts = {"interleave": header.interleave, "data_file": header.data_file.name}
    if "byte order" not in header.fields:
        facts["byte_order"] = "not stated, taken as 0"
    facts |= declared.not_used({name: value for name, value in header.fields.items() if name not in USED and name not in STATEMENTS})
    centres = _wavelengths_nm(header.fields, path) if options.own_wavelengths else None
    return Raw(data_CHW=data_CHW, wavelengths_nm=centres, said=_statements(header.fields), facts=facts)


def envi_files(path: Path) -> list[Path]:
    """The header and its data file."""
    return [path, _header(path).data_file]


@dataclass(frozen=True, kw_only=True)
class _Header:
    """Where the values lie: `offset` bytes into `data_file`, axes as the interleave has them; packed: through gzip."""

    fields: dict[str, str]
    shape_CHW: tuple[int, ...]
    dtype: np.dtype
    interleave: str
    offset: int
    packed: bool
    data_file: Path

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in the order of the file."""
        return tuple(self.shape_CHW["CHW".index(axis)] for axis in AXES[self.interleave])

    @property
    def bytes(self) -> int:
        """What the data file must hold."""
        return self.offset + math.prod(self.shape_CHW) * self.dtype.itemsize


def _header(path: Path) -> _Header:
    fields = header_fields(path)
    kind = fields.get("file type", "").lower()
    if any(word in kind for word in ("library", "classification", "meta", "mosaic", "tiff", "jpeg", "hdf", "nitf")):
        raise InputError(f"file type = {fields['file type']}", where=path, expected="ENVI Standard", mend="give the image itself")
    shape_CHW = tuple(_whole(fields, name, path) for name in ("bands", "lines", "samples"))
    dtype = _dtype(fields, path)
    check_numeric(dtype, path)
    interleave = _interleave(fields, shape_CHW, path)
    if any(number for name in ("major frame offsets", "minor frame offsets") for number in _numbers(fields, name, path)):
        raise InputError("frame offsets", where=path, expected="pixels without gaps", mend="save the image anew without them")
    offset = _whole(fields, "header offset", path, default=0)
    data_file = _data_file(path, offset + math.prod(shape_CHW) * dtype.itemsize)
    packed = bool(_whole(fields, "file compression", path, default=0))
    return _Header(
        fields=fields, shape_CHW=shape_CHW, dtype=dtype, interleave=interleave, offset=offset, packed=packed, data_file=data_file
    )


def header_fields(path: Path) -> dict[str, str]:
    """The fields of an ENVI header, names in lower case, lists as '{a, b}'; those of an ESRI header under ENVI's names.

    Raises:
        InputError: not such a header.
    """
    try:
        if path.stat().st_size > MAX_HEADER_BYTES:
            raise InputError(
                f"an ENVI header of {path.stat().st_size} bytes", where=path, expected=f"at most {MAX_HEADER_BYTES} bytes of text"
            )
        content = path.read_bytes()
    except READ_FAULTS as error:
        raise unreadable(path, error, "an ENVI header") from error
    if content.startswith(ANALYZE) or b"\0" in content:
        what = "an Analyze or NIfTI header" if content.startswith(ANALYZE) else "a header of bytes that are no text"
        raise InputError(what, where=path, expected="an ENVI header: text, first line 'ENVI'", mend="convert the image to ENVI or TIFF")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")  # where µ is one byte; no byte is wrong there
    if text.lstrip()[:4].upper() == "ENVI":
        return _parsed(text)
    if esri.is_header(text):
        return esri.as_envi(text, path)
    raise InputError(
        f"a header that begins with {text.strip()[:20]!r}",
        where=path,
        expected="an ENVI header (first line 'ENVI'), or an ESRI header with NROWS and NCOLS",
        mend="correct the first line if the rest is ENVI's",
    )


def _parsed(text: str) -> dict[str, str]:
    """`name = value` a line, a value in braces over several; lines from ';' on are comments."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith(";"))
    pairs = re.findall(r"^[ \t]*([^={}\n]+?)[ \t]*=[ \t]*(\{[^}]*\}?|[^\n]*)", lines, re.MULTILINE)
    return {" ".join(name.lower().split()): value.strip() for name, value in pairs}


def _whole(fields: dict[str, str], name: str, path: Path, *, default: int | None = None) -> int:
    text = fields.get(name)
    if text is None and default is not None:
        return default
    if text is None or not re.fullmatch(r"\d{1,18}(\.0*)?", text):
        raise InputError(
            f"no {name} in the header" if text is None else f"{name} = {text}",
            where=path,
            expected=f"{name} = a whole number",
            mend=f"add the line: {name} = …" if text is None else "correct the header",
        )
    return int(text.partition(".")[0])


def _numbers(fields: dict[str, str], name: str, path: Path) -> tuple[float, ...]:
    if name not in fields:
        return ()
    return Statement(kind="", name=name, value=fields[name]).numbers(path, "correct the header")


def _dtype(fields: dict[str, str], path: Path) -> np.dtype:
    code, order = _whole(fields, "data type", path), _whole(fields, "byte order", path, default=0)
    if code not in DTYPES or order not in (0, 1):
        raise InputError(
            f"data type = {code}, byte order = {order}", where=path, expected=f"a data type of {list(DTYPES)}, byte order 0 or 1"
        )
    return np.dtype(DTYPES[code]).newbyteorder("<>"[order])


def _interleave(fields: dict[str, str], shape_CHW: tuple[int, ...], path: Path) -> str:
    interleave = fields.get("interleave", "bsq" if shape_CHW[0] == 1 else "").lower()
    if interleave not in AXES:
        raise InputError(
            f"interleave = {interleave or 'not stated'}",
            where=path,
            expected="bsq, bil or bip",
            mend="add or correct the line: interleave = bsq",
        )
    return interleave


def _data_file(path: Path, needed: int) -> Path:
    """The data beside the header: of its name with a usual suffix; of several, the only one of the size that the header states."""
    stem = path.name[: -len(path.suffix)].lower()
    wanted = {stem + suffix: rank for rank, suffix in enumerate(DATA_SUFFIXES)}
    named = [file for file in path.parent.iterdir() if file.name.lower() in wanted and file != path]
    refuse_absent_links(sorted(named))
    there = [file for file in named if file.is_file()]
    there.sort(key=lambda file: (wanted[file.name.lower()], file.name))
    same = [file for file in there if file.name[: len(stem)] == path.name[: len(stem)]] or there
    if not same:
        raise InputError(
            "an ENVI header without its data file",
            where=path,
            expected=f"{path.stem}, {path.stem}.img, .dat, .raw or .bsq beside it",
            mend="put the data file beside its header",
        )
    if len(same) > 1:
        of_size = [file for file in same if file.stat().st_size == needed]
        return of_size[0] if of_size else same[0]
    return same[0]


def _refuse_packed(file: Path, path: Path) -> None:
    """Raises: InputError: the data went through gzip, and the header does not say so."""
    try:
        with open(file, "rb") as raw:
            if raw.read(len(GZIP)) != GZIP:
                return
        with gzip.open(file) as packed:
            packed.read(1)
    except READ_FAULTS:
        return  # it only begins like gzip, or cannot be read: the reading of it says more
    raise InputError(
        "the data are gzip, and the header does not say so",
        where=path,
        expected="file compression = 1 in the header",
        mend="set in the header: file compression = 1; or unpack the data: "
        f"{command('mv', file, f'{file}.gz')} && {command('gunzip', f'{file}.gz')}",
    )


def _mapped(header: _Header, path: Path) -> np.ndarray:
    file = header.data_file
    _refuse_packed(file, path)
    if (there := file.stat().st_size) < header.bytes:
        raise CorruptData(
            f"{there} bytes",
            where=file,
            expected=f"{header.bytes} bytes by {path.name}",
            mend="copy the file again from its source; or correct lines, samples, bands or data type in the header",
        )
    try:
        return np.memmap(file, header.dtype, "r", header.offset, header.shape)
    except READ_FAULTS as error:
        raise unreadable(file, error, f"{header.bytes} bytes") from error


def _inflated(header: _Header, path: Path) -> np.ndarray:
    """`file compression = 1`: the whole data file went through gzip. No more is inflated than the header states."""
    file = header.data_file
    with open(file, "rb") as raw:
        if raw.read(2) != b"\x1f\x8b":
            raise InputError(
                "file compression = 1, and the data are not gzip",
                where=path,
                expected="data as gzip makes them",
                mend="correct the line: file compression = 0",
            )
    try:
        with gzip.open(file) as packed:
            content = packed.read(header.bytes)
    except READ_FAULTS as error:
        raise CorruptData(
            f"the gzip data end in an error: {error}", where=file, expected="a whole file", mend="copy the file again from its source"
        ) from error
    if len(content) < header.bytes:
        raise CorruptData(
            f"{len(content)} bytes inside", where=file, expected=f"{header.bytes} bytes by {path.name}", mend="copy the file again"
        )
    return np.frombuffer(content, header.dtype, offset=header.offset).reshape(header.shape)


def _statements(fields: dict[str, str]) -> tuple[Statement, ...]:
    """What the header says of its values; other fields of such names are listed as unclear."""
    said = [Statement(kind=kind, name=name, value=fields[name]) for name, kind in STATEMENTS.items() if name in fields]
    for name in sorted(set(fields) - set(STATEMENTS)):
        statements = declared.from_attribute(name, fields[name], name) if name not in ("wavelength units", "gain", "offset") else []
        said += [declared.unclear(statement) for statement in statements]
    return tuple(said)


def _wavelengths_nm(fields: dict[str, str], path: Path) -> tuple[float, ...] | None:
    """Band centres in nm. A header without a unit is read as nm where every value is at least 100, never guessed below."""
    centres = _numbers(fields, "wavelength", path)
    if not centres:
        return None
    mend = "correct the header (wavelength units = Nanometers or Micrometers), or state them: --wavelengths {list}"
    return in_nm(centres, fields.get("wavelength units", ""), path, mend=mend)
