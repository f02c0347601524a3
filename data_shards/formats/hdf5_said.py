"""What an HDF5 or netCDF-4 file says of a data set in attributes (CF, netCDF's guide, observatories' spellings), and its neighbours."""

from __future__ import annotations

import math
import re
from typing import Any

import h5py
import numpy as np

from data_shards.formats import declared
from data_shards.formats.declared import Statement, numbers_in
from data_shards.formats.neighbours import Neighbour

HOUSEKEEPING = ("DIMENSION_LIST", "REFERENCE_LIST", "CLASS", "NAME", "MATLAB_class", "_Netcdf4Dimid", "_Netcdf4Coordinates")
INTERLEAVES = {"bsq": "CHW", "bil": "HCW", "bip": "HWC"}
AXIS_NAMES = {
    "C": re.compile(r"band|wave|lambda|wvl|spectr|channel|^[cl]$", re.IGNORECASE),
    "H": re.compile(r"row|line|lat|north|height|along|^[yh]$", re.IGNORECASE),
    "W": re.compile(r"col|sample|pixel|lon|east|width|across|cross|^[xw]$", re.IGNORECASE),
}


def array_and_statements(dataset: h5py.Dataset) -> tuple[np.ndarray, list[Statement], dict[str, Any]]:
    """The values, unsigned where netCDF's `_Unsigned` says so, the statements about them, and what is not used, for the notes."""
    attributes = _attributes(dataset)
    array, unsigned = dataset[()], str(attributes.get("_Unsigned", "")).lower() == "true" and dataset.dtype.kind == "i"
    said = [s for name, value in attributes.items() for s in declared.from_attribute(name, value, f"attribute {name}")]
    said += _fill_value(dataset, said)
    said += _unwritten(dataset)
    for group in _groups_above(dataset):
        for name, value in _attributes(group).items():
            label = f"attribute {name} of group {group.name}"
            if declared.is_numeric(value):
                said += [declared.unclear(s) for s in declared.from_attribute(name, value, label)]
    said = [_as_stored(s, attributes, dataset.dtype) for s in said]
    unused = declared.not_used({name: value for name, value in attributes.items() if name != "_Unsigned"})
    if not unsigned:
        return array, said, unused
    bits = dataset.dtype.itemsize * 8
    return array.view(array.dtype.str.replace("i", "u")), [_wrapped(s, bits) for s in said], unused


def neighbours(file: h5py.File, datasets: dict[str, h5py.Dataset], image: str) -> list[Neighbour]:
    """Lists and single numbers of the file, and those in attributes of the image and the groups above it."""
    folder = image.rpartition("/")[0]
    beside = [
        Neighbour(
            name=name,
            values=np.asarray(dataset[()]),
            unit=_unit(_attributes(dataset)),
            near=name.rpartition("/")[0] == folder,
        )
        for name, dataset in datasets.items()
        if name != image and Neighbour.may_be(dataset.shape) and _is_readable(dataset)
    ]
    scalars = [item for item in file[folder or "/"].values() if isinstance(item, h5py.Dataset) and item.shape == ()]
    beside += [Neighbour(name=item.name.strip("/"), values=np.asarray(item[()])) for item in scalars if item.dtype.kind in "buif"]
    for item in (datasets[image], *_groups_above(datasets[image])):
        attributes = _attributes(item)
        beside += [
            Neighbour(name=f"{item.name.strip('/')}@{name}", values=np.asarray(value), unit=_unit(attributes, name))
            for name, value in attributes.items()
            if isinstance(value, np.ndarray) and value.dtype.kind in "buif" and value.size > 1 and Neighbour.may_be(value.shape)
        ]
    return beside


def missing_filters(dataset: h5py.Dataset) -> list[tuple[int, str]]:
    """Number and name of each compression of a data set that this HDF5 library lacks."""
    plan = dataset.id.get_create_plist()
    filters = [plan.get_filter(i) for i in range(plan.get_nfilters())]
    return [(code, name.decode(errors="replace") or "no name") for code, _, _, name in filters if not h5py.h5z.filter_avail(code)]


def _is_readable(dataset: h5py.Dataset) -> bool:
    """Whether a neighbour can be looked at: what is kept elsewhere or packed in an unknown way is nobody's fault here."""
    return not dataset.external and not dataset.is_virtual and not missing_filters(dataset)


def _attributes(item: h5py.Dataset | h5py.Group) -> dict[str, Any]:
    """Attributes that are numbers or text; references and empty ones say nothing of values."""
    attributes = {}
    for name in item.attrs:
        if name in HOUSEKEEPING:
            continue
        value = item.attrs[name]
        if isinstance(value, bytes | str | int | float | np.number | np.bool_) or (
            isinstance(value, np.ndarray) and value.dtype.kind in "buifSOU" and value.size
        ):
            attributes[name] = value
    return attributes


def _groups_above(dataset: h5py.Dataset) -> list[h5py.Group]:
    groups, group = [], dataset.parent
    while group.name != "/":
        groups.append(group)
        group = group.parent
    return [*groups, group]


def _unit(attributes: dict[str, Any], of: str = "") -> str:
    """The unit of a list: its attribute `units`, or beside an attribute NAME one that is called NAME_units."""
    for name, value in attributes.items():
        if declared.letters_of(name) in (
            (f"{declared.letters_of(of)}unit", f"{declared.letters_of(of)}units") if of else ("unit", "units")
        ):
            return declared.words_in(value)[0]
    return ""


def _fill_value(dataset: h5py.Dataset, said: list[Statement]) -> list[Statement]:
    """HDF5's own fill value, where somebody set one that is not 0: what was never written reads as it."""
    plan = dataset.id.get_create_plist()
    if any(s.kind == declared.NO_DATA for s in said) or plan.fill_value_defined() != h5py.h5d.FILL_VALUE_USER_DEFINED:
        return []
    value = dataset.fillvalue
    return [Statement(kind=declared.NO_DATA, name="HDF5 fill value", value=value.item())] if value else []


def _unwritten(dataset: h5py.Dataset) -> list[Statement]:
    """What was made and not written, as an acquisition that was interrupted leaves it: HDF5 reads the fill value there."""
    pieces = 1 if dataset.chunks is None else math.prod(-(-n // size) for n, size in zip(dataset.shape, dataset.chunks, strict=True))
    there = int(dataset.id.get_storage_size() > 0) if dataset.chunks is None else dataset.id.get_num_chunks()
    if there >= pieces:
        return []
    what = f"{pieces - there} of {pieces} chunks" if dataset.chunks else "all values"
    return [Statement(kind=declared.UNWRITTEN, name=f"{what} of {dataset.name.strip('/')}", value=float(dataset.fillvalue))]


def _as_stored(statement: Statement, attributes: dict[str, Any], dtype: np.dtype) -> Statement:
    """A valid range of floats about packed integers is one of unpacked values (netCDF users' guide): packed again here."""
    limit = statement.kind in (declared.VALID_MIN, declared.VALID_MAX)
    own = attributes.get(statement.name.removeprefix("attribute "))
    if not limit or dtype.kind not in "iu" or np.asarray(own).dtype.kind != "f" or "scale_factor" not in attributes:
        return statement
    (scale,), (offset,) = numbers_in(attributes["scale_factor"])[:1], numbers_in(attributes.get("add_offset", 0.0))[:1]
    packed = (numbers_in(statement.value)[0] - offset) / scale if scale else numbers_in(statement.value)[0]
    return Statement(kind=statement.kind, name=statement.name, value=packed + (1e-6 if statement.kind == declared.VALID_MAX else -1e-6))


def _wrapped(statement: Statement, bits: int) -> Statement:
    """A negative number of a signed attribute about unsigned values: the same bits."""
    if statement.kind not in (declared.NO_DATA, declared.VALID_MIN, declared.VALID_MAX, declared.UNWRITTEN):
        return statement
    values = [value + 2**bits if value < 0 else value for value in numbers_in(statement.value)]
    return Statement(kind=statement.kind, name=statement.name, value=values)


def axes_of(dataset: h5py.Dataset) -> str:
    """The order of three axes, such as 'HWC', where labels, dimension scales or an interleave name them; else ''."""
    interleave = dataset.attrs.get("interleave", dataset.attrs.get("Interleave"))
    if isinstance(interleave, str | bytes) and (axes := INTERLEAVES.get(declared.words_in(interleave)[0].lower())):
        return axes
    letters = ""
    for dimension in dataset.dims:
        names = [dimension.label, *(scale.name.rpartition("/")[2] for scale in dimension.values())]
        letters += next((axis for name in names for axis, pattern in AXIS_NAMES.items() if name and pattern.search(name)), "?")
    return letters if sorted(letters) == ["C", "H", "W"] else ""
