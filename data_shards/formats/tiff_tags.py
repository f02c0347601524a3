"""What TIFF tags say of the values: GDAL's tags 42112 (items a band, XML) and 42113 (no-data), ImageJ's calibration."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import tifffile

from data_shards.errors import InputError
from data_shards.formats import declared
from data_shards.formats.band_centres import in_nm
from data_shards.formats.declared import Statement
from data_shards.formats.raw import ReadOptions

GDAL_METADATA, GDAL_NODATA = 42112, 42113
MAX_XML_CHARACTERS = 1 << 24
ROLES = {"scale": declared.SCALE, "offset": declared.OFFSET, "unittype": declared.UNIT}
CENTRES = {
    "centralwavelengthum": "um",
    "wavelength": "",
    "wavelengthnm": "nm",
    "wavelengthum": "um",
}  # letters of the item's name: its unit


@dataclass(frozen=True, kw_only=True)
class Tags:
    """The tags' content as it stands in the file.

    Attributes:
        pages: (metadata, no-data) of each page, None where it has no such tag.
        imagej: ImageJ's settings.
        unwritten: the strips or tiles that were left out, which tifffile fills.
    """

    pages: list[tuple[str | None, str | None]]
    imagej: dict[str, Any]
    unwritten: tuple[Statement, ...]


def whole_pages(tiff: tifffile.TiffFile) -> list[tifffile.TiffPage]:
    """All pages with their tags: of OME and other stacks tifffile keeps frames, which have none."""
    return [page if isinstance(page, tifffile.TiffPage) else page.aspage() for page in tiff.pages]


def gathered(tiff: tifffile.TiffFile) -> Tags:
    """The tags of all pages."""
    content = []
    for page in whole_pages(tiff):
        values = [page.tags.valueof(tag) for tag in (GDAL_METADATA, GDAL_NODATA)]
        content.append(tuple(None if value is None else str(value).strip("\0 \n") for value in values))
    counts = [(count, page) for page in whole_pages(tiff) for count in page.databytecounts]
    absent = [page for count, page in counts if count == 0]
    name = f"{len(absent)} of {len(counts)} strips or tiles"
    unwritten = (Statement(kind=declared.UNWRITTEN, name=name, value=float(absent[0].nodata)),) if absent else ()
    return Tags(pages=content, imagej=tiff.imagej_metadata or {}, unwritten=unwritten)


def said_in(
    tags: Tags, bands: int, path: Path, options: ReadOptions
) -> tuple[tuple[Statement, ...], tuple[float, ...] | None, dict[str, Any]]:
    """Statements of the image, its band centres in nm where its items give them, and the items that are not used, for the notes.

    Args:
        bands: of the image, be they pages or samples of a pixel.

    Raises:
        InputError: items that are not XML, pages that contradict each other, centres in an unknown unit.
    """
    tagged = [page for page in tags.pages if page != (None, None)]
    said, items = [], []
    if len(tagged) > 1:
        said += declared.of_bands([_of_page(*page, 1, path)[0] for page in tags.pages], path)
    elif tagged:
        said, items = _of_page(*tagged[0], bands, path)
    said = [*said, *_imagej(tags.imagej), *tags.unwritten]
    used = {*ROLES, *(declared.letters_of(name) for name in CENTRES)}
    unused = declared.not_used({item["name"]: item["text"] for item in items if declared.letters_of(item["name"]) not in used})
    return tuple(said), _centres(items, path) if options.own_wavelengths else None, unused


def _of_page(metadata: str | None, nodata: str | None, bands: int, path: Path) -> tuple[list[Statement], list[dict[str, str]]]:
    """The statements of one page's tags, and its items."""
    items = _items(metadata or "", path)
    said = []
    if nodata is not None:
        said.append(Statement(kind=declared.NO_DATA, name="tag 42113 (GDAL_NODATA)", value=nodata))
    for role, kind in ROLES.items():
        text_of = {item["sample"]: item["text"] for item in items if item["role"] == role or (not item["role"] and item["name"] == role)}
        if not text_of:
            continue
        name = f"tag 42112, items {role.upper()}"
        default = {"scale": "1", "offset": "0"}.get(role, "")
        whole = text_of.pop("", default)  # an item without a sample is of all bands
        values = [text_of.get(str(band), whole) for band in range(bands)]
        if kind != declared.UNIT:
            said.append(Statement(kind=kind, name=name, value=values))
        else:
            said += [Statement(kind=kind, name=name, value=value) for value in dict.fromkeys(values) if value]
    for item in items:
        if item["role"] not in ROLES and item["name"] not in ROLES:
            said += [declared.unclear(s) for s in declared.from_attribute(item["name"], item["text"], f"tag 42112, item {item['name']}")]
    return said, items


def _items(text: str, path: Path) -> list[dict[str, str]]:
    """name, role, sample and text of each item, names and roles in lower case."""
    if not text:
        return []
    try:
        if len(text) > MAX_XML_CHARACTERS or re.search(r"<!(DOCTYPE|ENTITY)", text):
            raise ValueError("longer than any list of items, or with entities")
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise InputError(
            f"tag 42112 (GDAL_METADATA) cannot be read: {error}",
            where=path,
            expected="<GDALMetadata><Item …>",
            mend="write it anew, or take the tag out: tiffset -u 42112 FILE",
        ) from error
    return [
        {
            "name": item.get("name", "").lower(),
            "role": item.get("role", "").lower(),
            "sample": item.get("sample", ""),
            "text": (item.text or "").strip(),
        }
        for item in root.iter("Item")
    ]


def _centres(items: list[dict[str, str]], path: Path) -> tuple[float, ...] | None:
    """Band centres of items such as CENTRAL_WAVELENGTH_UM, one a sample."""
    units = {item["text"] for item in items if declared.letters_of(item["name"]) in ("wavelengthunits", "wavelengthunit")}
    for letters, own in CENTRES.items():
        text_of = {item["sample"]: item["text"] for item in items if declared.letters_of(item["name"]) == letters}
        if not text_of or not all(sample.isdecimal() for sample in text_of):
            continue
        statement = Statement(kind="", name=f"tag 42112, items {letters}", value=[text_of[sample] for sample in sorted(text_of, key=int)])
        unit = own or (units.pop() if len(units) == 1 else "")
        return in_nm(statement.numbers(path, "--wavelengths LIST"), unit, path)
    return None


def _imagej(meta: dict[str, Any]) -> list[Statement]:
    """ImageJ's calibration function: cf 0 is value = c0 + c1 * stored, in `vunit`; others are not straight lines."""
    if "cf" not in meta:
        return []
    if meta["cf"] != 0:
        return [Statement(kind=declared.UNCLEAR_SCALE, name="ImageJ calibration function cf", value=meta["cf"])]
    said = [
        Statement(kind=declared.SCALE, name="ImageJ calibration c1", value=meta.get("c1", 1.0)),
        Statement(kind=declared.OFFSET, name="ImageJ calibration c0", value=meta.get("c0", 0.0)),
    ]
    unit = str(meta.get("vunit", "")).strip()
    return said + ([Statement(kind=declared.UNIT, name="ImageJ unit", value=unit)] if unit else [])
