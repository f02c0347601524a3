"""A folder of loose cubes: what `data phantom` and `data import` write, and what `data pack` reads.

For each sample: KEY.npy (C, H, W uint16), KEY.json (CubeMeta), optional KEY.labels.png and KEY.fov.png. KEY.json is
written last, so a sample without it is not there; anybody can write such a folder with numpy and a text editor.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from data_shards import durable
from data_shards.cube import Cube, CubeMeta, dtype_name
from data_shards.errors import CorruptData, InputError
from data_shards.formats.band_centres import in_nm
from data_shards.formats.faults import refuse_absent_links, unreadable


def png_bytes(map_HW: np.ndarray) -> bytes:
    """A label map or a mask as an 8-bit PNG (masks as 0 and 255, so that any viewer shows them)."""
    image = map_HW.astype(np.uint8) * 255 if map_HW.dtype == np.bool_ else map_HW
    Image.fromarray(image).save(buffer := io.BytesIO(), format="PNG")
    return buffer.getvalue()


def png_map(content: bytes, *, mask: bool, where: object) -> np.ndarray:
    """The inverse of `png_bytes`: uint8 labels, or a bool mask."""
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            map_HW = np.array(image)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise CorruptData(f"not a PNG: {error}", where=where, expected="an 8-bit grey PNG") from error
    if map_HW.ndim != 2 or map_HW.dtype != np.uint8:
        raise CorruptData(f"a PNG of shape {map_HW.shape}, {map_HW.dtype}", where=where, expected="one 8-bit grey channel")
    return map_HW > 0 if mask else map_HW


def maps_from(labels: bytes, fov: bytes, *, where: object) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Labels and field of view of one sample; None where there are no bytes."""
    labels_HW = png_map(labels, mask=False, where=where) if labels else None
    return labels_HW, png_map(fov, mask=True, where=where) if fov else None


def meta_bytes(meta: CubeMeta, data_CHW: np.ndarray) -> bytes:
    """KEY.json: the metadata, and shape and dtype so that bare bytes can be read by anybody.

    Raises:
        InputError: notes that are no JSON.
    """
    try:
        return durable.canonical_json({**vars(meta), "shape": data_CHW.shape, "dtype": dtype_name(data_CHW.dtype)})
    except (ValueError, TypeError, RecursionError):
        check_notes(meta, meta.key)
        raise


def check_notes(meta: CubeMeta, where: object) -> None:
    """Raises: InputError: notes with NaN or infinity, which Python reads and no other reader of JSON takes, or of other types."""
    for name, value in {"acquired": meta.acquired, **meta.notes}.items():
        try:
            durable.canonical_json({name: value})
        except (ValueError, TypeError, RecursionError) as error:
            raise InputError(
                f"note {name!r}: {error}",
                where=where,
                expected="JSON: finite numbers, texts, true, false, null, lists and objects",
                mend="write null, or leave it out",
            ) from error


def check_key(meta: CubeMeta, key: str, where: object) -> None:
    """Raises: InputError: metadata that name another sample than the file that they stand in."""
    if meta.key != key:
        raise InputError(
            f"key {meta.key!r} inside {key}.json", where=where, expected=repr(key), mend="correct the key there, or the file's name"
        )


def meta_from(content: bytes, *, where: object, key: str | None = None) -> CubeMeta:
    """CubeMeta from KEY.json; `key` fills in for metadata written by others, who keep the key in the file name alone.

    Raises:
        InputError: not JSON, unknown or missing fields, or values CubeMeta refuses.
    """
    try:
        fields = {**json.loads(content)}
        if key:
            fields.setdefault("key", key)
        fields["wavelengths_nm"] = tuple(float(w) for w in fields["wavelengths_nm"])
        # shape and dtype are the array's own; whoever holds the array has them
        return CubeMeta(**{name: value for name, value in fields.items() if name not in ("shape", "dtype")})
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"bad sample metadata: {error}", where=where, expected=f"JSON with {', '.join(CubeMeta.__dataclass_fields__)}"
        ) from error


def write_cube(folder: Path, cube: Cube) -> None:
    """Write one loose sample; its JSON last, as the mark that it is whole."""
    stem = folder / cube.meta.key
    with durable.writing(stem.with_name(stem.name + ".npy")) as file:
        np.save(file, cube.data_CHW, allow_pickle=False)
    if cube.labels_HW is not None:
        durable.write_bytes(stem.with_name(stem.name + ".labels.png"), png_bytes(cube.labels_HW))
    if cube.fov_HW is not None:
        durable.write_bytes(stem.with_name(stem.name + ".fov.png"), png_bytes(cube.fov_HW))
    durable.write_bytes(stem.with_name(stem.name + ".json"), meta_bytes(cube.meta, cube.data_CHW))


def keys_in(folder: Path) -> list[str]:
    """Keys of the whole samples of a folder, sorted.

    Raises:
        InputError: no such folder, or no sample in it.
    """
    if not folder.is_dir():
        raise InputError(
            "no such folder", where=folder, expected="a folder of KEY.npy with KEY.json", mend="retinaforge data import --help"
        )
    arrays = {stem for stem in _stems(folder, ".json") if os.path.lexists(folder / f"{stem}.npy")}
    refuse_absent_links(folder / f"{stem}{suffix}" for stem in sorted(arrays) for suffix in (".json", ".npy"))
    keys = sorted(arrays)
    if not keys:
        raise InputError("no cubes here", where=folder, expected="KEY.npy with KEY.json", mend="retinaforge data import --help")
    return keys


def _stems(folder: Path, suffix: str) -> list[str]:
    """Names of files without their suffix; hidden ones are of others, as macOS's `._` beside each file."""
    return [path.stem for path in folder.glob(f"*{suffix}") if not path.name.startswith(".")]


IMPORT_RECORD, PHANTOM_RECORD = "import.config.json", "phantom.json"  # what a folder of cubes was made from
WANTED = "cubes.wanted.json"  # how many cubes the folder will hold; by those who fill it one by one. No sample key has a dot


def note_wanted(folder: Path, cubes: int) -> None:
    """Say how many cubes a folder will hold, before they are there; the largest number that was said stands."""
    with durable.claimed(folder.with_name(f".wanted-{folder.name}"), "noting what is wanted", patience_s=60):
        if cubes > wanted_in(folder):
            durable.write_json(folder / WANTED, {"cubes": cubes})


def wanted_in(folder: Path) -> int:
    """How many cubes whoever fills the folder was asked for; 0 where nobody said."""
    path = folder / WANTED
    try:
        return int(json.loads(path.read_bytes())["cubes"])
    except FileNotFoundError:
        return 0
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CorruptData(
            f"unreadable: {error}", where=path, expected='{"cubes": N}', mend="the command that makes these cubes, once more"
        ) from error


def all_keys_in(folder: Path) -> list[str]:
    """The keys of a folder that is filled: as `keys_in`.

    Raises:
        InputError: whoever fills it was ended before, or has not ended yet; an array or its metadata is missing.
    """
    keys = keys_in(folder)
    if len(keys) < (wanted := wanted_in(folder)):
        raise InputError(
            f"{len(keys)} cubes, where {wanted} were asked for",
            where=folder,
            expected="a folder whose making has ended",
            mend="the command that makes these cubes, once more: it makes what is missing. To be content with these: "
            f"rm {shlex.quote(str(folder / WANTED))}",
        )
    _check_pairs(folder, set(keys))
    return keys


OF_A_SAMPLE = (b'"wavelengths_nm"', b'"scale"', b'"subject_id"')  # other JSON files may lie beside the samples


def _check_pairs(folder: Path, keys: set[str]) -> None:
    """Refuse half a sample: it was lost on a copy, or its writer was ended."""
    halves = {f"{stem}.npy": f"{stem}.json" for stem in _stems(folder, ".npy") if stem not in keys}
    for stem in _stems(folder, ".json"):
        path = folder / f"{stem}.json"
        if "." in stem or stem in keys or path.is_dir():
            continue
        content = content_of(path)
        if all(field in content for field in OF_A_SAMPLE):
            halves[path.name] = f"{stem}.npy"
    for name, missing in sorted(halves.items())[:1]:
        raise InputError(
            f"{name} without {missing}" + (f", and {len(halves) - 1} more such files" if len(halves) > 1 else ""),
            where=folder,
            expected="KEY.npy and KEY.json of each sample",
            mend=f"bring {missing} back, or move {name} out of the folder if it is no sample",
        )


def content_of(path: Path) -> bytes:
    """A file of a sample; who is writing elsewhere is not to blame for it."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error, "a file of a sample") from error


def read_meta(folder: Path, key: str) -> CubeMeta:
    """The metadata of one loose sample.

    Raises:
        InputError, CorruptData: as `meta_from`, or unreadable bytes.
    """
    path = folder / f"{key}.json"
    return meta_from(content_of(path), where=path)


def read_cube(folder: Path, key: str) -> Cube:
    """Read one loose sample.

    Raises:
        InputError: wrong shape, dtype, labels or metadata. CorruptData: unreadable bytes. Pickled arrays are refused.
    """
    meta = read_meta(folder, key)
    check_key(meta, key, folder)
    try:
        data_CHW = np.load(folder / f"{key}.npy", allow_pickle=False)
    except OSError as error:
        raise unreadable(folder / f"{key}.npy", error, "a file of a sample") from error
    except (ValueError, EOFError) as error:
        raise CorruptData(
            f"not a plain .npy array: {error}", where=folder / f"{key}.npy", expected="np.save(..., allow_pickle=False)"
        ) from error
    if data_CHW.dtype == np.uint16:  # latents have no wavelengths
        in_nm(meta.wavelengths_nm, "nm", folder / f"{key}.json", mend='"wavelengths_nm": [{list}]')
    return Cube(data_CHW=data_CHW, meta=meta, labels_HW=_map(folder, meta, "labels"), fov_HW=_map(folder, meta, "fov"))


MAP_FILE = re.compile(r".+\.(png|gif|tiff?|bmp|p[bgnp]m|jpe?g)", re.IGNORECASE)


def _map(folder: Path, meta: CubeMeta, kind: str) -> np.ndarray | None:
    """KEY.labels.png or KEY.fov.png; None where there is none, and was none.

    Raises:
        InputError: it is gone: the notes tell that the import wrote it, or a link lost its content.
    """
    path = folder / f"{meta.key}.{kind}.png"
    if path.exists() or path.is_symlink():
        return png_map(content_of(path), mask=kind == "fov", where=path)
    if said := _noted_map(meta.notes, kind):
        raise InputError(
            f"no {path.name}, and the notes of the sample say {said}",
            where=path,
            expected="the map that was written with the cube",
            mend=f"bring {path.name} back from where the folder came from, or make the cubes again: retinaforge data import --help",
        )
    return None


def _noted_map(notes: dict[str, Any], kind: str) -> str:
    """What in the notes of an import tells that the sample has such a map; '' where nothing does."""
    traces = {}
    if kind == "labels" and notes.get("label_pixels"):
        traces["label_pixels"] = notes["label_pixels"]
    if kind == "fov":
        no_data, operations = notes.get("no_data"), notes.get("operations")
        pixels = no_data.get("pixels") if isinstance(no_data, dict) else 0
        if isinstance(pixels, int) and pixels > 0:
            traces["no_data"] = no_data
        padded = [step for step in operations if str(step).startswith("pad ")] if isinstance(operations, list) else []
        if padded:
            traces["operations"] = padded
    if MAP_FILE.fullmatch(str(notes.get(kind, ""))):
        traces[kind] = notes[kind]
    return ", ".join(f"{name}: {value}" for name, value in traces.items())


def read_folder(folder: Path) -> Iterator[Cube]:
    """All samples of a folder, in the order of their keys."""
    for key in all_keys_in(folder):
        yield read_cube(folder, key)
