"""Files of plain arrays: .npy, HDF5 and netCDF-4, MATLAB v5 (scipy) and v7.3 (HDF5, axes reversed)."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from data_shards.errors import InputError, command
from data_shards.formats import hdf5_said
from data_shards.formats.faults import READ_FAULTS, unreadable
from data_shards.formats.neighbours import Neighbour, centres_of, unclear_said
from data_shards.formats.raw import Raw, ReadOptions, bands_first, check_numeric, check_size, the_one

MATLAB_NUMBERS = ("double", "single", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "logical")


def read_npy(path: Path, options: ReadOptions) -> Raw:
    """A .npy array, bands first unless --axes says otherwise. Arrays of pickled objects are refused.

    Raises:
        InputError: wrong axes, size or dtype; pickled. CorruptData: not a .npy file, or cut short.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: the header's claim is checked before memory is taken
    except READ_FAULTS as error:
        raise unreadable(path, error, "a plain .npy array: np.save(path, array, allow_pickle=False)") from error
    if not isinstance(array, np.ndarray):
        raise InputError("an .npz archive", where=path, expected="one array in a .npy file", mend="np.save the array by itself")
    check_size(array.shape, options, path)
    check_numeric(array.dtype, path)
    return _raw(array, options, path, "CHW", {}, [])


def read_hdf5(path: Path, options: ReadOptions) -> Raw:
    """A dataset of an HDF5 or netCDF-4 file, bands first unless --axes says otherwise.

    Raises:
        InputError: no or several candidates, data kept outside the file, wrong axes, size or dtype. CorruptData: not HDF5.
    """
    return _from_hdf5(path, options, matlab=False)


def read_mat(path: Path, options: ReadOptions) -> Raw:
    """A variable of a MATLAB file, rows x columns x bands unless --axes says otherwise.

    v7.3 files are HDF5, in which MATLAB stores every array with its axes reversed; they are turned back first, so
    --axes always means the order that MATLAB's size() shows.

    Raises:
        InputError: no or several candidates, wrong axes, size or dtype. CorruptData: not a MATLAB file.
    """
    if h5py.is_hdf5(path):
        return _from_hdf5(path, options, matlab=True)
    import scipy.io  # half of what starting any process of ours would take

    try:
        variables = scipy.io.whosmat(path)
        candidates = {name: shape for name, shape, kind in variables if kind in MATLAB_NUMBERS}
        others = {name: "text" if kind == "char" else f"a {kind}" for name, _, kind in variables if name not in candidates}
        name = the_one(candidates, options, path, others)
        check_size(candidates[name], options, path)
        small = [other for other, shape in candidates.items() if other != name and Neighbour.may_be(shape)]
        variables = scipy.io.loadmat(path, variable_names=[name, *small])
    except (*READ_FAULTS, scipy.io.matlab.MatReadError) as error:
        raise unreadable(path, error, "a MATLAB file of version 5 or 7.3") from error
    check_numeric(variables[name].dtype, path)
    beside = [Neighbour(name=other, values=np.asarray(variables[other])) for other in small if other in variables]
    return _raw(variables[name], options, path, "HWC", {"variable": name, "matlab": "v5"}, beside)


def _from_hdf5(path: Path, options: ReadOptions, *, matlab: bool) -> Raw:
    try:
        with h5py.File(path, "r") as file:
            datasets = _datasets(file)
            shapes = {name: dataset.shape[::-1] if matlab else dataset.shape for name, dataset in datasets.items()}
            name = the_one(shapes, ReadOptions(variable=options.variable.strip("/")), path, _others(file, datasets))
            dataset = datasets[name]
            _check_inside(dataset, name, path)
            check_size(dataset.shape, options, path)
            _check_filters(dataset, path)
            array, said, unused = hdf5_said.array_and_statements(dataset)
            beside = hdf5_said.neighbours(file, datasets, name)
            axes = "" if matlab else hdf5_said.axes_of(dataset)
    except READ_FAULTS as error:
        raise unreadable(path, error, "a whole HDF5 file") from error
    if matlab:
        return _raw(array.T, options, path, "HWC", {"variable": name, "matlab": "v7.3", **unused}, beside, said)
    return _raw(array, options, path, "CHW", {"variable": name, **unused}, beside, said, axes_said=axes)


def _check_inside(dataset: h5py.Dataset, name: str, path: Path) -> None:
    """Nothing is read from a place that a file of others names."""
    if dataset.external or dataset.is_virtual:
        raise InputError(
            f"dataset {name!r} is kept in another file", where=path, expected="data inside the file itself", mend="h5repack IN OUT"
        )


def _check_filters(dataset: h5py.Dataset, path: Path) -> None:
    """Refuse by name a compression that this HDF5 library lacks; reading would only complain about a plugin folder."""
    for code, name in hdf5_said.missing_filters(dataset):
        raise InputError(
            f"compressed by filter {code} ({name}), which is not installed",
            where=path,
            expected="gzip, lzf or no compression",
            mend=f"where the filter is installed: {command('h5repack', '-f', 'NONE', path.name, 'plain.h5')}",
        )


def _datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Every numeric dataset with at least one axis, by its full name; MATLAB's text is none. Links that leave the file are not followed."""
    found: dict[str, h5py.Dataset] = {}

    def keep(name: str, item: object) -> None:
        if not isinstance(item, h5py.Dataset) or item.attrs.get("MATLAB_class") == b"char":
            return
        if item.shape and item.dtype.kind in "buif" and item.dtype.fields is None:
            found[name] = item

    file.visititems(keep)  # visits hard links only: soft and external ones are left out
    return found


def _others(file: h5py.File, datasets: dict[str, h5py.Dataset]) -> dict[str, str]:
    """Name of all that is no array of numbers, and what it is. No link is followed."""
    found: dict[str, str] = {}

    def links(group: h5py.Group) -> None:
        for name in group:
            link = group.get(name, getlink=True)
            where = f"{group.name}/{name}".strip("/")
            if isinstance(link, h5py.ExternalLink):
                found[where] = f"a link into {link.filename}"
            elif isinstance(link, h5py.SoftLink):
                found[where] = f"a link to {link.path}"

    def item(name: str, there: object) -> None:
        if isinstance(there, h5py.Group):
            links(there)
        if not isinstance(there, h5py.Dataset) or name in datasets:
            return
        fields = there.dtype.fields or {}
        shape = "x".join(map(str, there.shape or ()))
        if (matlab := there.attrs.get("MATLAB_class")) in (b"char", b"cell", b"struct"):
            found[name] = "text" if matlab == b"char" else f"a {matlab.decode()}"
        elif there.dtype.kind == "c" or set(fields) == {"real", "imag"}:
            found[name] = f"complex numbers, {shape}"
        elif fields:
            found[name] = f"a table with the columns {', '.join(list(fields)[:5])}"
        elif there.shape == () and there.dtype.kind in "buif":
            found[name] = "a single number"
        else:
            found[name] = "text" if h5py.check_string_dtype(there.dtype) else f"of type {there.dtype}"

    links(file)
    file.visititems(item)
    return found


def _raw(
    array: np.ndarray,
    options: ReadOptions,
    path: Path,
    custom: str,
    facts: dict,
    beside: list[Neighbour],
    said: list | None = None,
    *,
    axes_said: str = "",
) -> Raw:
    """The array, bands first: by --axes, else as its file says, else by the custom of the format."""
    unstated = "" if options.axes or options.reshape_HW or array.ndim != 3 else axes_said or custom
    assumed = "" if axes_said else unstated
    data_CHW = bands_first(array, options, path, default_axes=axes_said or custom)
    axes = options.axes.upper() or ("matrix" if options.reshape_HW else axes_said or custom)
    centres_nm, hint, used = centres_of(beside, data_CHW.shape, options, path, unstated)  # an interleave may be wrong: NEON's is
    return Raw(
        data_CHW=np.ascontiguousarray(data_CHW, dtype=array.dtype.newbyteorder("=")),
        wavelengths_nm=centres_nm,
        axes_assumed=assumed,
        said=(*(said or ()), *unclear_said(beside, len(data_CHW))),
        hint=hint,
        facts={**facts, "axes": axes, **({"band_centres": used} if used else {})},
    )
