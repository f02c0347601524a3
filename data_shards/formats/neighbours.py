"""Arrays that stand beside an image in its HDF5 or MATLAB file: its band centres, and what may say how to read its values."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_shards.errors import InputError
from data_shards.formats import declared
from data_shards.formats.band_centres import in_nm
from data_shards.formats.declared import Statement
from data_shards.formats.raw import ReadOptions, axes_with_bands

MAX_VALUES = 100_000  # no list of bands is longer
CENTRES = re.compile(
    r"wave_?lengths?|wavelen|^wl$|^wls$|^wvl|^waves?$|^lambdas?$|cent(er|re)s?_?(nm|um)?$|^bands?_?(nm|um)$|^cw", re.IGNORECASE
)
NOT_CENTRES = re.compile(r"fwhm|good|bad|width|err|std|flag|uncert|index|count|number|unit", re.IGNORECASE)
UNIT_IN_NAME = re.compile(r"[_ ](nm|um)$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A small array of the file.

    Attributes:
        name: as `--wavelengths hdf5:NAME` takes it.
        unit: of its values, '' where nothing says so.
        near: it stands beside the image, and not elsewhere in the file.
    """

    name: str
    values: np.ndarray
    unit: str = ""
    near: bool = True

    @staticmethod
    def may_be(shape: tuple[int, ...]) -> bool:
        """Whether an array of this shape is a single value or a list."""
        return 0 < math.prod(shape) <= MAX_VALUES and sum(side > 1 for side in shape) <= 1

    @property
    def is_centres(self) -> bool:
        own = self.name.rpartition("@")[2].rpartition("/")[2]
        return bool(CENTRES.search(own)) and not NOT_CENTRES.search(own)


def centres_of(
    beside: list[Neighbour], shape_CHW: tuple[int, ...], options: ReadOptions, path: Path, axes_unstated: str
) -> tuple[tuple[float, ...] | None, str, str]:
    """Band centres in nm, where the option names them or one list of the right length bears their name.

    Args:
        axes_unstated: the order in the file of the axes C, H and W where no option states it, else ''.

    Returns: the centres or None, what to say where they are missing, and the name of the list that was used.

    Raises:
        InputError: the named list is absent, or of an unknown unit; the only list fits another axis of the array.
    """
    bands = shape_CHW[0]
    if options.centres:
        chosen = next((n for n in beside if n.name.strip("/") == options.centres.strip("/")), None)
        if chosen is None:
            raise InputError(
                f"no list of numbers {options.centres!r}",
                where=path,
                expected="one of: " + (_listed([n for n in beside if n.values.size > 1] or beside) or "none is in the file"),
                mend="--wavelengths hdf5:NAME",
            )
        return _nm(chosen, path), "", chosen.name
    lists = [n for n in beside if n.is_centres] if options.own_wavelengths else []
    fitting = [n for n in lists if n.values.size == bands]
    if fitting and all(np.array_equal(n.values.ravel(), fitting[0].values.ravel()) for n in fitting):
        return _nm(fitting[0], path), "", fitting[0].name
    _refuse_other_axis(lists, fitting, shape_CHW, path, axes_unstated)
    return None, f"they may stand in {_listed(lists)}: --wavelengths hdf5:NAME" if lists else "", ""


def _nm(chosen: Neighbour, path: Path) -> tuple[float, ...]:
    unit = chosen.unit or (match[1] if (match := UNIT_IN_NAME.search(chosen.name)) else "")
    return in_nm([float(v) for v in chosen.values.ravel()], unit, f"{path}, {chosen.name}")


def _refuse_other_axis(lists: list[Neighbour], fitting: list[Neighbour], shape_CHW: tuple[int, ...], path: Path, axes: str) -> None:
    """As many centres as the array has rows or columns, and not as many as bands: the axes are read in the wrong order."""
    sizes = {n.values.size for n in lists}
    if fitting or not axes or len(sizes) != 1 or not (orders := axes_with_bands(shape_CHW, axes, *sizes)):
        return
    raise InputError(
        f"{shape_CHW[0]} bands ({'x'.join(map(str, shape_CHW))} as bands x rows x columns), {sizes.pop()} band centres in {lists[0].name}",
        where=path,
        expected="a centre for each band",
        mend=f"state the order of the axes: --axes {' or --axes '.join(orders)}",
    )


def unclear_said(beside: list[Neighbour], bands: int) -> list[Statement]:
    """Lists and numbers beside the image whose names speak of scale or no-data: whose they are is not certain."""
    said = []
    for n in beside:
        own = n.name.rpartition("/")[2]
        if "@" in n.name or n.values.size not in (1, bands):
            continue
        statements = declared.from_attribute(own, n.values, f"{n.name} beside the image")
        said += [s for s in statements if s.kind == declared.BAD_BANDS and n.values.size == bands]
        said += [declared.unclear(s) for s in statements if n.near and s.kind not in (declared.BAD_BANDS, declared.UNIT)]
    return said


def _listed(some: list[Neighbour]) -> str:
    return ", ".join(f"{n.name} ({n.values.size} values)" for n in some[:8])
